"""Hashes of the code and the files that a run's configuration names: what it needs to be the same run again."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.utils import get_object, to_absolute_path

from normlab.config.schema import OF_THE_VERDICT
from normlab.errors import ConfigError
from normlab.results.result import Result

KNOWN = ("normlab", "torch", "pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics")
"""Packages whose version stands in the record."""
WITHOUT_RESULT = ("callbacks", "logger", "trainer", "hydra", *OF_THE_VERDICT)
"""Groups and keys that do not change what is trained: files of such names are no sources."""


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
