"""Outcomes of runs, paired differences, and interquartile means and shares with their intervals.

Values are ``(n,)``, one per seed; NaN is not allowed, and a diverged run is infinite. IQM is the interquartile
mean (Agarwal et al. 2021, arXiv:2108.13264). The intervals are pointwise: not corrected for their number.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 5000
LEVEL = 0.95
Numbers = NDArray[np.float64]
MOST_DIVERGED = 0.25
"""The largest share of diverged runs for which an interquartile mean is computed; it trims them."""
COVERAGE = {2: 0.48, 3: 0.74, 4: 0.87, 5: 0.90, 6: 0.90, 7: 0.91}
"""Actual coverage of the nominal 95 % interval of the IQM, by number of seeds: the lowest over normal, skewed and
heavy-tailed runs. Measured by ``benchmarks/simulations.py --only descriptions``."""


class Resampler:
    """Bootstrap resamples of seeds, shared by all statistics of the same number of seeds.

    The resamples depend only on the generator's state and on the number of seeds: neither the order of the runs
    nor the names of the arms change an interval, and all arms are resampled jointly. ``scipy.stats.bootstrap``
    resamples for each statistic, which takes more than ten times as long.

    Args:
        generator: source of the root seed; one number is drawn from it.
        resamples: R, the number of resamples; 0 makes all intervals NaN.
    """

    def __init__(self, generator: np.random.Generator, resamples: int = RESAMPLES) -> None:
        self.resamples = resamples
        self._root = int(generator.integers(2**63))
        self._kept: dict[tuple[str, int], NDArray] = {}

    def seeds(self, n: int) -> NDArray[np.intp]:
        """Return the indices of the seeds in each resample of n seeds, ``(n, R)``.

        One half of the resamples mirrors the other: index i becomes n − 1 − i. So negating the values, or
        exchanging two arms, mirrors the interval exactly.
        """
        key = ("seeds", n)
        if key not in self._kept:
            generator = np.random.default_rng([self._root, n, 2])
            half = generator.integers(n, size=(n, (self.resamples + 1) // 2))
            self._kept[key] = np.concatenate((half, n - 1 - half), axis=1)[:, : self.resamples]
        return self._kept[key]

    def middle(self, n: int) -> NDArray[np.intp]:
        """Return the indices of the middle half of each resample of n sorted values, ``(n − 2⌊n/4⌋, R)``.

        Sorted indices into sorted values give sorted resamples, so only the indices are sorted, once.
        """
        key = ("middle", n)
        if key not in self._kept:
            cut = n // 4
            self._kept[key] = np.ascontiguousarray(np.sort(self.seeds(n), axis=0)[cut : n - cut])
        return self._kept[key]


def percentile_interval(resampled: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval of a statistic from its R resampled values, ``(R,)``.

    Quantiles are rounded outwards to resampled values instead of interpolated, so that an end can be infinite.
    NaN (from ∞ − ∞ or ∞/∞) counts as −∞ at the lower end and as ∞ at the upper end.
    """
    if not len(resampled):
        return np.nan, np.nan
    unknown = np.isnan(resampled)
    ends = []
    for share, outside in (((1 - level) / 2, -np.inf), ((1 + level) / 2, np.inf)):
        position = share * (len(resampled) - 1)
        at = int(np.floor(position) if share < 0.5 else np.ceil(position))
        values = np.where(unknown, outside, resampled) if unknown.any() else resampled
        ends.append(float(np.partition(values, at)[at]))
    return ends[0], ends[1]


class Estimate(NamedTuple):
    """An estimate with the ends of its interval; NaN if unknown."""

    value: float
    low: float
    high: float


UNKNOWN_ESTIMATE = Estimate(np.nan, np.nan, np.nan)


def iqm(values: Numbers) -> Numbers:
    """Return the mean along the last axis without the ⌊n/4⌋ smallest and ⌊n/4⌋ largest values.

    Equals ``scipy.stats.trim_mean(values, 0.25)``, which takes half a millisecond a call: too slow for a sweep.
    """
    cut = values.shape[-1] // 4
    with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN, as intended
        return np.asarray(np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1))


def diverged_share(values: Numbers) -> float:
    """Return the share of infinite values; NaN without values."""
    return float(np.isinf(values).mean()) if len(values) else np.nan


def iqm_estimate(values: Numbers, resampler: Resampler) -> Estimate:
    """Return the IQM of ``(n,)`` values with its percentile-bootstrap interval.

    NaN if more than a quarter of the runs diverged. The interval is NaN below two values.
    """
    n = len(values)
    if n == 0 or diverged_share(values) > MOST_DIVERGED:
        return UNKNOWN_ESTIMATE
    return Estimate(float(iqm(values)), *bootstrap_interval(values, resampler))


def bootstrap_interval(values: Numbers, resampler: Resampler) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of the IQM of ``(n,)`` values."""
    if len(values) < 2 or not resampler.resamples:
        return np.nan, np.nan
    with np.errstate(invalid="ignore"):
        return percentile_interval(np.sort(values)[resampler.middle(len(values))].mean(axis=0))


def differences(arm: Numbers, baseline: Numbers) -> Numbers:
    """Return ``a − b`` for each seed; 0 if both diverged."""
    both = np.isinf(arm) & (arm == baseline)
    return np.where(both, 0.0, arm) - np.where(both, 0.0, baseline)


@lru_cache(maxsize=4096)
def share_estimate(count: int, of: int) -> Estimate:
    """Return the share ``count / of`` with Wilson's interval."""
    if of == 0:
        return UNKNOWN_ESTIMATE
    interval = stats.binomtest(count, of).proportion_ci(LEVEL, method="wilson")
    return Estimate(count / of, float(interval.low), float(interval.high))


def coverage_of(seeds: int) -> float | None:
    """Return the actual coverage of a nominal 95 % interval below 8 seeds; None from 8 seeds on."""
    return COVERAGE.get(seeds)


def quartiles(values: Numbers, required: Numbers | float | None = None) -> Numbers:
    """Return the quartiles over seeds, ``(3, n)``, of ``values``, ``(n x seeds)``.

    They are NaN where fewer than ``required`` values are known, by default half of the seeds. Infinite values are
    allowed, unlike in ``np.nanquantile``.

    >>> x = np.array([[1.0, 3.0, 2.0], [1.0, np.inf, 2.0], [5.0, np.nan, 3.0], [5.0, np.nan, np.nan]])
    >>> quartiles(x, np.array([3, 3, 2, 2])).T.tolist()
    [[1.5, 2.0, 2.5], [1.5, 2.0, inf], [3.5, 4.0, 4.5], [nan, nan, nan]]
    """
    known = (~np.isnan(values)).sum(axis=1)
    ordered = np.sort(values, axis=1)
    position = np.maximum(known - 1, 0) * np.array([[0.25, 0.5, 0.75]]).T
    below, above = (
        np.take_along_axis(ordered, rounded(position).astype(int).T, axis=1).T for rounded in (np.floor, np.ceil)
    )
    with np.errstate(invalid="ignore"):
        weight = position % 1
        result = np.where(below == above, below, (1 - weight) * below + weight * above)
    result[:, known < (max(1, values.shape[1] / 2) if required is None else required)] = np.nan
    return result


LAST = 0.1
"""The share of a run's epochs over which its outcome is averaged."""


def final_mean(values: ArrayLike, epochs: ArrayLike) -> Numbers:
    r"""Return the mean of a metric over the last 10 % of each run's own epochs, at least one.

    .. math:: \frac{1}{|L|} \sum_{e \in L} v_e, \qquad L = \{e : 0.9\,E < e \le E\}, \; e = 1, 2, \dots

    The minimum over epochs would favour noise: of two arms with equal expectations, the noisier one has the lower
    minimum. A mean over a fixed part of the training is unbiased.

    Args:
        values: v, ``(..., T)``, the metric after each epoch; NaN where it was not evaluated.
        epochs: E, ``(...)``, the number of epochs of each run, from 1 to T.

    Returns:
        The means, ``(...)``: ±∞ if a value up to E is infinite (the run diverged), the last known value if none of
        the last 10 % was evaluated, NaN if no value is known.

    Raises:
        ValueError: a number of epochs is outside 1 to T.
    """
    v, budget = np.asarray(values, dtype=float), np.asarray(epochs)[..., None]
    if not v.size:
        return np.full(v.shape[:-1], np.nan)
    if budget.size and not (budget.min() >= 1 and budget.max() <= v.shape[-1]):
        raise ValueError(
            f"epochs must be from 1 to {v.shape[-1]}, the number of values of each run, "
            f"got {budget.min()} to {budget.max()}"
        )
    epoch = np.arange(1, v.shape[-1] + 1)
    known = ~np.isnan(v) & (epoch <= budget)
    newest = np.where(known, epoch, 0).max(axis=-1, keepdims=True)
    # 10 e > 9 E in integers, because 0.9 E is not exact in binary.
    in_window = known & ((10 * epoch > 9 * budget) | (epoch == newest))
    infinite = np.where(known & np.isinf(v), v, 0.0)
    worst = np.take_along_axis(infinite, np.abs(infinite).argmax(axis=-1, keepdims=True), axis=-1)[..., 0]
    count = in_window.sum(axis=-1)
    sums = np.where(in_window & np.isfinite(v), v, 0.0).sum(axis=-1)
    means = np.divide(sums, count, out=np.full(count.shape, np.nan), where=count > 0)
    return np.where(worst == 0, means, worst)


def log_ratios(arm: ArrayLike, baseline: ArrayLike) -> Numbers:
    """Return ``log(a / b)`` of paired losses, ``(n,)``; 0 where both diverged.

    Raises:
        ValueError: a loss is not positive.
    """
    a, b = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    if (a <= 0).any() or (b <= 0).any():
        least = min(float(a.min()), float(b.min()))
        raise ValueError(
            f"losses must be positive for a log ratio, got {least}; compare their differences instead"
        )
    return differences(np.log(a), np.log(b))


def point_differences(arm: ArrayLike, baseline: ArrayLike) -> Numbers:
    """Return ``100 (a − b)`` of paired shares such as accuracies, in percentage points, ``(n,)``.

    Rounded to 1e-9 points, so that rounding errors neither break ties nor turn a 0 into a difference.

    >>> point_differences([0.95, 0.3], [0.94, 0.1 + 0.2]).tolist()
    [1.0, 0.0]
    """
    a, b = (100 * np.asarray(values, dtype=float) for values in (arm, baseline))
    return np.round(differences(a, b), 9) + 0.0  # no −0
