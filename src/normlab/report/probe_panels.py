"""Panels of probe figures: values over the steps, and a dot per seed; :func:`panel_figure` lays them out."""

import math
import textwrap
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normlab.report.figures import (
    BAND,
    DENSE,
    MARKED,
    LegendEntry,
    Style,
    add_legend,
    cross,
    finite,
    legend_height,
    new_figure,
    scale,
    seed_notes,
    whole_ticks,
)
from normlab.report.probe_data import ProbeData
from normlab.stats.estimates import quartiles

WIDTH, TITLE, CAPTION = 9.0, 0.5, 0.5
"""Inches: width of a figure, height of its title and its caption with the legend."""
TITLE_LETTERS, LABEL_LETTERS = 100, 36
"""Letters in a line of the titles of a row of panels, and of the label of a configuration."""
PERCENTILES = ("q15", "q50", "q85")
STEP = "optimizer steps"
FROZEN = "frozen statistics: running averages, as in evaluation"
PANELS_PER_ROW = 4
"""The maximum number of panels in a row of configurations."""


class Quantity(NamedTuple):
    """A quantity of a probe in one mode, with the title and axis label of its panel."""

    mode: str
    name: str
    title: str
    label: str


class Panel(NamedTuple):
    """A panel of a figure.

    Attributes:
        draw: draws into the axes and returns the values that its scale must suit.
        title, x, y: title and axis labels.
        axis: the axis of these values, ``y`` or ``x``.
        finish: draws after the scale is chosen.
    """

    draw: Callable[[Axes], np.ndarray]
    title: str
    x: str
    y: str
    axis: str = "y"
    finish: Callable[[Axes], None] = lambda axes: None


class PanelRow(NamedTuple):
    """Panels side by side.

    Attributes:
        panels: the panels.
        height: inches, with title and labels.
        share: the axes that all panels share: "", ``y`` or ``xy``.
        group: rows of one group share their axes too.
        slots: the number of panels that fit into the row, if it has fewer.
    """

    panels: Sequence[Panel]
    height: float = 2.6
    share: str = ""
    group: Hashable = None
    slots: int = 0


def panel_figure(
    title: str, rows: Sequence[PanelRow], entries: Sequence[LegendEntry], notes: Sequence[str]
) -> Figure:
    """Draw rows of panels under a title, with a caption of ``notes`` and a legend of ``entries`` below."""
    height = TITLE + sum(row.height for row in rows) + CAPTION + legend_height(WIDTH, entries)
    figure = new_figure(WIDTH, height)
    slots = [max(row.slots, len(row.panels)) for row in rows]
    columns = math.lcm(*slots)
    grid = figure.add_gridspec(len(rows), columns, height_ratios=[row.height for row in rows])
    first: dict[Hashable, Axes] = {}
    drawn: dict[Axes, list[np.ndarray]] = {}
    panels: list[tuple[Panel, Axes]] = []
    for number, row in enumerate(rows):
        span, key = columns // slots[number], number if row.group is None else row.group
        for place, panel in enumerate(row.panels):
            shared = {f"share{axis}": first.get(key) for axis in row.share}
            axes = figure.add_subplot(grid[number, place * span : (place + 1) * span], **shared)
            group = first.setdefault(key, axes) if panel.axis in row.share else axes
            first.setdefault(key, axes)
            drawn.setdefault(group, []).append(panel.draw(axes))
            axes.set_title(wrapped(panel.title, TITLE_LETTERS // slots[number]), fontsize=9.5)
            inner = bool(row.share) and place > 0
            axes.set(xlabel=panel.x, ylabel="" if inner else panel.y)
            axes.tick_params(labelsize=8.5, left=not inner, labelleft=not inner)
            panels.append((panel, axes))
    for panel, axes in panels:
        if axes in drawn:
            scale(getattr(axes, f"{panel.axis}axis"), np.concatenate(drawn[axes]))
    for panel, axes in panels:
        panel.finish(axes)
    figure.suptitle(title)
    add_legend(figure, entries, notes)
    return figure


def quantities(probe: ProbeData, kinds: Sequence[tuple[str, str, str]]) -> list[list[Quantity]]:
    """Return the measured quantities among ``kinds`` (name, title and label), a row per mode."""
    present = [kind for kind in kinds if probe.has(kind[0])]
    return [[Quantity(mode, *kind) for kind in present] for mode in probe.modes] if present else []


def quantity_figure(
    probe: ProbeData,
    title: str,
    rows: Sequence[Sequence[Quantity]],
    *,
    share: str = "",
    entries: Sequence[LegendEntry] = (),
    notes: Sequence[str] = (),
    more: Sequence[PanelRow] = (),
    mark: Callable[[Axes, Quantity, bool], None] = lambda axes, quantity, is_horizontal: None,
) -> Figure:
    """Draw quantities over the steps, or a dot per seed if each run has a single measurement.

    Args:
        probe: the measurements.
        title: of the figure.
        rows: the quantities, row by row.
        share: "values" if the panels of a row share their value axis.
        entries: legend entries beside those of the configurations.
        notes: parts of the caption beside the explanation of lines and bands.
        more: rows below.
        mark: adds marks to the panel of a quantity; the flag tells whether its value axis is horizontal.
    """
    once = probe.max_measurements([quantity.name for row in rows for quantity in row]) == 1
    if once:
        seeds = max(len(runs) for runs in probe.finished.values())
        caption = ["dot: one seed", "bar: median over the seeds"] if seeds > 1 else seed_notes([1])
        caption, legend = [*caption, *mode_notes(probe)], probe.legend if more else []
        shared, height = "xy" if share else "y", 0.9 + 0.3 * len(probe.configurations)
    else:
        caption, legend = panel_caption(probe), probe.legend
        shared, height = "y" if share else "", PanelRow([]).height
    drawn = [
        PanelRow([quantity_panel(probe, quantity, once, mark) for quantity in row], height, shared) for row in rows
    ]
    return panel_figure(title, [*drawn, *more], [*legend, *entries], [*caption, *notes])


def quantity_panel(
    probe: ProbeData, quantity: Quantity, once: bool, mark: Callable[[Axes, Quantity, bool], None]
) -> Panel:
    """Return the panel of a quantity: a dot per seed if it is measured ``once``, else lines over the steps."""
    title = two_lines(quantity.title, mode_title(quantity.mode))
    if once:
        draw = partial(draw_dots, probe, quantity)
        return Panel(draw, title, quantity.label, "", "x", lambda axes: mark(axes, quantity, True))

    def finish(axes: Axes) -> None:
        draw_unfinished(axes, probe, quantity)
        mark(axes, quantity, False)

    return Panel(partial(draw_over_steps, probe, quantity), title, STEP, quantity.label, finish=finish)


def wrapped(text: str, letters: int) -> str:
    """Break the lines of a text that are longer than a number of letters."""
    return "\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, letters))


def two_lines(*parts: str) -> str:
    """Join the parts of a panel's title by line breaks, without empty lines."""
    return "\n".join(filter(None, parts))


def draw_over_steps(probe: ProbeData, quantity: Quantity, axes: Axes) -> np.ndarray:
    """Draw each configuration's median and quartiles over the finished seeds; return all medians."""
    drawn = [np.array([])]
    for configuration in probe.configurations:
        wide = probe.over_steps(quantity.mode, quantity.name, probe.finished[configuration])
        if len(wide):
            style = probe.style_of[configuration]
            drawn.append(draw_median(axes, wide.index.to_numpy(), wide.to_numpy(), style))
    whole_ticks(axes)
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
        axes.fill_between(x, low, high, color=style.colour, alpha=BAND, lw=0)
    return median


def draw_unfinished(axes: Axes, probe: ProbeData, quantity: Quantity) -> None:
    """Draw unfinished runs as thin lines without changing the axis limits, with a cross at a divergence."""
    rows = probe.rows_of(quantity.mode, quantity.name)
    limits = axes.get_ylim() if axes.lines else None
    for run, row in probe.unfinished.iterrows():
        values = rows.loc[rows["run"] == run].set_index("step")["value"]
        known = values[np.isfinite(values)]
        if not len(values):
            continue
        colour, line = probe.style_of[row["configuration"]]
        axes.plot(known.index, known, color=colour, linestyle=line, linewidth=0.7)
        axes.set_ylim(limits or axes.get_ylim())
        if row["status"] == "diverged":
            at, value = (known.index[-1], known.iloc[-1]) if len(known) else (values.index[-1], np.inf)
            cross(axes, at, value, colour)


def draw_dots(probe: ProbeData, quantity: Quantity, axes: Axes) -> np.ndarray:
    """Draw a dot per seed, hollow if unreliable, with one line per configuration; return the values."""
    values = probe.last(quantity.mode, quantity.name)
    unreliable = probe.last(quantity.mode, "unreliable").reindex(values.index) == 1
    low, high = (probe.last(quantity.mode, name).reindex(values.index) for name in ("q25", "q75"))
    all_runs = probe.sweep.runs
    for line, configuration in enumerate(probe.configurations):
        colour = probe.style_of[configuration].colour
        runs = all_runs.index[all_runs["configuration"] == configuration].intersection(values.index)
        heights = line + np.linspace(-0.22, 0.22, len(runs)) if len(runs) > 1 else np.full(len(runs), line)
        if quantity.name == "median":
            axes.hlines(heights, low[runs], high[runs], color=colour, linewidth=0.8, alpha=0.5)
        faces = np.where(unreliable[runs], "white", colour)
        axes.scatter(values[runs], heights, 16, faces, edgecolors=colour, alpha=0.85, zorder=3)
        finished = values.reindex(probe.finished[configuration]).dropna()
        if len(finished) > 1:
            axes.vlines(finished.median(), line - 0.36, line + 0.36, color=colour, linewidth=2)
    names = [wrapped(probe.labels[name], LABEL_LETTERS) for name in probe.configurations]
    axes.margins(x=0.08)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False, axis="y")
    return values.to_numpy(dtype=float)


def panel_caption(probe: ProbeData, *, finished_only: bool = False) -> list[str]:
    """Return the explanation of lines, bands, crosses and modes; ``finished_only`` omits unfinished runs."""
    notes = seed_notes([len(runs) for runs in probe.finished.values()])
    unfinished = probe.unfinished[probe.unfinished["configuration"].isin(probe.configurations)]
    notes += ["thin line: unfinished run"] if len(unfinished) and not finished_only else []
    notes += ["×: divergence"] if (unfinished["status"] == "diverged").any() and not finished_only else []
    return [*notes, *mode_notes(probe)]


def mode_notes(probe: ProbeData) -> list[str]:
    """Return the explanation of frozen statistics, if they were measured; ``line`` re-estimates them."""
    return [FROZEN] if "frozen" in probe.modes and probe.name != "line" else []


def mode_title(mode: str) -> str:
    """Return the title of a mode, such as ``batch statistics``."""
    return f"{mode} statistics" if mode in ("batch", "frozen") else mode


def configuration_rows(
    probe: ProbeData, title: str, y: str, draw: Callable[[str, Axes], np.ndarray], overlaid: int = 1
) -> list[PanelRow]:
    """Return rows with a panel per configuration, which share their axes; a single panel for few configurations.

    Args:
        probe: the measurements.
        title, y: title and axis label.
        draw: draws a configuration.
        overlaid: the maximum number of configurations in a single panel.
    """
    names = probe.configurations
    if len(names) <= overlaid:
        panel = Panel(lambda axes: np.concatenate([draw(name, axes) for name in names]), title, STEP, y)
        return [PanelRow([panel])]
    per_row = math.ceil(len(names) / math.ceil(len(names) / PANELS_PER_ROW))
    rows = [names[start : start + per_row] for start in range(0, len(names), per_row)]
    titles = {name: wrapped(two_lines(title, probe.labels[name]), TITLE_LETTERS // per_row) for name in names}
    height = 1.7 + 0.16 * max(text.count("\n") + 1 for text in titles.values())
    return [
        PanelRow(
            [Panel(partial(draw, name), titles[name], STEP * (row is rows[-1]), y) for name in row],
            height,
            "xy",
            title,
            per_row,
        )
        for row in rows
    ]


def draw_range(probe: ProbeData, mode: str, name: str, configuration: str, axes: Axes) -> np.ndarray:
    """Draw the range of a configuration over the steps; return its ends, medians over the seeds."""
    runs, (colour, line) = probe.finished[configuration], probe.style_of[configuration]
    low, high = (probe.over_steps(mode, f"{name}_{end}", runs) for end in ("min", "max"))
    low, high = low.align(high, join="inner", axis=0)
    ends = [quartiles(finite(end.to_numpy()))[1] for end in (low, high)]
    axes.fill_between(low.index, *ends, color=colour, alpha=0.3, lw=0)
    axes.plot(low.index, np.stack(ends, axis=1), color=colour, linestyle=line, linewidth=0.8)
    whole_ticks(axes)
    return np.concatenate(ends)


def draw_percentiles(probe: ProbeData, mode: str, layer: str, configuration: str, axes: Axes) -> np.ndarray:
    """Draw three percentiles of one configuration over the steps; return their medians over the seeds."""
    drawn = []
    for name in PERCENTILES:
        wide = probe.over_steps(mode, f"{layer}/{name}", probe.finished[configuration])
        x, style = wide.index.to_numpy(), probe.style_of[configuration]
        drawn.append(draw_median(axes, x, wide.to_numpy(), style, thin=name != "q50"))
    whole_ticks(axes)
    return np.concatenate(drawn)
