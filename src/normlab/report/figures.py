"""Styles, axes and files of all figures.

The colours are those of Okabe and Ito, which people with any colour vision can distinguish, without yellow, which
is too pale for a line on white. :func:`arm_styles` gives an arm the same colour on every page.
"""

import math
import os
import textwrap
import warnings
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

LOOK: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.xmargin": 0.02,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.6,
    # Text stays text, so that it can be searched; the fixed salt makes the file reproducible.
    "svg.fonttype": "none",
    "svg.hashsalt": "normlab",
}
GREY = "#555555"
BAND = 0.15
"""Opacity of the bands between quartiles."""
DENSE, MARKED = 300, 15
"""Lines are thinner from the first number of points on, and have markers up to the second."""
LOG_FROM = 10.0
"""The ratio of the largest to the smallest value from which an axis is logarithmic."""
TICK_STEPS = (1, 2, 2.5, 5, 10)
"""Allowed distances between ticks, times a power of ten."""
CJK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK TC", "Noto Sans SC"),
    *("Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC"),
    *("Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei"),
    *("IPAexGothic", "NanumGothic", "Arial Unicode MS"),
)
"""Fonts with Chinese, Japanese or Korean letters, which the default font of matplotlib lacks."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.2, 1, 1.2)),
    (0, (5, 1.2, 1, 1.2, 1, 1.2)),
    (0, (10, 2)),
)
FAMILIES = (
    ("bn", "ghost", "brn", "l1bn", "linfbn", "bn_torch"),
    ("nobn",),
    ("ln", "in"),
    ("rms", "actnorm"),
    ("gn", "ws_gn"),
    ("dyt", "derf", "noisy", "bn_formula"),
    ("wn", "ws"),
)
"""The arms of each colour, in the order of the line styles."""


class Style(NamedTuple):
    """The colour and line style of an arm or a configuration, as arguments for matplotlib."""

    colour: str
    line: Any


LegendEntry = tuple[Artist, str]
Styles = Mapping[str, Style]


def arm_styles(arms: Sequence[str]) -> dict[str, Style]:
    """Return the style of each arm; it depends on the name, except where two names would share a style.

    >>> {arm: style.colour for arm, style in arm_styles(["nobn", "bn"]).items()}
    {'nobn': '#D55E00', 'bn': '#0072B2'}
    """
    return dict(zip(arms, styles([(arm,) for arm in arms]), strict=True))


def styles(configurations: Sequence[tuple[str, ...]]) -> list[Style]:
    """Return a style for each configuration, given its arm and its other settings.

    The arm determines the colour and the other settings the line style, as far as there are enough of them.

    >>> [(style.colour[:3], style.line) for style in styles([("bn", "64"), ("nobn", "64")])]
    [('#00', '-'), ('#D5', '-')]
    """
    others = list(dict.fromkeys(settings[1:] for settings in configurations))
    # Arms that are in no family come last: they take a style that the others leave.
    names = ["".join(settings[:1]) for settings in configurations]
    order = sorted(range(len(names)), key=lambda k: (family_place(names[k]) is None, "," in names[k]))
    chosen: dict[int, tuple[int, int]] = {}
    for k in order:
        colour, line = family_place(names[k]) or (zlib.crc32(names[k].encode()) % len(COLOURS), 0)
        line += others.index(configurations[k][1:])
        # Settings of one arm prefer another line style, arms another colour.
        lines = [(line + n) % len(LINES) for n in range(len(LINES))]
        colours = [(colour + c) % len(COLOURS) for c in range(len(COLOURS))]
        by_colour = [(c, n) for c in colours for n in lines]
        by_line = [(c, n) for n in lines for c in colours]
        free = [
            pair
            for pair in (by_colour if len(others) > 1 or "," in names[k] else by_line)
            if pair not in chosen.values()
        ]
        chosen[k] = free[0] if free else by_line[0]
    return [Style(COLOURS[chosen[k][0]], LINES[chosen[k][1]]) for k in range(len(configurations))]


def family_place(arm: str) -> tuple[int, int] | None:
    """Return the indices of the colour and line of an arm in ``FAMILIES``; None for another arm."""
    base = arm.partition(",")[0]
    return next(((colour, names.index(base)) for colour, names in enumerate(FAMILIES) if base in names), None)


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


def new_figure(width: float, height: float) -> Figure:
    """Create a figure whose layout matplotlib computes, given its size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure atomically: to a temporary file in the same folder, which is then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    kind = path.suffix.removeprefix(".")
    with drawing():
        figure.savefig(temporary, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    temporary.replace(path)
    figure.set_layout_engine(None)  # the next file keeps this layout; with "none", it would be drawn twice
    return path


def add_legend(figure: Figure, entries: Sequence[LegendEntry], notes: Sequence[str] = ()) -> None:
    """Add a caption and a legend below the axes, in rows as wide as the figure.

    Args:
        figure: the figure.
        entries: the entries of the legend.
        notes: parts of the caption; it breaks into lines between them only.
    """
    width, columns = figure.get_figwidth(), legend_columns(figure.get_figwidth(), entries)
    caption = "; ".join(note.replace(" ", "\N{NO-BREAK SPACE}") for note in notes)
    lines = textwrap.wrap(caption, int(width * 15), break_long_words=False, break_on_hyphens=False)
    legend = figure.legend(
        [handle for handle, _ in entries],
        [label for _, label in entries],
        title="\n".join(lines).replace("\N{NO-BREAK SPACE}", " "),
        title_fontproperties={"size": 8},
        loc="outside lower center",
        ncols=columns,
        columnspacing=1.4,
    )
    legend.get_title().set(color=GREY, linespacing=1.4, ha="center")


def legend_columns(width: float, entries: Sequence[LegendEntry]) -> int:
    """Return the number of legend entries in a row of a figure, such that rows are evenly filled."""
    fitting = max(1, int(width / (0.5 + 0.075 * max((len(label) for _, label in entries), default=1))))
    return math.ceil(len(entries) / math.ceil(len(entries) / fitting)) if entries else 1


def legend_height(width: float, entries: Sequence[LegendEntry]) -> float:
    """Return the height in inches of a legend in a figure of the given width."""
    return 0.18 * math.ceil(len(entries) / legend_columns(width, entries))


def seed_notes(counts: Collection[int]) -> list[str]:
    """Return the explanation of lines and bands over seeds, given the numbers of seeds of the configurations."""
    seeds = sorted({*counts} - {0})
    if seeds == [1]:
        return ["one seed per configuration: no spread"]
    count = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds" if seeds else ""
    return [f"line: median over {count}", "band: interquartile range over the seeds"] if seeds else []


def style_entries(style_of: Styles, labels: Mapping[str, str]) -> list[LegendEntry]:
    """Return a legend entry for each label, given by the name of its style."""
    return [
        (Line2D([], [], color=style_of[name].colour, linestyle=style_of[name].line, linewidth=2), label)
        for name, label in labels.items()
    ]


def finite(values: np.ndarray) -> np.ndarray:
    """Replace infinite values by NaN, which matplotlib draws as gaps."""
    return np.where(np.isfinite(values), values, np.nan)


def scale(axis: Axis, values: np.ndarray) -> None:
    """Make an axis logarithmic if the values are positive and span a factor of ten; use few, short tick labels."""
    known = values[np.isfinite(values)]
    if len(known) and known.min() > 0 and known.max() >= LOG_FROM * known.min():
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
        subs = (1.0, 2.0, 5.0) if known.max() < 200 * known.min() else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axis.set_major_formatter(FuncFormatter(short_label))
        axis.set_minor_locator(NullLocator())
        return
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_powerlimits((-4, 5))
    axis.set_major_formatter(formatter)
    axis.set_major_locator(MaxNLocator(nbins=5, min_n_ticks=1, steps=TICK_STEPS))


def whole_ticks(axes: Axes) -> None:
    """Put the ticks of the horizontal axis at whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1, steps=TICK_STEPS))


def short_label(value: float, _: object = None) -> str:
    """Return a number with one significant digit as short text.

    >>> short_label(0.005), short_label(20000.0), short_label(0.0005), short_label(1e6)
    ('0.005', '20000', '5·10⁻⁴', '10⁶')
    """
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    digit, _, exponent = f"{value:.0e}".partition("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if digit == "1" else f"{digit}·{power}"


def cross(axes: Axes, at: float, value: float, colour: str) -> None:
    """Mark a divergence with a cross, at the edge of the panel if the value is outside or infinite."""
    low, high = axes.get_ylim()
    axes.plot(at, np.clip(value, low, high), "x", color=colour, markersize=7, markeredgewidth=1.6, clip_on=False)
