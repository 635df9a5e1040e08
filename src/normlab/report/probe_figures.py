"""Draw a figure of each probe, ``probe_<name>.png`` and ``.svg``.

:func:`write_probe_figures` is the main entry. This module draws the probes of single layers; ``probe_landscape``
draws those of the loss.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from normlab.report.figure_layout import (
    GREY,
    PanelRow,
    configuration_entries,
    label_panel,
    mode_title,
    new_figure,
    scale,
)
from normlab.report.figures import LETTER, drawing, save
from normlab.report.probe_data import ProbeData, measurements
from normlab.report.probe_landscape import draw_along_gradient, draw_curvature, draw_gradient_lipschitz, draw_line
from normlab.report.probe_panels import (
    STEP,
    NumberPanel,
    configuration_rows,
    draw_median,
    draw_per_configuration,
    number_figure,
    panel_caption,
)
from normlab.report.sweep_summary import SweepSummary, split_by_panel

PERCENTILES = ("q15", "q50", "q85")
LAYER_QUANTITIES = (
    ("std", "spread of the activations", "standard deviation"),
    ("gradient_rms", "gradient of the weights", "root mean square"),
    ("effective_rank", "effective rank of the activations", "effective rank"),
    ("dead", "dead units", "share of units"),
    ("saturated", "saturated activations", "share of outputs"),
)
"""Quantity, title and axis label of the panels by layer."""
TICK_ROOM = 3.4
"""Inches for the names of the layers below a panel."""
ACROSS, AT_MOST = 3, 12
"""Panels per row and per mode, at most, of a probe without a figure of its own."""
MOST_CONFIGURATIONS = 6
"""Configurations in one figure, at most, before a sweep is split by panel."""


def draw_covariate_shift(probe: ProbeData) -> Figure | None:
    """Draw the change of a layer's gradient when the layers below it are updated."""
    kinds = (
        ("difference", "change of the gradient", "‖G − G′‖"),
        ("relative", "relative change", "‖G − G′‖ / ‖G‖"),
        ("cosine", "cosine similarity", "cosine of G and G′"),
    )
    rows = [[NumberPanel(mode, *kind) for kind in kinds if probe.has(kind[0])] for mode in probe.modes]
    title = "Internal covariate shift: change of a layer's gradient by the update of lower layers"
    notes = ["G, G′: a layer's gradient before and after the lower layers are updated", "values: mean over layers"]
    return number_figure(probe, title, rows, notes=notes)[0] if any(rows) else None


def draw_preactivations(probe: ProbeData) -> Figure | None:
    """Draw percentiles of one unit's pre-activations over the training, a panel per configuration.

    The last and the first layer are shown, as in figure 1 of Ioffe and Szegedy (2015), arXiv:1502.03167.
    """
    layers = [layer for layer in probe.layers("q50") if probe.has(f"{layer}/q50")]
    pairs = [(mode, layer) for mode in probe.modes for layer in dict.fromkeys([*layers[-1:], *layers[:1]])]
    if not pairs:
        return None
    handles = [Line2D([], [], color="black", linewidth=width) for width in (1.6, 0.8)]
    legend = list(zip(handles, ["median over samples", "15th and 85th percentile over samples"], strict=True))
    rows = configuration_rows(probe, [f"{layer}, {mode_title(mode)}" for mode, layer in pairs])
    title = "Pre-activations of one unit during training"
    figure, axes = new_figure(title, rows, [legend], panel_caption(probe, finished_only=True))
    rows_per_pair = len(rows) // len(pairs)
    for number, (mode, layer) in enumerate(pairs):
        panels = axes[number * rows_per_pair : (number + 1) * rows_per_pair]
        draw = partial(draw_percentiles, probe, mode, layer)
        draw_per_configuration(probe, panels, STEP, "pre-activation", draw)
    return figure


def draw_percentiles(probe: ProbeData, mode: str, layer: str, axes: Axes, configuration: str) -> np.ndarray:
    """Draw three percentiles of one configuration over the steps; return their medians over the seeds."""
    drawn = []
    for name in PERCENTILES:
        wide = probe.over_steps(mode, f"{layer}/{name}", probe.finished[configuration])
        x, thin = wide.index.to_numpy(), name != "q50"
        drawn.append(draw_median(axes, x, wide.to_numpy(), probe.style_of[configuration], thin=thin))
    return np.concatenate(drawn)


def draw_activations(probe: ProbeData) -> Figure | None:
    """Draw activations and gradients by layer at the last measurement; over the steps for one layer."""
    kinds = [
        kind
        for kind in LAYER_QUANTITIES
        if any(probe.has(f"{layer}/{kind[0]}") for layer in probe.layers(kind[0]))
    ][:4]
    if not kinds:
        return None
    pairs = [kinds[first : first + 2] for first in range(0, len(kinds), 2)]
    layers = probe.layers(kinds[0][0])
    if len(layers) == 1:
        rows = [
            [NumberPanel(mode, f"{probe.layers(name)[0]}/{name}", title, label) for name, title, label in pair]
            for mode in probe.modes
            for pair in pairs
        ]
        return number_figure(probe, f"Activations and gradients of layer {layers[0]}", rows)[0]
    cells = [[(mode, *kind) for kind in pair] for mode in probe.modes for pair in pairs]
    figure, axes = new_figure(
        "Activations and gradients by layer, at the last measurement",
        [PanelRow(len(row), 1.9, of=2) for row in cells],
        [configuration_entries(probe)],
        panel_caption(probe, finished_only=True),
    )
    for row, row_axes in zip(cells, axes, strict=True):
        for (mode, name, title, label), panel_axes in zip(row, row_axes, strict=True):
            of_configuration = {each: probe.layers_of(each, mode, name) for each in probe.configurations}
            drawn = draw_by_layer(panel_axes, probe, mode, name, of_configuration)
            label_panel(panel_axes, [title, mode_title(mode)], name_layers(panel_axes, of_configuration), label)
            if label.startswith("share"):
                panel_axes.set_ylim(-0.03, 1.03)
            else:
                scale(panel_axes, drawn)
    return figure


def draw_by_layer(
    axes: Axes, probe: ProbeData, mode: str, name: str, layers: Mapping[str, list[str]]
) -> np.ndarray:
    """Draw a quantity against the layers of each configuration; return its medians over the seeds."""
    drawn = [np.array([])]
    for configuration, names in layers.items():
        runs = probe.finished[configuration]
        values = [probe.last(mode, f"{layer}/{name}").reindex(runs) for layer in names]
        if values:
            x = np.arange(1, len(names) + 1)
            drawn.append(draw_median(axes, x, np.stack(values), probe.style_of[configuration]))
    return np.concatenate(drawn)


def name_layers(axes: Axes, layers: Mapping[str, list[str]]) -> str:
    """Name the layers at the ticks if all configurations have the same; return the label of the axis."""
    orders = {tuple(names) for names in layers.values()} - {()}
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.7, max(map(len, orders), default=1) + 0.3)
    if len(orders) != 1:
        return "layer, counted from the input"
    names = next(iter(orders))
    if LETTER * sum(len(name) + 2 for name in names) < TICK_ROOM:
        axes.set_xticks(range(1, len(names) + 1), names)
        return "layer"
    return f"layer, from 1 ({names[0]}) to {len(names)} ({names[-1]})"


FIGURES: dict[str, Callable[[ProbeData], Figure | None]] = {
    "activations": draw_activations,
    "along_gradient": draw_along_gradient,
    "covariate_shift": draw_covariate_shift,
    "curvature": draw_curvature,
    "gradient_lipschitz": draw_gradient_lipschitz,
    "line": draw_line,
    "preactivations": draw_preactivations,
}


def write_probe_figures(sweep: SweepSummary, folder: Path) -> list[Path]:
    """Write a figure of each probe as PNG and SVG, atomically, and return the paths."""
    figures = probe_figures(sweep)
    with drawing():
        return [save(figure, folder / f"{stem}.{kind}") for stem, figure, _ in figures for kind in ("png", "svg")]


def probe_figures(sweep: SweepSummary) -> Iterator[tuple[str, Figure, ProbeData]]:
    """Yield file stem, figure and measurements of each probe that has values.

    A sweep with more than ``MOST_CONFIGURATIONS`` has a figure per panel. A probe without a figure of its own,
    such as a user's, has its plain numbers drawn.
    """
    parts = split_by_panel(sweep) if len(sweep.configurations) > MOST_CONFIGURATIONS else {"": sweep}
    for probe, (panel, part) in itertools.product(measurements(sweep), parts.items()):
        of_part = probe.restricted_to(part)
        with drawing():
            figure = (
                (FIGURES.get(probe.name, draw_plain_numbers)(of_part) or draw_plain_numbers(of_part))
                if of_part.configurations
                else None
            )
        if figure is not None:
            add_subtitle(figure, panel)
            yield f"probe_{probe.name}" + f"_{file_name(panel)}" * bool(panel), figure, of_part


def last_numbers(probe: ProbeData) -> pd.DataFrame:
    """Return the median over seeds of each last value, a row per configuration and overall quantity."""
    rows = [
        {
            "arm": configuration,
            "statistics": mode,
            "quantity": name,
            "median": probe.last(mode, name).reindex(runs).median(),
        }
        for mode, name in probe.rows
        if "/" not in name
        for configuration, runs in probe.finished.items()
    ]
    return pd.DataFrame(rows, columns=["arm", "statistics", "quantity", "median"])


def add_subtitle(figure: Figure, panel: str) -> None:
    """Write the name of the sweep's panel below the title."""
    figure.text(0.5, 1 - 0.44 / figure.get_size_inches()[1], panel, ha="center", fontsize=9, color=GREY)


def file_name(panel: str) -> str:
    """Return a panel's name without characters that are unsafe in a file name.

    >>> file_name("hidden=[100, 100], init=kaiming")
    'hidden=[100,100],init=kaiming'
    """
    return re.sub(r"[^\w=,.\[\]-]", "", panel)


def draw_plain_numbers(probe: ProbeData) -> Figure | None:
    """Draw headline quantities and those of no layer, or all if there are none, under their own names."""
    rows = []
    for mode in probe.modes:
        names = [name for of_mode, name in probe.rows if of_mode == mode and probe.has(name, mode)]
        chosen = [name for name in names if "/" not in name or name in probe.headline] or names
        panels = [NumberPanel(mode, name, name, name) for name in chosen[:AT_MOST]]
        rows += [panels[first : first + ACROSS] for first in range(0, len(panels), ACROSS)]
    return number_figure(probe, probe.name, rows)[0] if rows else None
