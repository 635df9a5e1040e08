"""The exact Wilcoxon signed-rank test, and the Hodges–Lehmann estimate with its interval.

The entry is :func:`paired_test`, which combines both.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from normlab.stats.estimates import Numbers

Counts = NDArray[np.int64]
TWO_SIDED, GREATER, LESS = "two-sided", "greater", "less"
DIGITS, FINE_DIGITS = 9, 12
"""Significant digits of differences, and of numbers computed from them, so that rounding errors break no tie."""
MOST_INFINITE = 1 - 1 / math.sqrt(2)
"""The largest share of infinite differences, 29 %, for which an estimate is computed.

If a share q of the differences is infinite, a share ``(1 − q)²`` of the averages of two differences is finite.
Their median is certainly finite only if that is at least one half, that is, if ``q ≤ 1 − 1/√2``.
"""
SEARCHED = 6
"""Number of shifts that are tested at once in the search for an end of the interval."""


def signed_rank(differences: ArrayLike, shift: ArrayLike = 0.0, alternative: str = TWO_SIDED) -> Numbers:
    r"""Return p of the exact Wilcoxon signed-rank test of symmetry about a shift θ.

    With :math:`e_i = d_i - \theta` and the midrank :math:`r_i` of :math:`|e_i|` among all n, zeros included:

    .. math::
        W = \sum_{i: e_i > 0} r_i, \qquad
        p_> = P\Big(\sum_{i: e_i \ne 0} b_i r_i \ge W\Big), \quad b_i \in \{0, 1\} \text{ fair coins},

    ``p = min(1, 2 min(p_>, p_<))`` two-sided. Zeros are ranked and then dropped (Pratt 1959), so that :math:`p_>`
    increases with θ and the test can be inverted. The null distribution is conditional on the midranks, ties and
    zeros, so that p is exact for every n. Infinite differences share the highest ranks. Differences are rounded
    to 9 significant digits, so that rounding errors break no tie.

    ``scipy.stats.wilcoxon`` computes exact p-values only without ties and zeros; with them it enumerates or
    samples sign flips.

    Args:
        differences: d, ``(..., n)``; ±∞ where one run of a pair diverged, 0 where both did.
        shift: θ, a number or ``(..., 1)``.
        alternative: ``two-sided``, ``greater`` (differences lie above θ) or ``less``.

    Returns:
        p, ``(...)``; 1 if all differences are 0.

    Raises:
        ValueError: a difference is NaN, or the alternative is unknown.

    Wilcoxon (1945), Individual comparisons by ranking methods. Pratt (1959), Remarks on zeros and ties in the
    Wilcoxon signed rank procedures, JASA 54.
    """
    if alternative not in (TWO_SIDED, GREATER, LESS):
        raise ValueError(f"alternative must be {TWO_SIDED}, {GREATER} or {LESS}, got {alternative!r}")
    shifted = checked(differences) - np.asarray(shift)
    if not shifted.size:
        return np.ones(shifted.shape[:-1])
    ranks = doubled_signed_ranks(shifted)
    flat = ranks.reshape(-1, ranks.shape[-1])
    above, below = (np.where(side * flat > 0, np.abs(flat), 0).sum(axis=1) for side in (1, -1))
    statistics = {GREATER: above, LESS: below, TWO_SIDED: np.maximum(above, below)}
    p = upper_tails(np.sort(np.abs(flat), axis=1), statistics[alternative])
    return (np.minimum(1.0, 2 * p) if alternative == TWO_SIDED else p).reshape(ranks.shape[:-1])


def checked(differences: ArrayLike) -> Numbers:
    """Return differences rounded to 9 significant digits; raise ``ValueError`` if one is NaN."""
    d = np.asarray(differences, dtype=float)
    if np.isnan(d).any():
        raise ValueError("differences must be numbers, got NaN; leave out pairs with a missing value")
    return rounded(d, DIGITS)


def rounded(values: Numbers, digits: int) -> Numbers:
    """Round to significant decimal digits, so that values within a rounding error become equal.

    >>> rounded(np.array([0.95 - 0.94, -2 / 3, 0.0, np.inf]), 3).tolist()
    [0.01, -0.667, 0.0, inf]
    """
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        magnitude = np.floor(np.log10(np.abs(values)))
        places = np.clip(np.where(np.isfinite(magnitude), digits - 1 - magnitude, 0), -300, 300)
        # Dividing by the scale is exact to the last bit; multiplying by its inverse is not.
        scale = 10.0 ** np.abs(places)
        finer, coarser = np.round(values * scale) / scale, np.round(values / scale) * scale
    return np.where(np.isfinite(magnitude), np.where(places >= 0, finer, coarser), values)


def doubled_signed_ranks(differences: Numbers) -> Counts:
    """Return twice the midrank of each ``|d|``, with the sign of d, as integers; 0 where d is 0.

    >>> doubled_signed_ranks(np.array([0.0, -1.0, 2.0, 2.0, np.inf])).tolist()
    [0, -4, 7, 7, 10]
    """
    sizes = rounded(np.abs(differences), FINE_DIGITS)
    doubled = np.rint(2 * stats.rankdata(sizes, axis=-1)).astype(np.int64)
    return doubled * np.sign(differences).astype(np.int64)


def upper_tails(ranks: Counts, statistics: Counts) -> Numbers:
    """Return the null probability ``P(W ≥ statistic)`` for each row, ``(N,)``.

    Args:
        ranks: sorted doubled ranks, ``(N, n)``; rows with the same ties and zeros share one distribution.
        statistics: sums of doubled ranks, ``(N,)``.
    """
    p = np.ones(len(ranks))
    patterns, which = np.unique(ranks, axis=0, return_inverse=True)
    for pattern, row in enumerate(patterns):
        of_pattern = which.ravel() == pattern
        p[of_pattern] = null_tail(tuple(row[row > 0].tolist()))[statistics[of_pattern]]
    return p


@lru_cache(maxsize=128)
def null_tail(ranks: tuple[int, ...]) -> Numbers:
    """Return the null probabilities P(W ≥ w) for w = 0 … S, with S the sum of the ranks.

    W includes each rank with probability one half. Computed by convolution: each rank r turns the distribution
    f(w) into ``(f(w) + f(w − r)) / 2``.

    >>> null_tail((2, 4)).tolist()  # the sums 0, 2, 4 and 6
    [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
    """
    probabilities = np.zeros(sum(ranks) + 1)
    probabilities[0] = 1.0
    reached = 0
    for rank in ranks:
        reached += rank
        chosen = probabilities[: reached - rank + 1] / 2
        probabilities[: reached + 1] /= 2
        probabilities[rank : reached + 1] += chosen
    tail = np.cumsum(probabilities[::-1])[::-1]
    tail.flags.writeable = False
    return tail


def attainable_p(differences: ArrayLike) -> float:
    """Return the smallest two-sided p possible with these zeros: ``2 / 2^m`` for m nonzero differences.

    Ties do not matter, as the largest sum requires equal signs of all m.

    >>> attainable_p([0, 0, 0, 1, 2, 2, -4, 5])  # 8 pairs with 3 zeros
    0.0625
    """
    return float(min(1.0, 2.0 ** (1 - np.count_nonzero(checked(differences)))))


class Interval(NamedTuple):
    """An estimate of a shift with its confidence interval, the set of shifts that a test does not reject.

    Attributes:
        value: the estimate.
        low, high: the ends of the interval; may be infinite.
        has_low, has_high: whether the interval includes each end.
    """

    value: float
    low: float
    high: float
    has_low: bool = True
    has_high: bool = True

    def excludes(self, shift: float) -> bool:
        """Return True if a shift is outside the interval, that is, rejected; False if the ends are NaN."""
        return self.is_above(shift) or self.is_below(shift)

    def is_above(self, limit: float) -> bool:
        """Return True if the whole interval is strictly above a limit."""
        return limit < self.low or (limit == self.low and not self.has_low)

    def is_below(self, limit: float) -> bool:
        """Return True if the whole interval is strictly below a limit."""
        return limit > self.high or (limit == self.high and not self.has_high)


NO_INTERVAL = Interval(math.nan, math.nan, math.nan)


class PairedTest(NamedTuple):
    """The result of the signed-rank test of paired differences.

    Attributes:
        p: the two-sided p-value.
        shift: the Hodges–Lehmann estimate with the interval of the test.
    """

    p: float
    shift: Interval


def paired_test(values: ArrayLike, level: float = 0.95) -> PairedTest:
    """Test paired differences ``(n,)`` against 0 and estimate their shift, both by the signed-rank test."""
    return PairedTest(float(signed_rank(values)), pseudomedian(values, level))


def pseudomedian(differences: ArrayLike, level: float = 0.95) -> Interval:
    r"""Return the Hodges–Lehmann estimate of paired differences and the interval of the signed-rank test.

    .. math::
        \hat\theta = \mathrm{median}_{i \le j}\, \frac{d_i + d_j}{2}, \qquad
        \{\theta : p(\theta) > 1 - \mathrm{level}\}

    with the two-sided p(θ) of :func:`~normlab.stats.signed_rank.signed_rank`. p changes only at the averages, and
    each of its one-sided values is monotone in θ, also with ties, zeros and infinite differences. So the set is an
    interval whose ends are averages of two finite differences or ±∞, and it excludes θ if and only if the test
    rejects θ. An average of ∞ and −∞ counts one half as ∞ and one half as −∞. Everything is NaN if more than 29 %
    of the differences are infinite, see ``MOST_INFINITE``.

    If most differences are 0, the estimate is 0 and may be an end that the test rejects, as zeros are dropped.

    SciPy's ``wilcoxon`` returns neither the estimate nor an interval.

    Args:
        differences: d, ``(n,)``, as in ``signed_rank``.
        level: the confidence level, between 0 and 1.

    Hodges and Lehmann (1963), Estimates of location based on rank tests, Ann. Math. Statist. 34.
    """
    d = checked(differences)
    value = shift_estimate(d)
    if math.isnan(value):
        return NO_INTERVAL
    averages = np.unique(walsh_averages(d))
    low, has_low = lower_end(d, averages, (1 - level) / 2)
    high, has_high = lower_end(-d, -averages[::-1], (1 - level) / 2)
    return Interval(value, low + 0.0, 0.0 - high, has_low, has_high)  # no −0


def shift_estimate(differences: ArrayLike) -> float:
    """Return the Hodges–Lehmann estimate of differences ``(n,)``; NaN if over 29 % are infinite."""
    d = checked(differences)
    return hodges_lehmann(d) + 0.0 if len(d) and np.isinf(d).mean() <= MOST_INFINITE else math.nan  # no −0


def walsh_averages(differences: Numbers) -> Numbers:
    """Return ``(d_i + d_j) / 2`` for all i ≤ j of the m finite differences, ``(m(m + 1)/2,)``."""
    finite = differences[np.isfinite(differences)]
    first, second = np.triu_indices(len(finite))
    return rounded(finite[first] / 2 + finite[second] / 2, FINE_DIGITS)


def hodges_lehmann(differences: Numbers) -> float:
    """Return the median of the Walsh averages, finite if at most 29 % of the differences are infinite."""
    n, up, down = len(differences), (differences == np.inf).sum(), (differences == -np.inf).sum()
    finite = np.sort(walsh_averages(differences))
    # Doubled, so that each average of ∞ and −∞ counts once on either side.
    below = int(2 * down * (n - up - down) + down * (down + 1) + up * down)
    middle = n * (n + 1) // 2
    low, high = ((rank - below) // 2 for rank in (middle - 1, middle))
    return float(rounded(finite[low] / 2 + finite[high] / 2, FINE_DIGITS))


def lower_end(differences: Numbers, averages: Numbers, tail: float) -> tuple[float, bool]:
    """Return the infimum of the shifts that the one-sided test accepts, and whether it is accepted.

    Args:
        differences: d, ``(n,)``.
        averages: the sorted, unique averages of two finite differences, ``(m,)``; p is constant between them.
        tail: the largest p that rejects.
    """
    outside = np.abs(averages[[0, -1]]) + 1
    between = np.concatenate(
        [averages[:1] - outside[0], averages[:-1] / 2 + averages[1:] / 2, averages[-1:] + outside[1]]
    )

    def rejected(shifts: Numbers) -> NDArray[np.bool_]:
        return signed_rank(differences, shifts[:, None], GREATER) <= tail

    first, last = 0, len(averages)  # above the largest average, p > 1/2 and nothing is rejected
    while first < last:  # bisection, with several shifts at once
        candidates = np.unique(np.linspace(first, last - 1, SEARCHED).astype(int))
        count = int(rejected(between[candidates]).sum())
        last = int(candidates[count]) if count < len(candidates) else last
        first = int(candidates[count - 1]) + 1 if count else first
    if first == 0:
        return -math.inf, True
    end = averages[first - 1]
    return float(end), not rejected(end[None])[0]
