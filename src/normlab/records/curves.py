"""``curves.csv``: one row per epoch, step, split, metric and value."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FILE = "curves.csv"
HEADER = "epoch,step,split,metric,value\n"


@dataclass(frozen=True)
class Point:
    """The metrics of one run at one moment; a metric's name begins with its split, as in ``val/loss``."""

    epoch: int
    step: int
    time: float
    metrics: dict[str, float]


def append(folder: Path, points: Iterable[Point]) -> None:
    """Append points to the curves in ``folder``; the file begins with its header."""
    path = folder / FILE
    rows = [
        f"{point.epoch},{point.step},{name.replace('/', ',', 1)},{value!r}\n"
        for point in points
        for name, value in point.metrics.items()
    ]
    with path.open("a") as file:
        file.writelines([HEADER, *rows] if file.tell() == 0 else rows)
