"""How long runs take to a value that every arm can reach."""

from statistics import median_high, median_low

import numpy as np
import pandas as pd

from normlab.analysis.arms import replicates


def common_target(runs: pd.DataFrame, direction: str) -> float:
    """Return the worst over arms of the best value that the arm's median seed reached.

    Of an even number of seeds the worse of the middle two counts, so that more than half of them get there
    and their median time is finite. An arm whose median seed diverged is left out; NaN if that leaves none.

    Args:
        runs: with the columns ``arm``, ``seed`` and ``best``.
        direction: ``min`` or ``max``, whichever is good.
    """
    median, worst = (median_high, max) if direction == "min" else (median_low, min)
    medians = [median(group.tolist()) for _, group in replicates(runs).groupby("arm")["best"]]
    return worst(filter(np.isfinite, medians), default=np.nan)


def epochs_to_target(curves: pd.DataFrame, target: float, direction: str) -> pd.Series:
    """Return, by run, the first epoch with a value at least as good as ``target``, infinite if there is none.

    Args:
        curves: of one metric, with the columns ``run``, ``epoch`` and ``value``; NaN is never good enough.
        target: the value to reach.
        direction: ``min`` or ``max``, whichever is good.
    """
    good = curves["value"] <= target if direction == "min" else curves["value"] >= target
    first = curves[good].groupby("run")["epoch"].min()
    return first.reindex(curves["run"].unique()).astype(float).fillna(np.inf)
