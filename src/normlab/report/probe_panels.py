"""Panels of probe figures: values over the steps, a dot per seed, and a panel per configuration.

:func:`number_figure` is the main entry.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from normlab.report.charts import finite
from normlab.report.figure_layout import (
    ABOVE,
    SHARED,
    TICK_STEPS,
    LegendEntry,
    PanelRow,
    configuration_entries,
    label_panel,
    mode_title,
    new_figure,
    scale,
    shorten_log_ticks,
)
from normlab.report.figures import DENSE, LEFT, LETTER, LOG_FROM, RIGHT, WIDTH, Style, cross
from normlab.report.probe_data import ProbeData
from normlab.stats.estimates import quartiles

MARKED = 15
"""The maximum number of points of a line with markers."""
LABEL_LETTERS = 36
STEP = "optimizer steps"
NO_SPREAD = "one seed per configuration: no spread"
FROZEN = "frozen statistics: running averages, as in evaluation"
PANELS_PER_ROW = 5
"""The maximum number of panels in a row; long names of configurations reduce it."""
NAME_LETTER = 0.08
HEIGHT, NAME, GAP = 1.3, 0.28, 0.12
"""Inches: height of a panel, of the name above it, and of the gap to a next row that has the axis."""


@dataclass(frozen=True)
class NumberPanel:
    """A panel of one quantity in one mode, with its title and axis label."""

    mode: str
    quantity: str
    title: str
    label: str


def number_figure(
    probe: ProbeData,
    title: str,
    panels: Sequence[Sequence[NumberPanel]],
    *,
    shared: bool = False,
    entries: Sequence[LegendEntry] = (),
    notes: Sequence[str] = (),
    more: Sequence[PanelRow] = (),
) -> tuple[Figure, list[list[Axes]]]:
    """Draw numbers over the steps, or a dot per seed if each run has a single measurement.

    Args:
        probe: the measurements.
        title: of the figure.
        panels: row by row.
        shared: whether the panels of a row share one value axis.
        entries: legend entries beside those of the configurations.
        notes: parts of the caption beside the explanation of lines and bands.
        more: rows below, to be drawn by the caller.

    Returns:
        the figure, and the axes of ``panels`` and ``more``, row by row.
    """
    if probe.max_measurements([panel.quantity for row in panels for panel in row]) == 1:
        return dot_figure(probe, title, panels, shared=shared, entries=entries, notes=notes, more=more)
    rows = [PanelRow(len(row), above=title_height(row), shared=shared) for row in panels]
    legends, caption = [configuration_entries(probe), entries], [*panel_caption(probe), *notes]
    figure, axes = new_figure(title, [*rows, *more], legends, caption)
    for row, row_axes in zip(panels, axes, strict=False):
        draw_numbers(probe, row, row_axes, shared=shared)
    return figure, axes


def title_height(row: Sequence[NumberPanel]) -> float:
    """Return the inches for the titles of a row of panels."""
    return ABOVE if any(panel.title for panel in row) else ABOVE - 0.17


def draw_numbers(
    probe: ProbeData, row: Sequence[NumberPanel], row_axes: Sequence[Axes], *, shared: bool = False
) -> None:
    """Draw a row of panels over the steps."""
    drawn = [draw_over_steps(axes, probe, panel) for panel, axes in zip(row, row_axes, strict=True)]
    groups = [(row_axes[0], np.concatenate(drawn))] if shared else zip(row_axes, drawn, strict=True)
    for axes, values in groups:
        scale(axes, values)
    for panel, axes in zip(row, row_axes, strict=True):
        draw_unfinished(axes, probe, panel)
        label_axes(axes, panel, first=not shared or axes is row_axes[0])


def label_axes(axes: Axes, panel: NumberPanel, *, first: bool = True) -> None:
    """Set title and axis labels of a panel over the steps; the value label only if ``first``."""
    label_panel(axes, [panel.title, mode_title(panel.mode)], STEP, panel.label if first else "")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1, steps=TICK_STEPS))


def draw_over_steps(axes: Axes, probe: ProbeData, panel: NumberPanel) -> np.ndarray:
    """Draw each configuration's median and quartiles over the finished seeds; return all medians."""
    drawn = [np.array([])]
    for configuration in probe.configurations:
        wide = probe.over_steps(panel.mode, panel.quantity, probe.finished[configuration])
        if len(wide):
            style = probe.style_of[configuration]
            drawn.append(draw_median(axes, wide.index.to_numpy(), wide.to_numpy(), style))
    return np.concatenate(drawn)


def draw_median(axes: Axes, x: np.ndarray, values: np.ndarray, style: Style, *, thin: bool = False) -> np.ndarray:
    """Draw the median over the seeds and the band between the quartiles; return the median.

    Shapes:
        x ``(n,)``, values ``(n x seeds)``; returns ``(n,)``.
    """
    low, median, high = quartiles(finite(values))
    width = 1.4 if len(x) <= DENSE and not thin else 0.8
    marker = "o" if len(x) <= MARKED else ""
    axes.plot(x, median, color=style.colour, linestyle=style.line, linewidth=width, marker=marker, markersize=3)
    if values.shape[1] > 1:
        axes.fill_between(x, low, high, color=style.colour, alpha=0.15, lw=0)
    return median


def draw_unfinished(axes: Axes, probe: ProbeData, panel: NumberPanel) -> None:
    """Draw unfinished runs as thin lines without changing the axis limits, with a cross at a divergence."""
    rows = probe.rows_of(panel.mode, panel.quantity)
    rows = rows[rows["run"].isin(probe.unfinished.index)]
    limits = axes.get_ylim() if axes.lines else None
    series = {run: frame.set_index("step")["value"] for run, frame in rows.groupby("run")}
    style_of = {
        run: probe.style_of[configuration] for run, configuration in probe.unfinished["configuration"].items()
    }
    for run, values in series.items():
        style, finite = style_of[run], values.where(np.isfinite(values))
        axes.plot(finite.index, finite, color=style.colour, linestyle=style.line, linewidth=0.7)
    if limits:
        axes.set_ylim(limits)
    for run in probe.unfinished.index[probe.unfinished["status"] == "diverged"]:
        if run in series:
            cross(axes, series[run], int(series[run].index[-1]), style_of[run])


def dot_figure(
    probe: ProbeData,
    title: str,
    panels: Sequence[Sequence[NumberPanel]],
    *,
    shared: bool,
    entries: Sequence[LegendEntry],
    notes: Sequence[str],
    more: Sequence[PanelRow] = (),
) -> tuple[Figure, list[list[Axes]]]:
    """Draw the last measurement: a line per configuration in each panel, with a dot per seed.

    The arguments are those of :func:`number_figure`.
    """
    names = ["\n".join(textwrap.wrap(probe.labels[name], LABEL_LETTERS)) for name in probe.configurations]
    lines = max(name.count("\n") + 1 for name in names)
    longest = max(len(line) for name in names for line in name.split("\n"))
    height = max(0.8, (0.16 + 0.14 * lines) * len(names) + 0.2)
    rows = [PanelRow(len(row), height, title_height(row), shared=True) for row in panels]
    seeds = max(len(runs) for runs in probe.finished.values())
    caption = ["dot: one seed", "bar: median over the seeds"] if seeds > 1 else [NO_SPREAD]
    left = max(LEFT, LETTER * longest + 0.2)
    legends = [configuration_entries(probe) if more else [], entries]
    figure, axes = new_figure(title, [*rows, *more], legends, [*caption, *notes, *mode_notes(probe)], left)
    for row, row_axes in zip(panels, axes, strict=False):
        drawn = [draw_dots(panel_axes, probe, panel) for panel, panel_axes in zip(row, row_axes, strict=True)]
        for panel, panel_axes, values in zip(row, row_axes, drawn, strict=True):
            label_panel(panel_axes, [panel.title, mode_title(panel.mode)], panel.label, "")
            panel_axes.set_ylim(len(names) - 0.4, -0.6)
            panel_axes.set_yticks(range(len(names)), names, fontsize=8.5)
            panel_axes.grid(visible=False, axis="y")
            rescale_across(panel_axes, np.concatenate(drawn) if shared else values)
    return figure, axes


def draw_dots(axes: Axes, probe: ProbeData, panel: NumberPanel) -> np.ndarray:
    """Draw a dot per seed, hollow if unreliable, with one line per configuration; return the values."""
    values = probe.last(panel.mode, panel.quantity)
    unreliable = probe.last(panel.mode, "unreliable").reindex(values.index) == 1
    low, high = (probe.last(panel.mode, name).reindex(values.index) for name in ("q25", "q75"))
    all_runs = probe.sweep.runs
    for line, configuration in enumerate(probe.configurations):
        colour = probe.style_of[configuration].colour
        runs = [run for run in all_runs.index[all_runs["configuration"] == configuration] if run in values.index]
        heights = line + np.linspace(-0.22, 0.22, len(runs)) if len(runs) > 1 else np.array([float(line)])
        for run, height in zip(runs, heights, strict=False):
            if panel.quantity == "median":
                axes.plot([low[run], high[run]], [height] * 2, color=colour, linewidth=0.8, alpha=0.5)
            face = "white" if unreliable[run] else colour
            axes.plot(values[run], height, "o", color=colour, markersize=4, markerfacecolor=face, alpha=0.85)
        finished = values.reindex(probe.finished[configuration]).dropna()
        if len(finished) > 1:
            axes.plot([finished.median()] * 2, [line - 0.36, line + 0.36], color=colour, linewidth=2)
    return values.to_numpy(dtype=float)


def rescale_across(axes: Axes, values: np.ndarray) -> None:
    """Make a horizontal value axis logarithmic if the values span a factor of ten, with few ticks."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return
    low, high = finite.min(), finite.max()
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=TICK_STEPS))
    if low > 0 and high >= LOG_FROM * low:
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.06, high * (high / low) ** 0.06)
        axes.xaxis.set_major_locator(LogLocator(numticks=5) if high > 100 * low else LogLocator(subs=(1, 3)))
        if high <= 100 * low:
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        shorten_log_ticks(axes.xaxis)
    elif high > low:
        axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def panel_caption(probe: ProbeData, *, finished_only: bool = False) -> list[str]:
    """Return the explanation of lines, bands, crosses and modes; ``finished_only`` omits unfinished runs."""
    seeds = sorted({len(runs) for runs in probe.finished.values()} - {0})
    notes = [NO_SPREAD] if seeds == [1] else []
    if seeds and seeds != [1]:
        count = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        notes = [f"line: median over {count}", "band: interquartile range over the seeds"]
    unfinished = probe.unfinished[probe.unfinished["configuration"].isin(probe.configurations)]
    notes += ["thin line: unfinished run"] if len(unfinished) and not finished_only else []
    notes += ["×: divergence"] if (unfinished["status"] == "diverged").any() and not finished_only else []
    return [*notes, *mode_notes(probe)]


def mode_notes(probe: ProbeData) -> list[str]:
    """Return the explanation of frozen statistics, if they were measured; ``line`` re-estimates them."""
    return [FROZEN] if "frozen" in probe.modes and probe.name != "line" else []


def split_into_rows(probe: ProbeData) -> list[list[str]]:
    """Split the configurations into rows of panels that are evenly filled."""
    room = WIDTH - LEFT - RIGHT + SHARED
    names = probe.configurations
    longest = max(len(line) for name in names for line in probe.short_labels[name].split("\n"))
    fitting = min(PANELS_PER_ROW, max(1, int(room / (NAME_LETTER * longest + SHARED))))
    across = math.ceil(len(names) / math.ceil(len(names) / fitting))
    return [names[first : first + across] for first in range(0, len(names), across)]


def configuration_rows(probe: ProbeData, titles: Sequence[str]) -> list[PanelRow]:
    """Return, for each title in turn, the rows that hold a panel per configuration."""
    groups = split_into_rows(probe)
    # A name with a number of unfinished runs has two lines.
    name_height = NAME + 0.15 * max(probe.short_labels[name].count("\n") for name in probe.configurations)
    height = HEIGHT if len(groups) > 1 else 1.7
    rows = []
    for title in titles:
        for number, group in enumerate(groups):
            last = number == len(groups) - 1
            rows.append(
                PanelRow(
                    len(group),
                    height,
                    name_height if number else name_height + ABOVE - 0.2,
                    shared=True,
                    of=len(groups[0]),
                    title="" if number else title,
                    below=None if last else GAP,
                )
            )
    return rows


def draw_per_configuration(
    probe: ProbeData, panels: Sequence[Sequence[Axes]], x: str, y: str, draw: Callable[[Axes, str], np.ndarray]
) -> None:
    """Draw each configuration into its own panel, all with the same axis limits.

    Args:
        probe: the measurements.
        panels: the axes of the rows that :func:`configuration_rows` returns for one title.
        x, y: the axis labels.
        draw: draws a configuration into a panel, and returns the drawn values.
    """
    drawn = []
    for group, row_axes in zip(split_into_rows(probe), panels, strict=True):
        for configuration, axes in zip(group, row_axes, strict=True):
            drawn.append(draw(axes, configuration))
            last = row_axes is panels[-1]
            axes.tick_params(labelbottom=last)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1, steps=TICK_STEPS))
            y_label = y if axes is row_axes[0] else ""
            label_panel(axes, [probe.short_labels[configuration]], x if last else "", y_label)
    share_axes([axes for row_axes in panels for axes in row_axes], drawn)


def share_axes(panels: Sequence[Axes], values: Sequence[np.ndarray]) -> None:
    """Give panels the same scale and the same limits, which include all values."""
    for axes in panels:
        scale(axes, np.concatenate(values))
    low, high = zip(*(axes.get_ylim() for axes in panels), strict=True)
    left, right = zip(*(axes.get_xlim() for axes in panels), strict=True)
    for axes in panels:
        axes.set(xlim=(min(left), max(right)), ylim=(min(low), max(high)))
