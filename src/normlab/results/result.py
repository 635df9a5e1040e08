"""``result.json``: what a run was, how it ended, and what it reached."""

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from normlab.config.renames import updated, updated_override

RESULT_FILE = "result.json"


class Status(StrEnum):
    """How a run ended. The first two are done; the others are trained again."""

    FINISHED = "finished"
    DIVERGED = "diverged"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def done(self) -> bool:
        """Whether the run has nothing left to train."""
        return self in (Status.FINISHED, Status.DIVERGED)


@dataclass
class EpochMetrics:
    """The metrics of a run at one epoch, by name (``val/loss``)."""

    epoch: int
    step: int
    metrics: dict[str, float]


@dataclass
class Objective:
    """The number a run returns: the best value of a metric, and whether small or large is good."""

    metric: str
    direction: str
    value: float


@dataclass
class Result:
    """One run.

    Attributes:
        seconds: the time of its optimizer steps alone.
        final: means over the last tenth of its epochs, of metrics in evaluation mode: ``val/…``, ``test/…``, and
            ``train_eval/…`` on the training split by statistics re-estimated there.
        probes: what they found last.
        command: the words before the overrides that started it, as ``python train.py``.
        chance: the training loss of the best net that looks at nothing, one number for all samples.
        data: the samples of this run: ``seed``, by which they are drawn and split; ``generated``, whether it draws
            them rather than splits one table; their numbers ``train``, ``val``, ``test``. Empty in older records.
        sources: hashes of the files that the configuration names; see ``results.sources``.
    """

    name: str
    status: Status
    config: dict[str, Any]
    choices: dict[str, str]
    overrides: list[str]
    objective: Objective
    best: EpochMetrics | None = None
    last: EpochMetrics | None = None
    test: dict[str, float] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    probes: dict[str, float] = field(default_factory=dict)
    chance: float | None = None
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0
    started: str = ""
    ended: str = ""
    error: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write ``result.json`` into ``folder``, whole or not at all."""
        write_atomically(folder / RESULT_FILE, json.dumps(to_jsonable(asdict(self)), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Result | None":
        """Return the result that ``folder`` holds, or None if it holds none.

        Raises:
            ValueError: if the file is damaged, naming it.
        """
        path = folder / RESULT_FILE
        if not path.exists():
            return None
        try:
            known = {f.name for f in fields(cls)}
            result = cls(**{key: value for key, value in json.loads(path.read_text()).items() if key in known})
            result.config = updated(result.config)
            result.overrides = [updated_override(override) for override in result.overrides]
            result.status = Status(result.status)
            result.objective = Objective(**read_numbers(result.objective))
            result.best = result.best and EpochMetrics(**read_numbers(result.best))
            result.last = result.last and EpochMetrics(**read_numbers(result.last))
            result.test = read_numbers(result.test)
            result.final, result.probes = read_numbers(result.final), read_numbers(result.probes)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return result


def worst_value(direction: str) -> float:
    """Return the value that every other is better than; a diverged run has it.

    >>> worst_value("min"), worst_value("max")
    (inf, -inf)
    """
    return math.inf if direction == "min" else -math.inf


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` by way of a file beside it, so that a reader sees the old or the new whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def to_jsonable(value: Any) -> Any:
    """Write non-finite numbers and the keys of mappings as words, as JSON has neither nan nor keys of numbers.

    >>> to_jsonable({"loss": [math.inf, 1.0]})
    {'loss': ['inf', 1.0]}
    """
    if isinstance(value, dict):
        return {str(key): to_jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_numbers(value: Any) -> Any:
    """Undo :func:`to_jsonable` in a part of a result that holds numbers.

    >>> read_numbers({"loss": ["inf", 1.0], "metric": "val/loss"})
    {'loss': [inf, 1.0], 'metric': 'val/loss'}
    """
    if isinstance(value, dict):
        return {key: read_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [read_numbers(entry) for entry in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
