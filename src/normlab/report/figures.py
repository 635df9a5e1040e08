"""The learning curves of a sweep, ``curves.png`` and ``curves.svg``, and the colour and line of each arm.

The colours are those of Okabe and Ito, which people with any colour vision can tell apart, without the yellow,
which is too pale for a line on white.
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
    # The text of the svg stays text, to be searched and read, and the same sweep gives the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "normlab",
}
LOG_FROM = 10.0
# Epochs from which a noisy curve is thinner, so that it stays a line.
DENSE = 300
# Inches; the parts are laid out by hand, because matplotlib's own layout takes half of the time of a drawing.
WIDTH, CURVES_ABOVE, CURVES_BELOW, LEFT, RIGHT, CURVES_BETWEEN = 9.0, 0.4, 0.55, 0.9, 0.15, 0.95
LEGEND_ROW, CAPTION, LETTER, HANDLE = 0.17, 0.4, 0.075, 0.65

CJK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK TC", "Noto Sans SC"),
    *("Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC"),
    *("Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei"),
    *("IPAexGothic", "NanumGothic", "Arial Unicode MS"),
)
"""Fonts with Chinese, Japanese or Korean letters, which matplotlib's own font lacks."""
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
    """Draw in the look of the figures; a letter that no installed font has is a box, without a warning.

    The text of an svg stays as it is, so that whoever reads it sees the letters that their fonts have.
    """
    with rc_context({**LOOK, "font.family": ["sans-serif", *installed_cjk_fonts()]}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


@cache
def installed_cjk_fonts() -> list[str]:
    """Return those of ``CJK_FONTS`` that this machine has."""
    installed = set(font_manager.get_font_names())
    return [name for name in CJK_FONTS if name in installed]


@dataclass(frozen=True)
class Style:
    """An arm's colour and line, as matplotlib takes them."""

    colour: str
    line: Any


def styles(arms: Sequence[tuple[str, ...]]) -> list[Style]:
    """Return a style for each arm, given what varies from arm to arm.

    The first thing that varies is the colour and the rest the line, where there are enough of both; otherwise
    one colour after the other, then the same with the next line.

    >>> [(style.colour[:3], style.line) for style in styles([("bn", "64"), ("nobn", "64")])]
    [('#00', '-'), ('#D5', '-')]
    """
    colours = list(dict.fromkeys(arm[0] for arm in arms if arm))
    lines = list(dict.fromkeys(arm[1:] for arm in arms))
    if len(colours) <= len(COLOURS) and 1 < len(lines) <= len(LINES):
        return [Style(COLOURS[colours.index(arm[0])], LINES[lines.index(arm[1:])]) for arm in arms]
    pairs = itertools.cycle(itertools.product(LINES, COLOURS))
    return [Style(colour, line) for _, (line, colour) in zip(arms, pairs, strict=False)]


def write_curves(sweep: SweepSummary, folder: Path) -> list[Path]:
    """Draw the curves into ``folder``, each file whole or not at all, and return the files."""
    metrics = [name for name in dict.fromkeys([*TITLES, sweep.metric]) if (sweep.curves["metric"] == name).any()]
    if not metrics:
        return []
    with drawing():
        figure = draw(sweep, metrics)
        return [save(figure, folder / f"curves.{kind}") for kind in ("png", "svg")]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure by way of a file beside it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    kind = path.suffix.removeprefix(".")
    figure.savefig(beside, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    beside.replace(path)
    return path


def draw(sweep: SweepSummary, metrics: list[str]) -> Figure:
    """Return a figure with a panel per metric, all arms in each, and the legend below the panels."""
    labels = legend_labels(sweep)
    fitting = max(1, int(WIDTH / (HANDLE + LETTER * max(map(len, labels)))))
    rows = math.ceil(len(labels) / fitting)
    bottom = CURVES_BELOW + rows * LEGEND_ROW + CAPTION
    panel_height = min(2.9 + 0.06 * max(0, len(labels) - 6), 4.0)
    height = CURVES_ABOVE + panel_height + bottom
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    looks = dict(
        zip(
            sweep.configurations.index,
            styles([tuple(arm) for arm in sweep.configurations[sweep.keys].to_numpy()]),
            strict=True,
        )
    )
    step = (WIDTH - LEFT - RIGHT + CURVES_BETWEEN) / len(metrics)
    for number, metric in enumerate(metrics):
        place = (
            (LEFT + number * step) / WIDTH,
            bottom / height,
            (step - CURVES_BETWEEN) / WIDTH,
            panel_height / height,
        )
        panel(figure.add_axes(place), sweep, metric, looks)
    handles = [Line2D([], [], color=look.colour, linestyle=look.line, linewidth=2) for look in looks.values()]
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
    """Return each arm's name, with the number of its runs that did not finish, and whether it learned nothing."""
    labels = []
    for arm, row in sweep.configurations.to_dict("index").items():
        states = [state for state in ("diverged", "stopped", "failed") if row[state]]
        lost = ", ".join(
            [f"{row[state]} of {row['runs']} {state}" for state in states]
            + ["untrained"] * row["mostly_untrained"]
        )
        labels.append(f"{arm} ({lost})" if lost else str(arm))
    return labels


def curves_caption(sweep: SweepSummary) -> str:
    """Return the legend of lines, bands and crosses in words."""
    finished = sweep.runs[sweep.runs["status"] == "finished"]
    seeds = sorted(set(finished.groupby("configuration")["seed"].nunique()))
    parts = ["one seed per arm: no spread"] if seeds == [1] else []
    if seeds and seeds != [1]:
        over = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        parts += [f"line: mean over {over}", "band: from the lowest to the highest seed"]
    if (finished.groupby("configuration")["epochs"].nunique() > 1).any():
        parts.append("a mean ends where its first seed stopped")
    if len(finished) < len(sweep.runs):
        parts.append("thin: a run that did not finish")
    if (sweep.runs["status"] == "diverged").any():
        parts.append("×: where it diverged")
    return "; ".join(parts)


def panel(axes: Axes, sweep: SweepSummary, metric: str, looks: dict[str, Style]) -> None:
    """Draw one metric of all arms against the epoch."""
    rows = sweep.curves[sweep.curves["metric"] == metric].drop_duplicates(["run", "epoch"], keep="last")
    wide = rows.pivot(index="epoch", columns="run", values="value")
    runs = sweep.runs[sweep.runs.index.isin(wide.columns)]
    ended = runs["status"] == "finished"
    drawn = []
    for arm, numbers in runs[ended].groupby("configuration", sort=False).groups.items():
        drawn.append(draw_arm(axes, wide[numbers].dropna(), looks[str(arm)]))
    rescale(axes, np.concatenate(drawn) if drawn else rows["value"].to_numpy())
    limits = axes.get_ylim()
    for number, run in runs[~ended].iterrows():
        look, values = looks[run["configuration"]], wide[number]
        values = values[np.isfinite(values)]
        axes.plot(values.index, values, color=look.colour, linestyle=look.line, linewidth=0.7)
    axes.set_ylim(limits if drawn else axes.get_ylim())
    for number, run in runs[runs["status"] == "diverged"].iterrows():
        cross(axes, wide[number], run["epochs"], looks[run["configuration"]])
    axes.set(xlabel="epoch", ylabel=metric)
    axes.set_title(TITLES.get(metric, metric), pad=10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def draw_arm(axes: Axes, values: pd.DataFrame, look: Style) -> np.ndarray:
    """Draw the mean over ``(epochs x seeds)`` and the range of the seeds; return the mean."""
    mean = values.mean(axis=1)
    marker, width = "o" if len(values) == 1 else "", 1.4 if len(values) <= DENSE else 0.8
    axes.plot(values.index, mean, color=look.colour, linestyle=look.line, linewidth=width, marker=marker)
    if values.shape[1] > 1:
        axes.fill_between(
            values.index, values.min(axis=1), values.max(axis=1), color=look.colour, alpha=0.15, lw=0
        )
    return mean.to_numpy()


def cross(axes: Axes, values: pd.Series, epochs: int, look: Style) -> None:
    """Mark where a run diverged.

    Its values may be beyond everything, or NaN from the start: the mark is then at the edge of the panel.
    """
    finite = values[np.isfinite(values)]
    bottom, top = axes.get_ylim()
    epoch, height = (finite.index[-1], finite.iloc[-1]) if len(finite) else (epochs, top)
    place = np.clip(height, bottom, top)
    axes.plot(epoch, place, "x", color=look.colour, markersize=7, markeredgewidth=1.6, clip_on=False)


def rescale(axes: Axes, values: np.ndarray) -> None:
    """Make the value axis logarithmic if the values ask for it."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0 or finite.min() <= 0 or finite.max() < LOG_FROM * finite.min():
        return
    axes.set_yscale("log")
    if finite.max() < 1e3 * finite.min():
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
