"""Panels of probe figures: numbers over the steps, a dot for each seed, and a panel for each arm."""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from normlab.report.figure_layout import (
    ABOVE,
    SHARED,
    TICK_STEPS,
    Entry,
    PanelRow,
    arm_entries,
    few_ticks,
    head,
    mode_title,
    scale,
    sheet,
)
from normlab.report.figures import DENSE, LEFT, LETTER, LOG_FROM, RIGHT, WIDTH, Style, cross
from normlab.report.probe_data import Measured, seed_quartiles

MARKED = 15
"""Up to how many moments each has a mark."""
LABEL_LETTERS = 36
STEP = "steps of the optimizer"
PANELS_PER_ROW = 5
"""How many panels there are in a row, where the names of the arms leave room for them."""
NAME_LETTER = 0.08
HEIGHT, NAME, GAP = 1.3, 0.28, 0.12
"""Inches: of a panel, of the name above it, and to the next row where that has the axis."""


@dataclass(frozen=True)
class NumberPanel:
    """One number, in words and on its axis."""

    mode: str
    quantity: str
    title: str
    label: str


def number_sheet(
    probe: Measured,
    title: str,
    panels: Sequence[Sequence[NumberPanel]],
    *,
    shared: bool = False,
    entries: Sequence[Entry] = (),
    words: Sequence[str] = (),
    more: Sequence[PanelRow] = (),
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of numbers: over the steps, or by arm if there was one moment alone.

    Args:
        probe: what was measured.
        title: what is seen, in words.
        panels: row by row.
        shared: whether the panels of a row have one value axis.
        entries: of the legend, beside the arms.
        words: of the caption, beside what lines and bands are.
        more: rows below, to be drawn by the caller.
    """
    once = probe.moments([panel.quantity for row in panels for panel in row]) == 1
    if once:
        return dot_sheet(probe, title, panels, shared=shared, entries=entries, words=words, more=more)
    rows = [PanelRow(len(row), above=above(row), shared=shared) for row in panels]
    figure, axes = sheet(title, [*rows, *more], [arm_entries(probe), entries], [*panel_caption(probe), *words])
    for row, places in zip(panels, axes, strict=False):
        draw_numbers(probe, row, places, shared=shared)
    return figure, axes


def above(row: Sequence[NumberPanel]) -> float:
    """Return the inches that the titles of a row of panels take."""
    return ABOVE if any(panel.title for panel in row) else ABOVE - 0.17


def draw_numbers(
    probe: Measured, row: Sequence[NumberPanel], places: Sequence[Axes], *, shared: bool = False
) -> None:
    """Draw numbers over the steps, side by side."""
    drawn = [over_steps(place, probe, panel) for panel, place in zip(row, places, strict=True)]
    groups = [(places[0], np.concatenate(drawn))] if shared else zip(places, drawn, strict=True)
    for place, values in groups:
        scale(place, values)
    for panel, place in zip(row, places, strict=True):
        unended(place, probe, panel)
        label_axes(place, panel, first=not shared or place is places[0])


def label_axes(axes: Axes, panel: NumberPanel, *, first: bool = True) -> None:
    """Write what a panel over the steps shows, and what its axes are."""
    head(axes, [panel.title, mode_title(panel.mode)], STEP, panel.label if first else "")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1, steps=TICK_STEPS))


def over_steps(axes: Axes, probe: Measured, panel: NumberPanel) -> np.ndarray:
    """Draw the median over the seeds of each arm, and their middle half; return the medians."""
    drawn = [np.array([])]
    for arm in probe.arms:
        wide = probe.over_steps(panel.mode, panel.quantity, probe.ended[arm])
        if len(wide):
            drawn.append(draw_median(axes, wide.index.to_numpy(), wide.to_numpy(), probe.looks[arm]))
    return np.concatenate(drawn)


def draw_median(axes: Axes, x: np.ndarray, values: np.ndarray, look: Style, *, thin: bool = False) -> np.ndarray:
    """Draw the median of ``(n x seeds)`` and the band between the quartiles; return the median ``(n,)``."""
    low, middle, high = seed_quartiles(values)
    width = 1.4 if len(x) <= DENSE and not thin else 0.8
    marker = "o" if len(x) <= MARKED else ""
    axes.plot(x, middle, color=look.colour, linestyle=look.line, linewidth=width, marker=marker, markersize=3)
    if values.shape[1] > 1:
        axes.fill_between(x, low, high, color=look.colour, alpha=0.15, lw=0)
    return middle


def unended(axes: Axes, probe: Measured, panel: NumberPanel) -> None:
    """Draw the runs that did not finish, thin, within the limits that the others have set."""
    rows = probe.of(panel.mode, panel.quantity)
    rows = rows[rows["run"].isin(probe.unended.index)]
    limits = axes.get_ylim() if axes.lines else None
    series = {run: part.set_index("step")["value"] for run, part in rows.groupby("run")}
    looks = {run: probe.looks[arm] for run, arm in probe.unended["configuration"].items()}
    for run, values in series.items():
        look, finite = looks[run], values.where(np.isfinite(values))
        axes.plot(finite.index, finite, color=look.colour, linestyle=look.line, linewidth=0.7)
    if limits:
        axes.set_ylim(limits)
    for run in probe.unended.index[probe.unended["status"] == "diverged"]:
        if run in series:
            cross(axes, series[run], int(series[run].index[-1]), looks[run])


def dot_sheet(
    probe: Measured,
    title: str,
    panels: Sequence[Sequence[NumberPanel]],
    *,
    shared: bool,
    entries: Sequence[Entry],
    words: Sequence[str],
    more: Sequence[PanelRow] = (),
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a row per arm in each panel, and a dot per seed."""
    names = ["\n".join(textwrap.wrap(probe.labels[arm], LABEL_LETTERS)) for arm in probe.arms]
    lines = max(name.count("\n") + 1 for name in names)
    longest = max(len(part) for name in names for part in name.split("\n"))
    height = max(0.8, (0.16 + 0.14 * lines) * len(names) + 0.2)
    rows = [PanelRow(len(row), height, above(row), shared=True) for row in panels]
    seeds = max(len(runs) for runs in probe.ended.values())
    several = ["dot: a seed", "bar: the median over the seeds"] if seeds > 1 else ["one seed per arm: no spread"]
    left = max(LEFT, LETTER * longest + 0.2)
    arms = arm_entries(probe) if more else []
    figure, axes = sheet(title, [*rows, *more], [arms, entries], [*several, *words], left)
    for row, places in zip(panels, axes, strict=False):
        limits = [dots(place, probe, panel) for panel, place in zip(row, places, strict=True)]
        for panel, place, values in zip(row, places, limits, strict=True):
            head(place, [panel.title, mode_title(panel.mode)], panel.label, "")
            place.set_ylim(len(names) - 0.4, -0.6)
            place.set_yticks(range(len(names)), names, fontsize=8.5)
            place.grid(visible=False, axis="y")
            rescale_across(place, np.concatenate(limits) if shared else values)
    return figure, axes


def dots(axes: Axes, probe: Measured, panel: NumberPanel) -> np.ndarray:
    """Draw a dot per seed, the arms one below the other, hollow where it is unreliable; return the values."""
    values = probe.last(panel.mode, panel.quantity)
    doubted = probe.last(panel.mode, "unreliable").reindex(values.index) == 1
    low, high = (probe.last(panel.mode, name).reindex(values.index) for name in ("q25", "q75"))
    for place, arm in enumerate(probe.arms):
        colour = probe.looks[arm].colour
        runs = [
            run for run in probe.sweep.runs.index[probe.sweep.runs["configuration"] == arm] if run in values.index
        ]
        heights = place + np.linspace(-0.22, 0.22, len(runs)) if len(runs) > 1 else np.array([float(place)])
        for run, height in zip(runs, heights, strict=False):
            if panel.quantity == "median":
                axes.plot([low[run], high[run]], [height] * 2, color=colour, linewidth=0.8, alpha=0.5)
            face = "white" if doubted[run] else colour
            axes.plot(values[run], height, "o", color=colour, markersize=4, markerfacecolor=face, alpha=0.85)
        ended = values.reindex(probe.ended[arm]).dropna()
        if len(ended) > 1:
            axes.plot([ended.median()] * 2, [place - 0.36, place + 0.36], color=colour, linewidth=2)
    return values.to_numpy(dtype=float)


def rescale_across(axes: Axes, values: np.ndarray) -> None:
    """Make the horizontal value axis logarithmic if the values ask for it, with few ticks."""
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
        few_ticks(axes.xaxis)
    elif high > low:
        axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def panel_caption(probe: Measured, *, ended: bool = False) -> list[str]:
    """Return the legend of lines, bands and crosses in words."""
    seeds = sorted({len(runs) for runs in probe.ended.values()} - {0})
    words = ["one seed per arm: no spread"] if seeds == [1] else []
    if seeds and seeds != [1]:
        over = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        words = [f"line: median over {over}", "band: the middle half of the seeds"]
    lost = probe.unended[probe.unended["configuration"].isin(probe.arms)]
    words += ["thin: a run that did not finish"] if len(lost) and not ended else []
    words += ["×: where it diverged"] if (lost["status"] == "diverged").any() and not ended else []
    return words


def rows_of_arms(probe: Measured) -> list[list[str]]:
    """Return the arms row by row, in rows that are as even as can be."""
    room = WIDTH - LEFT - RIGHT + SHARED
    longest = max(len(line) for arm in probe.arms for line in probe.brief[arm].split("\n"))
    fitting = min(PANELS_PER_ROW, max(1, int(room / (NAME_LETTER * longest + SHARED))))
    across = math.ceil(len(probe.arms) / math.ceil(len(probe.arms) / fitting))
    return [probe.arms[first : first + across] for first in range(0, len(probe.arms), across)]


def multiples(probe: Measured, titles: Sequence[str]) -> list[PanelRow]:
    """Return for each title the rows that hold a panel for every arm."""
    arms = rows_of_arms(probe)
    # A name with the number of its lost runs has two lines.
    name = NAME + 0.15 * max(probe.brief[arm].count("\n") for arm in probe.arms)
    height = HEIGHT if len(arms) > 1 else 1.7
    rows = []
    for title in titles:
        for number, group in enumerate(arms):
            last = number == len(arms) - 1
            rows.append(
                PanelRow(
                    len(group),
                    height,
                    name if number else name + ABOVE - 0.2,
                    shared=True,
                    of=len(arms[0]),
                    title="" if number else title,
                    below=None if last else GAP,
                )
            )
    return rows


def draw_multiples(
    probe: Measured, panels: Sequence[Sequence[Axes]], x: str, y: str, draw: Callable[[Axes, str], np.ndarray]
) -> None:
    """Draw one thing of every arm into the rows that :func:`multiples` has for one title.

    Args:
        probe: what was measured.
        panels: these rows.
        x, y: the names of the axes.
        draw: draws an arm into a panel, and returns the values drawn.
    """
    drawn = []
    for group, places in zip(rows_of_arms(probe), panels, strict=True):
        for arm, place in zip(group, places, strict=True):
            drawn.append(draw(place, arm))
            last = places is panels[-1]
            place.tick_params(labelbottom=last)
            place.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1, steps=TICK_STEPS))
            head(place, [probe.brief[arm]], x if last else "", y if place is places[0] else "")
    level([place for places in panels for place in places], drawn)


def level(panels: Sequence[Axes], values: Sequence[np.ndarray]) -> None:
    """Give panels one value axis, which is logarithmic if their values ask for it."""
    for place in panels:
        scale(place, np.concatenate(values))
    low, high = zip(*(place.get_ylim() for place in panels), strict=True)
    left, right = zip(*(place.get_xlim() for place in panels), strict=True)
    for place in panels:
        place.set(xlim=(min(left), max(right)), ylim=(min(low), max(high)))
