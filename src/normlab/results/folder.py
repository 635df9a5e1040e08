"""Folders of runs and sweeps: their names, their configuration, and checks before writing to them."""

import hashlib
import itertools
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, reduce
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_omega_conf_dumper

from normlab.config.frozen import FrozenConfig, differing_keys, recorded, updated, without_report_keys
from normlab.errors import ConfigError, first_line
from normlab.results.packed import stored_result
from normlab.results.provenance import require_same_sources
from normlab.results.result import RESULT_FILE, Result

log = logging.getLogger("normlab")
MAX_NAME_LENGTH = 100
HYDRA_CONFIG = Path(".hydra") / "config.yaml"
SWEEP_CONFIG = "multirun.yaml"
STATE_FOLDER = ".normlab"
"""Folder within that of a sweep or a single run, with the state that a killed training goes on from."""


def run_name(overrides: Iterable[str]) -> str:
    """Build a folder name from overrides, without characters that are invalid in paths.

    A name longer than ``MAX_NAME_LENGTH`` is cut and gets a hash.

    >>> run_name(["model=bn", "seed=0"])
    'model=bn,seed=0'
    >>> run_name(["experiment=deep/sigmoid", "net.hidden=[10, 10]"])
    'experiment=deep_sigmoid,net.hidden=[10,10]'
    """
    name = ",".join(overrides)
    safe = "".join("_" if letter in '/\\:*?"<>|' else letter for letter in name if letter not in " '")
    if len(safe) <= MAX_NAME_LENGTH:
        return safe
    return f"{safe[: MAX_NAME_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def population_id(folders: Iterable[str]) -> str:
    """Return the id of a population, a digest of its runs' folders relative to that of their sweep."""
    return hashlib.sha256("\n".join(folders).encode()).hexdigest()[:12]


def run_names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Build a unique name for each job of a sweep from the overrides in which the jobs differ.

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


def choose_folders(
    names: Sequence[str], fingerprints: Sequence[str], earlier: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return each job's folder: that of an earlier run with its fingerprint, otherwise the job's name.

    >>> choose_folders(["bn,seed=0", "bn,seed=1"], ["0", "1"], {"0": ["bn"]})
    ['bn', 'bn,seed=1']
    """
    used = {name for name, mark in zip(names, fingerprints, strict=True) if name in earlier.get(mark, ())}
    folders = []
    for name, mark in zip(names, fingerprints, strict=True):
        runs = earlier.get(mark, ())
        path = name if name in runs else next((run for run in runs if run not in used), name)
        used.add(path)
        folders.append(path)
    return folders


def free_folder(path: Path) -> Path:
    """Create ``path``, or the first free one of ``path-2``, ``path-3``, …, and return it.

    Creating a folder is atomic, so sweeps that start in the same second get different folders.
    """
    number, candidate = 1, path
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")


def require_sweep_folder(folder: Path) -> None:
    """Check that ``folder`` is missing, empty or holds a sweep.

    Raises:
        ConfigError: if it holds a single run or other files.
    """
    if (folder / HYDRA_CONFIG.parent).exists() or (folder / RESULT_FILE).exists():
        raise ConfigError(f"{folder} holds a single run; choose another folder for the sweep")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SWEEP_CONFIG).exists():
        raise ConfigError(f"{folder} is not empty and holds no sweep; choose another folder")


def require_writable(folder: Path) -> None:
    """Check that ``folder`` is writable; create it if it is missing.

    Raises:
        ConfigError: if it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error


def to_yaml(node: Any) -> str:
    """Convert plain data to YAML as OmegaConf does, with libyaml; parts that nodes have in common only once."""
    if not isinstance(node, dict) or not node:
        return dumped(node)
    return "".join(yaml_part((), key, value) for key, value in node.items())


_parts: dict[tuple[Any, ...], str] = {}


def yaml_part(parents: tuple[Any, ...], key: Any, value: Any) -> str:
    """Return the lines of an item of a mapping, which stands below the keys ``parents``."""
    if isinstance(value, dict) and value and len(parents) < 2:
        title = yaml_part(parents, key, [0]).partition("\n")[0]
        return f"{title}\n" + "".join(yaml_part((*parents, key), *item) for item in value.items())
    part = *parents, key, repr(value)
    if part not in _parts:
        nested = reduce(lambda below, parent: {parent: below}, reversed(parents), {key: value})
        _parts[part] = dumped(nested).split("\n", len(parents))[-1]
    return _parts[part]


def dumped(node: Any) -> str:
    """Convert plain data to YAML as a whole."""
    return yaml.dump(node, Dumper=dumper(), sort_keys=False, allow_unicode=True)


@cache
def dumper() -> Any:
    """Return a YAML dumper class that quotes strings like OmegaConf's; in C if libyaml is available."""
    omegaconf_dumper = get_omega_conf_dumper()
    dumper_class: Any = type("Dumper", (getattr(yaml, "CSafeDumper", yaml.SafeDumper),), {})
    dumper_class.add_representer(str, omegaconf_dumper.str_representer)
    dumper_class.add_representer(FrozenConfig, dumper_class.represent_dict)
    return dumper_class


_damaged: set[Path] = set()


def reusable_result(folder: Path, config: Mapping[str, Any]) -> Result | None:
    """Return the result of this configuration stored in ``folder``, or in packed records under its name.

    None without one, or with ``retrain=true``.

    Nothing in the folder is changed. A damaged result is logged, and counts as none.

    Raises:
        ConfigError: if the result is of another configuration, its code or data have changed since, or a later
            version of normlab wrote it.
    """
    try:
        result = stored_result(folder)
    except ConfigError:
        raise
    except ValueError as error:
        if folder.absolute() not in _damaged:  # it is read before anything trains, and again to train the run
            log.warning("%s; the run is trained again", error)
            _damaged.add(folder.absolute())
        return None
    if result is None:
        return None
    ours = recorded(config)
    require_same(folder, ours, result.config)
    if config.get("retrain"):
        return None
    if result.status.done:
        require_same_sources(folder, result, ours)
    return result


def read_configuration(folder: Path) -> dict[str, Any] | None:
    """Return the resolved configuration of the run in a folder, or None if it cannot be read."""
    with suppress(OSError, ValueError):
        result = stored_result(folder)
        if result is not None:
            return result.config
    try:
        return written_configuration(folder)
    except (OSError, ValueError):
        return None


def written_configuration(folder: Path) -> dict[str, Any]:
    """Return the configuration that Hydra wrote at the start of a run, with interpolations resolved.

    Raises:
        ConfigError: if the file is damaged.
    """
    try:
        resolved: Any = OmegaConf.to_container(OmegaConf.load(folder / HYDRA_CONFIG), resolve=True)
        return updated(recorded(resolved))
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{folder / HYDRA_CONFIG} is damaged: {first_line(error)}; remove {folder} to train the run again"
        ) from error


def require_run_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that ``folder`` is missing, empty or holds a run of this configuration, finished or killed.

    A run that was killed at once may have left ``.hydra`` without the configuration. Nothing is changed.

    Raises:
        ConfigError: if it holds another run or other files.
    """
    if reusable_result(folder, config) is not None:
        return
    if (folder / HYDRA_CONFIG).exists():
        require_same(folder, recorded(config), written_configuration(folder))
    elif folder.is_dir() and any(path.name != HYDRA_CONFIG.parent.name for path in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no run; choose another folder")


def require_same(folder: Path, config: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` if two configurations differ in a key other than those of the report."""
    ours, theirs = without_report_keys(config), without_report_keys(other)
    if ours != theirs:
        keys = ", ".join(differing_keys(ours, theirs)[:3])
        raise ConfigError(
            f"{folder} holds a run of another configuration (it differs in {keys}); choose another folder"
        )


def group_choices(chosen: Mapping[str, Any]) -> dict[str, str]:
    """Select the choices of a run's groups from Hydra's choices.

    >>> group_choices({"model": "bn", "experiment": None, "hydra/launcher": "basic"})
    {'model': 'bn'}
    """
    return {group: option for group, option in chosen.items() if isinstance(option, str) and "/" not in group}
