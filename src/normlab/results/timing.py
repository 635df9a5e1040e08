"""``timing.json``: the seconds per optimizer step of each arm of a sweep, timed in turn in one process.

The entries are :func:`read_timing` and :func:`step_seconds`.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from normlab.results.folder import computed
from normlab.results.result import Result, to_jsonable, write_atomically
from normlab.results.sweep import Record

TIMING_FILE = "timing.json"
OTHER_NUMBERS = ("optimizer", "scheduler")
"""Groups whose numbers change what a step computes and not how long it takes, unless one of them is 0."""
log = logging.getLogger("normlab")


@dataclass(frozen=True)
class TimedArm:
    """One run that was timed, for all runs whose steps take as long.

    Attributes:
        run: its folder, relative to the sweep's.
        config, choices, sources: those of its result.
        threads: how many its steps were computed on.
        compiled: whether its steps were compiled.
        steps_per_block: how many steps were taken in each round.
        seconds_per_step: of each round, ``(R,)``; round r of all arms was taken at about the same time.
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
    """The arms of a sweep that were timed together; those of two timings are not comparable."""

    started: str
    arms: list[TimedArm]
    environment: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write ``timing.json`` into the folder of a sweep, whole or not at all."""
        write_atomically(folder / TIMING_FILE, json.dumps(to_jsonable(asdict(self)), indent=2) + "\n")


def read_timing(folder: Path) -> Timing | None:
    """Return the timing that the folder of a sweep holds, None if it holds none that can be read."""
    path = folder / TIMING_FILE
    try:
        values = json.loads(path.read_text())
        return Timing(
            **known_fields(Timing, values)
            | {"arms": [TimedArm(**known_fields(TimedArm, v)) for v in values["arms"]]}
        )
    except FileNotFoundError:
        return None
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        log.warning("%s is damaged: %s; no times are compared", path, error)
        return None


def known_fields(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the fields of a dataclass; a later version may have written more."""
    names = {each.name for each in fields(cls)}
    return {key: value for key, value in values.items() if key in names}


def step_seconds(timing: Timing, result: Result) -> list[float] | None:
    """Return the seconds per step of each round that hold for a run, ``(R,)``; None if none was timed for it.

    Round r of a run and round r of another, from the same timing, are a pair.
    """
    cost = cost_of(result.config, result.sources)
    found = (arm.seconds_per_step for arm in timing.arms if cost_of(arm.config, arm.sources) == cost)
    return next(found, None)


def representatives(records: Iterable[Record]) -> list[Record]:
    """Return a run that is done for each set of runs whose steps take as long, a finished one if there is any."""
    done = [record for record in records if record.result.status.done]
    found: dict[str, Record] = {}
    for record in sorted(done, key=lambda record: record.result.status != "finished"):
        found.setdefault(cost_of(record.result.config, record.result.sources), record)
    return sorted(found.values(), key=lambda record: record.folder)


def cost_of(config: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """Return a text that is equal for runs whose optimizer steps take equally long.

    It is the resolved configuration without ``seed``, ``data.seed``, ``target``, and the numbers of the optimizer
    and its schedule; of these it says which are 0, as a step is cheaper without weight decay. The code and the
    data files that the configuration names are part of it.

    >>> runs = [{"seed": k, "optimizer": {"lr": lr}} for k, lr in ((0, 0.1), (1, 0.2), (2, 0))]
    >>> one, two, three = (cost_of(run, {}) for run in runs)
    >>> one == two, one == three
    (True, False)
    """
    rest = {key: value for key, value in computed(config).items() if key not in ("seed", "target")}
    if "data" in rest:
        rest["data"] = {key: value for key, value in rest["data"].items() if key != "seed"}
    masked = {group: mask_nonzero(rest[group]) for group in OTHER_NUMBERS if group in rest}
    return json.dumps([rest | masked, sources], sort_keys=True)


def mask_nonzero(node: Any) -> Any:
    """Return a part of a configuration with each number but 0 replaced by ``#``.

    >>> mask_nonzero({"lr": 0.1, "betas": [0.9, 0.0], "nesterov": True})
    {'lr': '#', 'betas': ['#', 0.0], 'nesterov': True}
    """
    if isinstance(node, Mapping):
        return {key: mask_nonzero(value) for key, value in node.items()}
    if isinstance(node, list):
        return [mask_nonzero(value) for value in node]
    return "#" if isinstance(node, int | float) and not isinstance(node, bool) and node else node
