"""The time series of a run while it trains: appended to files in its folder, or kept for packed records.

The callbacks that record curves and probes write to a :class:`RunSeries` for each run.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from normlab.results.series import (
    ARRAYS,
    CURVES_FILE,
    PROBES_FILE,
    Point,
    ProbeRecord,
    Row,
    append_curves,
    append_probes,
    arrays_content,
    rows_of_points,
    rows_of_records,
    write_arrays,
)


class RunSeries(Protocol):
    """Takes the numbers of a run in the order in which they are measured."""

    def append_points(self, points: Iterable[Point]) -> None:
        """Append the metrics of points to the learning curves."""

    def append_records(self, records: Iterable[ProbeRecord]) -> None:
        """Append the numbers of probes."""

    def write_arrays(self, records: Iterable[ProbeRecord]) -> None:
        """Write the arrays of the probes of the whole training."""

    def write_file(self, name: str, content: bytes) -> None:
        """Write another file of the run."""


@dataclass(frozen=True)
class SeriesInFolder:
    """Appends to ``curves.csv`` and ``probes.csv`` in the folder of a run."""

    folder: Path

    def append_points(self, points: Iterable[Point]) -> None:
        """Append the metrics of points to the learning curves."""
        append_curves(self.folder, points)

    def append_records(self, records: Iterable[ProbeRecord]) -> None:
        """Append the numbers of probes."""
        append_probes(self.folder, records)

    def write_arrays(self, records: Iterable[ProbeRecord]) -> None:
        """Write the arrays of the probes of the whole training."""
        write_arrays(self.folder, records)

    def write_file(self, name: str, content: bytes) -> None:
        """Write another file of the run."""
        (self.folder / name).write_bytes(content)


@dataclass(frozen=True)
class SeriesInMemory:
    """Keeps the rows and files of a run until its population ends.

    Attributes:
        rows: of ``curves.csv`` and ``probes.csv``.
        files: the content of other files, by name.
    """

    rows: dict[str, list[Row]] = field(default_factory=lambda: {CURVES_FILE: [], PROBES_FILE: []})
    files: dict[str, bytes] = field(default_factory=dict)

    def append_points(self, points: Iterable[Point]) -> None:
        """Append the metrics of points to the learning curves."""
        self.rows[CURVES_FILE] += rows_of_points(points)

    def append_records(self, records: Iterable[ProbeRecord]) -> None:
        """Append the numbers of probes."""
        self.rows[PROBES_FILE] += rows_of_records(records)

    def write_arrays(self, records: Iterable[ProbeRecord]) -> None:
        """Keep the arrays of the probes of the whole training."""
        if content := arrays_content(records):
            self.files[ARRAYS] = content

    def write_file(self, name: str, content: bytes) -> None:
        """Keep another file of the run."""
        self.files[name] = content
