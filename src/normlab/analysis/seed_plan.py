"""The use of a sweep's replicates, known before it trains. The entry is :func:`plan_replicates`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from normlab.analysis.cells import Cells, Use, cells_of, split
from normlab.analysis.comparing import ALPHA, sides_of
from normlab.analysis.comparisons import places_of
from normlab.analysis.design import Design, Scope
from normlab.analysis.history import History, Key, comparison_key
from normlab.analysis.power import detectable_shift
from normlab.analysis.tuning import Tuning, tuned

SUGGESTED = 12
"""Replicates with which a difference of about one standard deviation is found with 80 % power."""
MOST_ADDED = 50
"""Seeds beyond those that there are, up to which a number is looked for."""


@dataclass(frozen=True)
class ReplicatePlan:
    """The use of a sweep's replicates, if all of its runs finish.

    Attributes:
        scope: what differs between replicates, in the panel with the fewest that report.
        tuning, report: the seeds that choose settings, and those that are reported, there.
        within: whether each replicate chooses its own settings.
        disjoint: whether no replicate that is reported chooses settings for others.
        comparisons: the number of comparisons that p is corrected for: of all arms and metrics of one question.
        smallest: the fewest replicates that a comparison has; those that report without comparisons.
        look: the number of the look at these comparisons.
        detectable: the effect that is declared with 80 % power in the smallest comparison, in standard deviations
            of the paired effects; infinite if none can be.
        suggested: the number of seeds to suggest; None where no number gives a verdict.
    """

    scope: Scope
    tuning: tuple[int, ...]
    report: tuple[int, ...]
    within: bool
    disjoint: bool
    comparisons: int
    smallest: int
    look: int
    detectable: float
    suggested: int | None


def plan_replicates(runs: pd.DataFrame, design: Design, history: History) -> ReplicatePlan | None:
    """Plan the use of the replicates of runs that are still to be trained; None without seeds.

    Args:
        runs: as ``design`` describes them, with any equal values.
        design: of these runs.
        history: the earlier verdicts of the folder.
    """
    cells = cells_of(runs, design, history.tuning_seeds)
    if not cells.seeds:
        return None
    arms = tuned(cells, history.frozen)
    found = compared_seeds(cells, arms)
    use = min(cells.uses.values(), key=lambda use: len(use.report))
    looks = [(history.look(key, seeds), history.factor(key, seeds)) for key, seeds in found.items()]
    smallest = min((len(seeds) for seeds in found.values()), default=len(use.report))
    factor = max((factor for _, factor in looks), default=1.0)
    questions = [metric.question for metric in design.metrics]
    comparisons = len(found) * questions.count(design.primary.question)
    tuning, report = (tuple(cells.seeds[k] for k in columns) for columns in (use.tuning, use.report))
    return ReplicatePlan(
        use.scope,
        tuning,
        report,
        use.within,
        use.is_disjoint,
        comparisons,
        smallest,
        max((look for look, _ in looks), default=1),
        detectable_shift(smallest, ALPHA / (factor * max(comparisons, 1))) if use.is_disjoint else math.inf,
        suggested_seeds(len(cells.seeds), use, list(found), comparisons, history),
    )


def compared_seeds(cells: Cells, tuning: Tuning) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the seeds that both arms of each comparison have, by the comparison's key in the history."""
    found: dict[tuple[str, ...], tuple[int, ...]] = {}
    for place, name, tested in places_of(cells):
        for arm, baseline in cells.design.comparisons if tested else ():
            sides = [sides_of(tuning, place.panels, own) for own in (arm, baseline)]
            if sides[0] is None or sides[1] is None:
                continue
            if seeds := place.shared_seeds(sides[0], sides[1]):
                found[comparison_key(cells.design.compare, arm, baseline, name)] = seeds
    return found


def suggested_seeds(seeds: int, use: Use, keys: Sequence[Key], comparisons: int, history: History) -> int | None:
    """Return the number of seeds to suggest: 12, or as many as any of the comparisons needs to be declared.

    Args:
        seeds: the number of them now; where it is 12 or more, a larger one is suggested.
        use: of the seeds in the panel with the fewest that report.
        keys: of the comparisons, in the history.
        comparisons: the number that p is corrected for.
        history: the earlier verdicts of the folder.

    Returns:
        None where no number gives a verdict: more than the declared maximum of replicates would be needed.
    """
    tunes = bool(len(use.tuning)) and not use.within
    for total in range(max(SUGGESTED, seeds + 1), max(SUGGESTED, seeds) + MOST_ADDED):
        tuning = len(history.tuning_seeds) if tunes and history.tuning_seeds else tuning_of(total) * tunes
        # Seeds of a look that has not been taken: only their number counts.
        report = tuple(range(-1, tuning - total - 1, -1))
        factor = max((history.factor(key, report) for key in keys), default=1.0)
        if math.isfinite(detectable_shift(len(report), ALPHA / (factor * max(comparisons, 1)))):
            return total
    return None


def tuning_of(seeds: int) -> int:
    """Return how many of some seeds choose settings.

    >>> tuning_of(12), tuning_of(30)
    (4, 10)
    """
    return len(split(np.arange(seeds)))
