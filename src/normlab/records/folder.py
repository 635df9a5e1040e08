"""The folder of a run or a sweep: whose it is, and what may be done in it."""

import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from normlab.config import ConfigError
from normlab.records.result import FILE, Result, spell_out

HYDRA_CONFIG = Path(".hydra") / "config.yaml"
SWEEP_CONFIG = "multirun.yaml"


def free_folder(path: Path) -> Path:
    """Make ``path``, or ``path-2``, ``path-3``, … if it is there already, and return the one made.

    Two sweeps that start in the same second get two folders: making one is atomic.
    """
    number, candidate = 1, path
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")


def require_sweep(folder: Path) -> None:
    """Make sure that a sweep may write into ``folder``: it is empty, or holds a sweep.

    Raises:
        ConfigError: if somebody else's files are in it, or a single run.
    """
    if (folder / HYDRA_CONFIG.parent).exists() or (folder / FILE).exists():
        raise ConfigError(f"{folder} holds a single run; choose another folder for the sweep")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SWEEP_CONFIG).exists():
        raise ConfigError(f"{folder} is not empty and holds no sweep; choose another folder")


def require_writable(folder: Path) -> None:
    """Make sure that files can be written into ``folder``, which is made if need be.

    Raises:
        ConfigError: if it is not so.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a composed config without Hydra's own part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a config as plain data, every interpolation resolved."""
    return spell_out(OmegaConf.to_container(config, resolve=True))


def earlier_result(folder: Path, config: DictConfig) -> Result | None:
    """Return the result of this configuration that ``folder`` holds, or None if there is none yet.

    Raises:
        ConfigError: if the folder belongs to another configuration, or holds something else; nothing in it is
            touched.
    """
    result = Result.read(folder)
    ours: Any = plain(config)
    theirs: Any = ours
    if result is not None:
        theirs = result.config
    elif (folder / HYDRA_CONFIG).exists():
        # The interpolations of a run that was killed are as they were typed, not resolved.
        ours = OmegaConf.to_container(config)
        theirs = OmegaConf.to_container(OmegaConf.load(folder / HYDRA_CONFIG))
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no run; choose another folder")
    if ours != theirs:
        keys = ", ".join(differing_keys(ours, theirs)[:3])
        raise ConfigError(
            f"{folder} holds a run of another configuration (it differs in {keys}); choose another folder"
        )
    return result


def differing_keys(one: Any, other: Any, path: str = "") -> list[str]:
    """Return the dotted keys in which two configurations differ.

    >>> differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c']
    """
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [path]
    keys = sorted(one.keys() | other.keys())
    return [
        k
        for key in keys
        for k in differing_keys(one.get(key, ...), other.get(key, ...), f"{path}.{key}".lstrip("."))
    ]
