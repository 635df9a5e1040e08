"""Draw the learning curves of a sweep, and assign a colour and a line style to each configuration.

:func:`write_curves` writes ``curves.png`` and ``curves.svg``. The colours are those of Okabe and Ito, which people
with any colour vision can distinguish, without yellow, which is too pale for a line on white.
"""

import itertools
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from normlab.report.sweep_summary import SweepSummary

TITLES = {"train/loss": "training loss", "val/loss": "validation loss"}
LOOK: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.xmargin": 0.02,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    # Text stays text, so that it can be searched; the fixed salt makes the file reproducible.
    "svg.fonttype": "none",
    "svg.hashsalt": "normlab",
}
LOG_FROM = 10.0
"""The ratio of the largest to the smallest value from which an axis is logarithmic."""
DENSE = 300
"""The number of points above which lines are thinner, so that a noisy curve does not fill its panel."""
# Inches. The layout is fixed, because matplotlib's own takes half of the drawing time.
WIDTH, CURVES_ABOVE, CURVES_BELOW, LEFT, RIGHT, CURVES_BETWEEN = 9.0, 0.4, 0.55, 0.9, 0.15, 0.95
LEGEND_ROW, CAPTION, LETTER, HANDLE = 0.17, 0.4, 0.075, 0.65

CJK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK TC", "Noto Sans SC"),
    *("Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC"),
    *("Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei"),
    *("IPAexGothic", "NanumGothic", "Arial Unicode MS"),
)
"""Fonts with Chinese, Japanese or Korean letters, which the default font of matplotlib lacks."""
LINES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.2, 1, 1.2)),
    (0, (5, 1.2, 1, 1.2, 1, 1.2)),
    (0, (10, 2)),
)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@contextmanager
def drawing() -> Iterator[None]:
    """Apply the figures' matplotlib settings.

    Letters without an installed font become boxes in a PNG, without a warning; an SVG keeps them as text.
    """
    with rc_context({**LOOK, "font.family": ["sans-serif", *installed_cjk_fonts()]}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


@cache
def installed_cjk_fonts() -> list[str]:
    """Return the fonts of ``CJK_FONTS`` that are installed."""
    installed = set(font_manager.get_font_names())
    return [name for name in CJK_FONTS if name in installed]


@dataclass(frozen=True)
class Style:
    """The colour and line style of a configuration, as arguments for matplotlib."""

    colour: str
    line: Any


def styles(configurations: Sequence[tuple[str, ...]]) -> list[Style]:
    """Return a style for each configuration, given its settings of the factors.

    The first factor determines the colour and the others the line style, if there are enough of both. Otherwise
    configurations take one colour after the other, then all colours with the next line style.

    >>> [(style.colour[:3], style.line) for style in styles([("bn", "64"), ("nobn", "64")])]
    [('#00', '-'), ('#D5', '-')]
    """
    colours = list(dict.fromkeys(settings[0] for settings in configurations if settings))
    lines = list(dict.fromkeys(settings[1:] for settings in configurations))
    if len(colours) <= len(COLOURS) and 1 < len(lines) <= len(LINES):
        return [
            Style(COLOURS[colours.index(settings[0])], LINES[lines.index(settings[1:])])
            for settings in configurations
        ]
    pairs = itertools.cycle(itertools.product(LINES, COLOURS))
    return [Style(colour, line) for _, (line, colour) in zip(configurations, pairs, strict=False)]


def configuration_styles(sweep: SweepSummary) -> dict[str, Style]:
    """Return the style of each configuration of a sweep."""
    settings = [tuple(row) for row in sweep.configurations[sweep.keys].to_numpy()]
    return dict(zip(sweep.configurations.index, styles(settings), strict=True))


def write_curves(sweep: SweepSummary, folder: Path) -> list[Path]:
    """Write ``curves.png`` and ``curves.svg`` atomically and return their paths; none without curves."""
    metrics = [name for name in dict.fromkeys([*TITLES, sweep.metric]) if (sweep.curves["metric"] == name).any()]
    if not metrics:
        return []
    with drawing():
        figure = draw(sweep, metrics)
        return [save(figure, folder / f"curves.{kind}") for kind in ("png", "svg")]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure atomically: to a temporary file in the same folder, which is then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    kind = path.suffix.removeprefix(".")
    figure.savefig(temporary, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    temporary.replace(path)
    return path


def draw(sweep: SweepSummary, metrics: list[str]) -> Figure:
    """Draw the curves of all configurations, a panel per metric, with the legend below the panels."""
    labels = legend_labels(sweep)
    fitting = max(1, int(WIDTH / (HANDLE + LETTER * max(map(len, labels)))))
    rows = math.ceil(len(labels) / fitting)
    bottom = CURVES_BELOW + rows * LEGEND_ROW + CAPTION
    panel_height = min(2.9 + 0.06 * max(0, len(labels) - 6), 4.0)
    height = CURVES_ABOVE + panel_height + bottom
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    style_of = configuration_styles(sweep)
    step = (WIDTH - LEFT - RIGHT + CURVES_BETWEEN) / len(metrics)
    for number, metric in enumerate(metrics):
        bounds = (
            (LEFT + number * step) / WIDTH,
            bottom / height,
            (step - CURVES_BETWEEN) / WIDTH,
            panel_height / height,
        )
        draw_metric(figure.add_axes(bounds), sweep, metric, style_of)
    handles = [
        Line2D([], [], color=style.colour, linestyle=style.line, linewidth=2) for style in style_of.values()
    ]
    figure.legend(
        handles,
        labels,
        loc="lower center",
        bbox_to_anchor=(0.5, (CAPTION - 0.15) / height),
        ncols=math.ceil(len(labels) / rows),
        frameon=False,
        handlelength=3.2,
        labelspacing=0.35,
    )
    figure.text(0.5, 0.1 / height, curves_caption(sweep), ha="center", fontsize=8, color="#555555")
    return figure


def legend_labels(sweep: SweepSummary) -> list[str]:
    """Return each configuration's legend label, such as ``model=nobn (2 of 8 diverged)``.

    Untrained runs are counted only if they are the majority.
    """
    labels = []
    for configuration, row in sweep.configurations.to_dict("index").items():
        states = [state for state in ("diverged", "stopped", "failed") if row[state]]
        states += ["untrained"] * row["mostly_untrained"]
        counts = ", ".join(f"{row[state]} of {row['runs']} {state}" for state in states)
        labels.append(f"{configuration} ({counts})" if counts else str(configuration))
    return labels


def curves_caption(sweep: SweepSummary) -> str:
    """Return the explanation of lines, bands and crosses."""
    finished = sweep.runs[sweep.runs["status"] == "finished"]
    seeds = sorted(set(finished.groupby("configuration")["seed"].nunique()))
    notes = ["one seed per configuration: no spread"] if seeds == [1] else []
    if seeds and seeds != [1]:
        count = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        notes += [f"line: mean over {count}", "band: from the lowest to the highest seed"]
    if (finished.groupby("configuration")["epochs"].nunique() > 1).any():
        notes.append("a mean ends with its shortest run")
    if len(finished) < len(sweep.runs):
        notes.append("thin line: unfinished run")
    if (sweep.runs["status"] == "diverged").any():
        notes.append("×: divergence")
    return "; ".join(notes)


def draw_metric(axes: Axes, sweep: SweepSummary, metric: str, style_of: dict[str, Style]) -> None:
    """Draw one metric of all configurations against the epoch."""
    rows = sweep.curves[sweep.curves["metric"] == metric].drop_duplicates(["run", "epoch"], keep="last")
    wide = rows.pivot(index="epoch", columns="run", values="value")
    runs = sweep.runs[sweep.runs.index.isin(wide.columns)]
    finished = runs["status"] == "finished"
    means = []
    for configuration, numbers in runs[finished].groupby("configuration", sort=False).groups.items():
        means.append(draw_configuration(axes, wide[numbers].dropna(), style_of[str(configuration)]))
    rescale(axes, np.concatenate(means) if means else rows["value"].to_numpy())
    limits = axes.get_ylim()
    for number, run in runs[~finished].iterrows():
        style, values = style_of[run["configuration"]], wide[number]
        values = values[np.isfinite(values)]
        axes.plot(values.index, values, color=style.colour, linestyle=style.line, linewidth=0.7)
    axes.set_ylim(limits if means else axes.get_ylim())
    for number, run in runs[runs["status"] == "diverged"].iterrows():
        cross(axes, wide[number], run["epochs"], style_of[run["configuration"]])
    axes.set(xlabel="epoch", ylabel=metric)
    axes.set_title(TITLES.get(metric, metric), pad=10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def draw_configuration(axes: Axes, values: pd.DataFrame, style: Style) -> np.ndarray:
    """Draw the mean over the seeds and the band from the lowest to the highest; return the mean.

    Shapes:
        values: ``(epochs x seeds)``, indexed by epoch; returns ``(epochs,)``.
    """
    mean = values.mean(axis=1)
    marker, width = "o" if len(values) == 1 else "", 1.4 if len(values) <= DENSE else 0.8
    axes.plot(values.index, mean, color=style.colour, linestyle=style.line, linewidth=width, marker=marker)
    if values.shape[1] > 1:
        axes.fill_between(
            values.index, values.min(axis=1), values.max(axis=1), color=style.colour, alpha=0.15, lw=0
        )
    return mean.to_numpy()


def cross(axes: Axes, values: pd.Series, epochs: int, style: Style) -> None:
    """Mark the last finite value of a diverged run, indexed by epoch or step, with a cross.

    A value outside the panel is marked at its edge, and a run without a finite value at ``epochs`` on the upper
    edge.
    """
    finite = values[np.isfinite(values)]
    bottom, top = axes.get_ylim()
    epoch, height = (finite.index[-1], finite.iloc[-1]) if len(finite) else (epochs, top)
    clipped = np.clip(height, bottom, top)
    axes.plot(epoch, clipped, "x", color=style.colour, markersize=7, markeredgewidth=1.6, clip_on=False)


def rescale(axes: Axes, values: np.ndarray) -> None:
    """Make the value axis logarithmic if all values are positive and span a factor of ``LOG_FROM``."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0 or finite.min() <= 0 or finite.max() < LOG_FROM * finite.min():
        return
    axes.set_yscale("log")
    if finite.max() < 1e3 * finite.min():
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
