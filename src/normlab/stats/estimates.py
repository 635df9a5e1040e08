"""Interquartile means and shares of runs, each with its 95 % interval.

Values are ``(n,)``, one of each seed; NaN is not allowed, and a diverged run is infinite. IQM is the
interquartile mean (Agarwal et al. 2021, arXiv:2108.13264). Intervals are pointwise: each holds for itself.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from normlab.stats.resampling import LEVEL, Draws, percentiles

Numbers = NDArray[np.float64]
MOST_DIVERGED = 0.25
"""The share of diverged runs up to which the interquartile mean leaves them out, and is given."""


class Estimate(NamedTuple):
    """A number with the ends of its interval; NaN where they cannot be given."""

    value: float
    low: float
    high: float


UNKNOWN = Estimate(np.nan, np.nan, np.nan)


def iqm(values: Numbers) -> Numbers:
    """Return the interquartile mean along the last axis: of what is left without ⌊n/4⌋ values at either end.

    ``scipy.stats.trim_mean(values, 0.25)``, whose half millisecond a call is most of what a sweep's numbers took.
    """
    cut = values.shape[-1] // 4
    with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN, as it should be
        return np.asarray(np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1))


def diverged(values: Numbers) -> float:
    """Return the share of values that are infinite."""
    return float(np.isinf(values).mean()) if len(values) else np.nan


def mean(values: Numbers, draws: Draws) -> Estimate:
    """Return the IQM of ``(n,)`` values with its percentile-bootstrap interval.

    NaN if more than a quarter of them diverged; without an interval below two values.
    """
    n = len(values)
    if n == 0 or diverged(values) > MOST_DIVERGED:
        return UNKNOWN
    return Estimate(float(iqm(values)), *interval(values, draws))


def interval(values: Numbers, draws: Draws) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of the IQM of ``(n,)`` values."""
    if len(values) < 2 or not draws.resamples:
        return np.nan, np.nan
    with np.errstate(invalid="ignore"):
        return percentiles(np.sort(values)[draws.middle(len(values))].mean(axis=0))


def differences(arm: Numbers, baseline: Numbers) -> Numbers:
    """Return ``a − b`` of each seed; two that diverged do not differ."""
    both = np.isinf(arm) & (arm == baseline)
    return np.where(both, 0.0, arm) - np.where(both, 0.0, baseline)


@lru_cache(maxsize=4096)
def share(count: int, of: int) -> Estimate:
    """Return a share of runs with Wilson's interval."""
    if of == 0:
        return UNKNOWN
    found = stats.binomtest(count, of).proportion_ci(LEVEL, method="wilson")
    return Estimate(count / of, float(found.low), float(found.high))
