"""Tests whether an effect lies in a region, in both directions; the entry is :func:`region_test`.

A region is an open interval, half a line or bounded. Its test has two p-values: of the null hypothesis that the
effect is outside, and of the one that it is inside. Both are compared with 5 %.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from normlab.stats.comparison import ALPHA
from normlab.stats.estimates import Numbers
from normlab.stats.paired_tests import EFFICIENCY, POWER, corrected_t, split_ratio
from normlab.stats.signed_rank import GREATER, LESS, NO_INTERVAL, Interval, pseudomedian, signed_rank
from normlab.stats.tuning import finite_differences

MOST_REPLICATES = 10_000
"""The largest number of replicates that is suggested."""
Rows = tuple[int, int]
"""The numbers of training and test rows of a split."""
Tail = Callable[[float, str], float]
"""One-sided p of a shift: that the effect lies above it (``greater``) or below it (``less``)."""


class Region(NamedTuple):
    """The effects strictly between two ends, one of which may be infinite."""

    low: float = -math.inf
    high: float = math.inf

    @property
    def is_bounded(self) -> bool:
        """True if both ends are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def contains(self, effect: float) -> bool:
        """Return True if an effect is strictly between the ends."""
        return self.low < effect < self.high


class RegionTest(NamedTuple):
    """The result of a test of a region.

    Attributes:
        inside: p of the null hypothesis that the effect is outside; inside is shown if it is at most 5 %.
        outside: p of the null hypothesis that the effect is inside.
        interval: the interval of the effect, of level 1 − 0.1/sides.
        needed: the number of replicates that would show the estimated side with 80 % power; None if more than
            10,000, or unknown.
    """

    inside: float
    outside: float
    interval: Interval
    needed: int | None


def region_test(effects: ArrayLike, region: Region, sides: int = 2, rows: Rows | None = None) -> RegionTest:
    r"""Test whether the shift of n effects lies in a region, by one-sided tests at its ends.

    .. math::
        p_\text{inside} = s \max(p_>(l), p_<(h)), \qquad p_\text{outside} = s' \min(p_<(l), p_>(h))

    with s the number of ``sides``. An infinite end takes no part. s' is 2 for a bounded region, where the effect
    may be beyond either end, else s. The one-sided test is the exact signed-rank test, or, if ``rows`` are given,
    the corrected resampled t test.

    Args:
        effects: d, ``(n,)``; ±∞ is allowed without ``rows``.
        region: the region, with ends l and h.
        sides: 2 for a two-sided level of 5 % (95 % interval), 1 for one-sided tests at 5 % (90 % interval).
        rows: the training and test rows of each split, if the effects are from overlapping splits of one table.

    Returns:
        The test; both p are 1 if the test is impossible (no effects, or fewer than two splits).
    """
    d = np.asarray(effects, dtype=float)
    level = 1 - 2 * ALPHA / sides
    if rows is None:
        interval = pseudomedian(d, level) if len(d) else NO_INTERVAL
    else:
        interval = Interval(*corrected_t(d, *rows, level=level).mean)

    def tail(shift: float, alternative: str) -> float:
        return split_tail(d, shift, alternative, rows) if rows else float(signed_rank(d, shift, alternative))

    inside, outside = region_p(region, sides, tail)
    spread = float(finite_differences(d).std(ddof=1)) if len(d) > 1 else math.nan
    needed = replicates_to_decide(interval.value, spread, region, sides, rows)
    return RegionTest(inside, outside, interval, needed)


def split_tail(effects: Numbers, shift: float, alternative: str, rows: Rows) -> float:
    """Return one-sided p of the corrected t test of effects ``(n,)`` against a shift; 1 if it is unknown."""
    test = corrected_t(effects - shift, *rows)
    if math.isnan(test.p):
        return 1.0
    agrees = test.mean.value > 0 if alternative == GREATER else test.mean.value < 0
    return test.p / 2 if agrees else 1 - test.p / 2


def region_p(region: Region, sides: int, tail: Tail) -> tuple[float, float]:
    """Return p of the null hypotheses that the effect is outside, and that it is inside a region."""
    ends = [(region.low, GREATER, LESS), (region.high, LESS, GREATER)]
    finite = [end for end in ends if math.isfinite(end[0])]
    inside = max(tail(end, inwards) for end, inwards, _ in finite)
    outside = min(tail(end, outwards) for end, _, outwards in finite)
    return min(1.0, sides * inside), min(1.0, max(sides, len(finite)) * outside)


def share_test(count: int, of: int, region: Region) -> RegionTest:
    """Test whether a probability lies in a region, by the exact binomial test at 5 % two-sided.

    The interval is Clopper and Pearson's 95 % interval, which consists of the shares that this test accepts.

    Args:
        count, of: the number of successes, and of trials.
        region: an end of 0 or below, or of 1 or above, counts as infinite.
    """
    if not of:
        return RegionTest(1.0, 1.0, NO_INTERVAL, None)
    low, high = (end if 0 < end < 1 else side * math.inf for end, side in zip(region, (-1, 1), strict=True))

    def tail(share: float, alternative: str) -> float:
        return float(stats.binomtest(count, of, share, alternative).pvalue)

    interval = stats.binomtest(count, of).proportion_ci(1 - ALPHA, method="exact")
    value, inner = count / of, Region(low, high)
    inside, outside = region_p(inner, 2, tail)
    needed = replicates_to_decide(value, math.sqrt(value * (1 - value)), inner, 2)
    return RegionTest(inside, outside, Interval(value, float(interval.low), float(interval.high)), needed)


def correlation_test(x: ArrayLike, y: ArrayLike, region: Region) -> RegionTest:
    r"""Test whether Spearman's correlation of n pairs lies in a region, by Fisher's transformation.

    .. math:: z = \operatorname{artanh} r, \qquad s_z = \sqrt{\frac{1 + r^2/2}{n - 3}}

    z is compared with Student's t with n − 2 degrees of freedom. |r| counts as at most 1 − 1/n, because z is
    infinite for pairs in perfect order. Both p are 1 below five pairs, or if all x or all y are equal.

    Bonett and Wright (2000), Sample size requirements for estimating Pearson, Kendall and Spearman correlations,
    Psychometrika 65.
    """
    n = len(np.asarray(x))
    if n < 5 or min(np.ptp(stats.rankdata(values)) for values in (x, y)) == 0:
        return RegionTest(1.0, 1.0, NO_INTERVAL, None)
    r = float(np.clip(stats.spearmanr(x, y).statistic, 1 / n - 1, 1 - 1 / n))
    scatter = math.sqrt(1 + r**2 / 2)
    z, error = math.atanh(r), scatter / math.sqrt(n - 3)
    low, high = (math.atanh(end) if -1 < end < 1 else math.copysign(math.inf, end) for end in region)

    def tail(shift: float, alternative: str) -> float:
        distance = (z - shift if alternative == GREATER else shift - z) / error
        return float(stats.t.sf(distance, n - 2))

    inner = Region(low, high)
    inside, outside = region_p(inner, 2, tail)
    reach = float(stats.t.isf(ALPHA / 2, n - 2)) * error
    needed = replicates_to_decide(z, scatter, inner, 2)
    interval = Interval(r, math.tanh(z - reach), math.tanh(z + reach))
    return RegionTest(inside, outside, interval, None if needed is None else needed + 3)


def replicates_to_decide(
    effect: float, spread: float, region: Region, sides: int = 2, rows: Rows | None = None
) -> int | None:
    r"""Return the smallest number of replicates that shows the side of an effect with 80 % power.

    The power of a one-sided test at level α against an end at distance δ is approximated by
    :math:`\Phi(\delta/e - t_{\alpha, n-1})`, with :math:`e = s/\sqrt{0.955\,n}`, or, for overlapping splits of one
    table, :math:`e = s\sqrt{1/n + n_\text{test}/n_\text{train}}`. Inside a bounded region both ends must be
    excluded.

    Args:
        effect: the effect.
        spread: s, the standard deviation of the effects of replicates.
        region, sides, rows: as in :func:`region_test`.

    Returns:
        n; None if no n up to 10,000 suffices, as with splits of a table that is too small, or on an end.
    """
    if math.isnan(effect) or math.isnan(spread):
        return None
    ends = [end for end in region if math.isfinite(end)]
    distances = [abs(effect - end) for end in ends]
    alpha = ALPHA / sides
    if not region.contains(effect):
        distances, alpha = [min(distances)], ALPHA / max(sides, len(ends))

    def decides(n: int) -> bool:
        variance = 1 / n + split_ratio(*rows) if rows else 1 / (EFFICIENCY * n)
        reach = np.array(distances) / max(spread * math.sqrt(variance), 1e-300)
        missed = stats.norm.sf(np.minimum(reach, 1e6) - stats.t.isf(alpha, n - 1)).sum()
        return 2.0**-n <= alpha and missed <= 1 - POWER

    if min(distances) == 0 or not decides(MOST_REPLICATES):
        return None
    low, high = 1, MOST_REPLICATES  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high
