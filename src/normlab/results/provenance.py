"""Provenance of a run: command, versions, hardware, commit and source files."""

import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.utils import get_object, to_absolute_path
from omegaconf import OmegaConf

from normlab.config.schema import REPORT_KEYS
from normlab.errors import ConfigError
from normlab.results.result import Result

VARIABLE = "NORMLAB_COMMAND"
"""Environment variable that passes the command to the worker processes of a launcher."""

CONFIG_OPTIONS = ("config_path", "config_name", "config_dir")
REPRODUCED_OVERRIDES = (
    "hydra.searchpath=",
    "+hydra.job.env_set.",
    "hydra.job.env_set=",
    "hydra.job.env_copy=",
    "hydra.job.chdir=",
)
"""Prefixes of Hydra overrides that affect the training; the others only affect where output is written."""
PACKAGES = ("normlab", "torch", "pytorch-lightning", "hydra-core", "torchmetrics", "tensorboard", "numpy")
VERSIONED_PACKAGES = ("normlab", "torch", "pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics")
"""Packages whose code is identified by its recorded version instead of a hash."""
KEYS_WITHOUT_SOURCES = ("callbacks", "logger", "trainer", "hydra", "ckpt_path", "claim", *REPORT_KEYS)
"""Groups and keys that do not affect the training, so that files they name are not hashed."""


def remember_command() -> None:
    """Store this process's command in the environment, for the runs that it and its workers train."""
    os.environ[VARIABLE] = json.dumps([*entry_point(), *config_options(sys.argv[1:])])


def remembered_command() -> list[str]:
    """Return the stored command as a list of words; empty if nothing is stored."""
    return json.loads(os.environ.get(VARIABLE, "[]"))


def entry_point() -> list[str]:
    """Return the command that starts the program: a script, a module (``python -m``) or a console script."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.origin and Path(spec.origin).absolute() == Path(sys.argv[0]).absolute():
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    if sys.argv[0].endswith(".py"):
        return ["python", sys.argv[0]]
    return Path(sys.argv[0]).name.split()  # normlab train


def config_options(words: list[str]) -> list[str]:
    """Select the options and overrides that determine the sources of the configuration.

    >>> config_options(["-m", "-cd", "mine", "model=bn", "hydra.searchpath=[file://lab]"])
    ['--config-dir', 'mine', 'hydra.searchpath=[file://lab]']
    """
    known, unknown = get_args_parser().parse_known_args(words)
    options = [(name, value) for name in CONFIG_OPTIONS if (value := getattr(known, name)) is not None]
    overrides = [word for word in (*known.overrides, *unknown) if word.startswith(REPRODUCED_OVERRIDES)]
    return [*(word for name, value in options for word in (f"--{name.replace('_', '-')}", value)), *overrides]


@cache
def environment() -> dict[str, Any]:
    """Return the package versions, the machine, and the commit of this process."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        **commit(),
    }


def commit() -> dict[str, Any]:
    """Return the commit of this source tree and whether tracked files differ from it; None without git."""
    try:
        revision = git("rev-parse", "HEAD")
        return {"commit": revision, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def git(*arguments: str, folder: Path = Path(__file__).parent) -> str:
    """Run a git command in a folder, by default that of this file, and return its output."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def sources_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each source file and data file that a configuration names, by dotted key.

    These are the files that define a ``_target_`` outside ``VERSIONED_PACKAGES``, and the files whose path is a
    value of the configuration, such as ``data.path``. Imports of these files are not followed.
    """
    parts = {key: value for key, value in config.items() if key not in KEYS_WITHOUT_SOURCES}
    return {key: digest(path) for key, path in files_of(parts)}


def files_of(node: Any, key: str = "") -> Iterator[tuple[str, Path]]:
    """Yield ``(dotted key, path)`` for the files that a part of a configuration names."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from files_of(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from files_of(value, f"{key}.{index}")
    elif isinstance(node, str) and node:
        path = code_of(node) if key.endswith("_target_") else Path(to_absolute_path(node)).expanduser()
        if path is not None and os.path.isfile(path):  # unlike Path.is_file, False for strings that are no paths
            yield key, path


@lru_cache(maxsize=1024)
def code_of(target: str) -> Path | None:
    """Return the file that defines a ``_target_``; None for ``VERSIONED_PACKAGES`` and built-in code."""
    if target.partition(".")[0] in VERSIONED_PACKAGES:
        return None
    try:
        path = inspect.getsourcefile(inspect.unwrap(get_object(target)))
    except TypeError:  # raised for built-in objects and instances
        return None
    return Path(path) if path else None


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, cached until its modification time or size changes."""
    status = path.stat()
    return _digest(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1024)
def _digest(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_same_sources(folder: Path, result: Result, config: Mapping[str, Any]) -> None:
    """Check that the code and data of a finished run have not changed since.

    A record without hashes, from an earlier version, passes.

    Raises:
        ConfigError: with the changed files or the changed version of normlab.
    """
    now = sources_of(config) if result.sources else {}
    values = OmegaConf.create(dict(config))
    changed = [
        f"{key}={OmegaConf.select(values, key)}"
        for key, before in result.sources.items()
        if now.get(key) != before
    ]
    versions = result.environment.get("versions", {})
    before, current = versions.get("normlab", version("normlab")), version("normlab")
    if before != current:
        changed.append(f"normlab {before} (now {current})")
    if changed:
        raise ConfigError(
            f"{folder} holds a result of code or data that have changed since: {', '.join(changed)}; "
            "add retrain=true to train it again, or choose another folder"
        )
