"""Draw probes of the loss: along the gradient, in random directions, curvature, and interpolation.

Each ``draw_…`` function returns the figure of one probe, or None if its main quantity was not measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from normlab.report.charts import finite
from normlab.report.figure_layout import (
    GREY,
    TICK_STEPS,
    LegendEntry,
    PanelRow,
    configuration_entries,
    label_panel,
    mode_title,
    new_figure,
    power_label,
    scale,
    shorten_log_ticks,
)
from normlab.report.probe_data import ProbeData
from normlab.report.probe_panels import (
    STEP,
    NumberPanel,
    configuration_rows,
    draw_median,
    draw_numbers,
    draw_per_configuration,
    number_figure,
    panel_caption,
)
from normlab.stats.estimates import quartiles

OVERLAID = 3
"""The maximum number of configurations whose ranges overlay each other in one panel."""
ALONG_GRADIENT_TITLE = "Loss and gradient after one step of varying length along the negative gradient"
NUMBERS = (
    ("beta", "effective smoothness", "β"),
    ("beta_lr", "smoothness × learning rate", "β · η"),
    ("cosine_min", "smallest cosine similarity", "cosine of g and ∇f(θ′)"),
)
GRADIENT_SYMBOLS = ("g: gradient at θ", "θ′: θ after the step", "β: maximum of ‖g − ∇f(θ′)‖ / ‖θ − θ′‖")
LIMIT = (0, (6, 2))
FLOOR = 1e-6
"""The lowest drawn spectral density, as a share of the highest."""
LIMITS = {"lambda_max_lr": "stability", "preconditioned_lambda_max_lr": "preconditioned_stability"}
"""The quantity that holds the stability limit, by the quantity that it limits."""
CURVATURE_PANELS = (
    ("lambda_max_lr", "sharpness × learning rate", "λmax · η"),
    ("preconditioned_lambda_max_lr", "preconditioned sharpness", "λmax of P⁻¹H · η"),
    ("lambda_max", "sharpness: largest eigenvalue", "λmax"),
    ("dhd_lambda_max", "scale-free sharpness", "λmax of DHD"),
)
CURVATURE_SYMBOLS = {
    "lambda_max_lr": "η: learning rate",
    "preconditioned_lambda_max_lr": "P: preconditioner of Adam",
    "dhd_lambda_max": "D: ‖w‖ for scale-invariant weights, 1 for others",
}


@dataclass(frozen=True)
class GradientRange:
    """A panel of the range between two quantities in one mode, with its title and axis label."""

    mode: str
    low: str
    high: str
    title: str
    label: str


def range_quantities(probe: ProbeData, mode: str) -> list[GradientRange]:
    """Return the ranges that were measured in a mode."""
    kinds = (
        ("loss_min", "loss_max", "range of the loss", "loss"),
        ("predictiveness_min", "predictiveness_max", "range of the gradient's change", "‖g − ∇f(θ′)‖"),
    )
    return [GradientRange(mode, *kind) for kind in kinds if probe.has(kind[1], mode)]


def draw_along_gradient(probe: ProbeData) -> Figure | None:
    """Draw the ranges of loss and gradient over the step lengths, and the smoothness."""
    if not probe.has("loss_max"):
        return None
    numbers = [[NumberPanel(mode, *kind) for kind in NUMBERS if probe.has(kind[0])] for mode in probe.modes]
    symbols = [*GRADIENT_SYMBOLS, "η: learning rate"]
    if probe.max_measurements(["loss_max"]) == 1:
        change = ("predictiveness_max", "largest change of the gradient", "‖g − ∇f(θ′)‖")
        wider = [[NumberPanel(mode, *change), *row[:2]] for mode, row in zip(probe.modes, numbers, strict=True)]
        return number_figure(probe, ALONG_GRADIENT_TITLE, wider, notes=symbols)[0]
    overlaid = len(probe.configurations) <= OVERLAID
    of_modes = [range_quantities(probe, mode) for mode in probe.modes]
    ranges = [each for of_mode in of_modes for each in of_mode]
    titles = [f"{each.title}, {mode_title(each.mode)}" for each in ranges]
    upper = (
        [PanelRow(len(of_mode), 2.3) for of_mode in of_modes] if overlaid else configuration_rows(probe, titles)
    )
    rows = [*upper, *(PanelRow(len(row)) for row in numbers)]
    ends = ", its ends are medians over the seeds" if max(map(len, probe.finished.values())) > 1 else ""
    notes = [f"range: over the step lengths{ends}", *panel_caption(probe), *symbols]
    figure, axes = new_figure(ALONG_GRADIENT_TITLE, rows, [configuration_entries(probe)], notes)
    if overlaid:
        draw_overlaid(probe, ranges, [panel_axes for row_axes in axes[: len(upper)] for panel_axes in row_axes])
    else:
        rows_per_range = len(upper) // len(ranges)
        for number, each in enumerate(ranges):
            panels = axes[number * rows_per_range : (number + 1) * rows_per_range]
            draw_per_configuration(probe, panels, STEP, each.label, partial(draw_range, probe, each))
    for row, row_axes in zip(numbers, axes[len(upper) :], strict=True):
        draw_numbers(probe, row, row_axes)
    return figure


def draw_overlaid(probe: ProbeData, ranges: Sequence[GradientRange], panels: Sequence[Axes]) -> None:
    """Draw one range per panel, of all configurations."""
    for each, axes in zip(ranges, panels, strict=True):
        drawn = [draw_range(probe, each, axes, configuration) for configuration in probe.configurations]
        scale(axes, np.concatenate(drawn))
        label_panel(axes, [each.title, mode_title(each.mode)], STEP, each.label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1, steps=TICK_STEPS))


def draw_range(probe: ProbeData, of: GradientRange, axes: Axes, configuration: str) -> np.ndarray:
    """Draw the range of a configuration over the steps; return its ends, medians over the seeds."""
    runs = probe.finished[configuration]
    low, high = (probe.over_steps(of.mode, name, runs) for name in (of.low, of.high))
    low, high = low.align(high, join="inner", axis=0)
    ends = quartiles(finite(low.to_numpy()))[1], quartiles(finite(high.to_numpy()))[1]
    style = probe.style_of[configuration]
    axes.fill_between(low.index, *ends, color=style.colour, alpha=0.3, lw=0)
    for end in ends:
        axes.plot(low.index, end, color=style.colour, linestyle=style.line, linewidth=0.8)
    return np.concatenate(ends)


def draw_gradient_lipschitz(probe: ProbeData) -> Figure | None:
    """Draw the average curvature in random directions; unreliable values are hollow."""
    if not probe.has("median"):
        return None
    once = probe.max_measurements(["median"]) == 1
    title = "Average curvature: change of the gradient in random directions δ (median)"
    row = [NumberPanel(mode, "median", "", "‖∇f(θ + δ) − ∇f(θ)‖ / ‖δ‖") for mode in probe.modes]
    notes = ["thin bar: interquartile range over the directions"] if once and probe.has("q25") else []
    if any((probe.rows_of(mode, "unreliable")["value"] == 1).any() for mode in probe.modes):
        notes += ["hollow: unreliable (differs by more than 10 % at another radius or precision)"]
    figure, axes = number_figure(probe, title, [row], shared=True, notes=notes)
    if not once:
        for panel_axes, mode in zip(axes[0], probe.modes, strict=True):
            mark_unreliable(panel_axes, probe, mode)
    return figure


def mark_unreliable(axes: Axes, probe: ProbeData, mode: str) -> None:
    """Put a hollow marker on each median over seeds of which at least half are unreliable."""
    for configuration in probe.configurations:
        wide = probe.over_steps(mode, "median", probe.finished[configuration])
        flags = probe.over_steps(mode, "unreliable", probe.finished[configuration]).reindex(wide.index)
        marked = ((flags == 1).sum(axis=1) * 2 >= max(1, flags.shape[1])).to_numpy()
        colour, median = probe.style_of[configuration].colour, quartiles(finite(wide.to_numpy()))[1]
        axes.plot(wide.index[marked], median[marked], "o", color=colour, markersize=4.5, markerfacecolor="white")


def draw_curvature(probe: ProbeData) -> Figure | None:
    """Draw the sharpness with the stability limit of the optimizer, and the spectrum if it was measured."""
    present = [kind for kind in CURVATURE_PANELS if probe.has(kind[0])]
    if not present:
        return None
    rows = [[NumberPanel(mode, *kind) for kind in present] for mode in probe.modes]
    quantities = [quantity for quantity, _, _ in present]
    spectra = [mode for mode in probe.modes if any(densities(probe, mode))]
    more = [PanelRow(len(spectra), 2.1)] if spectra else []
    notes = ["H: Hessian of the loss", *(text for key, text in CURVATURE_SYMBOLS.items() if key in quantities)]
    notes += ["spectral density: last measurement of the first seed"] if spectra else []
    limits = {quantity: stability_limits(probe, limit) for quantity, limit in LIMITS.items()}
    title, entries = "Curvature of the loss: eigenvalues of the Hessian", limit_entries(probe, limits)
    figure, axes = number_figure(probe, title, rows, entries=entries, notes=notes, more=more)
    once = probe.max_measurements(quantities) == 1
    for row, row_axes in zip(rows, axes, strict=False):
        for panel, panel_axes in zip(row, row_axes, strict=True):
            for limit in limits.get(panel.quantity, ()):
                mark_limit(panel_axes, limit, across=once)
    for mode, panel_axes in zip(spectra, axes[-1], strict=False):
        draw_spectrum(panel_axes, probe, mode)
    return figure


def stability_limits(probe: ProbeData, quantity: str = "stability") -> list[float]:
    """Return the distinct stability limits of the runs' optimizers on a quadratic, sorted and rounded."""
    runs = [run for of_configuration in probe.finished.values() for run in of_configuration]
    limits = [probe.last(mode, quantity).reindex(runs).dropna() for mode in probe.modes]
    return sorted({round(float(limit), 3) for of_mode in limits for limit in of_mode})


def limit_entries(probe: ProbeData, limits: Mapping[str, Sequence[float]]) -> list[LegendEntry]:
    """Return the legend entries of the stability limits."""
    indicative = any((probe.last(mode, "indicative") == 1).any() for mode in probe.modes)
    note = " (indicative: minibatches)" if indicative else ""
    kinds = {
        "stability limit of gradient descent": limits["lambda_max_lr"],
        "stability limit of Adam": limits["preconditioned_lambda_max_lr"],
    }
    handle = Line2D([], [], color=GREY, linestyle=LIMIT, linewidth=1.1)
    return [
        (handle, f"{kind}: {', '.join(f'{x:g}' for x in values)}{note}")
        for kind, values in kinds.items()
        if values
    ]


def mark_limit(axes: Axes, limit: float, *, across: bool) -> None:
    """Draw a stability limit and widen the axis to include it; ``across`` if the value axis is horizontal."""
    low, high = axes.get_xlim() if across else axes.get_ylim()
    set_limits = axes.set_xlim if across else axes.set_ylim
    set_limits(min(low, limit / 1.2), max(high, limit * 1.2))
    draw_line_at = axes.axvline if across else axes.axhline
    draw_line_at(limit, color=GREY, linestyle=LIMIT, linewidth=1.1, zorder=3)


def densities(probe: ProbeData, mode: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return eigenvalue grid and spectral density of each configuration's first seed, where measured."""
    spectra = {}
    for configuration in probe.configurations:
        for run in probe.finished[configuration][:1]:
            arrays = probe.arrays(run)
            grid, density = (arrays.get(f"{mode}/{name}") for name in ("density_grid", "density"))
            if grid is not None and density is not None and np.isfinite(density).any():
                spectra[configuration] = (grid, density)
    return spectra


def draw_spectrum(axes: Axes, probe: ProbeData, mode: str) -> None:
    """Draw the spectral densities at the last measurement."""
    top, ends = 0.0, []
    for configuration, (grid, density) in densities(probe, mode).items():
        style, top = probe.style_of[configuration], max(top, float(np.nanmax(density)))
        axes.plot(grid, density, color=style.colour, linestyle=style.line, linewidth=1.1)
        ends.append(float(np.nanmax(np.abs(grid))))
    scale_spectrum_axis(axes, min(ends), max(ends))
    axes.set_yscale("log")
    shorten_log_ticks(axes.yaxis)
    axes.set_ylim(FLOOR * top, 3 * top)
    label_panel(axes, ["spectral density of the Hessian", mode_title(mode)], "eigenvalue λ", "density")


def scale_spectrum_axis(axes: Axes, smallest: float, largest: float) -> None:
    """Use a symmetric logarithmic axis if the widths of spectra differ by a factor of ten."""
    if largest < 10 * smallest:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=TICK_STEPS))
        return
    low, high = math.floor(math.log10(smallest)) - 1, math.floor(math.log10(largest))
    axes.set_xscale("symlog", linthresh=10.0**low, linscale=0.5)
    exponents = range(low + 1, high + 1, max(1, (high - low) // 4))
    ticks = [10.0**exponent for exponent in exponents]
    axes.set_xticks([0, *ticks], ["0", *map(power_label, ticks)])
    axes.xaxis.set_minor_locator(NullLocator())


def draw_line(probe: ProbeData) -> Figure | None:
    """Draw the loss along lines through the trained parameters, at the last measurement."""
    directions = [
        ("random", "along a random direction", "α, in units of each filter's norm"),
        ("between", "from the initial to the trained parameters", "α (0: initial, 1: trained)"),
    ]
    panels = [(mode, *kind) for mode in probe.modes for kind in directions if any(losses(probe, mode, kind[0]))]
    if not panels:
        return None
    across = len({kind for _, kind, _, _ in panels})
    rows = [panels[first : first + across] for first in range(0, len(panels), across)]
    frozen = ["frozen statistics: re-estimated at every point"] if "frozen" in probe.modes else []
    figure, axes = new_figure(
        "Loss along lines in parameter space, at the last measurement",
        [PanelRow(len(row), 2.3) for row in rows],
        [configuration_entries(probe)],
        [*panel_caption(probe, finished_only=True), *frozen],
    )
    for row, row_axes in zip(rows, axes, strict=True):
        for (mode, kind, direction, label), panel_axes in zip(row, row_axes, strict=True):
            medians = [
                draw_median(panel_axes, alphas, values.T, probe.style_of[configuration])
                for configuration, (alphas, values) in losses(probe, mode, kind).items()
            ]
            scale(panel_axes, np.concatenate(medians))
            panel_axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=TICK_STEPS))
            label_panel(panel_axes, [f"loss {direction}", mode_title(mode)], label, "loss")
    return figure


def losses(probe: ProbeData, mode: str, kind: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each configuration α ``(A,)`` and the losses ``(seeds x A)`` on a line."""
    lines = {}
    for configuration in probe.configurations:
        pairs = [
            (arrays[f"{mode}/{kind}_alphas"], arrays[f"{mode}/{kind}_losses"])
            for arrays in map(probe.arrays, probe.finished[configuration])
            if f"{mode}/{kind}_losses" in arrays
        ]
        same = [values for alphas, values in pairs if alphas.shape == pairs[0][0].shape]
        if same and np.isfinite(same).any():
            values = np.stack(same)
            lines[configuration] = (pairs[0][0], np.where(np.isfinite(values), values, np.nan))
    return lines
