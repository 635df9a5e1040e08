"""What the probes of a run leave behind: ``probes.csv``, a row per number, and ``probes.npz``, the arrays.

T is the number of moments at which a probe looked.
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
MOMENT = ("epoch", "step")
TYPES: Any = {
    "epoch": int,
    "step": int,
    "probe": "category",
    "mode": "category",
    "quantity": "category",
    "value": float,
}
DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
log = logging.getLogger("normlab")


@dataclass(frozen=True)
class Found:
    """What a probe found in one run at one moment, by one kind of statistics.

    Attributes:
        epoch, step, time: of the training, and in seconds since 1970.
        probe, mode: who found it, and what normalizers went by.
        numbers: by name; of a layer as ``layer/name``.
        arrays: by name, of the same shape at every moment.
        headline: the names of the numbers that a table has room for.
        histograms: values to show as a distribution, by name.
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
        """Return the name of a number or histogram among those of all probes.

        >>> Found(1, 5, 0.0, "curvature", "batch", {}).tag("trace")
        'probe/curvature/batch/trace'
        """
        return f"probe/{self.probe}/{self.mode}/{name}"

    def point(self) -> Point:
        """Return the numbers as a point of curves."""
        return Point(self.epoch, self.step, self.time, {self.tag(k): value for k, value in self.numbers.items()})


def headlines(founds: Iterable[Found]) -> dict[str, float]:
    """Return the last value of each number that a table has room for."""
    return {found.tag(name): found.numbers[name] for found in founds for name in found.headline}


def append_probes(folder: Path, founds: Iterable[Found]) -> None:
    """Append numbers to ``probes.csv`` in ``folder``; the file begins with its header."""
    rows = [
        (found.epoch, found.step, found.probe, found.mode, name, value)
        for found in founds
        for name, value in found.numbers.items()
    ]
    append_rows(folder / PROBES_FILE, PROBES_HEADER, rows)


def write_arrays(folder: Path, founds: Iterable[Found]) -> None:
    """Add arrays to ``probes.npz`` in ``folder``; a reader sees the old file or the new one whole.

    The keys are ``<probe>/<mode>/<name>``, time in front, ``(T, …)``, and ``<probe>/<mode>/epoch`` and ``step``,
    ``(T,)``. What is there of the same probe, mode, epoch and step is replaced. At a moment without the array it
    is NaN. Without any arrays there is no file.

    Raises:
        ValueError: if an array has another shape than at an earlier moment.
    """
    moments = apart(read_arrays(folder))
    for found in founds:
        if found.arrays:
            taken = moments.setdefault(f"{found.probe}/{found.mode}", {})
            taken[found.epoch, found.step] = {name: np.asarray(array) for name, array in found.arrays.items()}
    if not moments:
        return
    arrays: dict[str, Any] = {
        key: value for source in moments for key, value in stack_arrays(source, moments[source])
    }
    beside = folder / f".{ARRAYS}.{os.getpid()}"
    with beside.open("wb") as file:
        np.savez(file, **arrays)
    beside.replace(folder / ARRAYS)


def apart(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[tuple[int, int], dict[str, np.ndarray]]]:
    """Return the arrays of ``probes.npz`` by ``<probe>/<mode>``, epoch and step, and name."""
    moments: dict[str, dict[tuple[int, int], dict[str, np.ndarray]]] = {}
    for source in dict.fromkeys("/".join(key.split("/")[:2]) for key in arrays):
        named = {
            key.removeprefix(f"{source}/"): array for key, array in arrays.items() if key.startswith(f"{source}/")
        }
        when = zip(*(named.pop(name).tolist() for name in MOMENT), strict=True)
        moments[source] = {at: {name: array[t] for name, array in named.items()} for t, at in enumerate(when)}
    return moments


def stack_arrays(
    source: str, moments: Mapping[tuple[int, int], Mapping[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the keys and arrays of one probe and mode, time in front."""
    yield from ((f"{source}/{name}", np.array([at[i] for at in moments])) for i, name in enumerate(MOMENT))
    for name in dict.fromkeys(name for arrays in moments.values() for name in arrays):
        present = [arrays[name] for arrays in moments.values() if name in arrays]
        shapes = dict.fromkeys(array.shape for array in present)
        if len(shapes) > 1:
            raise ValueError(
                f"the array {name} of {source} must keep its shape, got {', '.join(map(str, shapes))}"
            )
        absent = np.full_like(present[0], np.nan, dtype=np.result_type(present[0], np.float32))
        yield f"{source}/{name}", np.stack([arrays.get(name, absent) for arrays in moments.values()])


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of ``probes.npz`` in ``folder``; none if it is missing, or damaged, with a warning."""
    path = folder / ARRAYS
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        return {}
    except DAMAGE as error:
        log.warning("%s is damaged: %s; the run has no arrays of probes", path, first_line(error))
        return {}


def read_probes(records: Sequence["Record"]) -> "pd.DataFrame":
    """Return the numbers of all runs: a row per run, moment, probe, mode and quantity.

    ``run`` is the number of the record. A run whose numbers are missing has no rows; nor has one whose numbers
    are damaged, which is said.
    """
    import pandas as pd

    texts = {k: text for k, record in enumerate(records) for text in lines_of(record.folder / PROBES_FILE)}
    if not any(texts.values()):
        return pd.DataFrame({name: [] for name in PROBE_COLUMNS})
    rows = [text.count("\n") for text in texts.values()]
    try:
        # All at once: a call for each of hundreds of short files takes several times as long.
        frame = parsed("".join(texts.values()), sum(rows))
    except ValueError:
        texts = {k: text for k, text in texts.items() if is_readable(records[k].folder / PROBES_FILE, text)}
        rows = [text.count("\n") for text in texts.values()]
        frame = parsed("".join(texts.values()), sum(rows))
    frame.insert(0, "run", np.repeat(list(texts), rows))
    return frame


def lines_of(path: Path) -> Iterator[str]:
    """Yield the rows of a file as text, without its header, if there are any."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return
    except DAMAGE as error:
        log.warning("%s is damaged: %s; the run has no probes", path, first_line(error))
        return
    whole = whole_rows(text)
    if whole and not whole.startswith(PROBES_HEADER):
        log.warning("%s is damaged: it must begin with %s; the run has no probes", path, PROBES_HEADER.strip())
        return
    yield whole.removeprefix(PROBES_HEADER)


def parsed(text: str, rows: int) -> "pd.DataFrame":
    """Return rows of text as a frame.

    Raises:
        ValueError: if they are not as many rows of numbers.
    """
    import pandas as pd

    frame = pd.read_csv(io.StringIO(text), names=list(TYPES), dtype=TYPES)
    if len(frame) != rows or frame["quantity"].isna().any():
        raise ValueError(f"there must be {rows} rows of {len(TYPES)}, got {len(frame)}")
    return frame


def is_readable(path: Path, text: str) -> bool:
    """Return whether rows of text can be read, and say so if not."""
    try:
        return len(parsed(text, text.count("\n"))) > 0 if text else True
    except ValueError as error:
        log.warning("%s is damaged: %s; the run has no probes", path, first_line(error))
        return False
