"""Draw a figure of each probe, ``probe_<name>.png`` and ``.svg``; the entry is :func:`probe_figures`.

Each ``draw_…`` function returns the figure of one probe, or None if its main quantity was not measured.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import SymmetricalLogLocator

from normlab.report.figures import GREY, LegendEntry, drawing, whole_ticks
from normlab.report.probe_data import ProbeData, measurements, split_by_panel
from normlab.report.probe_panels import (
    Panel,
    PanelRow,
    Quantity,
    configuration_rows,
    draw_median,
    draw_percentiles,
    draw_range,
    mark_unreliable,
    mode_title,
    panel_caption,
    panel_figure,
    quantities,
    quantity_figure,
    two_lines,
)
from normlab.report.sweep_summary import SweepSummary

LAYER_QUANTITIES = (
    ("std", "spread of the activations", "standard deviation"),
    ("gradient_rms", "gradient of the weights", "root mean square"),
    ("effective_rank", "effective rank of the activations", "effective rank"),
    ("dead", "dead units", "share of units"),
    ("saturated", "saturated activations", "share of outputs"),
)
"""Quantity, title and axis label of the panels by layer."""
LAYER_LETTERS = 40
"""The names of layers are at the ticks if they have fewer letters together."""
ACROSS, AT_MOST = 3, 12
"""Panels per row and per mode, at most, of a probe without a figure of its own."""
MOST_CONFIGURATIONS = 6
"""Configurations in one figure, at most, before a sweep is split by panel."""
OVERLAID = 3
"""The maximum number of configurations whose ranges overlay each other in one panel."""
RANGES = (
    ("loss", "range of the loss", "loss"),
    ("predictiveness", "range of the gradient's change", "‖g − ∇f(θ′)‖"),
)
LARGEST_CHANGE = ("predictiveness_max", "largest change of the gradient", "‖g − ∇f(θ′)‖")
SMOOTHNESS = (
    ("beta", "effective smoothness", "β"),
    ("beta_lr", "smoothness × learning rate", "β · η"),
    ("cosine_min", "smallest cosine similarity", "cosine of g and ∇f(θ′)"),
)
GRADIENT_SYMBOLS = (
    *("g: gradient at θ", "θ′: θ after the step", "β: maximum of ‖g − ∇f(θ′)‖ / ‖θ − θ′‖"),
    "η: learning rate",
)
SHIFTS = (
    ("difference", "change of the gradient", "‖G − G′‖"),
    ("relative", "relative change", "‖G − G′‖ / ‖G‖"),
    ("cosine", "cosine similarity", "cosine of G and G′"),
)
CURVATURES = (
    ("lambda_max_lr", "sharpness × learning rate", "λmax · η"),
    ("preconditioned_lambda_max_lr", "preconditioned sharpness", "λmax of P⁻¹H · η"),
    ("lambda_max", "sharpness: largest eigenvalue", "λmax"),
    ("dhd_lambda_max", "scale-free sharpness", "λmax of DHD"),
)
CURVATURE_SYMBOLS = {
    "lambda_max_lr": "η: learning rate",
    "preconditioned_lambda_max_lr": "P: preconditioner of Adam, I for SGD",
    "dhd_lambda_max": "D: ‖w‖ for scale-invariant weights, 1 for others",
}
LIMITS = {
    "lambda_max_lr": ("stability", "gradient descent"),
    "preconditioned_lambda_max_lr": ("preconditioned_stability", "the preconditioned Hessian"),
}
"""By quantity, the quantity with the stability limit of it, and words for it."""
LIMIT_LINE: Any = {"color": GREY, "linestyle": (0, (6, 2)), "linewidth": 1.1}
FLOOR = 1e-6
"""The lowest drawn spectral density, as a share of the highest."""
DIRECTIONS = (
    ("random", "along a random direction", "α, in units of each filter's norm"),
    ("between", "from the initial to the trained parameters", "α (0: initial, 1: trained)"),
)


def probe_figures(sweep: SweepSummary) -> Iterator[tuple[str, Figure, ProbeData]]:
    """Yield file stem, figure and measurements of each probe that has values.

    A sweep with more than ``MOST_CONFIGURATIONS`` has a figure per panel. A probe without a figure of its own,
    such as a user's, has its plain numbers drawn.
    """
    parts = split_by_panel(sweep) if len(sweep.configurations) > MOST_CONFIGURATIONS else {"": sweep}
    for probe, (panel, part) in itertools.product(measurements(sweep), parts.items()):
        of_part = probe.restricted_to(part)
        if not of_part.configurations:
            continue
        with drawing():
            figure = FIGURES.get(probe.name, draw_plain_numbers)(of_part) or draw_plain_numbers(of_part)
        if figure is not None:
            figure.suptitle(two_lines(figure.get_suptitle(), panel))
            # A panel's name without characters that are unsafe in a file name.
            stem = re.sub(r"[^\w=,.\[\]-]", "", panel)
            yield f"probe_{probe.name}" + f"_{stem}" * bool(stem), figure, of_part


def draw_covariate_shift(probe: ProbeData) -> Figure | None:
    """Draw the change of a layer's gradient when the layers below it are updated."""
    title = "Internal covariate shift: change of a layer's gradient by the update of lower layers"
    notes = ["G, G′: a layer's gradient before and after the lower layers are updated", "values: mean over layers"]
    rows = quantities(probe, SHIFTS)
    return quantity_figure(probe, title, rows, notes=notes) if rows else None


def draw_preactivations(probe: ProbeData) -> Figure | None:
    """Draw percentiles of one unit's pre-activations over the training, a panel per configuration.

    The last and the first layer are shown, as in figure 1 of Ioffe and Szegedy (2015), arXiv:1502.03167.
    """
    layers = [layer for layer in probe.layers("q50") if probe.has(f"{layer}/q50")]
    rows = [
        row
        for mode, layer in itertools.product(probe.modes, dict.fromkeys([*layers[-1:], *layers[:1]]))
        for row in configuration_rows(
            probe,
            f"{layer}, {mode_title(mode)}",
            "pre-activation",
            partial(draw_percentiles, probe, mode, layer),
            overlaid=0,
        )
    ]
    if not rows:
        return None
    names = {1.6: "median over samples", 0.8: "15th and 85th percentile over samples"}
    legend = [(Line2D([], [], color="black", linewidth=width), name) for width, name in names.items()]
    title = "Pre-activations of one unit during training"
    return panel_figure(title, rows, legend, panel_caption(probe, finished_only=True))


def draw_activations(probe: ProbeData) -> Figure | None:
    """Draw activations and gradients by layer at the last measurement; over the steps for one layer."""
    kinds = [
        kind
        for kind in LAYER_QUANTITIES
        if any(probe.has(f"{layer}/{kind[0]}") for layer in probe.layers(kind[0]))
    ][:4]
    if not kinds:
        return None
    layers = probe.layers(kinds[0][0])
    pairs = [kinds[first : first + 2] for first in range(0, len(kinds), 2)]
    if len(layers) == 1:
        rows = [
            [Quantity(mode, f"{layers[0]}/{name}", title, label) for name, title, label in pair]
            for mode in probe.modes
            for pair in pairs
        ]
        return quantity_figure(probe, f"Activations and gradients of layer {layers[0]}", rows)
    grid = [PanelRow([layer_panel(probe, mode, *kind) for kind in pair]) for mode in probe.modes for pair in pairs]
    title = "Activations and gradients by layer, at the last measurement"
    return panel_figure(title, grid, probe.legend, panel_caption(probe, finished_only=True))


def layer_panel(probe: ProbeData, mode: str, name: str, title: str, label: str) -> Panel:
    """Return the panel of a quantity against the layers of each configuration."""
    layers = {each: probe.layers_of(each, mode, name) for each in probe.configurations}
    orders = {tuple(names) for names in layers.values()} - {()}
    names = next(iter(orders)) if len(orders) == 1 else ()
    is_named = 0 < sum(map(len, names)) < LAYER_LETTERS

    def draw(axes: Axes) -> np.ndarray:
        drawn = [np.array([])]
        for configuration, own in layers.items():
            runs = probe.finished[configuration]
            values = [probe.last(mode, f"{layer}/{name}").reindex(runs) for layer in own]
            if values:
                x = np.arange(1, len(values) + 1)
                drawn.append(draw_median(axes, x, np.stack(values), probe.style_of[configuration]))
        axes.set_xlim(0.7, max(map(len, orders), default=1) + 0.3)
        whole_ticks(axes)
        if is_named:
            axes.set_xticks(range(1, len(names) + 1), names)
        return np.concatenate(drawn)

    def finish(axes: Axes) -> None:
        if label.startswith("share"):
            axes.set(yscale="linear", ylim=(-0.03, 1.03))

    x = f"layer, from 1 ({names[0]}) to {len(names)} ({names[-1]})" if names else "layer, counted from the input"
    return Panel(draw, two_lines(title, mode_title(mode)), "layer" if is_named else x, label, finish=finish)


def draw_along_gradient(probe: ProbeData) -> Figure | None:
    """Draw the smoothness along the gradient, and the ranges of loss and gradient over the steps."""
    if not probe.has("loss_max"):
        return None
    ranges = [
        row
        for mode, (name, title, label) in itertools.product(probe.modes, RANGES)
        if probe.has(f"{name}_max", mode) and probe.max_measurements(["loss_max"]) > 1
        for row in configuration_rows(
            probe, f"{title}, {mode_title(mode)}", label, partial(draw_range, probe, mode, name), OVERLAID
        )
    ]
    kinds = SMOOTHNESS if ranges else (LARGEST_CHANGE, *SMOOTHNESS[:2])
    notes = ["range: over the step lengths, its ends are medians over the seeds"] if ranges else []
    title = "Loss and gradient after one step of varying length along the negative gradient"
    return quantity_figure(probe, title, quantities(probe, kinds), notes=[*notes, *GRADIENT_SYMBOLS], more=ranges)


def draw_gradient_lipschitz(probe: ProbeData) -> Figure | None:
    """Draw the average curvature in random directions; unreliable values are hollow."""
    if not probe.has("median"):
        return None
    once = probe.max_measurements(["median"]) == 1
    title = "Average curvature: change of the gradient in random directions δ (median)"
    row = [Quantity(mode, "median", "", "‖∇f(θ + δ) − ∇f(θ)‖ / ‖δ‖") for mode in probe.modes]
    notes = ["thin bar: interquartile range over the directions"] if once and probe.has("q25") else []
    if any((probe.rows_of(mode, "unreliable")["value"] == 1).any() for mode in probe.modes):
        notes += ["hollow: unreliable (differs by more than 10 % at another radius or precision)"]
    return quantity_figure(probe, title, [row], share="values", notes=notes, mark=partial(mark_unreliable, probe))


def draw_curvature(probe: ProbeData) -> Figure | None:
    """Draw the sharpness with the stability limit of the optimizer, and the spectrum if it was measured."""
    rows = quantities(probe, CURVATURES)
    if not rows:
        return None
    names = [quantity.name for quantity in rows[0]]
    spectra = [mode for mode in probe.modes if any(probe.densities(mode))]
    notes = ["H: Hessian of the loss", *(text for key, text in CURVATURE_SYMBOLS.items() if key in names)]
    notes += ["spectral density: last measurement of the first seed"] if spectra else []
    limits = {name: probe.stability_limits(limit) for name, (limit, _) in LIMITS.items()}
    more = [PanelRow([spectrum_panel(probe, mode) for mode in spectra])] if spectra else []
    title = "Curvature of the loss: eigenvalues of the Hessian"
    entries, mark = limit_entries(probe, limits), partial(mark_limits, limits)
    return quantity_figure(probe, title, rows, entries=entries, notes=notes, more=more, mark=mark)


def limit_entries(probe: ProbeData, limits: Mapping[str, Sequence[float]]) -> list[LegendEntry]:
    """Return the legend entries of the stability limits."""
    indicative = any((probe.last(mode, "indicative") == 1).any() for mode in probe.modes)
    note = " (indicative: minibatches)" if indicative else ""
    return [
        (
            Line2D([], [], **LIMIT_LINE),
            f"stability limit of {LIMITS[name][1]}: {', '.join(f'{limit:g}' for limit in values)}{note}",
        )
        for name, values in limits.items()
        if values
    ]


def mark_limits(
    limits: Mapping[str, Sequence[float]], axes: Axes, quantity: Quantity, is_horizontal: bool
) -> None:
    """Draw the stability limits of a quantity and widen its axis to include them."""
    axis, draw = ("x", axes.axvline) if is_horizontal else ("y", axes.axhline)
    for limit in limits.get(quantity.name, ()):
        low, high = getattr(axes, f"get_{axis}lim")()
        axes.set(**{f"{axis}lim": (min(low, limit / 1.2), max(high, limit * 1.2))})
        draw(limit, zorder=3, **LIMIT_LINE)


def spectrum_panel(probe: ProbeData, mode: str) -> Panel:
    """Return the panel of the spectral densities at the last measurement."""
    spectra = probe.densities(mode)
    top = max(float(np.nanmax(density)) for _, density in spectra.values())

    def draw(axes: Axes) -> np.ndarray:
        for configuration, (grid, density) in spectra.items():
            colour, line = probe.style_of[configuration]
            axes.plot(grid, density, color=colour, linestyle=line, linewidth=1.1)
        # The eigenvalues of arms may differ by orders of magnitude, and have both signs.
        width = min(float(np.abs(grid).max()) for grid, _ in spectra.values())
        axes.set_xscale("symlog", linthresh=width, linscale=3)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=width))
        axes.xaxis.get_major_locator().numticks = 5  # type: ignore[attr-defined]
        return np.array([FLOOR * top, top])

    def limit(axes: Axes) -> None:
        axes.set_ylim(FLOOR * top, 3 * top)

    title = two_lines("spectral density of the Hessian", mode_title(mode))
    return Panel(draw, title, "eigenvalue λ", "density", finish=limit)


def draw_line(probe: ProbeData) -> Figure | None:
    """Draw the loss along lines through the trained parameters, at the last measurement."""
    panels = [(mode, kind) for mode in probe.modes for kind in DIRECTIONS if any(probe.losses(mode, kind[0]))]
    if not panels:
        return None
    across = len({kind for _, kind in panels})
    rows = [
        PanelRow([line_panel(probe, mode, *kind) for mode, kind in panels[first : first + across]])
        for first in range(0, len(panels), across)
    ]
    frozen = ["frozen statistics: re-estimated at every point"] if "frozen" in probe.modes else []
    notes = [*panel_caption(probe, finished_only=True), *frozen]
    title = "Loss along lines in parameter space, at the last measurement"
    return panel_figure(title, rows, probe.legend, notes)


def line_panel(probe: ProbeData, mode: str, kind: str, direction: str, label: str) -> Panel:
    """Return the panel of the losses along a line."""

    def draw(axes: Axes) -> np.ndarray:
        lines = probe.losses(mode, kind).items()
        return np.concatenate(
            [draw_median(axes, alphas, values.T, probe.style_of[name]) for name, (alphas, values) in lines]
        )

    return Panel(draw, two_lines(f"loss {direction}", mode_title(mode)), label, "loss")


def draw_plain_numbers(probe: ProbeData) -> Figure | None:
    """Draw headline quantities and those of no layer, or all if there are none, under their own names."""
    rows = []
    for mode in probe.modes:
        names = [name for of_mode, name in probe.rows if of_mode == mode and probe.has(name, mode)]
        chosen = [name for name in names if "/" not in name or name in probe.headline] or names
        panels = [Quantity(mode, name, name, name) for name in chosen[:AT_MOST]]
        rows += [panels[first : first + ACROSS] for first in range(0, len(panels), ACROSS)]
    return quantity_figure(probe, probe.name, rows) if rows else None


FIGURES: dict[str, Callable[[ProbeData], Figure | None]] = {
    "activations": draw_activations,
    "along_gradient": draw_along_gradient,
    "covariate_shift": draw_covariate_shift,
    "curvature": draw_curvature,
    "gradient_lipschitz": draw_gradient_lipschitz,
    "line": draw_line,
    "preactivations": draw_preactivations,
}
