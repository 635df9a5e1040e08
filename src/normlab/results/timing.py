"""``timing.json``: the seconds per optimizer step of each arm of a sweep.

The configurations are timed in one process in interleaved rounds; R is the number of rounds. The entries are
:func:`read_timing` and :func:`step_seconds`.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from normlab.config.frozen import to_jsonable, without_report_keys
from normlab.results.result import Result, write_atomically
from normlab.results.sweep import Record

TIMING_FILE = "timing.json"
TIMING_NEUTRAL_GROUPS = ("optimizer", "scheduler")
"""Groups whose numbers do not change the duration of a step, except that 0 may disable a computation."""
log = logging.getLogger("normlab")


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
        return Timing(
            **known_fields(Timing, values)
            | {"arms": [TimedConfiguration(**known_fields(TimedConfiguration, v)) for v in values["arms"]]}
        )
    except FileNotFoundError:
        return None
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        log.warning("%s is damaged: %s; step times are not compared", path, error)
        return None


def known_fields(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Select the values of a dataclass's fields; later versions may have written others."""
    names = {each.name for each in fields(cls)}
    return {key: value for key, value in values.items() if key in names}


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
