"""The small figures of the page, one panel each, to be read at the width of a phone.

An arm has the colour and the line that ``looks`` gives it, in every one of them.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from normlab.report.figure_layout import GREY, TICK_STEPS, scale
from normlab.report.figures import Style, drawing
from normlab.report.probe_data import seed_quartiles

CHART_SIZE = (4.7, 3.1)
"""Inches."""
CHART_LEFT, CHART_RIGHT, TOP, BOTTOM, LEGEND = 0.145, 0.965, 0.91, 0.16, 0.06
CHARTS_PER_ROW = 5
"""How many arms a legend has in a row."""
Looks = Mapping[str, Style]


def single_panel(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Return a figure of one panel."""
    with drawing():
        figure = Figure(figsize=CHART_SIZE)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((CHART_LEFT, BOTTOM, CHART_RIGHT - CHART_LEFT, TOP - BOTTOM))
    axes.set_title(title, fontsize=10, loc="left", y=1.0, pad=6)
    # A power of ten that the numbers have in common stands above them, and not where the title begins.
    axes.yaxis.get_offset_text().set(x=-0.02, horizontalalignment="right")
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def finish(axes: Axes, values: np.ndarray, arms: Mapping[str, str], looks: Looks) -> None:
    """Scale the value axis, and name the arms in a legend."""
    if np.isfinite(values).any():
        scale(axes, values[np.isfinite(values)])
    handles = [
        Line2D([], [], color=looks[arm].colour, linestyle=looks[arm].line, linewidth=2, label=name)
        for arm, name in arms.items()
    ]
    if len(handles) > 1:
        beside = min(CHARTS_PER_ROW, len(handles))
        rows = -(-len(handles) // beside)
        # Below the axes: a place among the lines is slow to find, and there may be none.
        axes.figure.legend(
            handles=handles, loc="lower center", ncols=beside, fontsize=8, frameon=False, borderpad=0
        )
        axes.set_position(
            (CHART_LEFT, BOTTOM + LEGEND * rows, CHART_RIGHT - CHART_LEFT, TOP - BOTTOM - LEGEND * rows)
        )


def draw_curves(
    values: Mapping[str, pd.DataFrame], looks: Looks, *, title: str, x: str, y: str, target: float
) -> Figure:
    """Draw the median and the band between the quartiles of each arm.

    Shapes:
        values: by arm ``(moments x seeds)``, indexed by epoch or by seconds; infinite from where a run diverged.
    """
    figure, axes = single_panel(title, x, y)
    drawn = [np.array([])]
    for arm, wide in values.items():
        low, middle, high = quartiles_of_all(wide.to_numpy(dtype=float))
        look, at = looks[arm], wide.index.to_numpy(dtype=float)
        axes.plot(
            at, np.where(np.isfinite(middle), middle, np.nan), color=look.colour, linestyle=look.line, lw=1.5
        )
        if wide.shape[1] > 1:
            axes.fill_between(at, finite(low), finite(high), color=look.colour, alpha=0.15, lw=0)
        drawn += [middle, low]
    if np.isfinite(target):
        axes.axhline(target, color=GREY, linestyle=(0, (6, 2)), linewidth=0.9)
        axes.annotate(
            "target",
            (1, target),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=GREY,
        )
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=TICK_STEPS))
    finish(axes, np.concatenate([*drawn, [target]]), {arm: arm for arm in values}, looks)
    return figure


def quartiles_of_all(values: np.ndarray) -> np.ndarray:
    """Return the quartiles ``(3, n)`` of ``(n x seeds)``, infinity as the worst, NaN left out."""
    big = np.finfo(float).max
    found = seed_quartiles(np.clip(values, -big, big))
    return np.where(np.abs(found) > big / 4, np.inf, found)


def finite(values: np.ndarray) -> np.ndarray:
    """Return values with gaps where they are infinite."""
    return np.where(np.isfinite(values), values, np.nan)


def draw_against(
    table: pd.DataFrame, key: str, looks: Looks, *, title: str, x: str, y: str, better: str
) -> Figure:
    """Draw the estimate of each arm and its interval against a setting, and a cross where a run diverged.

    Args:
        table: with the columns ``arm``, ``key``, ``iqm``, ``low``, ``high``, ``diverged`` (a share), ``chosen``.
        key: the setting's column.
        looks: of the arms.
        title, x, y: of the panel and its axes.
        better: ``min`` or ``max``.
    """
    figure, axes = single_panel(title, x, y)
    drawn, arms = [np.array([])], [arm for arm in looks if (table["arm"] == arm).any()]
    settings = sorted(set(table[key].astype(float)))
    ratio = (settings[-1] / settings[0]) ** (1 / max(1, len(settings) - 1)) if settings[0] > 0 else 1.0
    axes.set_xscale("log")
    for number, arm in enumerate(arms):
        own = table[table["arm"] == arm].assign(at=lambda frame: frame[key].astype(float)).sort_values("at")
        # Intervals of arms at one setting stand side by side.
        at = own["at"].to_numpy() * max(ratio, 1.3) ** (0.06 * (number - (len(arms) - 1) / 2))
        middle, look = own["iqm"].to_numpy(dtype=float), looks[arm]
        below, above = middle - own["low"].to_numpy(dtype=float), own["high"].to_numpy(dtype=float) - middle
        known = np.isfinite(middle)
        axes.plot(at[known], middle[known], color=look.colour, linestyle=look.line, linewidth=1.2)
        ends = np.nan_to_num(np.stack([below, above])[:, known], posinf=0, neginf=0).clip(0)
        axes.errorbar(at[known], middle[known], ends, fmt="none", ecolor=look.colour, elinewidth=0.9, capsize=2)
        for chosen in (False, True):
            which = known & (own["chosen"].to_numpy(dtype=bool) == chosen)
            fill = look.colour if chosen else "white"
            axes.plot(at[which], middle[which], "o", color=look.colour, markerfacecolor=fill, markersize=4.5)
        drawn.append(middle[known])
    finish(axes, np.concatenate(drawn), {arm: arm for arm in arms}, looks)
    mark_diverged(axes, table, key, looks, better)
    axes.set_xticks(settings, [f"{setting:g}" for setting in settings])
    axes.xaxis.set_minor_locator(NullLocator())
    return figure


def mark_diverged(axes: Axes, table: pd.DataFrame, key: str, looks: Looks, better: str) -> None:
    """Mark at the worse edge the settings with which runs of an arm diverged."""
    edge = axes.get_ylim()[1 if better == "min" else 0]
    for number, (arm, own) in enumerate(table[table["diverged"] > 0].groupby("arm", sort=False)):
        at = own[key].astype(float) * 1.06**number
        axes.plot(at, [edge] * len(at), "x", color=looks[str(arm)].colour, markersize=6, clip_on=False)


def draw_reached(times: Mapping[str, np.ndarray], looks: Looks, *, title: str, x: str, end: float) -> Figure:
    """Draw which share of an arm's seeds has reached the target by when, until the end; never is infinite."""
    figure, axes = single_panel(title, x, "share of seeds that reached it")
    for arm, each in times.items():
        known = np.sort(each[np.isfinite(each)])
        share = np.arange(1, len(known) + 1) / max(1, len(each))
        at = np.concatenate([[0.0], known, [end]])
        share = np.concatenate([[0.0], share, share[-1:] if len(share) else [0.0]])
        look = looks[arm]
        axes.step(at, share, where="post", color=look.colour, linestyle=look.line, linewidth=1.5)
    axes.set(xlim=(0, end), ylim=(-0.02, 1.04))
    axes.axhline(0.5, color=GREY, linewidth=0.7, linestyle=(0, (1, 2)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=TICK_STEPS))
    finish(axes, np.array([]), {arm: arm for arm in times}, looks)
    return figure


def draw_seeds(values: pd.DataFrame, looks: Looks, *, title: str, y: str) -> Figure:
    """Draw each seed as a line through what the arms made of it, with a cross where a run diverged.

    Shapes:
        values: ``(seeds x arms)``, infinite where a run diverged, NaN where it is not known.
    """
    figure, axes = single_panel(title, "", y)
    table = values.to_numpy(dtype=float)
    known = table[np.isfinite(table)]
    at = np.arange(table.shape[1])
    for row in table:
        axes.plot(at, np.where(np.isfinite(row), row, np.nan), color=GREY, linewidth=0.5, alpha=0.6, zorder=1)
    for place, arm in enumerate(values):
        own = table[:, place]
        own = own[np.isfinite(own)]
        axes.plot([place] * len(own), own, "o", color=looks[str(arm)].colour, markersize=4.5, alpha=0.8)
    if len(known):
        scale(axes, known)
    lost = np.isinf(table).any(axis=0)
    edge = axes.get_ylim()[1 if (table[np.isinf(table)] > 0).all() else 0]
    for place in at[lost]:
        axes.plot(
            [place], [edge], "x", color=looks[str(values.columns[place])].colour, markersize=6, clip_on=False
        )
    axes.set_xlim(-0.5, len(at) - 0.5)
    axes.set_xticks(at, [str(arm) for arm in values])
    axes.grid(visible=False, axis="x")
    return figure
