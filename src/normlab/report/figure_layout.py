"""Lay out figures of rows of panels with a title, legends and a caption.

:func:`new_figure` is the main entry.
"""

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
from normlab.report.probe_data import ProbeData

TITLE, ABOVE, BELOW, BETWEEN, SHARED, CAPTION_ROW = 0.46, 0.52, 0.52, 0.85, 0.2, 0.16
"""Inches: the figure's title, above and below a row, between panels, between panels that share an axis, a line."""
UNDER, BESIDE = 0.26, 0.5
"""Inches from an axis to its label, horizontal and vertical."""
CAPTION_LETTERS = 125
"""Maximum number of letters in a line of the caption."""
TICK_STEPS = (1, 2, 2.5, 5, 10)
"""Allowed distances between ticks, times a power of ten."""
GREY = "#555555"
LegendEntry = tuple[Artist, str]


@dataclass(frozen=True)
class PanelRow:
    """The layout of panels side by side.

    Attributes:
        panels: the number of panels.
        height: inches of each panel.
        above: inches for the titles of the panels.
        shared: whether the panels share one value axis, which only the first one labels.
        of: the number of slots if it is greater than ``panels``; the remaining slots at the end stay empty.
        title: title of the row, above the titles of its panels.
        below: inches for the horizontal axis; by default enough for its label.
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
        """Inches of the row, including titles and axis labels."""
        return self.above + self.height + (BELOW if self.below is None else self.below)


def new_figure(
    title: str,
    rows: Sequence[PanelRow],
    legends: Sequence[Sequence[LegendEntry]],
    notes: Sequence[str],
    left: float = LEFT,
) -> tuple[Figure, list[list[Axes]]]:
    """Create a figure of empty panels; return it and its axes, row by row.

    Args:
        title: of the figure.
        rows: the rows of panels.
        legends: entries of the legends, which are placed one below the other.
        notes: parts of the caption.
        left: inches from the left edge to the first panels.
    """
    lines = caption_lines(notes)
    legends = [legend for legend in legends if legend]
    legend_heights = [math.ceil(len(legend) / legend_columns(legend)) * LEGEND_ROW + 0.12 for legend in legends]
    bottom = CAPTION + CAPTION_ROW * (len(lines) - 1) + sum(legend_heights)
    height = TITLE + sum(row.whole for row in rows) + bottom
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    figure.text(0.5, 1 - 0.27 / height, title, ha="center", fontsize=11, fontweight="bold")
    figure.text(0.5, 0.1 / height, "\n".join(lines), ha="center", fontsize=8, color=GREY, linespacing=1.4)
    legend_top = bottom - 0.2
    for legend, legend_height in zip(legends, legend_heights, strict=True):
        draw_legend(figure, legend, legend_top / height)
        legend_top -= legend_height
    panels, top = [], height - TITLE
    for row in rows:
        panels.append(add_panels(figure, row, left, top - row.above - row.height))
        figure.text(0.5, (top - 0.2) / height, row.title, ha="center", fontsize=10, color=GREY)
        top -= row.whole
    return figure, panels


def caption_lines(notes: Sequence[str]) -> list[str]:
    """Join notes with semicolons and wrap them into lines, never inside a note.

    >>> [len(line) for line in caption_lines(["line: median over 8 seeds"] * 6)]
    [107, 52]
    """
    unbreakable = "; ".join(note.replace(" ", "\N{NO-BREAK SPACE}") for note in notes)
    lines = textwrap.wrap(unbreakable, CAPTION_LETTERS, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines] or [""]


def add_panels(figure: Figure, row: PanelRow, left: float, bottom: float) -> list[Axes]:
    """Add the panels of a row; ``left`` and ``bottom`` are inches from the edges of the figure."""
    width, height = figure.get_size_inches()
    between = SHARED if row.shared else BETWEEN
    step = (width - left - RIGHT + between) / max(row.panels, row.of)
    panels: list[Axes] = []
    for number in range(row.panels):
        bounds = ((left + number * step) / width, bottom / height, (step - between) / width, row.height / height)
        first = panels[0] if panels and row.shared else None
        panels.append(figure.add_axes(bounds, sharey=first))
        panels[-1].tick_params(left=first is None, labelleft=first is None, labelsize=8.5)
        # Automatic label placement measures every tick twice, half of the drawing time.
        panels[-1].xaxis.set_label_coords(0.5, -UNDER / row.height)
        panels[-1].yaxis.set_label_coords(-BESIDE / width / bounds[2], 0.5)
    return panels


def label_panel(axes: Axes, title_lines: Sequence[str], x: str, y: str) -> None:
    """Set the title of a panel, without empty lines, and its axis labels."""
    axes.set_title("\n".join(line for line in title_lines if line), fontsize=9.5, y=1.0, pad=8)
    axes.set(xlabel=x, ylabel=y)


def scale(axes: Axes, values: np.ndarray) -> None:
    """Make the value axis logarithmic if the values span a factor of ten, and shorten its tick labels."""
    rescale(axes, values)
    if axes.get_yscale() == "log":
        shorten_log_ticks(axes.yaxis)
    else:
        shorten_linear_ticks(axes.yaxis)


def shorten_linear_ticks(axis: Axis) -> None:
    """Use few ticks with short labels; a common power of ten stands at the end of the axis."""
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_powerlimits((-4, 5))
    axis.set_major_formatter(formatter)
    axis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=1, steps=TICK_STEPS))
    axis.get_offset_text().set_fontsize(8)


def shorten_log_ticks(axis: Axis) -> None:
    """Remove the minor ticks of a logarithmic axis and shorten the labels of the others."""
    axis.set_minor_locator(NullLocator())
    powers_only = isinstance(axis.get_major_formatter(), LogFormatterSciNotation)
    axis.set_major_formatter(FuncFormatter(power_label if powers_only else short_label))


def power_label(value: float, _: object = None) -> str:
    """Return a power of ten as text with superscript digits.

    >>> power_label(1e-12), power_label(10.0)
    ('10⁻¹²', '10¹')
    """
    return "10" + f"{math.log10(value):.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def short_label(value: float, _: object = None) -> str:
    """Return a number with one significant digit as short text.

    >>> short_label(0.005), short_label(20000.0), short_label(0.0005), short_label(1e6)
    ('0.005', '20000', '5·10⁻⁴', '10⁶')
    """
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    digit, _, exponent = f"{value:.0e}".partition("e")
    return ("" if digit == "1" else f"{digit}·") + power_label(10.0 ** int(exponent))


def legend_columns(legend: Sequence[LegendEntry]) -> int:
    """Return the number of legend entries in a row, such that rows are evenly filled."""
    fitting = max(1, int((WIDTH - 0.2) / (HANDLE + LETTER * max(len(label) for _, label in legend))))
    return math.ceil(len(legend) / math.ceil(len(legend) / fitting))


def draw_legend(figure: Figure, legend: Sequence[LegendEntry], top: float) -> None:
    """Draw a legend below ``top``, a share of the figure's height."""
    handles, labels = zip(*legend, strict=True)
    figure.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, top),
        ncols=legend_columns(legend),
        frameon=False,
        handlelength=3.2,
        labelspacing=0.35,
        borderaxespad=0,
        borderpad=0,
    )


def configuration_entries(probe: ProbeData) -> list[LegendEntry]:
    """Return a legend entry for each configuration."""
    styled = [
        (probe.style_of[configuration], probe.labels[configuration]) for configuration in probe.configurations
    ]
    return [
        (Line2D([], [], color=style.colour, linestyle=style.line, linewidth=2), label) for style, label in styled
    ]


def mode_title(mode: str) -> str:
    """Return the title of a mode, such as ``batch statistics``."""
    return f"{mode} statistics" if mode in ("batch", "frozen") else mode
