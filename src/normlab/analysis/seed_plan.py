"""How a sweep's seeds are used, and how many a verdict needs. The entry is :func:`plan_seeds`."""

from dataclasses import dataclass

import pandas as pd

from normlab.analysis.cells import cells_of
from normlab.analysis.comparing import pair
from normlab.analysis.design import LEAST_TUNING, Design, split
from normlab.analysis.planning import ALPHA, ENOUGH, seeds_for, smallest_p
from normlab.analysis.tuning import tuned


@dataclass(frozen=True)
class SeedPlan:
    """The use of a sweep's seeds, if all of its runs finish.

    Attributes:
        tuning, report: the number of seeds that choose settings, and of those that are reported.
        apart: whether no seed does both.
        comparisons: the number of arms and panels that are compared with their baseline.
        smallest: the fewest seeds that a comparison has; ``report`` without comparisons.
        needed: the seeds that must be reported for a verdict; 0 without comparisons.
        total: the seeds of a sweep in which so many are reported.
    """

    tuning: int
    report: int
    apart: bool
    comparisons: int
    smallest: int
    needed: int
    total: int

    @property
    def is_enough(self) -> bool:
        """Whether every comparison can come to a verdict."""
        return self.apart and self.smallest >= self.needed


def plan_seeds(runs: pd.DataFrame, design: Design) -> SeedPlan:
    """Return the use of the seeds of runs that are still to be trained.

    Args:
        runs: as ``design`` describes them, with any equal values.
        design: of these runs.
    """
    cells = cells_of(runs, design)
    arms, values = tuned(cells), cells.values[:, cells.report]
    pairs = [
        pair(values[ours.chosen], values[theirs.chosen])
        for (panel, arm), ours in arms.items()
        if arm != design.baseline and (theirs := arms.get((panel, design.baseline)))
    ]
    count, report = len(pairs), len(design.report_seeds)
    smallest = min((both.seeds for both in pairs), default=report)
    needed = seeds_for(count) if any(both.paired for both in pairs) else unpaired_seeds_for(count)
    total = total_for(needed) if design.tuning_seeds else needed
    return SeedPlan(len(design.tuning_seeds), report, design.apart, count, smallest, needed, total)


def unpaired_seeds_for(comparisons: int) -> int:
    """Return how many seeds each arm needs for a verdict where arms share no seeds; 0 without comparisons.

    >>> [unpaired_seeds_for(comparisons) for comparisons in (0, 1, 400)]
    [0, 8, 9]
    """
    seeds = ENOUGH
    while smallest_p(seeds, paired=False) * comparisons > ALPHA:
        seeds += 1
    return seeds if comparisons else 0


def total_for(report: int) -> int:
    """Return the smallest number of seeds of which so many are reported after some have chosen the settings.

    >>> [total_for(report) for report in (0, 8, 9, 12)]
    [0, 12, 14, 18]
    """
    total = report + LEAST_TUNING * (report > 0)
    while len(split(list(range(total)))[1]) < report:
        total += 1
    return total
