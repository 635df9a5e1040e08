"""What an arm reached and how two arms differ, each with its 95 % interval.

Values are ``(n,)``, one of each seed; NaN is not allowed, and a diverged run is infinite. IQM is the
interquartile mean (Agarwal et al. 2021, arXiv:2108.13264). Intervals are pointwise: each holds for itself.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from normlab.analysis.resampling import LEVEL, Draws, percentiles

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


def interval(values: Numbers, draws: Draws, sample: int = 0) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of the IQM of ``(n,)`` values."""
    if len(values) < 2 or not draws.resamples:
        return np.nan, np.nan
    return percentiles(resampled(values, draws, sample))


def resampled(values: Numbers, draws: Draws, sample: int = 0) -> Numbers:
    """Return the IQM of each resample of ``(n,)`` values, ``(R,)``."""
    with np.errstate(invalid="ignore"):
        return np.sort(values)[draws.middle(len(values), sample)].mean(axis=0)


def differences(arm: Numbers, baseline: Numbers) -> Numbers:
    """Return ``a − b`` of each seed; two that diverged do not differ."""
    both = np.isinf(arm) & (arm == baseline)
    return np.where(both, 0.0, arm) - np.where(both, 0.0, baseline)


def difference(arm: Numbers, baseline: Numbers, paired: bool, draws: Draws) -> Estimate:
    """Return how far an arm is above the baseline: ``IQM(a − b)`` of paired values, else ``IQM(a) − IQM(b)``.

    NaN if more than a quarter of either diverged.

    Args:
        arm, baseline: a and b, ``(n,)``, seed by seed if they are paired.
        paired: whether they are; else the seeds of either are drawn for themselves.
        draws: the resamples.
    """
    if not len(arm) or not len(baseline) or max(diverged(arm), diverged(baseline)) > MOST_DIVERGED:
        return UNKNOWN
    if paired:
        d = differences(arm, baseline)
        return Estimate(float(iqm(d)), *interval(d, draws))
    with np.errstate(invalid="ignore"):
        value = float(iqm(arm) - iqm(baseline))
        if min(len(arm), len(baseline)) < 2:
            return Estimate(value, np.nan, np.nan)
        return Estimate(value, *percentiles(resampled(arm, draws) - resampled(baseline, draws, sample=1)))


def ratio(arm: Numbers, baseline: Numbers, paired: bool, draws: Draws) -> Estimate:
    """Return how many times the baseline an arm is: ``exp(IQM(log a − log b))`` of paired values.

    Unpaired, ``exp(IQM(log a) − IQM(log b))``. NaN if a value is not positive, a diverged run apart, which
    counts as ∞ or, where it is −∞, as 0.
    """
    if any((values[np.isfinite(values)] <= 0).any() for values in (arm, baseline)):
        return UNKNOWN
    a, b = (np.log(values, out=values.astype(float), where=np.isfinite(values)) for values in (arm, baseline))
    with np.errstate(over="ignore"):
        return Estimate(*(float(np.exp(end)) for end in difference(a, b, paired, draws)))


def improvement(arm: Numbers, baseline: Numbers, paired: bool, draws: Draws) -> Estimate:
    r"""Return the probability that a run of an arm is better than one of the baseline, over all pairs.

    :math:`P = \frac{1}{nm}\sum_{ij} [a_i < b_j] + \frac12 [a_i = b_j]` of losses, seeds of paired arms drawn
    jointly. Percentiles of P end at 1 when no run of the sample is worse, and miss the truth: the interval is
    Wilson's, with :math:`P(1 - P)/\mathrm{var}` in the place of the number of trials, var that of P in the
    resamples, times n/(n − 1).

    Args:
        arm, baseline: losses, small is good: a ``(n,)`` and b ``(m,)``.
        paired: whether ``a[i]`` and ``b[i]`` are of one seed.
        draws: the resamples.
    """
    n, m = len(arm), len(baseline)
    if not n or not m:
        return UNKNOWN
    wins = (arm[:, None] < baseline) + 0.5 * (arm[:, None] == baseline)
    p = float(wins.mean())
    if min(n, m) < 2 or not draws.resamples:
        return Estimate(p, np.nan, np.nan)
    ours, theirs = draws.counts(n), draws.counts(m, sample=0 if paired else 1)
    again = ((ours @ wins) * theirs).sum(axis=1) / (n * m)
    least = min(n, m)
    variance = float(again.var()) * least / (least - 1)
    trials = min(p * (1 - p) / variance, n * m) if variance > 0 else least
    return Estimate(p, *wilson(p, trials))


def wilson(p: float, trials: float) -> tuple[float, float]:
    """Return Wilson's interval of a probability that was found to be p in a number of trials, whole or not."""
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    centre, scale = p + z * z / (2 * trials), 1 + z * z / trials
    reach = z * np.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2)
    return max(0.0, float((centre - reach) / scale)), min(1.0, float((centre + reach) / scale))


@lru_cache(maxsize=4096)
def share(count: int, of: int) -> Estimate:
    """Return a share of runs with Wilson's interval."""
    if of == 0:
        return UNKNOWN
    found = stats.binomtest(count, of).proportion_ci(LEVEL, method="wilson")
    return Estimate(count / of, float(found.low), float(found.high))
