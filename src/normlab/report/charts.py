"""Charts of the report page, one panel each, and the learning curves of a sweep, ``curves.png``.

Charts are as wide as a third of the page, or as a phone. See :mod:`normlab.report.figures` for the styles.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from normlab.report.factors import short_names
from normlab.report.figures import (
    BAND,
    DENSE,
    GREY,
    MARKED,
    Style,
    Styles,
    add_legend,
    cross,
    drawing,
    finite,
    legend_height,
    new_figure,
    save,
    scale,
    seed_notes,
    style_entries,
    styles,
    whole_ticks,
)
from normlab.report.sweep_summary import SweepSummary, quartile_curves
from normlab.stats.comparison import RATIO
from normlab.stats.design import MODEL, configuration_label

CHART_SIZE = (4.3, 3.1)
"""Width and height of a chart in inches."""
ZOOM_FACTOR = 5.0
"""Curves that end above this multiple of the best loss do not widen the panel."""
TITLES = {
    "train/loss": "training loss",
    "train_eval/loss": "training loss",
    "val/loss": "validation loss",
    "val/acc": "validation accuracy",
}


def chart(title: str, x: str, y: str, height: float = CHART_SIZE[1]) -> tuple[Figure, Axes]:
    """Create a figure with one panel, given its title and axis labels."""
    with drawing():
        figure = new_figure(CHART_SIZE[0], height)
        axes = figure.add_subplot()
        axes.set_title(title)
        axes.set(xlabel=x, ylabel=y)
    return figure, axes


def draw_effects(rows: pd.DataFrame, style_of: Styles, *, title: str, x: str) -> Figure:
    """Draw the effect of each arm against the baseline with its interval; filled if a difference is declared.

    Args:
        rows: with the columns ``arm``, ``label``, ``effect``, ``estimate``, ``estimate_low``,
            ``estimate_high`` and ``declared`` (a flag).
        style_of: colour and line style by arm.
        title, x: title and axis label.
    """
    figure, axes = chart(title, x, "", height=max(1.7, 0.9 + 0.26 * len(rows)))
    same = 1.0 if (rows["effect"] == RATIO).all() else 0.0
    axes.axvline(same, color=GREY, linewidth=0.9)
    numbers = rows[["estimate", "estimate_low", "estimate_high"]].to_numpy(dtype=float, copy=True)
    if same:
        numbers[numbers == 0] = np.nan  # an unbounded end on a logarithmic axis
    shown = np.append(numbers[np.isfinite(numbers)], same)
    margin = 1.12 ** np.sign(same)
    for place, (row, (estimate, low, high)) in enumerate(zip(rows.to_dict("records"), numbers, strict=True)):
        colour = style_of[str(row["arm"])].colour
        if np.isfinite([low, high]).any():
            ends = [end if np.isfinite(end) else edge for end, edge in ((low, shown.min()), (high, shown.max()))]
            axes.plot(ends, [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        face = colour if row["declared"] else "white"
        axes.plot(estimate, place, "o", color=colour, markerfacecolor=face, markersize=6, markeredgewidth=1.5)
    scale(axes.xaxis, shown)
    if axes.get_xscale() == "linear" and same:
        axes.set_xlim(shown.min() / margin, shown.max() * margin)
    axes.set_yticks(range(len(rows)), rows["label"].tolist())
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return figure


def draw_curves(
    curves: pd.DataFrame,
    style_of: Styles,
    *,
    title: str,
    y: str,
    better: str = "min",
    x: str = "epoch",
    target: float = np.nan,
) -> Figure:
    """Draw each arm's median over the runs and the band between its quartiles, zoomed to its second half.

    Args:
        curves: with the columns ``name`` (the arm), ``x``, ``lower``, ``median`` and ``upper``.
        style_of: colour and line style by arm.
        title, x, y: title and axis labels; ``x`` is also a column.
        better: ``min`` or ``max``.
        target: a value to mark; NaN for none.
    """
    figure, axes = chart(title, "seconds of training" if x == "seconds" else x, y)
    draw_medians(axes, curves, style_of, x, better)
    if np.isfinite(target):
        axes.axhline(target, color=GREY, linestyle=(0, (6, 2)), linewidth=0.9)
        place: Any = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "bottom"}
        axes.annotate("target", (0.01, target), **place, fontsize=7.5, color=GREY, annotation_clip=True)
    arms = {str(arm): str(arm) for arm in curves["name"].unique()}
    add_legend(figure, style_entries(style_of, arms) if len(arms) > 1 else [])
    return figure


def draw_medians(axes: Axes, curves: pd.DataFrame, style_of: Styles, x: str, better: str) -> None:
    """Draw medians and bands by name.

    A cross marks the end of a curve whose runs diverged, a triangle at the edge the end of a part beyond the axis.
    """
    limits = zoomed_limits(curves, x, better)
    scale(axes.yaxis, limits)
    ends = []
    for name, rows in curves.groupby("name", sort=False):
        style, at = style_of[str(name)], rows[x].to_numpy(dtype=float)
        lower, median, upper = (finite(rows[column].to_numpy()) for column in ("lower", "median", "upper"))
        known = np.flatnonzero(~np.isnan(median))
        marker, width = "o" if len(known) <= MARKED else "", 1.5 if len(at) <= DENSE else 0.8
        axes.plot(at, median, color=style.colour, linestyle=style.line, lw=width, marker=marker, markersize=3)
        if (lower != upper).any():
            axes.fill_between(at, lower, upper, color=style.colour, alpha=BAND, lw=0)
        if np.isinf(rows["median"]).any():
            place = known[-1] if len(known) else 0
            ends.append((at[place], rows["median"].iloc[place], style.colour))
    if len(limits):
        axes.set_ylim(*widened(limits[0], limits[1], axes.get_yscale()))
    axes.set_xlim(0, 1.02 * curves[x].max())
    whole_ticks(axes)
    for end in ends:
        cross(axes, *end)
    for name, rows in curves.groupby("name", sort=False):
        mark_hidden(axes, rows[x].to_numpy(dtype=float), rows["median"].to_numpy(dtype=float), style_of[str(name)])


def mark_hidden(axes: Axes, x: np.ndarray, y: np.ndarray, style: Style) -> None:
    """Draw a triangle at the upper or lower edge of the axis, at the last x whose finite y is beyond it."""
    low, high = axes.get_ylim()
    for edge, marker, beyond in ((1.0, "^", y > high), (0.0, "v", y < low)):
        at = x[beyond & np.isfinite(y)]
        if len(at):
            (mark,) = axes.plot(at[-1:], [edge], marker, color=style.colour, markersize=4, zorder=3, clip_on=False)
            mark.set_transform(axes.get_xaxis_transform())


def zoomed_limits(curves: pd.DataFrame, x: str, better: str) -> np.ndarray:
    """Return the lowest and highest value of the second half of training, and of the best medians; or nothing.

    Arms whose loss ends above ``ZOOM_FACTOR`` times the best one are left out, except for the second best.
    """
    values = curves.replace([np.inf, -np.inf], np.nan)
    last = values.dropna(subset="median").groupby("name")["median"].last().sort_values(ascending=better == "min")
    is_near = (last <= ZOOM_FACTOR * last.min()) | (np.arange(len(last)) < 2) | (better == "max")
    near = values[values["name"].isin(last.index[is_near])]
    late = near.loc[near[x] >= near[x].max() / 2, ["lower", "median", "upper"]].to_numpy()
    best = near["median"].min() if better == "min" else near["median"].max()
    known = np.append(late[np.isfinite(late)], [best] if np.isfinite(best) else [])
    return np.array([known.min(), known.max()]) if len(known) else known


def widened(low: float, high: float, kind: str) -> tuple[float, float]:
    """Return the limits of an axis with a margin of 5 % on its scale, ``linear`` or ``log``."""
    if kind == "log":
        margin = (high / low) ** 0.05
        return low / margin, high * margin
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def draw_against(
    table: pd.DataFrame, key: str, style_of: Styles, *, title: str, x: str, y: str, better: str
) -> Figure:
    """Draw each arm's estimate with its interval against a hyperparameter.

    A filled dot is the chosen setting; × marks settings with diverged runs.

    Args:
        table: with the columns ``arm``, ``key``, ``iqm``, ``iqm_low``, ``iqm_high``, ``diverged`` (a share) and
            ``chosen``.
        key: the column of the hyperparameter.
        style_of: colour and line style by arm.
        title, x, y: title and axis labels.
        better: ``min`` or ``max``.
    """
    figure, axes = chart(title, x, y)
    arms = plot_against(axes, table, key, style_of, better)
    add_legend(figure, style_entries(style_of, dict(zip(arms, arms, strict=True))) if len(arms) > 1 else [])
    return figure


def plot_against(axes: Axes, table: pd.DataFrame, key: str, style_of: Styles, better: str) -> list[str]:
    """Draw estimates and intervals as :func:`draw_against` into axes, and return the arms that are drawn."""
    arms = [arm for arm in style_of if (table["arm"] == arm).any()]
    settings = sorted(set(table[key].astype(float)))
    ratio = (settings[-1] / settings[0]) ** (1 / max(1, len(settings) - 1)) if settings[0] > 0 else 1.0
    for number, arm in enumerate(arms):
        rows = table[table["arm"] == arm].assign(at=lambda frame: frame[key].astype(float)).sort_values("at")
        rows = rows[np.isfinite(rows["iqm"].astype(float))]
        if rows.empty:
            continue
        # Arms are shifted sideways, so that their intervals at one setting do not overlap.
        at = rows["at"] * max(ratio, 1.3) ** (0.06 * (number - (len(arms) - 1) / 2))
        colour, line = style_of[arm]
        iqm, low, high = (rows[name].to_numpy(dtype=float) for name in ("iqm", "iqm_low", "iqm_high"))
        errors = np.nan_to_num(np.stack([iqm - low, high - iqm]), posinf=0, neginf=0).clip(0)
        axes.errorbar(at, iqm, errors, color=colour, linestyle=line, lw=1.2, elinewidth=0.9, capsize=2)
        axes.scatter(at, iqm, 20, np.where(rows["chosen"].astype(bool), colour, "white"), ec=colour, zorder=3)
    axes.set_xscale("log")
    scale(axes.yaxis, table["iqm"].to_numpy(dtype=float))
    edge = np.inf if better == "min" else -np.inf
    for number, (lost, rows) in enumerate(table[table["diverged"] > 0].groupby("arm", sort=False)):
        for setting in rows[key].astype(float):
            cross(axes, setting * 1.06**number, edge, style_of[str(lost)].colour)
    axes.set_xticks(settings, [f"{setting:g}" for setting in settings])
    axes.xaxis.set_minor_locator(NullLocator())
    return arms


def draw_reached(times: Mapping[str, np.ndarray], style_of: Styles, *, title: str, x: str, end: float) -> Figure:
    """Draw the share of each arm's seeds that have reached the target, against the time.

    Shapes:
        times: by arm ``(seeds,)``, infinite for a seed that never reaches it.
    """
    figure, axes = chart(title, x, "share of replicates")
    for arm, each in times.items():
        known = np.sort(each[np.isfinite(each)])
        share = np.arange(len(known) + 1) / max(1, len(each))
        at, shares = np.concatenate([[0.0], known, [end]]), np.append(share, share[-1])
        axes.step(at, shares, where="post", color=style_of[arm].colour, linestyle=style_of[arm].line, lw=1.5)
    axes.set(xlim=(0, end), ylim=(-0.02, 1.04))
    axes.axhline(0.5, color=GREY, linewidth=0.7, linestyle=(0, (1, 2)))
    whole_ticks(axes)
    add_legend(figure, style_entries(style_of, {arm: arm for arm in times}) if len(times) > 1 else [])
    return figure


def draw_seeds(values: pd.DataFrame, style_of: Styles, *, title: str, y: str) -> Figure:
    """Draw each seed as a line across the arms; × marks arms with diverged runs.

    Shapes:
        values: ``(seeds x arms)``, infinite where a run diverged, NaN where the value is missing.
    """
    figure, axes = chart(title, "", y)
    plot_seeds(axes, values, style_of)
    return figure


def plot_seeds(axes: Axes, values: pd.DataFrame, style_of: Styles) -> None:
    """Draw the values of each seed as :func:`draw_seeds` into axes."""
    table, places = values.to_numpy(dtype=float), np.arange(values.shape[1])
    axes.plot(places, finite(table).T, color=GREY, linewidth=0.5, alpha=0.6, zorder=1)
    for place, arm in zip(places, values, strict=True):
        column = table[np.isfinite(table[:, place]), place]
        axes.plot([place] * len(column), column, "o", color=style_of[str(arm)].colour, markersize=4.5, alpha=0.8)
    scale(axes.yaxis, table)
    for place in places[np.isinf(table).any(axis=0)]:
        worst = table[np.isinf(table[:, place]), place][0]
        cross(axes, place, worst, style_of[str(values.columns[place])].colour)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xticks(places, [str(arm) for arm in values])
    axes.grid(visible=False, axis="x")


def write_curves(sweep: SweepSummary, folder: Path) -> list[Path]:
    """Write ``curves.png`` and ``curves.svg`` and return their paths; none without curves of a run that ended."""
    drawn = dict.fromkeys(["train/loss", "val/loss", sweep.metric])
    curves = quartile_curves(sweep, sweep.curves[sweep.curves["metric"].isin(list(drawn))])
    names = [name for name in drawn if name in set(curves["metric"])]
    if not names:
        return []
    with drawing():
        figure = draw_configurations(sweep, curves, names)
        return [save(figure, folder / f"curves.{kind}") for kind in ("png", "svg")]


def draw_configurations(sweep: SweepSummary, curves: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Draw a panel per metric with the medians and quartiles of all configurations over their seeds.

    Args:
        sweep: the sweep.
        curves: the medians and quartiles of these metrics.
        names: of the metrics.
    """
    style_of, width = configuration_styles(sweep), 4.5 * len(names)
    entries = style_entries(style_of, legend_labels(sweep))
    figure = new_figure(width, 3.4 + legend_height(width, entries))
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        better = sweep.direction if name == sweep.metric else "min"
        draw_medians(axes, curves[curves["metric"] == name], style_of, "epoch", better)
        axes.set(xlabel="epoch", ylabel=name)
        axes.set_title(TITLES.get(name, name))
    add_legend(figure, entries, curves_caption(sweep))
    return figure


def curves_caption(sweep: SweepSummary) -> list[str]:
    """Return the explanation of lines, bands and crosses."""
    runs = sweep.runs[sweep.runs["status"].isin(["finished", "diverged"])]
    notes = seed_notes(runs.groupby("configuration")["seed"].nunique().tolist())
    if (runs.groupby("configuration")["epochs"].nunique() > 1).any():
        notes.append("a line ends with the shortest run")
    return [*notes, *["×: half of the runs diverged"] * bool((runs["status"] == "diverged").any())]


def configuration_styles(sweep: SweepSummary) -> dict[str, Style]:
    """Return the style of each configuration of a sweep; the model determines the colour."""
    keys = sorted(sweep.keys, key=lambda key: key != MODEL)
    settings = list(sweep.configurations[keys].itertuples(index=False, name=None))
    return dict(zip(sweep.configurations.index, styles(settings), strict=True))


def legend_labels(sweep: SweepSummary) -> dict[str, str]:
    """Return each configuration's legend label, such as ``model=nobn, lr=0.1 (2 of 8 diverged)``.

    Untrained runs are counted only if they are the majority.
    """
    labels, keys = {}, short_names(sweep.keys)
    for configuration, row in sweep.configurations.to_dict("index").items():
        name = configuration_label(keys, [row[key] for key in sweep.keys]) if keys else str(configuration)
        states = [state for state in ("diverged", "stopped", "failed") if row[state]]
        states += ["untrained"] * row["mostly_untrained"]
        counts = ", ".join(f"{row[state]} of {row['runs']} {state}" for state in states)
        labels[str(configuration)] = f"{name} ({counts})" if counts else name
    return labels
