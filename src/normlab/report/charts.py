"""Single-panel figures of the report page, sized for the width of a phone.

Every arm has the same colour and line style in all of them; see :func:`normlab.report.figures.styles`.
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
from normlab.stats.estimates import quartiles

CHART_SIZE = (4.7, 3.1)
"""Width and height in inches."""
CHART_LEFT, CHART_RIGHT, TOP, BOTTOM, LEGEND = 0.145, 0.965, 0.91, 0.16, 0.06
"""Edges of the panel and the height of a legend row, as shares of the figure."""
LEGEND_COLUMNS = 5
"""Maximum number of legend entries in a row."""
Styles = Mapping[str, Style]


def single_panel(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Create a figure with one panel, given its title and axis labels."""
    with drawing():
        figure = Figure(figsize=CHART_SIZE)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((CHART_LEFT, BOTTOM, CHART_RIGHT - CHART_LEFT, TOP - BOTTOM))
    axes.set_title(title, fontsize=10, loc="left", y=1.0, pad=6)
    # The common power of ten of the tick labels moves left, where it does not overlap the title.
    axes.yaxis.get_offset_text().set(x=-0.02, horizontalalignment="right")
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def finish(axes: Axes, values: np.ndarray, arms: Mapping[str, str], style_of: Styles) -> None:
    """Choose the scale of the value axis and add a legend of the arms (``arms``: label by arm)."""
    if np.isfinite(values).any():
        scale(axes, values[np.isfinite(values)])
    handles = [
        Line2D([], [], color=style_of[arm].colour, linestyle=style_of[arm].line, linewidth=2, label=label)
        for arm, label in arms.items()
    ]
    if len(handles) > 1:
        per_row = min(LEGEND_COLUMNS, len(handles))
        rows = -(-len(handles) // per_row)
        # The legend is below the axes: inside them it could hide data, and matplotlib is slow to place it.
        axes.figure.legend(
            handles=handles, loc="lower center", ncols=per_row, fontsize=8, frameon=False, borderpad=0
        )
        axes.set_position(
            (CHART_LEFT, BOTTOM + LEGEND * rows, CHART_RIGHT - CHART_LEFT, TOP - BOTTOM - LEGEND * rows)
        )


def draw_curves(
    values: Mapping[str, pd.DataFrame], style_of: Styles, *, title: str, x: str, y: str, target: float
) -> Figure:
    """Draw each arm's median over the seeds and the band between its quartiles.

    Shapes:
        values: by arm ``(times x seeds)``, indexed by epoch or seconds; infinite from where a run diverged.
    """
    figure, axes = single_panel(title, x, y)
    drawn = [np.array([])]
    for arm, wide in values.items():
        low, median, high = quartiles(wide.to_numpy(dtype=float))
        style, at = style_of[arm], wide.index.to_numpy(dtype=float)
        axes.plot(at, finite(median), color=style.colour, linestyle=style.line, lw=1.5)
        if wide.shape[1] > 1:
            axes.fill_between(at, finite(low), finite(high), color=style.colour, alpha=0.15, lw=0)
        drawn += [median, low]
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
    finish(axes, np.concatenate([*drawn, [target]]), {arm: arm for arm in values}, style_of)
    return figure


def finite(values: np.ndarray) -> np.ndarray:
    """Replace infinite values by NaN, which matplotlib draws as gaps."""
    return np.where(np.isfinite(values), values, np.nan)


def draw_against(
    table: pd.DataFrame, key: str, style_of: Styles, *, title: str, x: str, y: str, better: str
) -> Figure:
    """Draw each arm's estimate with its interval against a hyperparameter.

    A filled dot is the chosen setting; × marks settings with diverged runs.

    Args:
        table: with the columns ``arm``, ``key``, ``iqm``, ``low``, ``high``, ``diverged`` (a share), ``chosen``.
        key: the column of the hyperparameter.
        style_of: colour and line style by arm.
        title, x, y: title and axis labels.
        better: ``min`` or ``max``.
    """
    figure, axes = single_panel(title, x, y)
    drawn, arms = [np.array([])], [arm for arm in style_of if (table["arm"] == arm).any()]
    settings = sorted(set(table[key].astype(float)))
    ratio = (settings[-1] / settings[0]) ** (1 / max(1, len(settings) - 1)) if settings[0] > 0 else 1.0
    axes.set_xscale("log")
    for number, arm in enumerate(arms):
        rows = table[table["arm"] == arm].assign(at=lambda frame: frame[key].astype(float)).sort_values("at")
        # Arms are shifted sideways, so that their intervals at one setting do not overlap.
        at = rows["at"].to_numpy() * max(ratio, 1.3) ** (0.06 * (number - (len(arms) - 1) / 2))
        estimate, style = rows["iqm"].to_numpy(dtype=float), style_of[arm]
        below, above = estimate - rows["low"].to_numpy(dtype=float), rows["high"].to_numpy(dtype=float) - estimate
        known = np.isfinite(estimate)
        axes.plot(at[known], estimate[known], color=style.colour, linestyle=style.line, linewidth=1.2)
        errors = np.nan_to_num(np.stack([below, above])[:, known], posinf=0, neginf=0).clip(0)
        axes.errorbar(
            at[known], estimate[known], errors, fmt="none", ecolor=style.colour, elinewidth=0.9, capsize=2
        )
        for chosen in (False, True):
            mask = known & (rows["chosen"].to_numpy(dtype=bool) == chosen)
            fill = style.colour if chosen else "white"
            axes.plot(at[mask], estimate[mask], "o", color=style.colour, markerfacecolor=fill, markersize=4.5)
        drawn.append(estimate[known])
    finish(axes, np.concatenate(drawn), {arm: arm for arm in arms}, style_of)
    mark_diverged(axes, table, key, style_of, better)
    axes.set_xticks(settings, [f"{setting:g}" for setting in settings])
    axes.xaxis.set_minor_locator(NullLocator())
    return figure


def mark_diverged(axes: Axes, table: pd.DataFrame, key: str, style_of: Styles, better: str) -> None:
    """Mark the settings at which runs of an arm diverged, at the worse edge of the panel."""
    edge = axes.get_ylim()[1 if better == "min" else 0]
    for number, (arm, rows) in enumerate(table[table["diverged"] > 0].groupby("arm", sort=False)):
        at = rows[key].astype(float) * 1.06**number
        axes.plot(at, [edge] * len(at), "x", color=style_of[str(arm)].colour, markersize=6, clip_on=False)


def draw_reached(times: Mapping[str, np.ndarray], style_of: Styles, *, title: str, x: str, end: float) -> Figure:
    """Draw the share of each arm's seeds that have reached the target, against the time.

    Shapes:
        times: by arm ``(seeds,)``, infinite for a seed that never reaches it.
    """
    figure, axes = single_panel(title, x, "share of seeds that reached the target")
    for arm, each in times.items():
        known = np.sort(each[np.isfinite(each)])
        share = np.arange(1, len(known) + 1) / max(1, len(each))
        at = np.concatenate([[0.0], known, [end]])
        share = np.concatenate([[0.0], share, share[-1:] if len(share) else [0.0]])
        style = style_of[arm]
        axes.step(at, share, where="post", color=style.colour, linestyle=style.line, linewidth=1.5)
    axes.set(xlim=(0, end), ylim=(-0.02, 1.04))
    axes.axhline(0.5, color=GREY, linewidth=0.7, linestyle=(0, (1, 2)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=TICK_STEPS))
    finish(axes, np.array([]), {arm: arm for arm in times}, style_of)
    return figure


def draw_seeds(values: pd.DataFrame, style_of: Styles, *, title: str, y: str) -> Figure:
    """Draw each seed as a line across the arms; × marks arms with diverged runs.

    Shapes:
        values: ``(seeds x arms)``, infinite where a run diverged, NaN where the value is missing.
    """
    figure, axes = single_panel(title, "", y)
    table = values.to_numpy(dtype=float)
    known = table[np.isfinite(table)]
    at = np.arange(table.shape[1])
    for row in table:
        axes.plot(at, finite(row), color=GREY, linewidth=0.5, alpha=0.6, zorder=1)
    for position, arm in enumerate(values):
        column = table[:, position]
        column = column[np.isfinite(column)]
        colour = style_of[str(arm)].colour
        axes.plot([position] * len(column), column, "o", color=colour, markersize=4.5, alpha=0.8)
    if len(known):
        scale(axes, known)
    diverged = np.isinf(table).any(axis=0)
    edge = axes.get_ylim()[1 if (table[np.isinf(table)] > 0).all() else 0]
    for position in at[diverged]:
        colour = style_of[str(values.columns[position])].colour
        axes.plot([position], [edge], "x", color=colour, markersize=6, clip_on=False)
    axes.set_xlim(-0.5, len(at) - 0.5)
    axes.set_xticks(at, [str(arm) for arm in values])
    axes.grid(visible=False, axis="x")
    return figure
