"""How long runs take to a target: in optimizer steps and in seconds of training.

Curves are of one metric, with the columns ``run``, ``step``, ``seconds`` and ``value``: a row each time a run was
evaluated. ``direction`` is ``min`` or ``max``, whichever is good.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from normlab.stats.estimates import UNKNOWN, Estimate
from normlab.stats.resampling import Draws, percentiles

Numbers = NDArray[np.float64]
BUDGET = 0.75
"""The share of the steps after which the target is to have been reached."""


def times_to(curves: pd.DataFrame, targets: pd.Series, direction: str) -> pd.DataFrame:
    """Return ``steps`` and ``seconds`` of each run that has curves to its first value as good as its target.

    Infinite if there is none, NaN if the run has no target. NaN among the values is never good enough.

    Args:
        curves: as this module describes them.
        targets: of each run.
        direction: which values are good.
    """
    target = curves["run"].map(targets)
    good = curves["value"] <= target if direction == "min" else curves["value"] >= target
    first = curves[good].sort_values("step").drop_duplicates("run").set_index("run")
    found = first[["step", "seconds"]].astype(float).rename(columns={"step": "steps"})
    runs = pd.Index(curves["run"].unique())
    found = found.reindex(runs, fill_value=np.inf)
    return found.where(targets.reindex(runs).notna(), np.nan, axis=0)


def best_by(curves: pd.DataFrame, budgets: pd.Series, direction: str) -> pd.Series:
    """Return the best value of each run by 75 % of its budget, in steps; a run without one by then is left out."""
    early = curves[curves["step"] <= BUDGET * curves["run"].map(budgets)]
    return early.groupby("run")["value"].agg(direction)


def steps_of(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the ``last`` step at which each run was evaluated and the largest ``gap`` between two such steps."""
    ordered = curves[["run", "step"]].drop_duplicates().sort_values(["run", "step"])
    before = ordered.groupby("run")["step"].shift(fill_value=0)
    gaps = ordered.assign(gap=ordered["step"] - before)
    return gaps.groupby("run").agg(last=("step", "max"), gap=("gap", "max"))


def target_of(best: dict[str, Numbers], direction: str) -> float:
    """Return the median over seeds of the best values of that arm where it is best; NaN if none is finite.

    The best of an arm's own whole training would be reached by half of its runs only, and late.

    Args:
        best: of each arm, the best value of each seed by 75 % of the budget, ``(n,)``; infinite if it diverged.
        direction: which values are good.
    """
    medians = [float(np.median(values)) for values in best.values() if len(values)]
    finite = [median for median in medians if np.isfinite(median)]
    return (min if direction == "min" else max)(finite, default=np.nan)


def median(times: Numbers) -> float:
    """Return the median of ``(n,)`` times, infinite where half of them or more are; NaN of none."""
    return float(np.median(times)) if len(times) else np.nan


def time_ratio(arm: Numbers, baseline: Numbers, draws: Draws) -> Estimate:
    """Return the ratio of two arms' median times, with its percentile-bootstrap interval.

    NaN where half of an arm never reaches the target: then the shares that do tell more.

    Args:
        arm, baseline: times, ``(n,)``, seed by seed; infinite where the target was not reached.
        draws: the resamples, in which the seeds of both arms are drawn jointly.
    """
    ours, theirs = median(arm), median(baseline)
    if not (np.isfinite(ours) and np.isfinite(theirs) and theirs > 0):
        return UNKNOWN
    if len(arm) < 2 or not draws.resamples:
        return Estimate(ours / theirs, np.nan, np.nan)
    a, b = (np.median(values[draws.seeds(len(arm))], axis=0) for values in (arm, baseline))
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = percentiles(a / b)
    return Estimate(ours / theirs, max(low, 0.0), high)
