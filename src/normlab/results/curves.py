"""Writer of ``curves.csv``: one row per epoch, step, split and metric; see :func:`append_curves`."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

CURVES_FILE = "curves.csv"
CURVES_HEADER = "epoch,step,split,metric,value\n"


@dataclass(frozen=True)
class Point:
    """The metrics of a run at one step, by ``split/metric`` as in ``val/loss``; ``time`` in Unix seconds."""

    epoch: int
    step: int
    time: float
    metrics: dict[str, float]


def append_curves(folder: Path, points: Iterable[Point]) -> None:
    """Append the metrics of points to ``curves.csv`` in ``folder``; a new file gets its header."""
    rows = [
        (point.epoch, point.step, *split_name(name), value)
        for point in points
        for name, value in point.metrics.items()
    ]
    append_rows(folder / CURVES_FILE, CURVES_HEADER, rows)


def split_name(name: str) -> tuple[str, str]:
    """Split a metric name at its first slash into split and metric.

    >>> split_name("val/loss"), split_name("activation/hidden1/before_mean")
    (('val', 'loss'), ('activation', 'hidden1/before_mean'))
    """
    split, _, metric = name.partition("/")
    return split, metric


def append_rows(path: Path, header: str, rows: Iterable[Sequence[object]]) -> None:
    """Append rows to a CSV file, with the header if it is new; fields with a comma or quote are quoted."""
    with path.open("a", newline="") as file:
        if file.tell() == 0:
            file.write(header)
        csv.writer(file, lineterminator="\n").writerows(rows)


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
