"""Probe outputs of a run: ``probes.csv``, one row per number, and ``probes.npz``, the arrays.

A writer and a reader of each file are here. T is the number of steps at which a probe measured.
"""

import io
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normlab.errors import first_line
from normlab.results.curves import Point, append_rows, whole_rows

if TYPE_CHECKING:
    import pandas as pd

    from normlab.results.sweep import Record

PROBES_FILE = "probes.csv"
ARRAYS = "probes.npz"
PROBES_HEADER = "epoch,step,probe,mode,quantity,value\n"
PROBE_COLUMNS = ("run", "epoch", "step", "probe", "mode", "quantity", "value")
TIME_KEYS = ("epoch", "step")
TYPES: Any = {
    "epoch": int,
    "step": int,
    "probe": "category",
    "mode": "category",
    "quantity": "category",
    "value": float,
}
READ_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
log = logging.getLogger("normlab")


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
        """Return the TensorBoard tag of a number or histogram.

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


def append_probes(folder: Path, records: Iterable[ProbeRecord]) -> None:
    """Append numbers to ``probes.csv`` in ``folder``; a new file gets its header."""
    rows = [
        (record.epoch, record.step, record.probe, record.mode, name, value)
        for record in records
        for name, value in record.numbers.items()
    ]
    append_rows(folder / PROBES_FILE, PROBES_HEADER, rows)


def write_arrays(folder: Path, records: Iterable[ProbeRecord]) -> None:
    """Add arrays to ``probes.npz`` in ``folder``, atomically; without any arrays, no file is written.

    The keys are ``<probe>/<mode>/<name>``, ``(T, …)``, and ``<probe>/<mode>/epoch`` and ``step``, ``(T,)``.
    Existing arrays of the same probe, mode, epoch and step are replaced. A step without an array has NaN.

    Raises:
        ValueError: if the shape of an array differs from that at an earlier step.
    """
    series = split_by_time(read_arrays(folder))
    for record in records:
        if record.arrays:
            by_time = series.setdefault(f"{record.probe}/{record.mode}", {})
            by_time[record.epoch, record.step] = {k: np.asarray(array) for k, array in record.arrays.items()}
    if not series:
        return
    arrays: dict[str, Any] = {
        key: value for source in series for key, value in stack_arrays(source, series[source])
    }
    temporary = folder / f".{ARRAYS}.{os.getpid()}"
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(folder / ARRAYS)


def split_by_time(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[tuple[int, int], dict[str, np.ndarray]]]:
    """Nest the arrays of ``probes.npz`` by ``<probe>/<mode>``, then ``(epoch, step)``, then name."""
    series: dict[str, dict[tuple[int, int], dict[str, np.ndarray]]] = {}
    for source in dict.fromkeys("/".join(key.split("/")[:2]) for key in arrays):
        named = {
            key.removeprefix(f"{source}/"): array for key, array in arrays.items() if key.startswith(f"{source}/")
        }
        times = zip(*(named.pop(name).tolist() for name in TIME_KEYS), strict=True)
        series[source] = {time: {name: array[t] for name, array in named.items()} for t, time in enumerate(times)}
    return series


def stack_arrays(
    source: str, by_time: Mapping[tuple[int, int], Mapping[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield ``(key, array)`` of one probe and mode for ``probes.npz``; the first axis is time."""
    yield from ((f"{source}/{name}", np.array([time[i] for time in by_time])) for i, name in enumerate(TIME_KEYS))
    for name in dict.fromkeys(name for arrays in by_time.values() for name in arrays):
        present = [arrays[name] for arrays in by_time.values() if name in arrays]
        shapes = dict.fromkeys(array.shape for array in present)
        if len(shapes) > 1:
            raise ValueError(
                f"the array {name} of {source} must keep its shape, got {', '.join(map(str, shapes))}"
            )
        absent = np.full_like(present[0], np.nan, dtype=np.result_type(present[0], np.float32))
        yield f"{source}/{name}", np.stack([arrays.get(name, absent) for arrays in by_time.values()])


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Read ``probes.npz`` in ``folder``; empty if it is missing, or damaged (logs a warning)."""
    path = folder / ARRAYS
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        return {}
    except READ_ERRORS as error:
        log.warning("%s is damaged: %s; the run has no arrays of probes", path, first_line(error))
        return {}


def read_probes(records: Sequence["Record"]) -> "pd.DataFrame":
    """Return the probe numbers of all runs: one row per run, step, probe, mode and quantity.

    ``run`` is the index of the record. Runs with a missing or damaged file have no rows; damage is logged.
    """
    import pandas as pd

    texts = {k: text for k, record in enumerate(records) for text in read_rows_text(record.folder / PROBES_FILE)}
    if not any(texts.values()):
        return pd.DataFrame({name: [] for name in PROBE_COLUMNS})
    rows = [text.count("\n") for text in texts.values()]
    try:
        # One call for all files; parsing hundreds of short files separately takes several times as long.
        frame = parse_rows("".join(texts.values()), sum(rows))
    except ValueError:
        texts = {k: text for k, text in texts.items() if is_readable(records[k].folder / PROBES_FILE, text)}
        rows = [text.count("\n") for text in texts.values()]
        frame = parse_rows("".join(texts.values()), sum(rows))
    frame.insert(0, "run", np.repeat(list(texts), rows))
    return frame


def read_rows_text(path: Path) -> Iterator[str]:
    """Yield the text of a file's complete rows without the header; nothing if it is missing or damaged."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return
    except READ_ERRORS as error:
        log.warning("%s is damaged: %s; the run has no probes", path, first_line(error))
        return
    whole = whole_rows(text)
    if whole and not whole.startswith(PROBES_HEADER):
        log.warning("%s is damaged: it must begin with %s; the run has no probes", path, PROBES_HEADER.strip())
        return
    yield whole.removeprefix(PROBES_HEADER)


def parse_rows(text: str, rows: int) -> "pd.DataFrame":
    """Parse CSV rows into a data frame.

    Raises:
        ValueError: if a row is malformed, or their number is not ``rows``.
    """
    import pandas as pd

    frame = pd.read_csv(io.StringIO(text), names=list(TYPES), dtype=TYPES)
    if len(frame) != rows or frame["quantity"].isna().any():
        complete = frame["quantity"].notna().sum()
        raise ValueError(f"it must have {rows} rows of {len(TYPES)} fields, got {complete}")
    return frame


def is_readable(path: Path, text: str) -> bool:
    """Return True if CSV rows can be parsed; log a warning otherwise."""
    try:
        return len(parse_rows(text, text.count("\n"))) > 0 if text else True
    except ValueError as error:
        log.warning("%s is damaged: %s; the run has no probes", path, first_line(error))
        return False
