"""The figure of what was measured along the gradient, over the steps of the training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from normlab.report.probe_data import Measured, quartiles
from normlab.report.probe_multiples import groups, level, multiple
from normlab.report.probe_panels import STEP, Panel, caption, draw_numbers, number_sheet
from normlab.report.probe_sheet import Row, arm_entries, head, sheet, statistics

OVERLAID = 3
"""How many arms' ranges may lie over each other in a panel."""
TITLE = "The loss and its gradient a step further along the gradient"
NUMBERS = (
    ("beta", "effective smoothness", "β"),
    ("beta_lr", "smoothness × learning rate", "β · η"),
    ("cosine_min", "smallest cosine", "cosine of g and ∇f(θ′)"),
)


@dataclass(frozen=True)
class Range:
    """Between which numbers a range lies, in words, and on its axis."""

    mode: str
    low: str
    high: str
    title: str
    label: str


def ranges(probe: Measured, mode: str) -> list[Range]:
    """Return what was measured as a range."""
    kinds = (
        ("loss_min", "loss_max", "range of the loss", "loss"),
        ("predictiveness_min", "predictiveness_max", "range of the gradient's change", "‖g − ∇f(θ′)‖"),
    )
    return [Range(mode, *kind) for kind in kinds if probe.has(kind[1], mode)]


def along_gradient(probe: Measured) -> Figure | None:
    """Draw the ranges of loss and gradient along a step, and the smoothness that they show."""
    if not probe.has("loss_max"):
        return None
    numbers = [[Panel(mode, *kind) for kind in NUMBERS if probe.has(kind[0])] for mode in probe.modes]
    if probe.moments(["loss_max"]) == 1:
        change = ("predictiveness_max", "largest change of the gradient", "‖g − ∇f(θ′)‖")
        wider = [[Panel(mode, *change), *row[:2]] for mode, row in zip(probe.modes, numbers, strict=True)]
        return number_sheet(probe, TITLE, wider)[0]
    if len(probe.arms) <= OVERLAID:
        cells = [[(each, probe.arms) for each in ranges(probe, mode)] for mode in probe.modes]
        above = [Row(len(row), 2.3) for row in cells]
    else:
        every = [each for mode in probe.modes for each in ranges(probe, mode)]
        cells = [[(each, [arm]) for arm in group] for each in every for group in groups(probe.arms)]
        above = [multiple(row, probe) for row in cells]
    rows = [*above, *(Row(len(row)) for row in numbers)]
    words = ["range: over the lengths of the step, its ends medians over the seeds", *caption(probe)]
    figure, axes = sheet(TITLE, rows, [arm_entries(probe)], words)
    draw_cells(probe, cells, axes)
    for row, places in zip(numbers, axes[len(cells) :], strict=True):
        draw_numbers(probe, row, places)
    return figure


def draw_cells(
    probe: Measured, cells: Sequence[Sequence[tuple[Range, list[str]]]], axes: list[list[Axes]]
) -> None:
    """Draw ranges into their panels, with one value axis for each kind."""
    drawn: dict[Range, list[tuple[Axes, np.ndarray]]] = {}
    for row, places in zip(cells, axes, strict=False):
        for (each, arms), place in zip(row, places, strict=True):
            drawn.setdefault(each, []).append((place, draw_range(place, probe, each, arms)))
            name = each.title if arms is probe.arms else probe.labels[arms[0]]
            what = "" if arms is probe.arms else f"{each.title}, "
            y = each.label if arms is probe.arms or place is places[0] else ""
            head(place, [name, what + statistics(each.mode)], STEP, y)
    for panels in drawn.values():
        level(*zip(*panels, strict=True))


def draw_range(axes: Axes, probe: Measured, of: Range, arms: Sequence[str]) -> np.ndarray:
    """Draw between which numbers the ranges of arms lie; return the numbers."""
    drawn = [np.array([])]
    for arm in arms:
        low, high = (probe.over_steps(of.mode, name, probe.ended[arm]) for name in (of.low, of.high))
        ends = quartiles(low.to_numpy())[1], quartiles(high.to_numpy())[1]
        look = probe.looks[arm]
        axes.fill_between(low.index, *ends, color=look.colour, alpha=0.3, lw=0)
        for end in ends:
            axes.plot(low.index, end, color=look.colour, linestyle=look.line, linewidth=0.8)
        drawn += ends
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
    return np.concatenate(drawn)
