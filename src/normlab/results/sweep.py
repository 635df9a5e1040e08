"""A sweep's folder: the runs below it, and what each of them left behind."""

import io
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from normlab.config.renames import updated, updated_override
from normlab.results import curves, result
from normlab.results.folder import HYDRA_CONFIG
from normlab.results.result import Objective, Result, Status

if TYPE_CHECKING:
    import pandas as pd

CURVE_COLUMNS = ("run", "epoch", "step", "metric", "value")
log = logging.getLogger("normlab")


@dataclass(frozen=True)
class Record:
    """A run below a sweep's folder; one that left no result that can be read counts as failed."""

    folder: Path
    result: Result


def read_sweep(folder: Path) -> list[Record]:
    """Return the runs below ``folder``, in the order of their paths."""
    return read_sweeps([folder])


def read_sweeps(folders: Iterable[Path]) -> list[Record]:
    """Return the runs below several folders, each run once, in the order of the folders and their paths."""
    seen: set[str] = set()
    return [Record(path, read_result(path)) for folder in folders for path in sorted(run_folders(folder, seen))]


def run_folders(folder: Path, seen: set[str] | None = None) -> Iterator[Path]:
    """Yield the folders of runs, ``folder`` itself or below it; a run holds no other runs.

    Links to folders are followed after everything else, unless they lead to a folder that they are in.

    Args:
        folder: where to look.
        seen: the real paths of the folders that were looked into, which are skipped and added to.
    """
    seen = set() if seen is None else seen
    waiting, top = [folder], os.path.realpath(folder)
    while waiting:
        for path, below, files in os.walk(waiting.pop(0)):
            real = os.path.realpath(path)
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            if HYDRA_CONFIG.parent.name in below or result.RESULT_FILE in files:
                below.clear()
                yield Path(path)
            links = [Path(path, name) for name in sorted(below) if os.path.islink(os.path.join(path, name))]
            waiting += [link for link in links if not any(is_inside(inner, link) for inner in (top, real))]


def is_inside(folder: str, link: Path) -> bool:
    """Return whether a link leads to a real folder or to one that it lies in."""
    return Path(folder).is_relative_to(os.path.realpath(link))


def read_result(folder: Path) -> Result:
    """Return a run's result, or what can be known of a run without one."""
    try:
        return Result.read(folder) or without_result(
            folder, f"left no {result.RESULT_FILE}: it was killed or is still running"
        )
    except (OSError, ValueError) as error:
        log.warning("%s; the run counts as failed", error)
        return without_result(folder, f"{result.RESULT_FILE} is damaged")


def without_result(folder: Path, reason: str) -> Result:
    """Return a failed run, with the configuration that Hydra wrote when it began."""
    given = load(folder / HYDRA_CONFIG.parent / "overrides.yaml", list)
    return Result(
        name=folder.name,
        status=Status.FAILED,
        config=updated(resolved(load(folder / HYDRA_CONFIG, dict))),
        choices={},
        overrides=[updated_override(str(override)) for override in given],
        objective=Objective("", "", math.nan),
        error=reason,
    )


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with its references resolved, or as it is if one of them cannot be.

    >>> resolved({"seed": 1, "data": {"seed": "${seed}"}}), resolved({"seed": "${lost}"})
    ({'seed': 1, 'data': {'seed': 1}}, {'seed': '${lost}'})
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException:
        return config
    return content


def read_written(folder: Path) -> dict[str, Any]:
    """Return the configuration of a run as Hydra wrote it, with its references; empty if there is none.

    YAML is read by libyaml, which takes a tenth of the time of OmegaConf's reader.
    """
    try:
        content = yaml.load((folder / HYDRA_CONFIG).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def load(path: Path, kind: type) -> Any:
    """Return the content of a YAML file, or an empty ``kind`` if it is missing, damaged or of another kind."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError):
        return kind()
    return content if isinstance(content, kind) else kind()


def overrides(run: Result) -> dict[str, str]:
    """Return the text that was typed for each key of a run.

    >>> overrides(Result("", Status.FAILED, {}, {}, ["model=bn", "+a.b=1"], Objective("", "", 0.0)))
    {'model': 'bn', 'a.b': '1'}
    """
    parts = (override.lstrip("+~").partition("=") for override in run.overrides)
    return {key: value for key, _, value in parts}


def setting(run: Result, key: str) -> str | None:
    """Return the resolved value of a key in a run, also where it is the default; None if it is not known.

    >>> config, choices = {"optimizer": {"lr": 0.01}}, {"model": "bn"}
    >>> run = Result("", Status.FAILED, config, choices, [], Objective("", "", 0.0))
    >>> setting(run, "model"), setting(run, "optimizer.lr"), setting(run, "data.seed")
    ('bn', '0.01', None)
    """
    node: Any = run.config
    for part in key.split("."):
        node = node.get(part, ...) if isinstance(node, dict) else ...
    if key in run.choices or isinstance(node, dict) or node is ...:
        return run.choices.get(key, overrides(run).get(key))
    return node if isinstance(node, str) else json.dumps(node)


def read_curves(records: Sequence[Record]) -> "pd.DataFrame":
    """Return the curves of all runs: a row per run, epoch and metric (``val/loss``).

    ``run`` is the number of the record. A run whose curves are missing has no rows; nor has one whose curves
    are damaged, which is said.
    """
    import pandas as pd

    found = [frame.assign(run=number) for number, record in enumerate(records) for frame in curve(record.folder)]
    if not found:
        return pd.DataFrame({name: [] for name in CURVE_COLUMNS})
    rows = pd.concat(found, ignore_index=True)
    rows["metric"] = rows["split"] + "/" + rows["metric"]
    return rows[list(CURVE_COLUMNS)]


def curve(folder: Path) -> "Iterator[pd.DataFrame]":
    """Yield the rows of ``curves.csv``, if there are any."""
    import pandas as pd

    path = folder / curves.CURVES_FILE
    types: Any = {"epoch": int, "step": int, "split": str, "metric": str, "value": float}
    try:
        whole = curves.whole_rows(path.read_text())
        # A metric may be called NA; of the values, nan alone is not a number.
        missing: Any = {"keep_default_na": False, "na_values": {"value": ["nan"]}}
        yield from [pd.read_csv(io.StringIO(whole), dtype=types, **missing)[list(types)]] if whole else []
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s is damaged: %s; the run has no curves", path, str(error).splitlines()[0])
