"""Figures of rows of panels, with a title, a legend and a caption."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, MaxNLocator, NullLocator, ScalarFormatter

from normlab.report.figures import CAPTION, HANDLE, LEFT, LEGEND_ROW, LETTER, RIGHT, WIDTH, rescale
from normlab.report.probe_data import Measured

# Inches, as in the curves.
TITLE, ABOVE, BELOW, BETWEEN, SHARED, CAPTION_ROW = 0.46, 0.52, 0.52, 0.85, 0.2, 0.16
# From an axis to its name.
UNDER, BESIDE = 0.26, 0.5
CAPTION_LETTERS = 125
TICK_STEPS = (1, 2, 2.5, 5, 10)
"""How far apart the numbers of an axis may be, times a power of ten."""
GREY = "#555555"
Entry = tuple[Artist, str]


@dataclass(frozen=True)
class PanelRow:
    """Panels side by side.

    Attributes:
        panels: how many.
        height: of each, in inches.
        above: inches for the titles of the panels.
        shared: whether they have one value axis, which is then labelled at the first alone.
        of: how many there would be place for, where it is more: the row is left open at its end.
        title: of the row, above the titles of its panels.
        below: inches for the axis below it; less where the next row has the same.
    """

    panels: int
    height: float = 2.1
    above: float = ABOVE
    shared: bool = False
    of: int = 0
    title: str = ""
    below: float | None = None

    @property
    def whole(self) -> float:
        """The height with all that is above and below."""
        return self.above + self.height + (BELOW if self.below is None else self.below)


def sheet(
    title: str,
    rows: Sequence[PanelRow],
    entries: Sequence[Sequence[Entry]],
    words: Sequence[str],
    left: float = LEFT,
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and its panels, row by row.

    Args:
        title: what is seen, in words.
        rows: the panels.
        entries: the legends, one below the other.
        words: the parts of the caption.
        left: inches from the left edge to the first panels.
    """
    lines = caption_lines(words)
    legends = [legend for legend in entries if legend]
    deep = [math.ceil(len(legend) / columns(legend)) * LEGEND_ROW + 0.12 for legend in legends]
    bottom = CAPTION + CAPTION_ROW * (len(lines) - 1) + sum(deep)
    height = TITLE + sum(row.whole for row in rows) + bottom
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    figure.text(0.5, 1 - 0.27 / height, title, ha="center", fontsize=11, fontweight="bold")
    figure.text(0.5, 0.1 / height, "\n".join(lines), ha="center", fontsize=8, color=GREY, linespacing=1.4)
    at = bottom - 0.2
    for legend, depth in zip(legends, deep, strict=True):
        draw_legend(figure, legend, at / height)
        at -= depth
    panels, top = [], height - TITLE
    for row in rows:
        panels.append(place_panels(figure, row, left, top - row.above - row.height))
        figure.text(0.5, (top - 0.2) / height, row.title, ha="center", fontsize=10, color=GREY)
        top -= row.whole
    return figure, panels


def caption_lines(words: Sequence[str]) -> list[str]:
    """Return the parts of a caption as lines, none of them broken.

    >>> [len(line) for line in caption_lines(["line: median over 8 seeds"] * 6)]
    [107, 52]
    """
    kept = "; ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in words)
    lines = textwrap.wrap(kept, CAPTION_LETTERS, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines] or [""]


def place_panels(figure: Figure, row: PanelRow, left: float, bottom: float) -> list[Axes]:
    """Add the panels of a row, whose lower edge is so many inches from that of the figure."""
    width, height = figure.get_size_inches()
    between = SHARED if row.shared else BETWEEN
    step = (width - left - RIGHT + between) / max(row.panels, row.of)
    panels: list[Axes] = []
    for number in range(row.panels):
        spot = ((left + number * step) / width, bottom / height, (step - between) / width, row.height / height)
        first = panels[0] if panels and row.shared else None
        panels.append(figure.add_axes(spot, sharey=first))
        panels[-1].tick_params(left=first is None, labelleft=first is None, labelsize=8.5)
        # Matplotlib measures every tick, twice, to find places for names: half of the time of a drawing.
        panels[-1].xaxis.set_label_coords(0.5, -UNDER / row.height)
        panels[-1].yaxis.set_label_coords(-BESIDE / width / spot[2], 0.5)
    return panels


def head(axes: Axes, lines: Sequence[str], x: str, y: str) -> None:
    """Write what a panel shows above it, and the names of its axes."""
    axes.set_title("\n".join(line for line in lines if line), fontsize=9.5, y=1.0, pad=8)
    axes.set(xlabel=x, ylabel=y)


def scale(axes: Axes, values: np.ndarray) -> None:
    """Make the value axis logarithmic if the values ask for it."""
    rescale(axes, values)
    if axes.get_yscale() == "log":
        few_ticks(axes.yaxis)
    else:
        few_letters(axes.yaxis)


def few_letters(axis: Axis) -> None:
    """Let the numbers of an axis be short: what they have in common stands at its end."""
    numbers = ScalarFormatter(useOffset=False)
    numbers.set_powerlimits((-4, 5))
    axis.set_major_formatter(numbers)
    axis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=1, steps=TICK_STEPS))
    axis.get_offset_text().set_fontsize(8)


def few_ticks(axis: Axis) -> None:
    """Let a logarithmic axis have no marks between its numbers, and write powers of ten as text."""
    axis.set_minor_locator(NullLocator())
    wide = isinstance(axis.get_major_formatter(), LogFormatterSciNotation)
    axis.set_major_formatter(FuncFormatter(power if wide else brief))


def power(value: float, _: object = None) -> str:
    """Return a power of ten.

    >>> power(1e-12), power(10.0)
    ('10⁻¹²', '10¹')
    """
    return "10" + f"{math.log10(value):.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def brief(value: float, _: object = None) -> str:
    """Return a number of one digit that counts, in few letters.

    >>> brief(0.005), brief(20000.0), brief(0.0005), brief(1e6)
    ('0.005', '20000', '5·10⁻⁴', '10⁶')
    """
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    digit, _, exponent = f"{value:.0e}".partition("e")
    return ("" if digit == "1" else f"{digit}·") + power(10.0 ** int(exponent))


def columns(legend: Sequence[Entry]) -> int:
    """Return how many entries of a legend fit side by side."""
    fitting = max(1, int((WIDTH - 0.2) / (HANDLE + LETTER * max(len(label) for _, label in legend))))
    return math.ceil(len(legend) / math.ceil(len(legend) / fitting))


def draw_legend(figure: Figure, legend: Sequence[Entry], top: float) -> None:
    """Draw a legend below ``top``, a share of the height."""
    handles, labels = zip(*legend, strict=True)
    figure.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, top),
        ncols=columns(legend),
        frameon=False,
        handlelength=3.2,
        labelspacing=0.35,
        borderaxespad=0,
        borderpad=0,
    )


def arm_entries(probe: Measured) -> list[Entry]:
    """Return the legend of the arms."""
    return [
        (Line2D([], [], color=look.colour, linestyle=look.line, linewidth=2), probe.labels[arm])
        for arm, look in ((arm, probe.looks[arm]) for arm in probe.arms)
    ]


def mode_title(mode: str) -> str:
    """Return the name of a mode in titles."""
    return f"{mode} statistics" if mode in ("batch", "frozen") else mode
