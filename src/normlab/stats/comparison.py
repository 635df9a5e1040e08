"""The comparison of an arm with its baseline, in one panel or pooled over panels; see :func:`compare`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.stats.design import Metric, Scope
from normlab.stats.estimates import (
    UNKNOWN_ESTIMATE,
    Estimate,
    Numbers,
    differences,
    log_ratios,
    point_differences,
    share_estimate,
)
from normlab.stats.grid import Grid, Panel
from normlab.stats.paired_tests import compare_paired_shares, corrected_t, equivalence, mean_over_splits
from normlab.stats.signed_rank import (
    Interval,
    attainable_p,
    checked,
    doubled_signed_ranks,
    paired_test,
    signed_rank,
)
from normlab.stats.tuning import Tuned, Tuning, finite_differences

ComparisonRow = dict[str, Any]
ALPHA = 0.05
RATIO, POINTS, DIFFERENCE = "ratio", "points", "difference"
BETTER, WORSE = "better", "worse"
NO_DIFFERENCE, TOO_FEW, NOT_COMPARABLE = "no difference shown", "too few replicates", "not comparable"
BEYOND_MAXIMUM = "no verdict beyond max_replicates"


@dataclass(frozen=True)
class TunedArm:
    """An arm with its tuned settings, one entry for each of the pooled panels."""

    arm: str
    tuned: tuple[Tuned, ...]


@dataclass(frozen=True)
class PooledPanels:
    """The panels of a comparison: one, or several that differ only in the data seed.

    Attributes:
        grid: the sweep.
        panels: the panels, at least one.
    """

    grid: Grid
    panels: tuple[Panel, ...]

    def pick(self, table: Numbers, arm: TunedArm) -> Numbers:
        """Return the values of an arm at its chosen settings, ``(N, P)`` by seed and panel."""
        picked = np.full((len(self.grid.seeds), len(self.panels)), np.nan)
        for column, (panel, tuned) in enumerate(zip(self.panels, arm.tuned, strict=True)):
            use = self.grid.uses[panel]
            picked[use.report, column] = tuned.pick(table, use)
        return picked

    def shared_seeds(self, *arms: TunedArm) -> tuple[int, ...]:
        """Return the seeds of the reported replicates for which all given arms have a known validation loss."""
        picked = [self.pick(self.grid.tables["validation"], arm) for arm in arms]
        return tuple(self.grid.seeds[k] for k in np.flatnonzero(~np.isnan(picked).any(axis=(0, 2))))

    @property
    def scope(self) -> Scope:
        """The source of variation between the replicates."""
        return self.grid.uses[self.panels[0]].scope

    @property
    def is_disjoint(self) -> bool:
        """True if the reported replicates took no part in choosing settings for other replicates."""
        return all(self.grid.uses[panel].is_disjoint for panel in self.panels)


def effect_of(metric: Metric, *values: Numbers) -> str:
    """Return the kind of effect of a metric: a ratio of losses, percentage points, or a difference."""
    if metric.is_share:
        return POINTS
    finite = np.concatenate([array[np.isfinite(array)].ravel() for array in values])
    return RATIO if metric.direction == "min" and (finite > 0).all() else DIFFERENCE


def paired_effects(effect: str, arm: Numbers, baseline: Numbers) -> Numbers:
    """Return the paired differences, ``(n,)``: log ratios, percentage points or plain differences.

    Finite values that differ in their rounding error alone are ties, in whatever unit they are given.
    """
    effect_of_pairs = {RATIO: log_ratios, POINTS: point_differences, DIFFERENCE: differences}[effect]
    is_tie = np.isfinite(arm) & np.isclose(arm, baseline, rtol=1e-12, atol=0)
    return np.where(is_tie, 0.0, effect_of_pairs(arm, baseline))


def replicate_effects(effect: str, arm: Numbers, baseline: Numbers) -> tuple[Numbers, NDArray[np.intp]]:
    """Return the effect in each shared replicate, averaged over the panels, and the seeds' columns.

    Args:
        effect: the kind of effect, from ``effect_of``.
        arm, baseline: values, ``(N, P)``; NaN if unknown. A replicate needs known values in all panels.
    """
    both = np.flatnonzero(~(np.isnan(arm) | np.isnan(baseline)).any(axis=1))
    values = paired_effects(effect, arm[both].ravel(), baseline[both].ravel()).reshape(len(both), arm.shape[1])
    return (values[:, 0] if values.shape[1] == 1 else mean_over_splits(values)), both


def rank_side(effects: Numbers, metric: Metric) -> float:
    """Return −1 if the signed ranks favour the arm, 1 if they favour the baseline, else 0."""
    return float(np.sign(doubled_signed_ranks(checked(effects)).sum())) * metric.sign


def compare(pooled: PooledPanels, metric: Metric, arm: TunedArm, baseline: TunedArm) -> ComparisonRow:
    """Compare two arms with the signed-rank test, at their best and near-best settings.

    Returns only ``replicates``, ``seeds`` and ``effect`` if the arms share no replicate. All columns:

    - ``replicates``: the number of replicates in which both arms have the metric; ``differing``: those with
      different values; ``seeds``: the shared seeds, which identify a look.
    - ``effect`` (ratio, points or difference); ``estimate`` with its interval; ``side``: negative if the arm is
      better; ``spread``: the standard deviation of the effects; ``better``: the share of replicates in which the
      arm is better, with ties counted half.
    - ``p`` at the chosen settings; ``p_near_best``: the largest p, including the near-best settings of the worse
      arm; ``attainable``: the smallest p possible with these data.
    - ``new_table_p``: p of the corrected t test, where the replicates are splits of one table.
    - the columns of ``equivalence_columns`` and ``failure_columns``.
    """
    grid = pooled.grid
    values = grid.tables[metric.name]
    a, b = pooled.pick(values, arm), pooled.pick(values, baseline)
    effect = effect_of(metric, a, b)
    effects, _ = replicate_effects(effect, a, b)
    seeds = pooled.shared_seeds(arm, baseline)
    row: ComparisonRow = {"replicates": len(effects), "seeds": seeds, "effect": effect}
    if not len(effects):
        return row
    test, side = paired_test(effects), rank_side(effects, metric)
    losses = metric.sign * effects
    wins = (losses < 0).sum() + 0.5 * (losses == 0).sum()
    p_near_best, near_best, untested = against_near_best(pooled, metric, arm, baseline, side, test.p)
    disjoint = pooled.is_disjoint
    return {
        **row,
        **estimate_columns("estimate", shown_estimate(effect, test.shift)),
        "p": test.p if disjoint else np.nan,
        "p_near_best": p_near_best if disjoint else np.nan,
        "attainable": attainable_p(effects) if disjoint else 1.0,
        "differing": int(np.count_nonzero(checked(effects))),
        "side": side,
        "near_best": near_best,
        "untested": untested,
        "spread": float(finite_differences(effects).std(ddof=1)) if len(effects) > 1 else np.nan,
        **estimate_columns("better", win_share(float(wins), len(effects))),
        "new_table_p": new_table_p(pooled, metric, effects),
        **equivalence_columns(effect, effects, grid.design.margin if disjoint else None),
        **failure_columns(pooled, arm, baseline),
    }


def against_near_best(
    pooled: PooledPanels, metric: Metric, arm: TunedArm, baseline: TunedArm, side: float, p: float
) -> tuple[float, int, int]:
    """Return the largest p of the better arm against the near-best settings of the worse arm.

    Also returns the numbers of tested and of untested settings. p is 1 against a setting that does better. A
    setting that was run on too few of the replicates for p ≤ 0.05 is not tested.
    """
    better, worse = (arm, baseline) if side < 0 else (baseline, arm)
    values = pooled.grid.tables[metric.name]
    p_values, untested = [p], 0
    for near_best in near_best_arms(worse) if side else []:
        arms = pooled.pick(values, better), pooled.pick(values, near_best)
        effects, _ = replicate_effects(effect_of(metric, *arms), *arms)
        if attainable_p(effects) > ALPHA:
            untested += 1
            continue
        p_values.append(float(signed_rank(effects)) if rank_side(effects, metric) < 0 else 1.0)
    return max(p_values), len(p_values) - 1, untested


def near_best_arms(arm: TunedArm) -> list[TunedArm]:
    """Return the arm at each of its near-best settings, changed in one pooled panel at a time."""
    changed = [
        (k, Tuned(tuned.rows, np.full_like(tuned.chosen, row), []))
        for k, tuned in enumerate(arm.tuned)
        for row in tuned.near_best
    ]
    return [TunedArm(arm.arm, (*arm.tuned[:k], tuned, *arm.tuned[k + 1 :])) for k, tuned in changed]


def shown_estimate(effect: str, estimate: Interval) -> Estimate:
    """Return an estimate in the unit that is reported: a log ratio becomes a ratio.

    >>> shown_estimate("ratio", Interval(0.0, -math.inf, 0.0))
    Estimate(value=1.0, low=0.0, high=1.0)
    """
    ends = (estimate.value, estimate.low, estimate.high)
    with np.errstate(over="ignore"):
        return Estimate(*(float(np.exp(end)) for end in ends)) if effect == RATIO else Estimate(*ends)


def win_share(wins: float, replicates: int) -> Estimate:
    """Return the share of wins, with ties counted half, and an interval around it.

    The interval spans Wilson's for the wins rounded down and up.
    """
    low, high = share_estimate(math.floor(wins), replicates), share_estimate(math.ceil(wins), replicates)
    return Estimate(wins / replicates, low.low, high.high)


def new_table_p(pooled: PooledPanels, metric: Metric, effects: Numbers) -> float:
    """Return p of the corrected t test over splits of one table; NaN for metrics of other splits.

    The test corrects for test rows that other splits train on; a training or validation metric has no such rows.
    Averaging over P panels reduces the variance between replicates, but not the correlation between splits, so
    the correction is P times as large. NaN also if a run diverged or the numbers of rows are unknown.
    """
    use = pooled.grid.uses[pooled.panels[0]]
    if pooled.scope != Scope.SPLIT or not metric.name.startswith("test/") or not use.train or not use.test:
        return np.nan
    return corrected_t(effects, use.train, use.test * len(pooled.panels)).p


def margin_of(effect: str, margin: float) -> float:
    """Return a margin in the unit of the effects: 0.05 becomes log 1.05, 5 points, or 0.05."""
    return {RATIO: math.log1p(margin), POINTS: 100 * margin}.get(effect, margin)


def equivalence_columns(effect: str, effects: Numbers, margin: float | None) -> ComparisonRow:
    """Return ``equivalence_p`` and the 90 % interval; empty without a margin."""
    if margin is None:
        return {}
    test = equivalence(effects, margin_of(effect, margin))
    return {"equivalence_p": test.p, **estimate_columns("equivalence", shown_estimate(effect, test.interval))}


def failure_columns(pooled: PooledPanels, arm: TunedArm, baseline: TunedArm) -> ComparisonRow:
    """Return the number of failed replicates of each arm, and McNemar's test of their shares.

    A replicate fails if it fails in any of the pooled panels.
    """
    picked = [pooled.pick(pooled.grid.failed, member) for member in (arm, baseline)]
    both = ~np.isnan(picked).any(axis=(0, 2))
    a, b = (values[both].max(axis=1) > 0.5 if both.any() else np.zeros(0, dtype=bool) for values in picked)
    test = compare_paired_shares(a, b)
    return {
        "failed": int(a.sum()),
        "baseline_failed": int(b.sum()),
        "failures_of": int(both.sum()),
        "failure_p": test.p,
        **estimate_columns("failure_difference", test.difference),
    }


def estimate_columns(name: str, estimate: Estimate) -> ComparisonRow:
    """Return an estimate as three columns of a table.

    >>> estimate_columns("ratio", Estimate(1.0, 0.5, 2.0))
    {'ratio': 1.0, 'ratio_low': 0.5, 'ratio_high': 2.0}
    """
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def verdict(row: ComparisonRow, disjoint: bool, factor: float, lowest: float) -> str:
    """Return the verdict of a comparison, which depends only on the test.

    Args:
        row: columns of the comparison, with ``p_adjusted``.
        disjoint: whether no reported replicate chose settings for others.
        factor: the factor by which p was multiplied for looks; infinite beyond the declared maximum of replicates.
        lowest: the smallest corrected p that is possible with these numbers of replicates and comparisons.
    """
    if disjoint and math.isinf(factor):
        return BEYOND_MAXIMUM
    if not disjoint or lowest > ALPHA:
        return TOO_FEW
    if not row["p_adjusted"] <= ALPHA:
        return NO_DIFFERENCE
    return BETTER if row["side"] < 0 else WORSE


def tuned_arm(tuning: Tuning, panels: Sequence[Panel], arm: str) -> TunedArm | None:
    """Return an arm with its settings in some panels; None if one of them has no chosen setting."""
    choices = [tuning.get((panel, arm)) for panel in panels]
    tuned = [choice for choice in choices if choice is not None and (choice.chosen >= 0).any()]
    return TunedArm(arm, tuple(tuned)) if len(tuned) == len(panels) else None


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
"""Columns of a comparison without a shared replicate."""
