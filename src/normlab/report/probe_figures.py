"""Figures of probes, ``probe_<name>.png`` and ``.svg``, and those of each layer."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from normlab.report.figure_layout import (
    GREY,
    PanelRow,
    arm_entries,
    head,
    mode_title,
    scale,
    sheet,
)
from normlab.report.figures import LETTER, drawing, save
from normlab.report.probe_data import Measured, measured
from normlab.report.probe_landscape import draw_along_gradient, draw_curvature, draw_gradient_lipschitz, draw_line
from normlab.report.probe_panels import (
    STEP,
    NumberPanel,
    draw_median,
    draw_multiples,
    multiples,
    number_sheet,
    panel_caption,
)
from normlab.report.sweep_summary import SweepSummary, split_by_panel
from normlab.results.sweep import Record

if TYPE_CHECKING:
    from normlab.results.events import EventFile


PERCENTILES = ("q15", "q50", "q85")
DEPTH = (
    ("std", "spread of the activations", "standard deviation"),
    ("gradient_rms", "size of the gradient", "root mean square"),
    ("effective_rank", "effective rank of the activations", "effective rank"),
    ("dead", "dead units", "share"),
    ("saturated", "saturated units", "share"),
)
TICK_ROOM = 3.4
"""Inches for the names of the layers below a panel."""
ACROSS, AT_MOST = 3, 12
"""How many panels a probe without a figure of its own has in a row, and for each of its modes."""
MOST_ARMS = 6
"""How many arms a figure has at most, where the sweep has panels."""


def draw_covariate_shift(probe: Measured) -> Figure | None:
    """Draw how far the gradient of a layer moves when the layers below it take their step."""
    kinds = (
        ("difference", "change of the gradient", "‖G − G′‖"),
        ("relative", "change, relative", "‖G − G′‖ / ‖G‖"),
        ("cosine", "direction kept", "cosine of G and G′"),
    )
    rows = [[NumberPanel(mode, *kind) for kind in kinds if probe.has(kind[0])] for mode in probe.modes]
    title = "Internal covariate shift: a layer's gradient before and after the step of the layers below"
    return number_sheet(probe, title, rows, words=["average over layers"])[0] if any(rows) else None


def draw_preactivations(probe: Measured) -> Figure | None:
    """Draw percentiles of pre-activations over the training: Ioffe and Szegedy's figure, a panel for each arm."""
    layers = [layer for layer in probe.layers("q50") if probe.has(f"{layer}/q50")]
    shown = [(mode, layer) for mode in probe.modes for layer in dict.fromkeys([*layers[-1:], *layers[:1]])]
    if not shown:
        return None
    black = [Line2D([], [], color="black", linewidth=width) for width in (1.6, 0.8)]
    names = ["the unit's median", "its 15th and 85th percentile"]
    rows = multiples(probe, [f"{layer}, {mode_title(mode)}" for mode, layer in shown])
    title = "What a unit's activation takes through the training: percentiles of the pre-activation"
    figure, axes = sheet(title, rows, [list(zip(black, names, strict=True))], panel_caption(probe, ended=True))
    deep = len(rows) // len(shown)
    for number, (mode, layer) in enumerate(shown):
        panels = axes[number * deep : (number + 1) * deep]
        draw_multiples(probe, panels, STEP, "pre-activation", partial(draw_percentiles, probe, mode, layer))
    return figure


def draw_percentiles(probe: Measured, mode: str, layer: str, axes: Axes, arm: str) -> np.ndarray:
    """Draw three percentiles of one arm over the steps; return their medians over the seeds."""
    drawn = []
    for name in PERCENTILES:
        wide = probe.over_steps(mode, f"{layer}/{name}", probe.ended[arm])
        x, thin = wide.index.to_numpy(), name != "q50"
        drawn.append(draw_median(axes, x, wide.to_numpy(), probe.looks[arm], thin=thin))
    return np.concatenate(drawn)


def draw_activations(probe: Measured) -> Figure | None:
    """Draw what flows through the net at the last moment, layer by layer, or of one layer over the training."""
    kinds = [kind for kind in DEPTH if any(probe.has(f"{layer}/{kind[0]}") for layer in probe.layers(kind[0]))][:4]
    if not kinds:
        return None
    halves = [kinds[first : first + 2] for first in range(0, len(kinds), 2)]
    if len(probe.layers(kinds[0][0])) == 1:
        rows = [
            [NumberPanel(mode, f"{probe.layers(name)[0]}/{name}", title, label) for name, title, label in half]
            for mode in probe.modes
            for half in halves
        ]
        return number_sheet(probe, f"What flows through the net: {probe.layers(kinds[0][0])[0]}", rows)[0]
    cells = [[(mode, *kind) for kind in half] for mode in probe.modes for half in halves]
    figure, axes = sheet(
        "What flows through the net, layer by layer, at the last moment",
        [PanelRow(len(row), 1.9, of=2) for row in cells],
        [arm_entries(probe)],
        panel_caption(probe, ended=True),
    )
    for row, places in zip(cells, axes, strict=True):
        for (mode, name, title, label), place in zip(row, places, strict=True):
            layers = {arm: probe.layers_of(arm, mode, name) for arm in probe.arms}
            drawn = depth(place, probe, mode, name, layers)
            head(place, [title, mode_title(mode)], name_layers(place, layers), label)
            if label == "share":
                place.set_ylim(-0.03, 1.03)
            else:
                scale(place, drawn)
    return figure


def depth(axes: Axes, probe: Measured, mode: str, name: str, layers: Mapping[str, list[str]]) -> np.ndarray:
    """Draw a number against the layers of each arm; return the medians over the seeds."""
    drawn = [np.array([])]
    for arm, own in layers.items():
        values = [probe.last(mode, f"{layer}/{name}").reindex(probe.ended[arm]) for layer in own]
        if values:
            drawn.append(draw_median(axes, np.arange(1, len(own) + 1), np.stack(values), probe.looks[arm]))
    return np.concatenate(drawn)


def name_layers(axes: Axes, layers: Mapping[str, list[str]]) -> str:
    """Write the layers below their axis, where they are the same in all arms, and return what it is called."""
    kinds = {tuple(own) for own in layers.values()} - {()}
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.7, max(map(len, kinds), default=1) + 0.3)
    if len(kinds) != 1:
        return "layer, from the input on"
    names = next(iter(kinds))
    if LETTER * sum(len(name) + 2 for name in names) < TICK_ROOM:
        axes.set_xticks(range(1, len(names) + 1), names)
        return "layer"
    return f"layer, from 1: {names[0]} to {len(names)}: {names[-1]}"


FIGURES: dict[str, Callable[[Measured], Figure | None]] = {
    "activations": draw_activations,
    "along_gradient": draw_along_gradient,
    "covariate_shift": draw_covariate_shift,
    "curvature": draw_curvature,
    "gradient_lipschitz": draw_gradient_lipschitz,
    "line": draw_line,
    "preactivations": draw_preactivations,
}


def write_probe_figures(sweep: SweepSummary, records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw a figure of each probe into ``folder``, each file whole or not at all, and return the files."""
    drawn = probe_figures(sweep, records)
    with drawing():
        return [save(figure, folder / f"{stem}.{kind}") for stem, figure, _ in drawn for kind in ("png", "svg")]


def probe_figures(sweep: SweepSummary, records: Sequence[Record]) -> Iterator[tuple[str, Figure, Measured]]:
    """Yield a figure of each probe, with what its file is called and with what is drawn.

    There is one for what was measured and for nothing else; where it would show too many arms, one for each panel
    of the sweep. A probe without a figure of its own, as a user's, has its numbers drawn as they are.
    """
    parts = split_by_panel(sweep) if len(sweep.configurations) > MOST_ARMS else {"": sweep}
    for probe, (where, shown) in itertools.product(measured(sweep, records), parts.items()):
        of_part = probe.within(shown)
        with drawing():
            figure = (
                (FIGURES.get(probe.name, draw_plain_numbers)(of_part) or draw_plain_numbers(of_part))
                if of_part.arms
                else None
            )
        if figure is not None:
            subtitle(figure, where)
            yield f"probe_{probe.name}" + f"_{file_name(where)}" * bool(where), figure, of_part


def last_numbers(probe: Measured) -> pd.DataFrame:
    """Return a row per arm and quantity: its median over the seeds when the probe last looked, layers apart."""
    rows = [
        {"arm": arm, "statistics": mode, "quantity": name, "median": probe.last(mode, name).reindex(runs).median()}
        for mode, name in probe.rows
        if "/" not in name
        for arm, runs in probe.ended.items()
    ]
    return pd.DataFrame(rows, columns=["arm", "statistics", "quantity", "median"])


def subtitle(figure: Figure, where: str) -> None:
    """Write below the title which panel of the sweep it is."""
    figure.text(0.5, 1 - 0.44 / figure.get_size_inches()[1], where, ha="center", fontsize=9, color=GREY)


def file_name(where: str) -> str:
    """Return a panel's name as a part of a file's.

    >>> file_name("hidden=[100, 100], init=kaiming")
    'hidden=[100,100],init=kaiming'
    """
    return re.sub(r"[^\w=,.\[\]-]", "", where)


def draw_plain_numbers(probe: Measured) -> Figure | None:
    """Draw the numbers of a probe that are of no layer, or that a table has room for, as they are called."""
    rows = []
    for mode in probe.modes:
        names = [name for of, name in probe.rows if of == mode and probe.has(name, mode)]
        chosen = [name for name in names if "/" not in name or name in probe.headline] or names
        panels = [NumberPanel(mode, name, name, name) for name in chosen[:AT_MOST]]
        rows += [panels[first : first + ACROSS] for first in range(0, len(panels), ACROSS)]
    return number_sheet(probe, probe.name, rows)[0] if rows else None


def write_images(events: "EventFile", figures: Sequence[Path]) -> None:
    """Show the figures that are PNG files in TensorBoard's Images tab, by their names."""
    for path in figures:
        if path.suffix == ".png":
            events.image(f"figures/{path.stem}", path.read_bytes())
