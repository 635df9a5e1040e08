"""The plan of a sweep's replicates before it trains; see :func:`plan_replicates`."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from normlab.stats.comparison import ALPHA, sides_of
from normlab.stats.comparisons import pooled_panels
from normlab.stats.design import Design, Scope
from normlab.stats.grid import Grid, first_third, grid_of
from normlab.stats.looks import History, comparison_key, look_level, obrien_fleming
from normlab.stats.paired_tests import detectable_shift
from normlab.stats.tuning import Tuning, tuned

SUGGESTED = 12
"""Replicates with which a difference of about one standard deviation is found with 80 % power."""


@dataclass(frozen=True)
class ReplicatePlan:
    """The use of a sweep's replicates, if all of its runs finish.

    Attributes:
        scope: what differs between replicates, in the panel with the most that report.
        tuning, report: the seeds that choose settings, and those that are reported, there.
        within: whether each replicate chooses its own settings.
        disjoint: whether no replicate that is reported chooses settings for others.
        comparisons: the number of comparisons that p is corrected for: by all metrics of one question.
        too_few: how many of them have too few replicates for a verdict.
        look: the number of the look at these comparisons.
        detectable: the effect that is declared with 80 % power in the comparison with the most replicates, in
            standard deviations of the paired effects; infinite if none can be.
        max_replicates: the declared maximum; None without one.
    """

    scope: Scope
    tuning: tuple[int, ...]
    report: tuple[int, ...]
    within: bool
    disjoint: bool
    comparisons: int
    too_few: int
    look: int
    detectable: float
    max_replicates: int | None = None


def plan_replicates(runs: pd.DataFrame, design: Design, history: History) -> ReplicatePlan | None:
    """Plan the use of the replicates of runs that are still to be trained; None without seeds.

    Args:
        runs: as ``design`` describes them, with any equal values.
        design: of these runs.
        history: the earlier verdicts of the folder.
    """
    grid = grid_of(runs, design, history.tuning_seeds)
    if not grid.seeds:
        return None
    arms = tuned(grid, history.settings)
    found = compared_seeds(grid, arms)
    use = max(grid.uses.values(), key=lambda use: len(use.report))
    metrics = [metric.question for metric in design.metrics].count(design.primary.question)
    comparisons = len(found) * metrics
    looks = [history.look(key, seeds) for key, seeds in found.items()]
    level = ALPHA / max(comparisons, 1)
    shifts = [
        detectable_shift(len(seeds), level / history.factor(key, seeds)) if use.is_disjoint else math.inf
        for key, seeds in found.items()
    ]
    tuning, report = (tuple(grid.seeds[k] for k in columns) for columns in (use.tuning, use.report))
    return ReplicatePlan(
        use.scope,
        tuning,
        report,
        use.within,
        use.is_disjoint,
        comparisons,
        metrics * sum(math.isinf(shift) for shift in shifts),
        max(looks, default=1),
        min(shifts, default=math.inf),
        history.max_replicates,
    )


def compared_seeds(grid: Grid, tuning: Tuning) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the seeds that both arms of each comparison have, by the comparison's key in the history."""
    found: dict[tuple[str, ...], tuple[int, ...]] = {}
    for place, name, tested in pooled_panels(grid):
        for arm, baseline in grid.design.comparisons if tested else ():
            sides = [sides_of(tuning, place.panels, own) for own in (arm, baseline)]
            if sides[0] is None or sides[1] is None:
                continue
            if seeds := place.shared_seeds(sides[0], sides[1]):
                found[comparison_key(grid.design.compare, arm, baseline, name)] = seeds
    return found


def suggested_seeds(plan: ReplicatePlan) -> int | None:
    """Return the number of seeds to suggest: 12, or as many as any of the comparisons needs to be declared.

    More than there are where these give no verdict. At most the declared maximum of replicates report; None where
    that is too few.
    """
    tunes, most = bool(plan.tuning) and not plan.within, plan.max_replicates
    total = SUGGESTED if most is None else min(SUGGESTED, most)
    if math.isinf(plan.detectable):
        total = max(total, len({*plan.tuning, *plan.report}) + 1)
    while True:
        report = total - tuning_of(total) * tunes
        if most is not None and report > most:
            return None
        level = look_level(plan.look) if most is None else obrien_fleming([report], most)[0] if report else 0.0
        if math.isfinite(detectable_shift(report, float(level) / max(plan.comparisons, 1))):
            return total
        total += 1


def tuning_of(seeds: int) -> int:
    """Return how many of some seeds choose settings.

    >>> tuning_of(12), tuning_of(30)
    (4, 10)
    """
    return len(first_third(np.arange(seeds)))
