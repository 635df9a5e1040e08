"""The planned use and power of a sweep's replicates, before it trains; see :func:`plan_replicates`."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from normlab.stats.comparison import ALPHA, tuned_arm
from normlab.stats.design import Design, Scope
from normlab.stats.grid import Grid, first_third, grid_of
from normlab.stats.looks import History, comparison_key, look_level, obrien_fleming
from normlab.stats.multiple_comparisons import pooled_panels
from normlab.stats.paired_tests import detectable_shift
from normlab.stats.tuning import Tuning, arms_in, choose_settings

SUGGESTED = 12
"""Number of replicates that detects a difference of about one standard deviation with 80 % power."""


@dataclass(frozen=True)
class ReplicatePlan:
    """The use of a sweep's replicates if all of its runs finish.

    ``scope``, ``tuning``, ``report``, ``within`` and ``disjoint`` describe the panel with the most reported
    replicates.

    Attributes:
        scope: the source of variation between the replicates.
        tuning, report: the seeds that choose settings, and the reported seeds.
        within: whether each replicate chooses its own settings.
        disjoint: whether no reported replicate chooses settings for others.
        comparisons: the number of comparisons that p is corrected for, over all metrics of one question.
        too_few: the number of comparisons with too few replicates for a verdict.
        look: the number of the look at these comparisons.
        detectable: the smallest effect that is declared with 80 % power in any comparison, in standard deviations
            of the paired effects; infinite if no effect is.
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
    """Plan the use of the replicates of a sweep before it trains; None without seeds.

    Args:
        runs: a row per planned run, with the columns that the module ``design`` lists; the metrics are constants.
        design: the design of the sweep.
        history: the earlier verdicts of the folder.
    """
    grid = grid_of(runs, design, history.tuning_seeds)
    if not grid.seeds:
        return None
    compared = compared_seeds(grid, choose_settings(grid, history.settings))
    use = max(grid.uses.values(), key=lambda use: len(use.report))
    metrics = [metric.question for metric in design.metrics].count(design.primary.question)
    comparisons = len(compared) * metrics
    looks = [history.look(key, seeds) for key, seeds in compared.items()]
    level = ALPHA / max(comparisons, 1)
    shifts = [
        detectable_shift(len(seeds), level / history.factor(key, seeds)) if use.is_disjoint else math.inf
        for key, seeds in compared.items()
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
    """Return the seeds shared by both arms of each tested comparison, by its key in the history."""
    compared: dict[tuple[str, ...], tuple[int, ...]] = {}
    for pooled, name, tested in pooled_panels(grid):
        present = arms_in(tuning, pooled.panels) if tested else ()
        for arm, baseline in grid.design.comparisons_among(present):
            pair = [tuned_arm(tuning, pooled.panels, member) for member in (arm, baseline)]
            if pair[0] is None or pair[1] is None:
                continue
            if seeds := pooled.shared_seeds(pair[0], pair[1]):
                compared[comparison_key(grid.design.compare, arm, baseline, name)] = seeds
    return compared


def suggested_seeds(plan: ReplicatePlan) -> int | None:
    """Return the number of seeds to suggest: 12, or more if 12 cannot give a verdict.

    More than the planned seeds if these give no verdict. None if the declared maximum of replicates is too small.
    """
    tunes, most = bool(plan.tuning) and not plan.within, plan.max_replicates
    total = SUGGESTED if most is None else min(SUGGESTED, most)
    if math.isinf(plan.detectable):
        total = max(total, len({*plan.tuning, *plan.report}) + 1)
    while True:
        report = total - tuning_count(total) * tunes
        if most is not None and report > most:
            return None
        level = look_level(plan.look) if most is None else obrien_fleming([report], most)[0] if report else 0.0
        if math.isfinite(detectable_shift(report, float(level) / max(plan.comparisons, 1))):
            return total
        total += 1


def tuning_count(seeds: int) -> int:
    """Return the number of seeds that choose settings, out of a number of seeds.

    >>> tuning_count(12), tuning_count(30)
    (4, 10)
    """
    return len(first_third(np.arange(seeds)))
