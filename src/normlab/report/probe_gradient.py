"""The figure of what was measured along the gradient, over the steps of the training."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from normlab.report.figure_layout import STEPS, Row, arm_entries, head, scale, sheet, statistics
from normlab.report.probe_data import Measured, quartiles
from normlab.report.probe_multiples import draw_multiples, multiples
from normlab.report.probe_panels import STEP, Panel, caption, draw_numbers, number_sheet

OVERLAID = 3
"""How many arms' ranges may lie over each other in a panel."""
TITLE = "The loss and its gradient a step further along the gradient"
NUMBERS = (
    ("beta", "effective smoothness", "β"),
    ("beta_lr", "smoothness × learning rate", "β · η"),
    ("cosine_min", "smallest cosine", "cosine of g and ∇f(θ′)"),
)


@dataclass(frozen=True)
class GradientRange:
    """Between which numbers a range lies, in words, and on its axis."""

    mode: str
    low: str
    high: str
    title: str
    label: str


def ranges(probe: Measured, mode: str) -> list[GradientRange]:
    """Return the quantities that were measured as ranges."""
    kinds = (
        ("loss_min", "loss_max", "range of the loss", "loss"),
        ("predictiveness_min", "predictiveness_max", "range of the gradient's change", "‖g − ∇f(θ′)‖"),
    )
    return [GradientRange(mode, *kind) for kind in kinds if probe.has(kind[1], mode)]


def along_gradient(probe: Measured) -> Figure | None:
    """Draw the ranges of loss and gradient along a step, and the smoothness that they show."""
    if not probe.has("loss_max"):
        return None
    numbers = [[Panel(mode, *kind) for kind in NUMBERS if probe.has(kind[0])] for mode in probe.modes]
    if probe.moments(["loss_max"]) == 1:
        change = ("predictiveness_max", "largest change of the gradient", "‖g − ∇f(θ′)‖")
        wider = [[Panel(mode, *change), *row[:2]] for mode, row in zip(probe.modes, numbers, strict=True)]
        return number_sheet(probe, TITLE, wider)[0]
    overlaid = len(probe.arms) <= OVERLAID
    of_modes = [ranges(probe, mode) for mode in probe.modes]
    every = [each for of_mode in of_modes for each in of_mode]
    titles = [f"{each.title}, {statistics(each.mode)}" for each in every]
    above = [Row(len(of_mode), 2.3) for of_mode in of_modes] if overlaid else multiples(probe, titles)
    rows = [*above, *(Row(len(row)) for row in numbers)]
    ends = ", its ends medians over the seeds" if max(map(len, probe.ended.values())) > 1 else ""
    words = [f"range: over the lengths of the step{ends}", *caption(probe)]
    figure, axes = sheet(TITLE, rows, [arm_entries(probe)], words)
    if overlaid:
        draw_overlaid(probe, every, [place for places in axes[: len(above)] for place in places])
    else:
        deep = len(above) // len(every)
        for number, each in enumerate(every):
            panels = axes[number * deep : (number + 1) * deep]
            draw_multiples(probe, panels, STEP, each.label, partial(draw_range, probe, each))
    for row, places in zip(numbers, axes[len(above) :], strict=True):
        draw_numbers(probe, row, places)
    return figure


def draw_overlaid(probe: Measured, every: Sequence[GradientRange], places: Sequence[Axes]) -> None:
    """Draw the ranges of all arms, one kind into each panel."""
    for each, place in zip(every, places, strict=True):
        scale(place, np.concatenate([draw_range(probe, each, place, arm) for arm in probe.arms]))
        head(place, [each.title, statistics(each.mode)], STEP, each.label)
        place.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1, steps=STEPS))


def draw_range(probe: Measured, of: GradientRange, axes: Axes, arm: str) -> np.ndarray:
    """Draw between which numbers an arm's range lies; return the numbers."""
    low, high = (probe.over_steps(of.mode, name, probe.ended[arm]) for name in (of.low, of.high))
    low, high = low.align(high, join="inner", axis=0)
    ends = quartiles(low.to_numpy())[1], quartiles(high.to_numpy())[1]
    look = probe.looks[arm]
    axes.fill_between(low.index, *ends, color=look.colour, alpha=0.3, lw=0)
    for end in ends:
        axes.plot(low.index, end, color=look.colour, linestyle=look.line, linewidth=0.8)
    return np.concatenate(ends)
