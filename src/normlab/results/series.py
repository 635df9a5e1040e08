"""Time series of a run: ``curves.csv`` and ``probes.csv``, one row per number, and ``probes.npz``, arrays.

The writers are here, the readers in :mod:`normlab.results.reading`. T is the number of steps at which a probe
measured.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from normlab.results.result import naming, write_atomically

CURVES_FILE, PROBES_FILE, ARRAYS = "curves.csv", "probes.csv", "probes.npz"
TIME: dict[str, Any] = {"epoch": int, "step": int}
TYPES: Mapping[str, dict[str, Any]] = {
    CURVES_FILE: {**TIME, **dict.fromkeys(("split", "metric"), "category"), "value": float},
    PROBES_FILE: {**TIME, **dict.fromkeys(("probe", "mode", "quantity"), "category"), "value": float},
}
"""Type of each column of the CSV files."""
Row = Sequence[object]
CURVE_COLUMNS = ("run", "epoch", "step", "metric", "value")


@dataclass(frozen=True)
class Point:
    """The metrics of a run at one step, by ``split/metric`` as in ``val/loss``; ``time`` in Unix seconds."""

    epoch: int
    step: int
    time: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class ProbeRecord:
    """The measurements of a probe in one run at one step, with one kind of normalization statistics.

    Attributes:
        epoch, step: training time of the measurement.
        time: Unix time in seconds.
        probe: name of the probe.
        mode: statistics used by the normalizers, such as ``batch`` or ``frozen``.
        numbers: scalars by name; a number of a layer is named ``layer/name``.
        arrays: arrays by name, each of the same shape at every step.
        headline: names of the numbers that the summary tables show.
        histograms: values for TensorBoard histograms, by name.
    """

    epoch: int
    step: int
    time: float
    probe: str
    mode: str
    numbers: dict[str, float]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    headline: tuple[str, ...] = ()
    histograms: dict[str, np.ndarray] = field(default_factory=dict)

    def tag(self, name: str) -> str:
        """Return the full name of a number or histogram.

        >>> ProbeRecord(1, 5, 0.0, "curvature", "batch", {}).tag("trace")
        'probe/curvature/batch/trace'
        """
        return f"probe/{self.probe}/{self.mode}/{name}"

    def point(self) -> Point:
        """Convert the numbers to a point of the learning curves."""
        return Point(self.epoch, self.step, self.time, {self.tag(k): value for k, value in self.numbers.items()})


def headlines(records: Iterable[ProbeRecord]) -> dict[str, float]:
    """Return the last value of each headline number, by tag."""
    return {record.tag(name): record.numbers[name] for record in records for name in record.headline}


def rows_of_points(points: Iterable[Point]) -> list[Row]:
    """Return the rows of ``curves.csv`` for points, one for each metric."""
    rows: list[Row] = []
    for point in points:
        for name, value in point.metrics.items():
            split, slash, metric = name.partition("/")
            rows.append((point.epoch, point.step, split if slash else "", metric if slash else name, value))
    return rows


def append_curves(folder: Path, points: Iterable[Point]) -> None:
    """Append the metrics of points to ``curves.csv`` in ``folder``; a new file gets its header."""
    append_rows(folder / CURVES_FILE, rows_of_points(points))


def rows_of_records(records: Iterable[ProbeRecord]) -> list[Row]:
    """Return the rows of ``probes.csv`` for probe records, one for each number."""
    return [
        (record.epoch, record.step, record.probe, record.mode, name, value)
        for record in records
        for name, value in record.numbers.items()
    ]


def append_probes(folder: Path, records: Iterable[ProbeRecord]) -> None:
    """Append numbers to ``probes.csv`` in ``folder``; a new file gets its header."""
    append_rows(folder / PROBES_FILE, rows_of_records(records))


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a CSV file, with its header if it is new; fields with a comma or quote are quoted."""
    with naming(path), path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(TYPES[path.name])
        writer.writerows(rows)


def write_arrays(folder: Path, records: Iterable[ProbeRecord]) -> None:
    """Write the arrays of a run to ``probes.npz`` in ``folder``, atomically; without any arrays, no file.

    Raises:
        ValueError: if the shape of an array differs from that at an earlier step.
    """
    if content := arrays_content(records):
        write_atomically(folder / ARRAYS, content)


def arrays_content(records: Iterable[ProbeRecord]) -> bytes:
    """Return the content of ``probes.npz`` for the arrays of a run; empty without any arrays.

    The keys are ``<probe>/<mode>/<name>``, ``(T, …)``, and ``<probe>/<mode>/epoch`` and ``step``, ``(T,)``. A
    later record of the same probe, mode, epoch and step counts. A step without an array has NaN.

    Raises:
        ValueError: if the shape of an array differs from that at an earlier step.
    """
    sources: dict[str, dict[tuple[int, int], Mapping[str, np.ndarray]]] = {}
    for record in records:
        if record.arrays:
            sources.setdefault(f"{record.probe}/{record.mode}", {})[record.epoch, record.step] = record.arrays
    arrays: dict[str, Any] = {
        f"{source}/{name}": array for source in sources for name, array in stack_arrays(source, sources[source])
    }
    content = io.BytesIO()
    if arrays:
        np.savez(content, **arrays)
    return content.getvalue()


def stack_arrays(
    source: str, by_time: Mapping[tuple[int, int], Mapping[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the values over time of each array of one probe and mode, after epoch and step."""
    yield from zip(TIME, np.array([*by_time]).T, strict=True)
    for name in dict.fromkeys(name for arrays in by_time.values() for name in arrays):
        present = [arrays[name] for arrays in by_time.values() if name in arrays]
        shapes = dict.fromkeys(np.shape(array) for array in present)
        if len(shapes) > 1:
            raise ValueError(
                f"the array {name} of {source} must keep its shape, got {', '.join(map(str, shapes))}"
            )
        absent = np.full_like(present[0], np.nan, dtype=np.result_type(present[0], np.float32))
        yield name, np.stack([arrays.get(name, absent) for arrays in by_time.values()])
