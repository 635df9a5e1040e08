"""Interquartile means and shares with bootstrap intervals, and the coverage of those with few seeds.

Values are ``(n,)``, one of each seed; NaN is not allowed, and a diverged run is infinite. IQM is the
interquartile mean (Agarwal et al. 2021, arXiv:2108.13264). Intervals are pointwise: each holds for itself.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 5000
LEVEL = 0.95
Numbers = NDArray[np.float64]
MOST_DIVERGED = 0.25
"""The share of diverged runs up to which the interquartile mean leaves them out, and is given."""
COVERAGE = {2: 0.48, 3: 0.74, 4: 0.87, 5: 0.90, 6: 0.90, 7: 0.91}
"""Seeds, and the share of 95 % intervals of the interquartile mean that hold the true one: the lowest over normal,
skewed and heavy-tailed runs. Measured by ``benchmarks/simulations.py --only descriptions``."""


class Draws:
    """Seeds drawn with replacement, the same for all statistics of as many seeds.

    What is drawn depends on the generator's state and on the number of seeds alone: neither the order of the
    runs nor the names of the arms move an interval, and seeds are drawn jointly for all arms.
    ``scipy.stats.bootstrap`` draws anew for each statistic, which takes more than ten times as long.

    Args:
        generator: what all is drawn from; it is moved on by one number.
        resamples: R, how often seeds are drawn; 0 makes all intervals NaN.
    """

    def __init__(self, generator: np.random.Generator, resamples: int = RESAMPLES) -> None:
        self.resamples = resamples
        self._root = int(generator.integers(2**63))
        self._kept: dict[tuple[str, int], NDArray] = {}

    def seeds(self, n: int) -> NDArray[np.intp]:
        """Return which of n seeds each resample takes, ``(n, R)``.

        One half of the resamples is the mirror image of the other: the last seed for the first, and so on. So an
        interval is turned around, and is the same otherwise, when the values are, as when two arms are exchanged.
        """
        key = ("seeds", n)
        if key not in self._kept:
            generator = np.random.default_rng([self._root, n, 2])
            half = generator.integers(n, size=(n, (self.resamples + 1) // 2))
            self._kept[key] = np.concatenate((half, n - 1 - half), axis=1)[:, : self.resamples]
        return self._kept[key]

    def middle(self, n: int) -> NDArray[np.intp]:
        """Return the middle half of each resample of n sorted values, ``(n − 2⌊n/4⌋, R)``.

        What is drawn from sorted values is sorted when its indices are: they are sorted once, and no resample is.
        """
        key = ("middle", n)
        if key not in self._kept:
            cut = n // 4
            self._kept[key] = np.ascontiguousarray(np.sort(self.seeds(n), axis=0)[cut : n - cut])
        return self._kept[key]


def percentile_interval(resampled: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval of a statistic from what it is in R resamples, ``(R,)``.

    The ends are resampled values, the next ones outwards, so that an end can be infinite. A resample that has
    no value (∞ − ∞, ∞/∞) counts as −∞ at the lower end and as ∞ at the upper.
    """
    if not len(resampled):
        return np.nan, np.nan
    unknown = np.isnan(resampled)
    ends = []
    for share, outside in (((1 - level) / 2, -np.inf), ((1 + level) / 2, np.inf)):
        place = share * (len(resampled) - 1)
        at = int(np.floor(place) if share < 0.5 else np.ceil(place))
        values = np.where(unknown, outside, resampled) if unknown.any() else resampled
        ends.append(float(np.partition(values, at)[at]))
    return ends[0], ends[1]


class Estimate(NamedTuple):
    """A number with the ends of its interval; NaN where they cannot be given."""

    value: float
    low: float
    high: float


UNKNOWN_ESTIMATE = Estimate(np.nan, np.nan, np.nan)


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


def iqm_estimate(values: Numbers, draws: Draws) -> Estimate:
    """Return the IQM of ``(n,)`` values with its percentile-bootstrap interval.

    NaN if more than a quarter of them diverged; without an interval below two values.
    """
    n = len(values)
    if n == 0 or diverged(values) > MOST_DIVERGED:
        return UNKNOWN_ESTIMATE
    return Estimate(float(iqm(values)), *bootstrap_interval(values, draws))


def bootstrap_interval(values: Numbers, draws: Draws) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of the IQM of ``(n,)`` values."""
    if len(values) < 2 or not draws.resamples:
        return np.nan, np.nan
    with np.errstate(invalid="ignore"):
        return percentile_interval(np.sort(values)[draws.middle(len(values))].mean(axis=0))


def differences(arm: Numbers, baseline: Numbers) -> Numbers:
    """Return ``a − b`` of each seed; two that diverged do not differ."""
    both = np.isinf(arm) & (arm == baseline)
    return np.where(both, 0.0, arm) - np.where(both, 0.0, baseline)


@lru_cache(maxsize=4096)
def share_estimate(count: int, of: int) -> Estimate:
    """Return a share of runs with Wilson's interval."""
    if of == 0:
        return UNKNOWN_ESTIMATE
    found = stats.binomtest(count, of).proportion_ci(LEVEL, method="wilson")
    return Estimate(count / of, float(found.low), float(found.high))


def coverage_of(seeds: int) -> float | None:
    """Return the measured coverage of a 95 % interval where it falls short of that, below 8 seeds."""
    return COVERAGE.get(seeds)
