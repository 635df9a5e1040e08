"""Forest plots of the parts of a claim, one axis per unit; the entry is :func:`forests`.

A forest is laid out in percent of the width of its axis, and the template draws it: it then fits any screen, its
text stays text, and its colours follow the theme.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from normlab.claims.verdict import Answer, Part
from normlab.claims.wording import (
    NEUTRAL,
    RATE,
    UNITS,
    effect_text,
    interval_text,
    number,
    required_text,
    segments,
    shared_segments,
    suffix,
)
from normlab.report.figures import TICK_STEPS, short_label
from normlab.stats.comparison import RATIO

MARGIN = 0.07
"""Free space at both ends of an axis, as a share of the range of its values."""
NEUTRAL_REACH = 1.5
"""The neutral value is on the axis if the range grows at most by this factor."""
SAME_SCALE, SAME_LOG_SCALE = 20.0, 1000.0
"""Parts share an axis if their largest values, or logarithms of ratios, differ at most by this factor."""
LINEAR_TICKS_TO = 4.0
"""Logarithmic axes have ticks at equal distances up to this ratio of the ends."""


class Axis(NamedTuple):
    """The range of an axis, in its own scale."""

    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        """Return the place of a value in percent of the width; beyond an end, that end."""
        if self.log:
            value = math.log10(value) if value > 0 else -math.inf
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)

    def ticks(self) -> list[float]:
        """Return at most about six round values."""
        if not self.log:
            return within(MaxNLocator(nbins=5, steps=TICK_STEPS).tick_values(self.low, self.high), self)
        low, high = 10**self.low, 10**self.high
        if high / low <= LINEAR_TICKS_TO:
            return within(MaxNLocator(nbins=4, steps=TICK_STEPS).tick_values(low, high), self)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        digits = (1, 2, 5) if self.high - self.low < 1.7 else (1, 3) if self.high - self.low < 2.7 else (1,)
        step = math.ceil(len(decades) / 7)
        return within([digit * 10.0**decade for decade in decades[::step] for digit in digits], self)


@dataclass(frozen=True)
class Row:
    """A row of a forest; places are in percent of the width of the axis.

    Attributes:
        label, name: the label, and the full name.
        answer: the answer of this row alone.
        at: place of the estimate; None without a value.
        ends: places of the ends of the interval.
        open_ends: whether the interval goes on beyond the left and right end of the axis.
        region: places of the ends of the region.
        effect, interval, required: these in words.
        level, n: level of the interval, and the number of replicates.
        strong: True for the row that the figure is about.
    """

    label: str
    name: str
    answer: Answer
    at: float | None
    ends: tuple[float, float]
    open_ends: tuple[bool, bool]
    region: tuple[float, float]
    effect: str
    interval: str
    required: str
    level: int
    n: int
    strong: bool = False


@dataclass(frozen=True)
class Forest:
    """Rows that share an axis.

    Attributes:
        shared: the segments of the names that all rows share, as one text.
        unit: the unit in words.
        rows: the rows.
        ticks: places and labels.
        neutral: the place of no effect; None if it is off the axis.
        neutral_label: its value.
        log: True if the axis is logarithmic.
    """

    shared: str
    unit: str
    rows: list[Row]
    ticks: list[tuple[float, str]]
    neutral: float | None
    neutral_label: str
    log: bool

    @property
    def same_region(self) -> bool:
        """True if all rows require the same region."""
        return len({row.required for row in self.rows}) == 1

    @property
    def same_level(self) -> bool:
        """True if the intervals of all rows have the same level."""
        return len({row.level for row in self.rows}) == 1

    @property
    def caption(self) -> str:
        """The explanation of the figure."""
        unit = f"{self.unit[0].upper()}{self.unit[1:]}{' (logarithmic axis)' * self.log}"
        levels = " and ".join(f"{level}\N{NO-BREAK SPACE}%" for level in sorted({row.level for row in self.rows}))
        counts = sorted({row.n for row in self.rows})
        count = " to ".join(map(str, counts[:: max(1, len(counts) - 1)]))
        region = f": {self.rows[0].required}" if self.same_region else ""
        dashed = "" if self.neutral is None else f" Dashed line: {self.neutral_label}, no effect."
        holds = "the part holds" if len(self.rows) == 1 else "a part holds"
        return f"{unit} with {levels} interval, n = {count}. Shaded: where {holds}{region}.{dashed}"

    @property
    def alt(self) -> str:
        """The numbers of the figure as text, for screen readers."""
        rows = "; ".join(f"{row.name}: {row.effect} ({row.interval}), {row.answer}" for row in self.rows)
        return f"Forest plot of the {self.unit}: {rows}"


def forests(parts: Sequence[Part], labels: Sequence[str] = (), strong: int | None = None) -> list[Forest]:
    """Lay out parts as forests, one per unit and scale.

    Args:
        parts: the parts.
        labels: labels of the rows, instead of the names of the parts.
        strong: the index of the part to emphasize.
    """
    return [forest(parts, indices, labels, strong) for indices in scale_groups(parts)]


def scale_groups(parts: Sequence[Part]) -> list[list[int]]:
    """Return the indices of the parts that share an axis: equal units and values of similar size."""
    groups: list[list[int]] = []
    sizes: list[float] = []
    for index, part in enumerate(parts):
        size = max(
            (abs(math.log10(value) if part.unit == RATIO else value) for value in values_of(part)), default=0
        )
        for place, group in enumerate(groups):
            small, large = sorted((size, sizes[place]))
            limit = SAME_LOG_SCALE if part.unit == RATIO else SAME_SCALE
            if parts[group[0]].unit == part.unit and (small == 0 or large <= limit * small):
                group.append(index)
                sizes[place] = large
                break
        else:
            groups.append([index])
            sizes.append(size)
    return groups


def forest(parts: Sequence[Part], indices: Sequence[int], labels: Sequence[str], strong: int | None) -> Forest:
    """Lay out the parts with these indices on one axis."""
    chosen = [parts[index] for index in indices]
    unit, axis = chosen[0].unit, axis_of(chosen)
    names = [segments(part.name) for part in chosen]
    shared = shared_segments(names)
    own = [", ".join(segment for segment in name if segment not in shared) for name in names]
    if any(RATE in label for label in own):  # the other parts are at the tuned rates
        own = [label if RATE in label else ", ".join(filter(None, [label, f"own best {RATE}s"])) for label in own]
    own = [label or ", ".join(name) for label, name in zip(own, names, strict=True)]
    rows = [
        row(part, labels[index] if labels else label, axis, index == strong)
        for index, part, label in zip(indices, chosen, own, strict=True)
    ]
    neutral = NEUTRAL.get(unit, math.nan)
    place = axis.place(neutral) if within([neutral], axis) else None
    ticks = axis.ticks()
    places = [axis.place(tick) for tick in ticks]
    marks = list(zip(places, tick_labels(unit, ticks, axis), strict=True))
    label = number(unit, neutral) + suffix(unit)
    return Forest(", ".join(shared), UNITS.get(unit, unit), rows, marks, place, label, axis.log)


def row(part: Part, label: str, axis: Axis, strong: bool) -> Row:
    """Lay out one part on an axis."""
    low, high = part.interval
    known = not math.isnan(part.effect) and part.n > 0
    left = math.isinf(low) or (axis.log and low <= 0)
    return Row(
        label=label,
        name=", ".join(segments(part.name)),
        answer=part.answer,
        at=axis.place(part.effect) if known else None,
        ends=(0.0 if math.isnan(low) else axis.place(low), 100.0 if math.isnan(high) else axis.place(high)),
        open_ends=(left, math.isinf(high)),
        region=(axis.place(part.region.low), axis.place(part.region.high)),
        effect=effect_text(part),
        interval=interval_text(part),
        required=required_text(part),
        level=part.level,
        n=part.n,
        strong=strong,
    )


def axis_of(parts: Sequence[Part]) -> Axis:
    """Return the axis on which all estimates, intervals and ends of regions are visible."""
    unit = parts[0].unit
    log, neutral = unit == RATIO, NEUTRAL.get(unit, math.nan)
    values = [value for part in parts for value in values_of(part)] or [1.0 if log else 0.0]
    low, high = (math.log10(end) if log else end for end in (min(values), max(values)))
    zero = math.log10(neutral) if log else neutral
    if max(high, zero) - min(low, zero) <= NEUTRAL_REACH * (high - low):
        low, high = min(low, zero), max(high, zero)
    margin = MARGIN * (high - low) or (0.1 if log else 0.1 * abs(high) or 1.0)
    return Axis(low - margin, high + margin, log)


def values_of(part: Part) -> list[float]:
    """Return the finite numbers of a part: estimate, interval and region; positive ones if it is a ratio."""
    values = [part.effect, *part.interval, *part.region]
    return [value for value in values if math.isfinite(value) and (part.unit != RATIO or value > 0)]


def within(values: Sequence[float], axis: Axis) -> list[float]:
    """Return the values on an axis."""
    low, high = (10**axis.low, 10**axis.high) if axis.log else (axis.low, axis.high)
    return [float(value) for value in values if low <= value <= high]


def tick_labels(unit: str, ticks: Sequence[float], axis: Axis) -> list[str]:
    """Return the labels of ticks, with as many digits as tell them apart."""
    if axis.log and axis.high - axis.low > 1:
        return [short_label(tick) for tick in ticks]
    labels: list[str] = []
    for digits in range(3, 9):
        labels = [number(unit, tick, digits) + suffix(unit) for tick in ticks]
        if len({*labels}) == len(ticks):
            break
    return labels
