"""Readers of a sweep's folder: its runs with their results and curves; see :func:`read_sweep`."""

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

from normlab.config.frozen import updated, updated_override
from normlab.results import curves, result
from normlab.results.folder import HYDRA_CONFIG
from normlab.results.result import Objective, Result, Status

if TYPE_CHECKING:
    import pandas as pd

CURVE_COLUMNS = ("run", "epoch", "step", "metric", "value")
log = logging.getLogger("normlab")


@dataclass(frozen=True)
class Record:
    """A run in a sweep's folder; without a readable result its status is failed."""

    folder: Path
    result: Result


def read_sweep(folder: Path) -> list[Record]:
    """Return the runs below ``folder``, sorted by path."""
    return read_sweeps([folder])


def read_sweeps(folders: Iterable[Path]) -> list[Record]:
    """Return the runs below several folders without duplicates, in the order of folders, then paths."""
    seen: set[str] = set()
    return [Record(path, read_result(path)) for folder in folders for path in sorted(run_folders(folder, seen))]


def run_folders(folder: Path, seen: set[str] | None = None) -> Iterator[Path]:
    """Yield the folders of runs: ``folder`` itself, or folders below it. Runs are not nested.

    Symbolic links to folders are followed after all real folders, except links to a folder that contains them.

    Args:
        folder: top of the search.
        seen: real paths of folders already searched, which are skipped; updated in place.
    """
    seen = set() if seen is None else seen
    pending, top = [folder], os.path.realpath(folder)
    while pending:
        for path, subfolders, files in os.walk(pending.pop(0)):
            real = os.path.realpath(path)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            if HYDRA_CONFIG.parent.name in subfolders or result.RESULT_FILE in files:
                subfolders.clear()
                yield Path(path)
            links = [Path(path, name) for name in sorted(subfolders) if os.path.islink(os.path.join(path, name))]
            pending += [link for link in links if not any(is_inside(inner, link) for inner in (top, real))]


def is_inside(folder: str, link: Path) -> bool:
    """Return True if a link leads to a real folder, or to a folder that contains it."""
    return Path(folder).is_relative_to(os.path.realpath(link))


def read_result(folder: Path) -> Result:
    """Return a run's result; without a readable one, a failed result with the recorded configuration."""
    try:
        return Result.read(folder) or failed_result(
            folder, f"left no {result.RESULT_FILE}: it was killed or is still running"
        )
    except (OSError, ValueError) as error:
        log.warning("%s; the run counts as failed", error)
        return failed_result(folder, f"{result.RESULT_FILE} is damaged")


def failed_result(folder: Path, reason: str) -> Result:
    """Build a failed result from the configuration that Hydra wrote at the start of the run."""
    written = load_yaml(folder / HYDRA_CONFIG.parent / "overrides.yaml", list)
    return Result(
        name=folder.name,
        status=Status.FAILED,
        config=updated(resolve_references(load_yaml(folder / HYDRA_CONFIG, dict))),
        choices={},
        overrides=[updated_override(str(override)) for override in written],
        objective=Objective("", "", math.nan),
        error=reason,
    )


def resolve_references(config: dict[str, Any]) -> dict[str, Any]:
    """Resolve the interpolations of a configuration; return it unchanged if one cannot be resolved.

    >>> resolve_references({"seed": 1, "data": {"seed": "${seed}"}}), resolve_references({"seed": "${lost}"})
    ({'seed': 1, 'data': {'seed': 1}}, {'seed': '${lost}'})
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException:
        return config
    return content


def read_unresolved(folder: Path) -> dict[str, Any]:
    """Read the configuration that Hydra wrote for a run, with interpolations unresolved; empty if missing.

    libyaml parses it in a tenth of the time of OmegaConf's reader.
    """
    try:
        content = yaml.load((folder / HYDRA_CONFIG).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def load_yaml(path: Path, kind: type) -> Any:
    """Read a YAML file; return an empty ``kind`` if it is missing, damaged or of another type."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError):
        return kind()
    return content if isinstance(content, kind) else kind()


def overrides(run: Result) -> dict[str, str]:
    """Return the overrides of a run as a mapping from key to the text of the value.

    >>> overrides(Result("", Status.FAILED, {}, {}, ["model=bn", "+a.b=1"], Objective("", "", 0.0)))
    {'model': 'bn', 'a.b': '1'}
    """
    parts = (override.lstrip("+~").partition("=") for override in run.overrides)
    return {key: value for key, _, value in parts}


def setting(run: Result, key: str) -> str | None:
    """Return the resolved value of a key in a run, as text; None if it is unknown.

    For a group, this is the chosen option.

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
    """Return the learning curves of all runs: one row per run, epoch and metric (``val/loss``).

    ``run`` is the index of the record. Runs with a missing or damaged file have no rows; damage is logged.
    """
    import pandas as pd

    frames = [
        frame.assign(run=number)
        for number, record in enumerate(records)
        for frame in read_curve_rows(record.folder)
    ]
    if not frames:
        return pd.DataFrame({name: [] for name in CURVE_COLUMNS})
    rows = pd.concat(frames, ignore_index=True)
    rows["metric"] = rows["split"] + "/" + rows["metric"]
    return rows[list(CURVE_COLUMNS)]


def read_curve_rows(folder: Path) -> "Iterator[pd.DataFrame]":
    """Yield the rows of ``curves.csv`` as one data frame; nothing if it is missing, empty or damaged."""
    import pandas as pd

    path = folder / curves.CURVES_FILE
    types: Any = {"epoch": int, "step": int, "split": str, "metric": str, "value": float}
    try:
        whole = curves.whole_rows(path.read_text())
        # A metric may be named NA, so only the string nan in the value column is parsed as NaN.
        missing: Any = {"keep_default_na": False, "na_values": {"value": ["nan"]}}
        yield from [pd.read_csv(io.StringIO(whole), dtype=types, **missing)[list(types)]] if whole else []
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s is damaged: %s; the run has no curves", path, str(error).splitlines()[0])
