"""Criteria about quantities of one arm: a value, a slope, a correlation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from normlab.claims.criteria import Criterion
from normlab.claims.parts import align, bounds, bounds_or_margin, margin_region, part_name, region_part, shown_part
from normlab.claims.sweep import Settings, Sweep
from normlab.claims.verdict import Part
from normlab.errors import require
from normlab.stats.estimates import Numbers
from normlab.stats.regions import correlation_test


@dataclass(frozen=True, kw_only=True)
class Within(Criterion):
    """A quantity of an arm is a value ± margin: its 90 % interval lies inside.

    Args:
        arm, metric, panel: the arm, the quantity and the panel.
        value, margin: in the unit of the quantity.
    """

    arm: str
    metric: str
    value: float
    margin: float
    panel: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        margin_region(self.margin)

    def parts(self, sweep: Sweep) -> list[Part]:
        """Test whether the quantity lies within the margin."""
        (values,) = align(sweep.values(self.metric, self.arm, self.panel))
        region = margin_region(self.margin, self.value)
        name, rows = part_name(self.arm, self.metric, self.panel), sweep.rows(self.metric, self.panel)
        return [region_part(name, "value", values, region, 1, rows)]


@dataclass(frozen=True, kw_only=True)
class Slope(Criterion):
    """The slope of a quantity on x, by least squares in each replicate, lies between bounds.

    Args:
        arm, panel: the arm and the panel.
        metric: the name of the quantity; ``{x}`` in it is replaced by each x.
        at: the values of x, at least two.
        key: the key of the panels whose settings are x; empty if x only stands in the metric's name.
        log_x, log_y: True to take the logarithm.
        above, below: the bounds (95 % interval); value, margin: instead of them, value ± margin (90 % interval).
    """

    arm: str
    metric: str
    at: Sequence[float]
    key: str = ""
    panel: Settings = field(default_factory=dict)
    log_x: bool = False
    log_y: bool = True
    above: float | None = None
    below: float | None = None
    value: float = 0.0
    margin: float | None = None

    def __post_init__(self) -> None:
        require(len(set(self.at)) > 1, "at", "at least two values of x", list(self.at))
        require(not self.log_x or min(self.at) > 0, "at", "positive with log_x", list(self.at))
        require(bool(self.key) or "{x}" in self.metric, "key", "a key, or {x} part of the metric", repr(self.key))
        bounds_or_margin(self.above, self.below, self.margin, self.value)

    def parts(self, sweep: Sweep) -> list[Part]:
        """Test whether the slope lies between the bounds."""
        points = points_of(self)
        y = np.stack(align(*(sweep.values(metric, self.arm, panel) for metric, panel in points)))
        region, sides = bounds_or_margin(self.above, self.below, self.margin, self.value)
        unknown = math.inf if math.isfinite(region.high) else -math.inf
        effects = slopes(np.array(self.at, dtype=float), y, unknown, self.log_x, self.log_y)
        rows = next(filter(None, (sweep.rows(*point) for point in points)), None)
        name = part_name(self.arm, f"{self.metric} on {'log ' if self.log_x else ''}{self.key or 'x'}", self.panel)
        return [region_part(name, "slope", effects, region, sides, rows)]


def points_of(slope: Slope) -> list[tuple[str, Settings]]:
    """Return the metric and the panel of each x."""
    keys = [{slope.key: x} if slope.key else {} for x in slope.at]
    return [
        (slope.metric.replace("{x}", f"{x:g}"), {**slope.panel, **key})
        for x, key in zip(slope.at, keys, strict=True)
    ]


def slopes(x: Numbers, y: Numbers, unknown: float, log_x: bool = False, log_y: bool = False) -> Numbers:
    """Return the least-squares slope of each replicate, ``(n,)``.

    Args:
        x, y: the points, ``(points,)`` and ``(points, n)``.
        unknown: the slope of a replicate with an infinite y.
        log_x, log_y: True to take the logarithm.
    """
    x = np.log(x) if log_x else x
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log(y) if log_y else y
        slope = (x - x.mean()) @ y / ((x - x.mean()) ** 2).sum()
    return np.where(np.isfinite(y).all(axis=0), slope, unknown)


@dataclass(frozen=True, kw_only=True)
class Correlation(Criterion):
    """Spearman's correlation of two quantities of an arm over the replicates lies between bounds (95 % interval).

    Args:
        arm, panel: the arm and the panel.
        metric, other: the names of the quantities.
        above, below: the bounds of the correlation.
    """

    arm: str
    metric: str
    other: str
    panel: Settings = field(default_factory=dict)
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        ends = [end for end in bounds(self.above, self.below) if math.isfinite(end)]
        require(min(ends) > -1 and max(ends) < 1, "above, below", "correlations between -1 and 1", ends)

    def parts(self, sweep: Sweep) -> list[Part]:
        """Test the correlation."""
        x, y = align(*(sweep.values(metric, self.arm, self.panel) for metric in (self.metric, self.other)))
        region, name = (
            bounds(self.above, self.below),
            part_name(self.arm, f"{self.metric}, {self.other}", self.panel),
        )
        overlaps = any(sweep.rows(metric, self.panel) for metric in (self.metric, self.other))
        require(not overlaps, "metric", "not measured on overlapping test splits; use generated data", name)
        return [shown_part(name, "correlation", correlation_test(x, y, region), region, len(x))]
