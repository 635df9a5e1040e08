"""An arm against the baseline, in one panel."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.analysis.cells import Cells
from normlab.analysis.estimates import Estimate, difference, differences, improvement, ratio, share
from normlab.analysis.planning import ALPHA, ENOUGH, detectable
from normlab.analysis.resampling import Draws
from normlab.analysis.significance import finite_differences, label_permutation, sign_flip
from normlab.analysis.times import time_ratio
from normlab.analysis.tuning import Tuned

Numbers = NDArray[np.float64]
Row = dict[str, Any]
BETTER, WORSE, DIFFERENT = "better", "worse", "different, neither better"
ALIKE, TOO_FEW, NOT_COMPARABLE = "no difference shown", "too few seeds for a verdict", "not comparable"


@dataclass(frozen=True)
class Pair:
    """The values of an arm and of the baseline, ``(n,)`` and ``(m,)``: n = m seed by seed if they are paired."""

    arm: Numbers
    baseline: Numbers
    paired: bool

    @property
    def seeds(self) -> int:
        """How many pairs there are, or seeds of the arm that has fewer."""
        return min(len(self.arm), len(self.baseline))

    def losses(self, sign: float) -> "Pair":
        """Return the pair with all values times a sign."""
        return Pair(sign * self.arm, sign * self.baseline, self.paired)


def pair(arm: Numbers, baseline: Numbers) -> Pair:
    """Return the known values of two arms: paired over the seeds that both have, unless unpaired they are enough.

    Args:
        arm, baseline: ``(n,)``, of the same seeds; NaN where a value is not known.
    """
    ours, theirs = ~np.isnan(arm), ~np.isnan(baseline)
    both = ours & theirs
    if not both.any() or both.sum() < ENOUGH <= min(ours.sum(), theirs.sum()):
        return Pair(arm[ours], baseline[theirs], paired=False)
    return Pair(arm[both], baseline[both], paired=True)


def p_and_side(losses: Pair, draws: Draws) -> tuple[float, float]:
    """Return p of the test of two arms, and the sign of what it goes by: negative where the arm is better."""
    a, b = losses.arm, losses.baseline
    if losses.paired:
        d = differences(a, b)
        return sign_flip(d, draws.generator(len(d))), float(np.sign(finite_differences(d).sum()))
    p = label_permutation(a, b, draws.generator(len(a) + len(b)))
    finite = np.concatenate([a, b])[np.isfinite([*a, *b])]
    if not len(finite):
        return p, 0.0
    means = [np.clip(values, finite.min(), finite.max()).mean() for values in (a, b)]
    return p, float(np.sign(means[0] - means[1]))


def against_rivals(cells: Cells, ours: Tuned, theirs: Tuned, draws: Draws) -> Row:
    """Return what the test says of two arms: at their best settings, and against the rivals of the worse one.

    ``p`` is that of the test. ``p_rivals`` is the largest of it and of those of the better arm against each rival
    setting of the other, 1 where the other is the better one; ``rivals`` is the number of these. A rival that
    was run on fewer than 8 of the seeds is left out, and in ``untested``. ``side`` is negative where the arm is
    better.
    """
    losses = cells.losses[:, cells.report]
    p, side = p_and_side(pair(losses[ours.chosen], losses[theirs.chosen]), draws)
    better, worse = (ours, theirs) if side < 0 else (theirs, ours)
    found, untested = [p], 0
    for rival in worse.rivals if side else []:
        both = pair(losses[better.chosen], losses[rival])
        if both.seeds < ENOUGH:
            untested += 1
            continue
        again, turned = p_and_side(both, draws)
        found.append(again if turned < 0 else 1.0)
    return {"p": p, "rivals": len(found) - 1, "p_rivals": max(found), "side": side, "untested": untested}


def compared(cells: Cells, ours: Tuned, theirs: Tuned, draws: Draws) -> Row:
    """Return what the report seeds say of an arm against the baseline: estimates, and the test."""
    design, values = cells.design, cells.values[:, cells.report]
    both = pair(values[ours.chosen], values[theirs.chosen])
    losses = both.losses(design.sign)
    row: Row = {
        "seeds": both.seeds,
        "paired": both.paired,
        **named("difference", difference(both.arm, both.baseline, both.paired, draws)),
        **named("ratio", ratio(both.arm, both.baseline, both.paired, draws)),
        **named("improvement", improvement(losses.arm, losses.baseline, losses.paired, draws)),
        "spread": spread(losses),
    }
    if both.seeds < ENOUGH or not design.apart:
        return {**row, "p": np.nan, "rivals": 0, "p_rivals": np.nan, "side": np.nan, "untested": 0}
    return row | against_rivals(cells, ours, theirs, draws)


def spread(losses: Pair) -> float:
    """Return the standard deviation of paired differences, NaN where there are none."""
    if not losses.paired or losses.seeds < 2:
        return np.nan
    return float(finite_differences(differences(losses.arm, losses.baseline)).std(ddof=1))


def timed(steps: Pair, seconds: Pair, draws: Draws) -> Row:
    """Return how many times the baseline's steps and seconds an arm takes to the target, and who reaches it."""
    arm, baseline = (share(int(np.isfinite(times).sum()), len(times)) for times in (steps.arm, steps.baseline))
    return {
        **named("steps_ratio", time_ratio(steps.arm, steps.baseline, steps.paired, draws)),
        **named("seconds_ratio", time_ratio(seconds.arm, seconds.baseline, seconds.paired, draws)),
        **named("reached", arm),
        **named("baseline_reached", baseline),
    }


def named(name: str, estimate: Estimate) -> Row:
    """Return an estimate as the columns of a table.

    >>> named("ratio", Estimate(1.0, 0.5, 2.0))
    {'ratio': 1.0, 'ratio_low': 0.5, 'ratio_high': 2.0}
    """
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def verdict(row: Row, apart: bool, sign: float) -> str:
    """Return what is declared of an arm, by the test alone.

    Where the sum of differences, which the test goes by, and their middle half point to different sides, the arms
    differ, and neither is better.

    Args:
        row: of the comparison, ``p_holm`` in it.
        apart: whether no seed both tuned and reports.
        sign: −1 where large values are good.
    """
    if row["seeds"] < ENOUGH or not apart:
        return TOO_FEW
    if not row["p_holm"] <= ALPHA:
        return ALIKE
    middle = sign * row["difference"]
    if np.isnan(middle):  # too many diverged for a mean: how often the arm is better tells
        middle = 0.5 - row["improvement"]
    if np.sign(middle) != row["side"]:
        return DIFFERENT
    return BETTER if middle < 0 else WORSE


def detectable_difference(row: Row, comparisons: int) -> float:
    """Return the true difference that would be declared with 80 % power, in units of the metric; NaN unpaired."""
    if np.isnan(row["spread"]):
        return np.nan
    return detectable(row["seeds"], ALPHA / comparisons) * row["spread"]
