"""Small multiples: a panel for each arm, side by side, on one value axis."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from normlab.report.figure_layout import ABOVE, SHARED, STEPS, Row, head, scale
from normlab.report.figures import LEFT, RIGHT, WIDTH
from normlab.report.probe_data import Measured

AT_MOST = 5
"""How many panels there are in a row, where the names of the arms leave room for them."""
NAME_LETTER = 0.08
HEIGHT, NAME, GAP = 1.3, 0.28, 0.12
"""Inches: of a panel, of the name above it, and to the next row where that has the axis."""


def groups(probe: Measured) -> list[list[str]]:
    """Return the arms row by row, in rows that are as even as can be."""
    room = WIDTH - LEFT - RIGHT + SHARED
    longest = max(len(line) for arm in probe.arms for line in probe.brief[arm].split("\n"))
    fitting = min(AT_MOST, max(1, int(room / (NAME_LETTER * longest + SHARED))))
    across = math.ceil(len(probe.arms) / math.ceil(len(probe.arms) / fitting))
    return [probe.arms[first : first + across] for first in range(0, len(probe.arms), across)]


def multiples(probe: Measured, titles: Sequence[str]) -> list[Row]:
    """Return for each title the rows that hold a panel for every arm."""
    arms = groups(probe)
    # A name with the number of its lost runs has two lines.
    name = NAME + 0.15 * max(probe.brief[arm].count("\n") for arm in probe.arms)
    height = HEIGHT if len(arms) > 1 else 1.7
    rows = []
    for title in titles:
        for number, group in enumerate(arms):
            last = number == len(arms) - 1
            rows.append(
                Row(
                    len(group),
                    height,
                    name if number else name + ABOVE - 0.2,
                    shared=True,
                    of=len(arms[0]),
                    title="" if number else title,
                    below=None if last else GAP,
                )
            )
    return rows


def draw_multiples(
    probe: Measured, panels: Sequence[Sequence[Axes]], x: str, y: str, draw: Callable[[Axes, str], np.ndarray]
) -> None:
    """Draw one thing of every arm into the rows that :func:`multiples` has for one title.

    Args:
        probe: what was measured.
        panels: these rows.
        x, y: the names of the axes.
        draw: draws an arm into a panel, and returns the values drawn.
    """
    drawn = []
    for group, places in zip(groups(probe), panels, strict=True):
        for arm, place in zip(group, places, strict=True):
            drawn.append(draw(place, arm))
            last = places is panels[-1]
            place.tick_params(labelbottom=last)
            place.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1, steps=STEPS))
            head(place, [probe.brief[arm]], x if last else "", y if place is places[0] else "")
    level([place for places in panels for place in places], drawn)


def level(panels: Sequence[Axes], values: Sequence[np.ndarray]) -> None:
    """Give panels one value axis, which is logarithmic if their values ask for it."""
    for place in panels:
        scale(place, np.concatenate(values))
    low, high = zip(*(place.get_ylim() for place in panels), strict=True)
    left, right = zip(*(place.get_xlim() for place in panels), strict=True)
    for place in panels:
        place.set(xlim=(min(left), max(right)), ylim=(min(low), max(high)))
