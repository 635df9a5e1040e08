"""Time series of a run: ``curves.csv`` and ``probes.csv``, one row per number, and ``probes.npz``, arrays.

A writer and a reader of each file are here. T is the number of steps at which a probe measured.
"""

import csv
import io
import logging
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normlab.errors import first_line
from normlab.results.result import naming, write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from normlab.results.sweep import Record

CURVES_FILE, PROBES_FILE, ARRAYS = "curves.csv", "probes.csv", "probes.npz"
TIME: dict[str, Any] = {"epoch": int, "step": int}
TYPES: Mapping[str, dict[str, Any]] = {
    CURVES_FILE: {**TIME, "split": str, "metric": str, "value": float},
    PROBES_FILE: {**TIME, **dict.fromkeys(("probe", "mode", "quantity"), "category"), "value": float},
}
"""Type of each column of the CSV files."""
CURVE_COLUMNS = ("run", "epoch", "step", "metric", "value")
READ_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
DAMAGED = "%s is damaged: %s; the run has no %s"
log = logging.getLogger("normlab")


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


def append_curves(folder: Path, points: Iterable[Point]) -> None:
    """Append the metrics of points to ``curves.csv`` in ``folder``; a new file gets its header."""
    rows = []
    for point in points:
        for name, value in point.metrics.items():
            split, slash, metric = name.partition("/")
            rows.append((point.epoch, point.step, split if slash else "", metric if slash else name, value))
    append_rows(folder / CURVES_FILE, rows)


def append_probes(folder: Path, records: Iterable[ProbeRecord]) -> None:
    """Append numbers to ``probes.csv`` in ``folder``; a new file gets its header."""
    rows = [
        (record.epoch, record.step, record.probe, record.mode, name, value)
        for record in records
        for name, value in record.numbers.items()
    ]
    append_rows(folder / PROBES_FILE, rows)


def append_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Append rows to a CSV file, with its header if it is new; fields with a comma or quote are quoted."""
    with naming(path), path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(TYPES[path.name])
        writer.writerows(rows)


def read_curves(records: Sequence["Record"]) -> "pd.DataFrame":
    """Return the learning curves of all runs, a row per run, epoch and metric (``val/loss``); see `read_rows`."""
    rows = read_rows(records, CURVES_FILE)
    names = rows["split"] + "/" + rows["metric"]
    if (rows["split"] == "").any():  # numbers logged under a name without a split
        names = names.str.removeprefix("/")
    return rows.assign(metric=names)[list(CURVE_COLUMNS)]


def warn_of_missing_epochs(records: Sequence["Record"], curves: "pd.DataFrame") -> None:
    """Log each done run with epochs after the end of its curves, unless its file was logged as damaged."""
    ends = curves.groupby("run")["epoch"].max().to_dict()
    for number, record in enumerate(records):
        path, last = record.folder / CURVES_FILE, record.result.last
        if not (record.result.status.done and last and ends.get(number, 0) < last.epoch):
            continue
        if number in ends or not path.exists() or not path.stat().st_size:
            log.warning("%s is damaged: it ends before epoch %d of %d", path, ends.get(number, 0) + 1, last.epoch)


def read_probes(records: Sequence["Record"]) -> "pd.DataFrame":
    """Return the probe numbers of all runs: one row per run, step, probe, mode and quantity; see `read_rows`."""
    return read_rows(records, PROBES_FILE)


def read_rows(records: Sequence["Record"], name: str) -> "pd.DataFrame":
    """Return the rows of a CSV file of all runs; the first column, ``run``, is the index of the record.

    Runs with a missing or damaged file have no rows; damage is logged.
    """
    texts = [read_rows_text(record.folder / name) for record in records]
    try:
        # One call for all files; parsing hundreds of short files separately takes several times as long.
        frame = parse_rows("".join(texts), TYPES[name])
    except ValueError:
        texts = [readable_rows(record.folder / name, text) for record, text in zip(records, texts, strict=True)]
        frame = parse_rows("".join(texts), TYPES[name])
    frame.insert(0, "run", np.repeat(np.arange(len(texts)), np.array([*map(row_count, texts)], int)))
    return frame


def parse_rows(text: str, types: dict[str, Any]) -> "pd.DataFrame":
    """Parse CSV rows without a header into a data frame.

    Raises:
        ValueError: if a row is malformed.
    """
    import pandas as pd

    # A quantity may be named NA, so only the string nan in the value column is parsed as NaN.
    missing: Any = {"keep_default_na": False, "na_values": {"value": ["nan"]}}
    return pd.read_csv(io.StringIO(text), names=list(types), dtype=types, skip_blank_lines=False, **missing)


def row_count(text: str) -> int:
    """Return the number of CSV rows; a quoted field may hold line breaks."""
    return sum(1 for _ in csv.reader(io.StringIO(text))) if '"' in text else text.count("\n")


def readable_rows(path: Path, text: str) -> str:
    """Return the rows of a CSV file if they can be parsed; otherwise log a warning and return none."""
    try:
        parse_rows(text, TYPES[path.name])
    except ValueError as error:
        log.warning(DAMAGED, path, first_line(error), path.stem)
        return ""
    return text


def read_rows_text(path: Path) -> str:
    """Read the complete rows of a CSV file without the header; none if it is missing, or damaged (logged)."""
    header = ",".join(TYPES[path.name]) + "\n"
    try:
        text = whole_rows(path.read_text())
        if text and not text.startswith(header):
            raise ValueError(f"it must begin with {header.strip()}")
        return text.removeprefix(header)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        log.warning(DAMAGED, path, first_line(error), path.stem)
        return ""


def whole_rows(text: str) -> str:
    """Drop an incomplete last row from the text of a CSV file.

    A run killed while writing leaves part of a row, which may parse as a complete one.

    >>> whole_rows('a,1\\n"b\\n,2'), whole_rows('a,1\\n"b\\n",2\\n')
    ('a,1\\n', 'a,1\\n"b\\n",2\\n')
    """
    end = text.rfind("\n")
    while text.count('"', 0, max(end, 0)) % 2:  # this line break is inside a quoted field
        end = text.rfind("\n", 0, end)
    return text[: end + 1]


def write_arrays(folder: Path, records: Iterable[ProbeRecord]) -> None:
    """Write the arrays of a run to ``probes.npz`` in ``folder``, atomically; without any arrays, no file.

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
    if arrays:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomically(folder / ARRAYS, buffer.getvalue())


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


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Read ``probes.npz`` in ``folder``; empty if it is missing, or damaged (logs a warning)."""
    path = folder / ARRAYS
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        return {}
    except READ_ERRORS as error:
        log.warning(DAMAGED, path, first_line(error), "arrays of probes")
        return {}
