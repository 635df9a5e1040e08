"""Figures of probes of the loss: along the gradient, in random directions, curvature, and interpolation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from normlab.report.figure_layout import (
    GREY,
    TICK_STEPS,
    Entry,
    PanelRow,
    arm_entries,
    few_ticks,
    head,
    mode_title,
    power,
    scale,
    sheet,
)
from normlab.report.probe_data import Measured, seed_quartiles
from normlab.report.probe_panels import (
    STEP,
    NumberPanel,
    draw_median,
    draw_multiples,
    draw_numbers,
    multiples,
    number_sheet,
    panel_caption,
)

OVERLAID = 3
"""How many arms' ranges may lie over each other in a panel."""
ALONG_GRADIENT_TITLE = "The loss and its gradient a step further along the gradient"
NUMBERS = (
    ("beta", "effective smoothness", "β"),
    ("beta_lr", "smoothness × learning rate", "β · η"),
    ("cosine_min", "smallest cosine", "cosine of g and ∇f(θ′)"),
)
LIMIT = (0, (6, 2))
FLOOR = 1e-6
"""The lowest spectral density that is drawn, as a share of the highest."""
LIMITS = {"lambda_max_lr": "stability", "preconditioned_lambda_max_lr": "preconditioned_stability"}
"""Names of the stability limits in the figure, by the measured quantity."""


@dataclass(frozen=True)
class GradientRange:
    """Between which numbers a range lies, in words, and on its axis."""

    mode: str
    low: str
    high: str
    title: str
    label: str


def range_quantities(probe: Measured, mode: str) -> list[GradientRange]:
    """Return the quantities that were measured as ranges."""
    kinds = (
        ("loss_min", "loss_max", "range of the loss", "loss"),
        ("predictiveness_min", "predictiveness_max", "range of the gradient's change", "‖g − ∇f(θ′)‖"),
    )
    return [GradientRange(mode, *kind) for kind in kinds if probe.has(kind[1], mode)]


def draw_along_gradient(probe: Measured) -> Figure | None:
    """Draw the ranges of loss and gradient along a step, and the smoothness that they show."""
    if not probe.has("loss_max"):
        return None
    numbers = [[NumberPanel(mode, *kind) for kind in NUMBERS if probe.has(kind[0])] for mode in probe.modes]
    if probe.moments(["loss_max"]) == 1:
        change = ("predictiveness_max", "largest change of the gradient", "‖g − ∇f(θ′)‖")
        wider = [[NumberPanel(mode, *change), *row[:2]] for mode, row in zip(probe.modes, numbers, strict=True)]
        return number_sheet(probe, ALONG_GRADIENT_TITLE, wider)[0]
    overlaid = len(probe.arms) <= OVERLAID
    of_modes = [range_quantities(probe, mode) for mode in probe.modes]
    every = [each for of_mode in of_modes for each in of_mode]
    titles = [f"{each.title}, {mode_title(each.mode)}" for each in every]
    above = [PanelRow(len(of_mode), 2.3) for of_mode in of_modes] if overlaid else multiples(probe, titles)
    rows = [*above, *(PanelRow(len(row)) for row in numbers)]
    ends = ", its ends medians over the seeds" if max(map(len, probe.ended.values())) > 1 else ""
    words = [f"range: over the lengths of the step{ends}", *panel_caption(probe)]
    figure, axes = sheet(ALONG_GRADIENT_TITLE, rows, [arm_entries(probe)], words)
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
        head(place, [each.title, mode_title(each.mode)], STEP, each.label)
        place.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1, steps=TICK_STEPS))


def draw_range(probe: Measured, of: GradientRange, axes: Axes, arm: str) -> np.ndarray:
    """Draw between which numbers an arm's range lies; return the numbers."""
    low, high = (probe.over_steps(of.mode, name, probe.ended[arm]) for name in (of.low, of.high))
    low, high = low.align(high, join="inner", axis=0)
    ends = seed_quartiles(low.to_numpy())[1], seed_quartiles(high.to_numpy())[1]
    look = probe.looks[arm]
    axes.fill_between(low.index, *ends, color=look.colour, alpha=0.3, lw=0)
    for end in ends:
        axes.plot(low.index, end, color=look.colour, linestyle=look.line, linewidth=0.8)
    return np.concatenate(ends)


def draw_gradient_lipschitz(probe: Measured) -> Figure | None:
    """Draw the average curvature in random directions, hollow where it is not to be relied on."""
    if not probe.has("median"):
        return None
    once = probe.moments(["median"]) == 1
    title = "How far the gradient moves in random directions (median over directions)"
    row = [NumberPanel(mode, "median", "", "average curvature  ‖Δ∇f‖ / ‖δ‖") for mode in probe.modes]
    words = ["thin bar: the middle half of the directions"] if once and probe.has("q25") else []
    if any((probe.of(mode, "unreliable")["value"] == 1).any() for mode in probe.modes):
        words += ["hollow: unreliable, over 10 % apart at another radius or in the other precision"]
    figure, axes = number_sheet(probe, title, [row], shared=True, words=words)
    if not once:
        for place, mode in zip(axes[0], probe.modes, strict=True):
            hollow(place, probe, mode)
    return figure


def hollow(axes: Axes, probe: Measured, mode: str) -> None:
    """Put a hollow mark on each median of an arm of which half of the seeds or more are unreliable."""
    for arm in probe.arms:
        wide = probe.over_steps(mode, "median", probe.ended[arm])
        flags = probe.over_steps(mode, "unreliable", probe.ended[arm]).reindex(wide.index)
        marked = ((flags == 1).sum(axis=1) * 2 >= max(1, flags.shape[1])).to_numpy()
        colour, middle = probe.looks[arm].colour, seed_quartiles(wide.to_numpy())[1]
        axes.plot(wide.index[marked], middle[marked], "o", color=colour, markersize=4.5, markerfacecolor="white")


def draw_curvature(probe: Measured) -> Figure | None:
    """Draw the sharpness against the stability limit, and the spectrum where it was measured."""
    kinds = [
        ("lambda_max_lr", "sharpness × learning rate", "λmax · η"),
        ("preconditioned_lambda_max_lr", "preconditioned sharpness", "λmax of P⁻¹H · η"),
        ("lambda_max", "sharpness: largest eigenvalue", "λmax"),
        ("dhd_lambda_max", "scale-free sharpness", "λmax of DHD"),
    ]
    present = [kind for kind in kinds if probe.has(kind[0])]
    if not present:
        return None
    rows = [[NumberPanel(mode, *kind) for kind in present] for mode in probe.modes]
    spectra = [mode for mode in probe.modes if any(densities(probe, mode))]
    more = [PanelRow(len(spectra), 2.1)] if spectra else []
    words = ["spectral density: at the last moment, of the first seed"] if spectra else []
    limits = {quantity: stability_limits(probe, limit) for quantity, limit in LIMITS.items()}
    title = "How sharply the loss is curved: the Hessian's eigenvalues"
    figure, axes = number_sheet(probe, title, rows, entries=limit_entries(probe, limits), words=words, more=more)
    once = probe.moments([kind[0] for kind in present]) == 1
    for row, places in zip(rows, axes, strict=False):
        for panel, place in zip(row, places, strict=True):
            for limit in limits.get(panel.quantity, ()):
                mark_limit(place, limit, across=once)
    for mode, place in zip(spectra, axes[-1], strict=False):
        spectrum(place, probe, mode)
    return figure


def stability_limits(probe: Measured, quantity: str = "stability") -> list[float]:
    """Return the limits above which the optimizers of the arms are unstable on a quadratic."""
    ended = [run for runs in probe.ended.values() for run in runs]
    found = [probe.last(mode, quantity).reindex(ended).dropna() for mode in probe.modes]
    return sorted({round(float(limit), 3) for limits in found for limit in limits})


def limit_entries(probe: Measured, limits: Mapping[str, Sequence[float]]) -> list[Entry]:
    """Return the legend of the stability limits."""
    doubted = any((probe.last(mode, "indicative") == 1).any() for mode in probe.modes)
    note = " (indicative: minibatches)" if doubted else ""
    kinds = {
        "stability limit of gradient descent": limits["lambda_max_lr"],
        "stability limit of Adam": limits["preconditioned_lambda_max_lr"],
    }
    handle = Line2D([], [], color=GREY, linestyle=LIMIT, linewidth=1.1)
    return [(handle, f"{kind}: {', '.join(f'{x:g}' for x in own)}{note}") for kind, own in kinds.items() if own]


def mark_limit(axes: Axes, limit: float, *, across: bool) -> None:
    """Draw a stability limit, and make room for it."""
    low, high = axes.get_xlim() if across else axes.get_ylim()
    reach = axes.set_xlim if across else axes.set_ylim
    reach(min(low, limit / 1.2), max(high, limit * 1.2))
    mark = axes.axvline if across else axes.axhline
    mark(limit, color=GREY, linestyle=LIMIT, linewidth=1.1, zorder=3)


def densities(probe: Measured, mode: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return eigenvalues and their density of each arm's first seed, where there are any."""
    found = {}
    for arm in probe.arms:
        for run in probe.ended[arm][:1]:
            arrays = probe.arrays(run)
            grid, density = (arrays.get(f"{mode}/{name}") for name in ("density_grid", "density"))
            if grid is not None and density is not None and np.isfinite(density).any():
                found[arm] = (grid, density)
    return found


def spectrum(axes: Axes, probe: Measured, mode: str) -> None:
    """Draw the spectral densities at the last moment."""
    top, ends = 0.0, []
    for arm, (grid, density) in densities(probe, mode).items():
        look, top = probe.looks[arm], max(top, float(np.nanmax(density)))
        axes.plot(grid, density, color=look.colour, linestyle=look.line, linewidth=1.1)
        ends.append(float(np.nanmax(np.abs(grid))))
    spread(axes, min(ends), max(ends))
    axes.set_yscale("log")
    few_ticks(axes.yaxis)
    axes.set_ylim(FLOOR * top, 3 * top)
    head(axes, ["how many eigenvalues lie where", mode_title(mode)], "eigenvalue λ", "density")


def spread(axes: Axes, smallest: float, largest: float) -> None:
    """Give spectra of very different widths one axis, linear about 0 and logarithmic beyond."""
    if largest < 10 * smallest:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=TICK_STEPS))
        return
    low, high = math.floor(math.log10(smallest)) - 1, math.floor(math.log10(largest))
    axes.set_xscale("symlog", linthresh=10.0**low, linscale=0.5)
    marks = range(low + 1, high + 1, max(1, (high - low) // 4))
    axes.set_xticks([0, *(10.0**mark for mark in marks)], ["0", *(power(10.0**mark) for mark in marks)])
    axes.xaxis.set_minor_locator(NullLocator())


def draw_line(probe: Measured) -> Figure | None:
    """Draw the loss on lines through the trained parameters, at the last moment."""
    directions = [
        ("random", "in a random direction", "α: step, in lengths of each filter"),
        ("between", "from the start of the training to its end", "α: 0 is the start, 1 the end"),
    ]
    drawn = [(mode, *kind) for mode in probe.modes for kind in directions if any(losses(probe, mode, kind[0]))]
    if not drawn:
        return None
    across = len({kind for _, kind, _, _ in drawn})
    rows = [drawn[first : first + across] for first in range(0, len(drawn), across)]
    words = panel_caption(probe, ended=True)
    figure, axes = sheet(
        "The loss on a line, at the last moment",
        [PanelRow(len(row), 2.3) for row in rows],
        [arm_entries(probe)],
        words,
    )
    for row, places in zip(rows, axes, strict=True):
        for (mode, kind, words_of, label), place in zip(row, places, strict=True):
            medians = [
                draw_median(place, alphas, values.T, probe.looks[arm])
                for arm, (alphas, values) in losses(probe, mode, kind).items()
            ]
            scale(place, np.concatenate(medians))
            place.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=TICK_STEPS))
            head(place, [f"the loss {words_of}", mode_title(mode)], label, "loss")
    return figure


def losses(probe: Measured, mode: str, kind: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each arm the α ``(A,)`` and losses ``(seeds x A)`` on a line."""
    found = {}
    for arm in probe.arms:
        pairs = [
            (arrays[f"{mode}/{kind}_alphas"], arrays[f"{mode}/{kind}_losses"])
            for arrays in map(probe.arrays, probe.ended[arm])
            if f"{mode}/{kind}_losses" in arrays
        ]
        same = [values for alphas, values in pairs if alphas.shape == pairs[0][0].shape]
        if same and np.isfinite(same).any():
            values = np.stack(same)
            found[arm] = (pairs[0][0], np.where(np.isfinite(values), values, np.nan))
    return found
