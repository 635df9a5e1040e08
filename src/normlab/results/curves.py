"""``curves.csv``: one row per epoch, step, split, metric and value."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

CURVES_FILE = "curves.csv"
CURVES_HEADER = "epoch,step,split,metric,value\n"


@dataclass(frozen=True)
class Point:
    """The metrics of one run at one moment; a metric's name begins with its split, as in ``val/loss``."""

    epoch: int
    step: int
    time: float
    metrics: dict[str, float]


def append_curves(folder: Path, points: Iterable[Point]) -> None:
    """Append points to the curves in ``folder``; the file begins with its header."""
    rows = [
        (point.epoch, point.step, *split_name(name), value)
        for point in points
        for name, value in point.metrics.items()
    ]
    append_rows(folder / CURVES_FILE, CURVES_HEADER, rows)


def split_name(name: str) -> tuple[str, str]:
    """Return the split and the metric of a name.

    >>> split_name("val/loss"), split_name("activation/hidden1/before_mean")
    (('val', 'loss'), ('activation', 'hidden1/before_mean'))
    """
    split, _, metric = name.partition("/")
    return split, metric


def append_rows(path: Path, header: str, rows: Iterable[Sequence[object]]) -> None:
    """Append rows to a CSV file that begins with a header; names with a comma or a quote are quoted."""
    with path.open("a", newline="") as file:
        if file.tell() == 0:
            file.write(header)
        csv.writer(file, lineterminator="\n").writerows(rows)


def whole_rows(text: str) -> str:
    """Return the text of a CSV file up to the end of its last whole row.

    A run that was killed while it wrote has left a part of a row, which may look like a whole one.

    >>> whole_rows('a,1\\n"b\\n,2'), whole_rows('a,1\\n"b\\n",2\\n')
    ('a,1\\n', 'a,1\\n"b\\n",2\\n')
    """
    end = text.rfind("\n")
    while text.count('"', 0, max(end, 0)) % 2:  # this line break is part of a quoted name
        end = text.rfind("\n", 0, end)
    return text[: end + 1]
