"""Parts of a claim from the values of replicates: bounds, pairing, and the tests in the unit that is shown."""

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from normlab.claims.sweep import Settings, Sweep
from normlab.claims.verdict import Part
from normlab.errors import require
from normlab.stats.comparison import ALPHA, RATIO, effect_of, margin_of, paired_effects, shown_estimate
from normlab.stats.design import configuration_label
from normlab.stats.estimates import Numbers
from normlab.stats.regions import Region, RegionTest, Rows, region_test
from normlab.stats.signed_rank import attainable_p


def bounds(above: float | None, below: float | None) -> Region:
    """Return the region between two bounds, of which one may be missing.

    Raises:
        ConfigError: no bound is given, or ``above`` is not less than ``below``.
    """
    require(above is not None or below is not None, "above", "a number, or below one", None)
    region = Region(-math.inf if above is None else above, math.inf if below is None else below)
    require(region.low < region.high, "above", f"less than below={below}", above)
    return region


def margin_region(margin: float, value: float = 0.0) -> Region:
    """Return the region value ± margin; raise ``ConfigError`` unless the margin is positive and finite."""
    require(0 < margin < math.inf, "margin", "a number > 0", margin)
    return Region(value - margin, value + margin)


def bounds_or_margin(
    above: float | None, below: float | None, margin: float | None, value: float = 0.0
) -> tuple[Region, int]:
    """Return the region of two-sided bounds, or of value ± margin, and the sides of its test: 2 or 1."""
    require(margin is None or above is below is None, "margin", "null with bounds", margin)
    require(margin is not None or value == 0, "value", "given with a margin, instead of bounds", value)
    return (bounds(above, below), 2) if margin is None else (margin_region(margin, value), 1)


def in_unit(kind: str, region: Region) -> Region:
    """Return a region of relative effects in the unit of the effects.

    >>> in_unit("ratio", Region(high=-0.1)).high == -math.log1p(0.1), in_unit("points", Region(0.05)).low
    (True, 5.0)
    """
    return Region(*(math.copysign(margin_of(kind, abs(end)), end) for end in region))


def align(*values: pd.Series) -> list[Numbers]:
    """Return the values of the replicates that all series have, in the same order, each ``(n,)``."""
    table = pd.concat(values, axis=1, join="inner").dropna().sort_index()
    return [table.iloc[:, column].to_numpy(dtype=float) for column in range(len(values))]


def kind_of(sweep: Sweep, metric: str, *values: Numbers) -> str:
    """Return the kind of effect of a metric: ``ratio``, ``points`` or ``difference``."""
    return effect_of(sweep.metric(metric), *values)


def region_part(
    name: str, unit: str, effects: ArrayLike, region: Region, sides: int = 2, rows: Rows | None = None
) -> Part:
    """Return the part of a claim that the shift of effects ``(n,)`` lies in a region.

    Args:
        name: the name of the part.
        unit: the unit of the effects; log ratios are shown as ratios.
        effects, region, sides, rows: as in :func:`~normlab.stats.regions.region_test`.
    """
    test = region_test(effects, region, sides, rows)
    return shown_part(name, unit, test, region, len(np.asarray(effects)), round(100 * (1 - 2 * ALPHA / sides)))


def shown_part(name: str, unit: str, test: RegionTest, region: Region, n: int, level: int = 95) -> Part:
    """Return a part with its estimate and region in the unit that is shown."""
    effect, low, high = shown_estimate(unit, test.interval)
    if unit == RATIO:
        region = Region(*(math.exp(end) if math.isfinite(end) else end for end in region))
    return Part(name, unit, effect, (low, high), level, region, n, test.inside, test.outside, test.needed)


def near_best_p(
    sweep: Sweep, metric: str, arms: tuple[str, str], panel: Settings, region: Region, sides: int
) -> tuple[float, float]:
    """Return the largest p against near-best settings of the worse arm, inside the region and outside.

    Inside the region the arm is the better one and is compared with the near-best settings of the baseline;
    outside, its own near-best settings are compared. Settings that were run on too few replicates for p ≤ 0.05
    are not tested, as in :func:`normlab.stats.comparison.against_near_best`.

    Args:
        sweep, metric, arms, panel: the comparison.
        region, sides: as in :func:`~normlab.stats.regions.region_test`; the region of relative effects.
    """
    p, rows = [0.0, 0.0], sweep.rows(metric, panel)
    arm, baseline = (sweep.values(metric, name, panel) for name in arms)
    rivals = [(0, arm, other) for other in sweep.near_best(metric, arms[1], panel)]
    rivals += [(1, other, baseline) for other in sweep.near_best(metric, arms[0], panel)]
    for side, *pair in rivals:
        values = align(*pair)
        kind = kind_of(sweep, metric, *values)
        effects = paired_effects(kind, *values)
        if attainable_p(effects) <= ALPHA:
            test = region_test(effects, in_unit(kind, region), sides, rows)
            p[side] = max(p[side], test.outside if side else test.inside)
    return p[0], p[1]


def part_name(arms: str, metric: str, panel: Settings) -> str:
    """Return the name of a part: the arms, the metric and the panel.

    >>> part_name("bn / nobn", "test/loss", {"data.batch_size": 4})
    'bn / nobn, test/loss, data.batch_size=4'
    """
    return ", ".join([arms, metric, *([panel_text(panel)] if panel else [])])


def panel_text(panel: Settings) -> str:
    """Return the settings of a panel as text."""
    return configuration_label(panel, map(str, panel.values()))
