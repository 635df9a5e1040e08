"""How large a paired difference is: the Hodges–Lehmann estimate with the interval of the signed-rank test.

The entry is :func:`paired_test`, the test and the estimate together.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normlab.stats.signed_rank import FINE_DIGITS, GREATER, known, rounded, signed_rank

Numbers = NDArray[np.float64]
MOST_INFINITE = 1 - 1 / math.sqrt(2)
"""The share of infinite differences, 29 %, up to which an estimate is given.

Of the averages of two differences, a share ``(1 − q)²`` is finite when a share q of the differences is infinite.
Their median is finite for certain only where that is at least one half, that is, up to ``q = 1 − 1/√2``.
"""

SEARCHED = 6
"""Shifts that are tested at once in the search for an end."""


class Interval(NamedTuple):
    """An estimate of a shift with the set of shifts that a test does not reject.

    Attributes:
        value: the estimate.
        low, high: the ends of the interval; may be infinite.
        has_low, has_high: whether each end is in the interval itself.
    """

    value: float
    low: float
    high: float
    has_low: bool = True
    has_high: bool = True

    def excludes(self, shift: float) -> bool:
        """Return whether a shift is outside the interval: the test rejects it. False without an interval."""
        return self.is_above(shift) or self.is_below(shift)

    def is_above(self, limit: float) -> bool:
        """Return whether all of the interval is above a limit, which is not in it."""
        return limit < self.low or (limit == self.low and not self.has_low)

    def is_below(self, limit: float) -> bool:
        """Return whether all of the interval is below a limit, which is not in it."""
        return limit > self.high or (limit == self.high and not self.has_high)


NO_INTERVAL = Interval(math.nan, math.nan, math.nan)


class PairedTest(NamedTuple):
    """The signed-rank test of paired differences.

    Attributes:
        p: two-sided.
        shift: the Hodges–Lehmann estimate with the interval of the test.
    """

    p: float
    shift: Interval


def paired_test(values: ArrayLike, level: float = 0.95) -> PairedTest:
    """Test paired differences ``(n,)`` against 0 and estimate them, both by the signed-rank test."""
    return PairedTest(float(signed_rank(values)), pseudomedian(values, level))


def pseudomedian(differences: ArrayLike, level: float = 0.95) -> Interval:
    r"""Return the Hodges–Lehmann estimate of paired differences and the interval of the signed-rank test.

    .. math::
        \hat\theta = \mathrm{median}_{i \le j}\, \frac{d_i + d_j}{2}, \qquad
        \{\theta : p(\theta) > 1 - \mathrm{level}\}

    with p(θ) of :func:`~normlab.stats.signed_rank.signed_rank`, two-sided. p changes only at the averages, and
    each of its two sides is monotone in θ, also with ties, zeros and infinite differences. So the set is an
    interval, its ends are averages of two finite differences or ±∞, and it excludes θ exactly if the test rejects
    θ. An average of ∞ and −∞ counts one half on either side. None is given if more than 29 % of the differences
    are infinite, see ``MOST_INFINITE``.

    Where most differences are 0 the estimate is 0 and may be an end that the test rejects, for zeros are dropped.

    SciPy's ``wilcoxon`` gives neither the estimate nor an interval.

    Args:
        differences: d, ``(n,)``, as in ``signed_rank``.
        level: the confidence, between 0 and 1.

    Hodges and Lehmann (1963), Estimates of location based on rank tests, Ann. Math. Statist. 34.
    """
    d = known(differences)
    value = shift_estimate(d)
    if math.isnan(value):
        return NO_INTERVAL
    averages = np.unique(walsh_averages(d))
    low, has_low = lower_end(d, averages, (1 - level) / 2)
    high, has_high = lower_end(-d, -averages[::-1], (1 - level) / 2)
    return Interval(value, low + 0.0, 0.0 - high, has_low, has_high)  # no −0


def shift_estimate(differences: ArrayLike) -> float:
    """Return the Hodges–Lehmann estimate of differences ``(n,)``; NaN if more than 29 % of them are infinite."""
    d = known(differences)
    return hodges_lehmann(d) + 0.0 if len(d) and np.isinf(d).mean() <= MOST_INFINITE else math.nan  # no −0


def walsh_averages(differences: Numbers) -> Numbers:
    """Return ``(d_i + d_j) / 2`` of all i ≤ j of the finite differences, ``(m(m + 1)/2,)``."""
    finite = differences[np.isfinite(differences)]
    first, second = np.triu_indices(len(finite))
    return rounded(finite[first] / 2 + finite[second] / 2, FINE_DIGITS)


def hodges_lehmann(differences: Numbers) -> float:
    """Return the median of the averages of two differences; at most 29 % of them are infinite, so it is finite."""
    n, up, down = len(differences), (differences == np.inf).sum(), (differences == -np.inf).sum()
    finite = np.sort(walsh_averages(differences))
    # Doubled, so that each average of ∞ and −∞ counts once on either side.
    below = int(2 * down * (n - up - down) + down * (down + 1) + up * down)
    middle = n * (n + 1) // 2
    low, high = ((place - below) // 2 for place in (middle - 1, middle))
    return float(rounded(finite[low] / 2 + finite[high] / 2, FINE_DIGITS))


def lower_end(differences: Numbers, averages: Numbers, tail: float) -> tuple[float, bool]:
    """Return the smallest shift that the one-sided test does not reject, and whether that shift itself is not.

    Args:
        differences: d, ``(n,)``.
        averages: of two finite differences, sorted and unique, ``(m,)``: between two of them p is constant.
        tail: the largest p that rejects.
    """
    outside = np.abs(averages[[0, -1]]) + 1
    between = np.concatenate(
        [averages[:1] - outside[0], averages[:-1] / 2 + averages[1:] / 2, averages[-1:] + outside[1]]
    )

    def rejected(shifts: Numbers) -> NDArray[np.bool_]:
        return signed_rank(differences, shifts[:, None], GREATER) <= tail

    first, last = 0, len(averages)  # above the largest average p is over one half and rejects nothing
    while first < last:  # bisection, with several shifts at once
        places = np.unique(np.linspace(first, last - 1, SEARCHED).astype(int))
        count = int(rejected(between[places]).sum())
        last = int(places[count]) if count < len(places) else last
        first = int(places[count - 1]) + 1 if count else first
    if first == 0:
        return -math.inf, True
    end = averages[first - 1]
    return float(end), not rejected(end[None])[0]
