"""The folder of a run or a sweep: its name, its configuration, and whether it may be written to."""

import hashlib
import itertools
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper

from normlab.config.renames import updated
from normlab.config.schema import OF_THE_VERDICT
from normlab.errors import ConfigError
from normlab.results.provenance import require_same_sources
from normlab.results.result import RESULT_FILE, Result, to_jsonable

LONGEST = 100
HYDRA_CONFIG = Path(".hydra") / "config.yaml"
SWEEP_CONFIG = "multirun.yaml"
RETRAIN = "retrain"
PLAIN_CONFIGS: dict[int, dict[str, Any]] = {}
"""The plain data of read-only configs, by identity."""
HANDLING = (RETRAIN, "timing")
"""Keys about the folder of a run or a sweep, not about the run."""


def run_name(overrides: Iterable[str]) -> str:
    """Return a folder's name made of overrides: no slashes, no spaces, and a hash where it would get too long.

    >>> run_name(["model=bn", "seed=0"])
    'model=bn,seed=0'
    >>> run_name(["experiment=deep/sigmoid", "net.hidden=[10, 10]"])
    'experiment=deep_sigmoid,net.hidden=[10,10]'
    """
    name = ",".join(overrides)
    safe = "".join("_" if letter in '/\\:*?"<>|' else letter for letter in name if letter not in " '")
    if len(safe) <= LONGEST:
        return safe
    return f"{safe[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def run_names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return a name of its own for each job of a sweep: the overrides in which the jobs differ.

    >>> run_names([["model=bn", "seed=0"], ["model=nobn", "seed=0"]])
    ['model=bn', 'model=nobn']
    """
    shared = set(jobs[0]).intersection(*jobs) if len(jobs) > 1 else set()
    names: dict[str, None] = {}
    for job in jobs:
        name = run_name(override for override in job if override not in shared) or "run"
        numbered = (f"{name}#{number}" for number in itertools.count(2))
        names[next(free for free in itertools.chain([name], numbered) if free not in names)] = None
    return list(names)


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
    if (folder / HYDRA_CONFIG.parent).exists() or (folder / RESULT_FILE).exists():
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


def to_yaml(node: Any) -> str:
    """Return a config as YAML, as OmegaConf writes it, but by libyaml, which is several times as fast."""
    content = OmegaConf.to_container(node, enum_to_str=True) if OmegaConf.is_config(node) else node
    return yaml.dump(content, Dumper=dumper(), sort_keys=False, allow_unicode=True)


@cache
def dumper() -> Any:
    """Return a YAML dumper in C, if there is one, that quotes the words which OmegaConf would read as numbers."""
    quoting = get_omega_conf_dumper()
    found: Any = type("Dumper", (getattr(yaml, "CSafeDumper", yaml.SafeDumper),), {})
    found.add_representer(str, quoting.str_representer)
    return found


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a config as plain data, every interpolation resolved, without how a folder is to be treated.

    Resolving takes over a millisecond, and a sweep asks for it five times a run: the data of a read-only config is
    kept as long as the config. Callers do not change it.
    """
    if not OmegaConf.is_readonly(config):
        return resolved_data(config)
    kept = PLAIN_CONFIGS.get(id(config))
    if kept is None:
        kept = PLAIN_CONFIGS[id(config)] = resolved_data(config)
        weakref.finalize(config, PLAIN_CONFIGS.pop, id(config))
    return kept


def resolved_data(config: DictConfig) -> dict[str, Any]:
    """Return a config as plain data."""
    data: dict[str, Any] = to_jsonable(without_handling(OmegaConf.to_container(config, resolve=True)))
    return data


def without_handling(config: Any) -> Any:
    """Return a plain config without the keys that are about its folder."""
    return {key: value for key, value in config.items() if key not in HANDLING}


def computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a plain config that a run's result depends on: all but the keys that the report reads."""
    return {key: value for key, value in config.items() if key not in OF_THE_VERDICT}


def earlier_result(folder: Path, config: DictConfig) -> Result | None:
    """Return the result of this configuration that ``folder`` holds, or None if it holds none.

    With ``retrain=true`` it holds none that counts.

    Raises:
        ConfigError: if the result is of another configuration, or of code or data that have changed since; nothing
            in the folder is touched.
    """
    result = Result.read(folder)
    if result is None:
        return None
    ours = plain(config)
    require_same(folder, ours, result.config)
    if config.get(RETRAIN):
        return None
    if result.status.done:
        require_same_sources(folder, result, ours)
    return result


def configuration_in(folder: Path) -> dict[str, Any] | None:
    """Return the resolved configuration of the run that a folder holds, None if that cannot be read."""
    try:
        result = Result.read(folder)
        return updated(plain(load_written(folder))) if result is None else result.config
    except (OSError, ValueError, yaml.YAMLError):
        return None


def load_written(folder: Path) -> DictConfig:
    """Return the configuration that Hydra wrote when a run began, interpolations as written."""
    loaded = OmegaConf.load(folder / HYDRA_CONFIG)
    assert isinstance(loaded, DictConfig)
    return loaded


def require_own(folder: Path, config: DictConfig) -> None:
    """Make sure that ``folder`` is new, empty, or of a run of this configuration, also one that was killed.

    Raises:
        ConfigError: if it is not so; nothing in the folder is touched.
    """
    if earlier_result(folder, config) is not None:
        return
    if (folder / HYDRA_CONFIG).exists():
        require_same(folder, plain(config), updated(plain(load_written(folder))))
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no run; choose another folder")


def require_same(folder: Path, config: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse a folder whose configuration differs from ours in more than what the report reads."""
    ours, theirs = computed(config), computed(other)
    if ours != theirs:
        keys = ", ".join(differing_keys(ours, theirs)[:3])
        raise ConfigError(
            f"{folder} holds a run of another configuration (it differs in {keys}); choose another folder"
        )


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


def group_choices(chosen: Mapping[str, Any]) -> dict[str, str]:
    """Return the choices of a run's own groups, given all of Hydra's.

    >>> group_choices({"model": "bn", "experiment": None, "hydra/launcher": "basic"})
    {'model': 'bn'}
    """
    return {group: option for group, option in chosen.items() if isinstance(option, str) and "/" not in group}
