"""Files of a sweep's folder: the results of its runs, and ``timing.json``, seconds per optimizer step.

The entries are :func:`read_sweep`, and :func:`read_timing` and :func:`step_seconds`. Configurations are timed in
one process in interleaved rounds; R is the number of rounds.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normlab.config.frozen import to_jsonable, updated, updated_override, without_report_keys
from normlab.results.folder import HYDRA_CONFIG
from normlab.results.result import RESULT_FILE, Objective, Result, Status, known_fields, write_atomically

TIMING_FILE = "timing.json"
TIMING_NEUTRAL_GROUPS = ("optimizer", "scheduler")
"""Groups whose numbers do not change the duration of a step, except that 0 may disable a computation."""
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
            if HYDRA_CONFIG.parent.name in subfolders or RESULT_FILE in files:
                subfolders.clear()
                yield Path(path)
            links = [Path(path, name) for name in sorted(subfolders) if os.path.islink(os.path.join(path, name))]
            ends = [Path(top), Path(real)]
            pending += [
                link for link in links if not any(end.is_relative_to(os.path.realpath(link)) for end in ends)
            ]


def read_result(folder: Path) -> Result:
    """Return a run's result; without a readable one, a failed result with the recorded configuration."""
    try:
        return Result.read(folder) or failed_result(
            folder, f"left no {RESULT_FILE}: it was killed or is still running"
        )
    except (OSError, ValueError) as error:
        log.warning("%s; the run counts as failed", error)
        return failed_result(folder, f"{RESULT_FILE} is damaged")


def failed_result(folder: Path, reason: str) -> Result:
    """Build a failed result from the configuration that Hydra wrote at the start of the run."""
    written = load_yaml(folder / HYDRA_CONFIG.parent / "overrides.yaml", list)
    return Result(
        name=folder.name,
        status=Status.FAILED,
        config=updated(resolve_references(read_unresolved(folder))),
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
    """Read the configuration that Hydra wrote for a run, with interpolations unresolved; empty if missing."""
    content: dict[str, Any] = load_yaml(folder / HYDRA_CONFIG, dict)
    return content


def load_yaml(path: Path, kind: type) -> Any:
    """Read a YAML file that Hydra wrote; return an empty ``kind`` if it is missing, damaged or of another type.

    libyaml parses it in a tenth of the time of OmegaConf's reader.
    """
    try:
        content = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
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


@dataclass(frozen=True)
class TimedConfiguration:
    """Step times of one run, which represents all runs whose steps have the same cost.

    Attributes:
        run: the run's folder, relative to the sweep's.
        config, choices, sources: fields of the run's result.
        threads: number of CPU threads.
        compiled: True if the steps were compiled.
        steps_per_block: number of steps per round.
        seconds_per_step: mean seconds per step in each round, ``(R,)``. All are timed in each round, so equal
            rounds of two configurations are paired.
    """

    run: str
    config: dict[str, Any]
    choices: dict[str, str]
    sources: dict[str, str]
    threads: int
    compiled: bool
    steps_per_block: int
    seconds_per_step: list[float]


@dataclass(frozen=True)
class Timing:
    """Step times of a sweep's configurations, measured together; times of other sessions are not comparable."""

    started: str
    arms: list[TimedConfiguration]
    environment: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write ``timing.json`` into the folder of a sweep, atomically."""
        write_atomically(folder / TIMING_FILE, json.dumps(to_jsonable(asdict(self)), indent=2) + "\n")


def read_timing(folder: Path) -> Timing | None:
    """Read ``timing.json`` of a sweep; return None if it is missing, or damaged (logs a warning)."""
    path = folder / TIMING_FILE
    try:
        values = json.loads(path.read_text())
        arms = [TimedConfiguration(**known_fields(TimedConfiguration, arm)) for arm in values["arms"]]
        return Timing(**known_fields(Timing, values) | {"arms": arms})
    except FileNotFoundError:
        return None
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        log.warning("%s is damaged: %s; step times are not compared", path, error)
        return None


def step_seconds(timing: Timing, result: Result) -> list[float] | None:
    """Return a run's seconds per step in each round, ``(R,)``; None if no run of equal cost was timed.

    Round r of one run and round r of another, from the same timing, are paired.
    """
    cost = cost_key(result.config, result.sources)
    times = (arm.seconds_per_step for arm in timing.arms if cost_key(arm.config, arm.sources) == cost)
    return next(times, None)


def representatives(records: Iterable[Record]) -> list[Record]:
    """Select one done run for each step cost, preferring finished over diverged runs."""
    done = [record for record in records if record.result.status.done]
    by_cost: dict[str, Record] = {}
    for record in sorted(done, key=lambda record: record.result.status != "finished"):
        by_cost.setdefault(cost_key(record.result.config, record.result.sources), record)
    return sorted(by_cost.values(), key=lambda record: record.folder)


def cost_key(config: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """Return a key that is equal for runs whose optimizer steps have the same cost.

    It contains the resolved configuration without ``seed``, ``data.seed`` and ``target``, and the hashes of source
    files. Numbers of the optimizer and scheduler are masked, except 0: without weight decay a step is cheaper.

    >>> runs = [{"seed": k, "optimizer": {"lr": lr}} for k, lr in ((0, 0.1), (1, 0.2), (2, 0))]
    >>> one, two, three = (cost_key(run, {}) for run in runs)
    >>> one == two, one == three
    (True, False)
    """
    relevant = {k: value for k, value in without_report_keys(config).items() if k not in ("seed", "target")}
    if "data" in relevant:
        relevant["data"] = {key: value for key, value in relevant["data"].items() if key != "seed"}
    masked = {group: mask_nonzero(relevant[group]) for group in TIMING_NEUTRAL_GROUPS if group in relevant}
    return json.dumps([relevant | masked, sources], sort_keys=True)


def mask_nonzero(node: Any) -> Any:
    """Replace all nonzero numbers in a part of a configuration by ``#``.

    >>> mask_nonzero({"lr": 0.1, "betas": [0.9, 0.0], "nesterov": True})
    {'lr': '#', 'betas': ['#', 0.0], 'nesterov': True}
    """
    if isinstance(node, Mapping):
        return {key: mask_nonzero(value) for key, value in node.items()}
    if isinstance(node, list):
        return [mask_nonzero(value) for value in node]
    return "#" if isinstance(node, int | float) and not isinstance(node, bool) and node else node
