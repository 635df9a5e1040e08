"""The comparison of an arm with its baseline, in one panel or pooled over splits. The entry is :func:`compare`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.stats.design import Metric, Scope
from normlab.stats.estimates import UNKNOWN_ESTIMATE, Estimate, Numbers, differences, share_estimate
from normlab.stats.grid import Grid, Panel
from normlab.stats.outcomes import log_ratios, point_differences
from normlab.stats.paired_tests import compare_paired_shares, corrected_t, equivalence, mean_over_splits
from normlab.stats.signed_rank import Interval, attainable_p, doubled_signed_ranks, known, paired_test, signed_rank
from normlab.stats.tuning import Tuned, Tuning, finite_differences

ComparisonRow = dict[str, Any]
ALPHA = 0.05
RATIO, POINTS, DIFFERENCE = "ratio", "points", "difference"
BETTER, WORSE = "better", "worse"
ALIKE, TOO_FEW, NOT_COMPARABLE = "no difference shown", "too few replicates", "not comparable"
BEYOND = "no verdict beyond max_replicates"


@dataclass(frozen=True)
class Side:
    """One arm of a comparison: its choice of settings in each of one or several panels that are pooled."""

    arm: str
    tuned: tuple[Tuned, ...]


@dataclass(frozen=True)
class PooledPanels:
    """The panels of a comparison: one, or several that differ in the data seed alone and are pooled.

    Attributes:
        grid: the sweep.
        panels: the panels, at least one.
    """

    grid: Grid
    panels: tuple[Panel, ...]

    def pick(self, table: Numbers, side: Side) -> Numbers:
        """Return the numbers of an arm at its chosen settings, ``(N, P)`` by seed and panel."""
        picked = np.full((len(self.grid.seeds), len(self.panels)), np.nan)
        for column, (panel, own) in enumerate(zip(self.panels, side.tuned, strict=True)):
            use = self.grid.uses[panel]
            picked[use.report, column] = own.pick(table, use)
        return picked

    def shared_seeds(self, *sides: Side) -> tuple[int, ...]:
        """Return the seeds of the reported replicates that all of some arms have, whichever metric is compared."""
        picked = [self.pick(self.grid.tables["validation"], side) for side in sides]
        return tuple(self.grid.seeds[k] for k in np.flatnonzero(~np.isnan(picked).any(axis=(0, 2))))

    @property
    def scope(self) -> Scope:
        """The difference between replicates."""
        return self.grid.uses[self.panels[0]].scope

    @property
    def is_disjoint(self) -> bool:
        """Whether no replicate that is reported chose settings for others."""
        return all(self.grid.uses[panel].is_disjoint for panel in self.panels)


def effect_of(metric: Metric, *values: Numbers) -> str:
    """Return how a metric is compared: as a ratio of losses, in percentage points, or as a difference."""
    if metric.is_share:
        return POINTS
    finite = np.concatenate([own[np.isfinite(own)].ravel() for own in values])
    return RATIO if metric.direction == "min" and (finite > 0).all() else DIFFERENCE


def paired_effects(effect: str, arm: Numbers, baseline: Numbers) -> Numbers:
    """Return the differences of paired values, ``(n,)``: of logarithms for ratios, in points for shares."""
    if effect == RATIO:
        return log_ratios(arm, baseline)
    return point_differences(arm, baseline) if effect == POINTS else differences(arm, baseline)


def replicate_effects(effect: str, arm: Numbers, baseline: Numbers) -> tuple[Numbers, NDArray[np.intp]]:
    """Return the effect in each replicate that both arms have, its mean over the panels, and their columns.

    Args:
        effect: from ``effect_of``.
        arm, baseline: values, ``(N, P)``; NaN where they are not known.
    """
    both = np.flatnonzero(~(np.isnan(arm) | np.isnan(baseline)).any(axis=1))
    values = paired_effects(effect, arm[both].ravel(), baseline[both].ravel()).reshape(len(both), arm.shape[1])
    return (values[:, 0] if values.shape[1] == 1 else mean_over_splits(values)), both


def rank_side(effects: Numbers, metric: Metric) -> float:
    """Return the side that the signed ranks point to: −1 where the arm is better, 1 where it is worse, else 0."""
    return float(np.sign(doubled_signed_ranks(known(effects)).sum())) * metric.sign


def compare(place: PooledPanels, metric: Metric, ours: Side, theirs: Side) -> ComparisonRow:
    """Compare an arm with its baseline: the test, the estimate with its interval, and the shares of failed runs.

    Columns: ``replicates`` in which both arms have the metric, ``differing`` of which have different values;
    ``seeds``, the replicates that both arms have, by which looks are counted; ``effect`` (ratio, points or
    difference), ``estimate`` with its interval; ``p`` of the signed-rank test at the chosen settings and
    ``p_near_best``, the largest of it and of the tests against the near-best settings of the worse arm;
    ``attainable``, the smallest p that these data could give; ``side``, negative where the arm is better;
    ``spread``, the standard deviation of the effects; ``better``, the share of replicates in which the arm is
    better, ties one half; ``new_table_p`` of the corrected t test where replicates are splits of one table;
    and those of ``equivalence_columns`` and ``failure_columns``.
    """
    grid = place.grid
    values = grid.tables[metric.name]
    arm, baseline = place.pick(values, ours), place.pick(values, theirs)
    effect = effect_of(metric, arm, baseline)
    effects, _ = replicate_effects(effect, arm, baseline)
    row: ComparisonRow = {"replicates": len(effects), "seeds": place.shared_seeds(ours, theirs), "effect": effect}
    if not len(effects):
        return row
    test, side = paired_test(effects), rank_side(effects, metric)
    wins = metric.sign * effects
    won = (wins < 0).sum() + 0.5 * (wins == 0).sum()
    p_near_best, near_best, untested = against_near_best(place, metric, ours, theirs, side, test.p)
    disjoint = place.is_disjoint
    return {
        **row,
        **estimate_columns("estimate", shown_estimate(effect, test.shift)),
        "p": test.p if disjoint else np.nan,
        "p_near_best": p_near_best if disjoint else np.nan,
        "attainable": attainable_p(effects) if disjoint else 1.0,
        "differing": int(np.count_nonzero(known(effects))),
        "side": side,
        "near_best": near_best,
        "untested": untested,
        "spread": float(finite_differences(effects).std(ddof=1)) if len(effects) > 1 else np.nan,
        **estimate_columns("better", share_of(float(won), len(effects))),
        "new_table_p": new_table_p(place, metric, effects),
        **equivalence_columns(effect, effects, grid.design.margin if disjoint else None),
        **failure_columns(place, ours, theirs),
    }


def against_near_best(
    place: PooledPanels, metric: Metric, ours: Side, theirs: Side, side: float, p: float
) -> tuple[float, int, int]:
    """Return the largest p of the better arm against the near-best settings of the worse one, and their number.

    p is 1 where such a setting is the better one. A setting that was run on too few of the replicates for any
    difference to be shown is left out, and counted.
    """
    better, worse = (ours, theirs) if side < 0 else (theirs, ours)
    values = place.grid.tables[metric.name]
    found, untested = [p], 0
    for other in near_best_sides(worse) if side else []:
        arms = place.pick(values, better), place.pick(values, other)
        effects, _ = replicate_effects(effect_of(metric, *arms), *arms)
        if attainable_p(effects) > ALPHA:
            untested += 1
            continue
        found.append(float(signed_rank(effects)) if rank_side(effects, metric) < 0 else 1.0)
    return max(found), len(found) - 1, untested


def near_best_sides(side: Side) -> list[Side]:
    """Return an arm at each of its near-best settings; pooled panels change one after the other."""
    return [
        Side(
            side.arm,
            (*side.tuned[:place], Tuned(own.rows, np.full_like(own.chosen, row), []), *side.tuned[place + 1 :]),
        )
        for place, own in enumerate(side.tuned)
        for row in own.near_best
    ]


def shown_estimate(effect: str, estimate: Interval) -> Estimate:
    """Return an estimate as it is shown: ratios from logarithms.

    >>> shown_estimate("ratio", Interval(0.0, -math.inf, 0.0))
    Estimate(value=1.0, low=0.0, high=1.0)
    """
    ends = (estimate.value, estimate.low, estimate.high)
    with np.errstate(over="ignore"):
        return Estimate(*(float(np.exp(end)) for end in ends)) if effect == RATIO else Estimate(*ends)


def share_of(won: float, of: int) -> Estimate:
    """Return a share of replicates with Wilson's interval; half a tie counts for either side."""
    low, high = share_estimate(math.floor(won), of), share_estimate(math.ceil(won), of)
    return Estimate(won / of, low.low, high.high)


def new_table_p(place: PooledPanels, metric: Metric, effects: Numbers) -> float:
    """Return p of the corrected t test of a test metric over splits of one table; NaN for all else.

    The correction is for the overlap of test rows with other splits' training rows, which a training loss lacks.
    The mean over P panels varies less from replicate to replicate, while what splits have in common stays: the
    correction is P times as large. NaN also if a run diverged.
    """
    use = place.grid.uses[place.panels[0]]
    if place.scope != Scope.SPLIT or not metric.name.startswith("test/") or not use.train or not use.test:
        return np.nan
    return corrected_t(effects, use.train, use.test * len(place.panels)).p


def margin_of(effect: str, margin: float) -> float:
    """Return a margin in the unit of the effects: 0.05 is log 1.05, 5 points, or a difference of 0.05."""
    return {RATIO: math.log1p(margin), POINTS: 100 * margin}.get(effect, margin)


def equivalence_columns(effect: str, effects: Numbers, margin: float | None) -> ComparisonRow:
    """Return ``equivalence_p`` and the 90 % interval, empty without a margin."""
    if margin is None:
        return {}
    found = equivalence(effects, margin_of(effect, margin))
    return {"equivalence_p": found.p, **estimate_columns("equivalence", shown_estimate(effect, found.interval))}


def failure_columns(place: PooledPanels, ours: Side, theirs: Side) -> ComparisonRow:
    """Return the number of failed runs of either arm, and McNemar's test of their shares."""
    failed = place.grid.failed
    arm, baseline = place.pick(failed, ours), place.pick(failed, theirs)
    both = ~(np.isnan(arm) | np.isnan(baseline)).any(axis=1)
    a, b = (
        values[both].max(axis=1) > 0.5 if both.any() else np.zeros(0, dtype=bool) for values in (arm, baseline)
    )
    test = compare_paired_shares(a, b)
    return {
        "failed": int(a.sum()),
        "baseline_failed": int(b.sum()),
        "failures_of": int(both.sum()),
        "failure_p": test.p,
        **estimate_columns("failure_difference", test.difference),
    }


def estimate_columns(name: str, estimate: Estimate) -> ComparisonRow:
    """Return an estimate as the columns of a table.

    >>> estimate_columns("ratio", Estimate(1.0, 0.5, 2.0))
    {'ratio': 1.0, 'ratio_low': 0.5, 'ratio_high': 2.0}
    """
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def verdict(row: ComparisonRow, disjoint: bool, factor: float) -> str:
    """Return the verdict of a comparison, by the test alone.

    Args:
        row: of the comparison, with ``p_adjusted``.
        disjoint: whether no replicate that is reported chose settings for others.
        factor: by which p is multiplied for the number of looks; infinite beyond the declared maximum of
            replicates.
    """
    if disjoint and math.isinf(factor):
        return BEYOND
    if not disjoint or row["attainable"] * factor > ALPHA:
        return TOO_FEW
    if not row["p_adjusted"] <= ALPHA:
        return ALIKE
    return BETTER if row["side"] < 0 else WORSE


def sides_of(tuning: Tuning, panels: Sequence[Panel], arm: str) -> Side | None:
    """Return an arm in some panels, None if it lacks one of them or has no chosen setting there."""
    own = [tuning.get((panel, arm)) for panel in panels]
    found = [each for each in own if each is not None and (each.chosen >= 0).any()]
    return Side(arm, tuple(found)) if len(found) == len(panels) else None


EMPTY_ROW: ComparisonRow = {
    **{
        "replicates": 0,
        "seeds": (),
        "effect": "",
        "p": np.nan,
        "p_near_best": np.nan,
        "attainable": 1.0,
        "differing": 0,
    },
    **{
        "side": 0.0,
        "near_best": 0,
        "untested": 0,
        "spread": np.nan,
        "new_table_p": np.nan,
        "equivalence_p": np.nan,
    },
    **{"failed": 0, "baseline_failed": 0, "failures_of": 0, "failure_p": np.nan},
    **estimate_columns("estimate", UNKNOWN_ESTIMATE),
    **estimate_columns("better", UNKNOWN_ESTIMATE),
    **estimate_columns("equivalence", UNKNOWN_ESTIMATE),
    **estimate_columns("failure_difference", UNKNOWN_ESTIMATE),
}
"""The columns of a comparison that cannot be made."""
