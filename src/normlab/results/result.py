"""The record of a run, ``result.json``, and atomic writing of files; see :class:`Result`."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from normlab.config.frozen import to_jsonable, updated, updated_choices, updated_override
from normlab.errors import ConfigError

RESULT_FILE = "result.json"
SCHEMA = 1
"""Number of a record's schema; it grows when an older version could not read a record, or would misread it."""


class Status(StrEnum):
    """Final status of a run; stopped and failed runs are trained again when the command is repeated.

    A pruned run was stopped by the median rule of a search, since its metric was worse than those of other trials.
    """

    FINISHED = "finished"
    DIVERGED = "diverged"
    PRUNED = "pruned"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def done(self) -> bool:
        """True if the run needs no further training."""
        return self in (Status.FINISHED, Status.DIVERGED, Status.PRUNED)


@dataclass
class EpochMetrics:
    """The metrics of a run at one epoch, by name (``val/loss``)."""

    epoch: int
    step: int
    metrics: dict[str, float]


@dataclass
class Objective:
    """The objective of a run: the best value of a metric, which is minimized or maximized (min, max)."""

    metric: str
    direction: str
    value: float


@dataclass
class Result:
    """The record of one run.

    Attributes:
        seconds: time of the optimizer steps, without evaluation and logging.
        final: means over the last tenth of the epochs, of metrics in evaluation mode: ``val/…``, ``test/…``, and
            ``train_eval/…`` on the training split with statistics re-estimated there.
        probes: last value of each headline number of the probes, by tag.
        command: the command before the overrides, such as ``["python", "train.py"]``.
        chance: training loss of the best constant predictor, one output for all samples.
        data: the run's samples: ``seed``, which draws and splits them; ``generated``, True if they are drawn and
            False if one table is split; the split sizes ``train``, ``val``, ``test``. Empty in older records.
        sources: SHA-256 of the files that the configuration names; see :mod:`normlab.results.result`.
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
        """Write ``result.json`` into ``folder``, atomically."""
        write_atomically(folder / RESULT_FILE, self.text())

    def text(self) -> str:
        """Return the text of ``result.json``."""
        return json.dumps(to_jsonable({"schema": SCHEMA, **asdict(self)}), indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Result | None":
        """Read ``result.json`` in ``folder``; return None if it is missing.

        Keys and targets of older records are renamed to the current ones; unknown fields are ignored.

        Raises:
            ConfigError: if a later version of normlab wrote it, with another schema.
            ValueError: if the file is damaged; the message has its path.
        """
        path = folder / RESULT_FILE
        if not path.exists():
            return None
        try:
            text = path.read_text()
        except ValueError as error:  # the bytes are no text
            raise ValueError(f"{path} is damaged: {error}") from error
        return cls.parse(text, path)

    @classmethod
    def parse(cls, text: str, source: object) -> "Result":
        """Return the result of the text of ``result.json``; see :meth:`read`.

        Args:
            text: of the file.
            source: names the file in an error.

        Raises:
            ConfigError: if a later version of normlab wrote it, with another schema.
            ValueError: if the text is damaged.
        """
        try:
            written: Any = json.loads(text)
            require_known_schema(written, source)
            values: dict[str, Any] = known_fields(cls, written)
            numbers = ("objective", "best", "last", "test", "final", "probes")
            values |= {name: read_numbers(values[name]) for name in numbers if name in values}
            values |= {name: EpochMetrics(**values[name]) for name in ("best", "last") if values.get(name)}
            values |= {"status": Status(values["status"]), "objective": Objective(**values["objective"])}
            values |= {
                "choices": updated_choices(values["choices"], values["config"]),
                "config": updated(values["config"]),
                "overrides": [*map(updated_override, values["overrides"])],
            }
            return cls(**values)
        except ConfigError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{source} is damaged: {error}") from error


def require_known_schema(values: Mapping[str, Any], source: object) -> None:
    """Raise :class:`ConfigError` if a record has a schema that this version cannot read.

    Records without one were written before schemas had numbers, and can be read.
    """
    schema = values.get("schema", SCHEMA)
    if schema > SCHEMA:
        writer = values.get("environment", {}).get("versions", {}).get("normlab", "a later version")
        raise ConfigError(
            f"{source} has schema {schema}, written by normlab {writer}; this version reads schema {SCHEMA}: "
            "update normlab"
        )


def known_fields(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Select the values of a dataclass's fields; later versions may have written others."""
    return {f.name: values[f.name] for f in fields(cls) if f.name in values}


def worst_value(direction: str) -> float:
    """Return the worst value of an objective, which a diverged run gets: ∞ for "min", -∞ for "max".

    >>> worst_value("min"), worst_value("max")
    (inf, -inf)
    """
    return math.inf if direction == "min" else -math.inf


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a temporary file and rename it to ``path``, so that readers never see a partial file.

    Raises:
        OSError: with the path, if it cannot be written; then nothing is left of the temporary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context manager that adds the path to an error of writing, which has none if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context manager that yields a temporary file, which replaces ``path`` once it is on the disk.

    After an error the temporary file is removed, and ``path`` stays as it is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        synchronize(temporary)
        temporary.replace(path)
        synchronize(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def synchronize(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_numbers(value: Any) -> Any:
    """Convert the strings ``inf``, ``-inf`` and ``nan`` back to floats; inverse of ``to_jsonable``.

    >>> read_numbers({"loss": ["inf", 1.0], "metric": "val/loss"})
    {'loss': [inf, 1.0], 'metric': 'val/loss'}
    """
    if isinstance(value, dict):
        return {key: read_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [read_numbers(entry) for entry in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
