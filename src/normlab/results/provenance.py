"""Provenance of a run: its command, versions, machine, and hashes of the code and files that it used."""

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

from normlab.config.schema import OF_THE_VERDICT
from normlab.errors import ConfigError
from normlab.results.result import Result

VARIABLE = "NORMLAB_COMMAND"
"""The environment variable that hands the words to the processes in which a launcher trains."""

CONFIG_OPTIONS = ("config_path", "config_name", "config_dir")
KEPT = (
    "hydra.searchpath=",
    "+hydra.job.env_set.",
    "hydra.job.env_set=",
    "hydra.job.env_copy=",
    "hydra.job.chdir=",
)
"""Overrides of Hydra's own keys that change what a run trains; others say where it is written and how."""
PACKAGES = ("normlab", "torch", "pytorch-lightning", "hydra-core", "torchmetrics", "tensorboard", "numpy")
KNOWN = ("normlab", "torch", "pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics")
"""Packages whose version stands in the record."""
WITHOUT_RESULT = ("callbacks", "logger", "trainer", "hydra", *OF_THE_VERDICT)
"""Groups and keys that do not change what is trained: files of such names are no sources."""


def remember_command() -> None:
    """Note the words of this process's command for the runs that it and its workers train."""
    os.environ[VARIABLE] = json.dumps([*entry_point(), *options(sys.argv[1:])])


def remembered_command() -> list[str]:
    """Return the words that were noted, none where nothing was."""
    return json.loads(os.environ.get(VARIABLE, "[]"))


def entry_point() -> list[str]:
    """Return the words that start the program: a file, a module or an installed command."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.origin and Path(spec.origin).absolute() == Path(sys.argv[0]).absolute():
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    if sys.argv[0].endswith(".py"):
        return ["python", sys.argv[0]]
    return [Path(sys.argv[0]).name]


def options(words: list[str]) -> list[str]:
    """Return the options and overrides among the words that choose where the configuration comes from.

    >>> options(["-m", "-cd", "mine", "model=bn", "hydra.searchpath=[file://lab]"])
    ['--config-dir', 'mine', 'hydra.searchpath=[file://lab]']
    """
    given, others = get_args_parser().parse_known_args(words)
    chosen = [(name, value) for name in CONFIG_OPTIONS if (value := getattr(given, name)) is not None]
    kept = [word for word in (*given.overrides, *others) if word.startswith(KEPT)]
    return [*(word for name, value in chosen for word in (f"--{name.replace('_', '-')}", value)), *kept]


@cache
def environment() -> dict[str, Any]:
    """Return the versions, the machine and the commit that this process runs with."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        **commit(),
    }


def commit() -> dict[str, Any]:
    """Return the commit of this source tree, and whether it has been changed since; None where there is no git."""
    try:
        revision = git("rev-parse", "HEAD")
        return {"commit": revision, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def git(*arguments: str) -> str:
    """Return the output of a git command in the folder of this file."""
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    ).stdout.strip()


def sources_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of each source file and each data file that a configuration names, by its key.

    These are the files that define a ``_target_`` outside normlab, torch and Lightning, and every file whose path
    is a value of the configuration, as ``data.path``. What such a file imports is not followed.
    """
    parts = {key: value for key, value in config.items() if key not in WITHOUT_RESULT}
    return {key: digest(path) for key, path in files_of(parts)}


def files_of(node: Any, key: str = "") -> Iterator[tuple[str, Path]]:
    """Yield the files that a part of a configuration names, with their dotted keys."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from files_of(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from files_of(value, f"{key}.{place}")
    elif isinstance(node, str) and node:
        path = code_of(node) if key.endswith("_target_") else Path(to_absolute_path(node)).expanduser()
        if path is not None and is_file(path):
            yield key, path


@lru_cache(maxsize=1024)
def code_of(target: str) -> Path | None:
    """Return the file that defines a ``_target_``, None for a known package and for code without a file."""
    if target.partition(".")[0] in KNOWN:
        return None
    try:
        path = inspect.getsourcefile(inspect.unwrap(get_object(target)))
    except TypeError:  # of an object that is built in, or an instance
        return None
    return Path(path) if path else None


def is_file(path: Path) -> bool:
    """Return whether a path is that of a file; a text that no path can be is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, read once for each state that it is found in."""
    found = path.stat()
    return _digest(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1024)
def _digest(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_same_sources(folder: Path, result: Result, config: Mapping[str, Any]) -> None:
    """Refuse to take the result of a finished run whose code or data have changed since.

    A record without hashes, as earlier versions wrote, is taken.

    Raises:
        ConfigError: what has changed, and how to go on.
    """
    now = sources_of(config) if result.sources else {}
    changed = [
        f"{key}={value_at(config, key)}" for key, before in result.sources.items() if now.get(key) != before
    ]
    versions = result.environment.get("versions", {})
    before, current = versions.get("normlab", version("normlab")), version("normlab")
    if before != current:
        changed.append(f"normlab {before}, which is {current} now")
    if changed:
        raise ConfigError(
            f"{folder} holds a result of other code or data, changed since: {', '.join(changed)}; "
            "retrain=true trains it again, or choose another folder"
        )


def value_at(config: Any, key: str) -> Any:
    """Return the value of a dotted key."""
    for part in key.split("."):
        config = config[int(part)] if isinstance(config, list) else config[part]
    return config
