"""Small multiples: a panel for each arm, side by side, on one value axis."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from normlab.report.probe_data import Measured
from normlab.report.probe_sheet import Row, scale

ACROSS = 4
"""How many panels there are in a row."""


def groups(arms: Sequence[str]) -> list[list[str]]:
    """Return the arms row by row.

    >>> groups(["a", "b", "c", "d", "e"])
    [['a', 'b', 'c', 'd'], ['e']]
    """
    return [list(arms[first : first + ACROSS]) for first in range(0, len(arms), ACROSS)]


def multiple(row: Sequence, probe: Measured) -> Row:
    """Return a row of panels as wide as those of the other rows."""
    return Row(len(row), 1.6, shared=True, of=min(ACROSS, len(probe.arms)))


def level(panels: Sequence[Axes], values: Sequence[np.ndarray]) -> None:
    """Give panels one value axis, which is logarithmic if their values ask for it."""
    for place in panels:
        scale(place, np.concatenate(values))
    low, high = zip(*(place.get_ylim() for place in panels), strict=True)
    for place in panels:
        place.set_ylim(min(low), max(high))
