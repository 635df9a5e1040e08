"""Corrected t test, equivalence, interaction and McNemar tests; power of the signed-rank test."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from normlab.stats.estimates import UNKNOWN_ESTIMATE, Estimate, Numbers, differences, share_estimate
from normlab.stats.signed_rank import (
    GREATER,
    LESS,
    Interval,
    PairedTest,
    null_tail,
    paired_test,
    pseudomedian,
    signed_rank,
)

POWER = 0.8
SIMULATED, DRAWN = 24, 20_000
"""The largest number of pairs for which the power is simulated, and the number of simulated samples."""
EFFICIENCY = 3 / math.pi
"""Asymptotic efficiency of the signed-rank test relative to the t test for normal differences: 0.955."""


class TTest(NamedTuple):
    """The result of a t test: two-sided p, and the mean difference with its interval."""

    p: float
    mean: Estimate


def corrected_t(differences: ArrayLike, train: int, test: int, level: float = 0.95) -> TTest:
    r"""Test the mean paired difference over J random splits of one table by the corrected resampled t test.

    .. math::
        t = \frac{\bar d}{\sqrt{\left(\frac1J + \frac{n_\text{test}}{n_\text{train}}\right) s^2}}, \qquad
        J - 1 \text{ degrees of freedom}

    Splits of one table share rows, so their differences are correlated. Without the second term, which assumes the
    correlation :math:`n_\text{test}/(n_\text{test} + n_\text{train})`, the test would declare equal learners
    different for large J. There is no such correction for rank tests. SciPy's ``ttest_1samp`` assumes independent
    differences.

    Args:
        differences: d, ``(J,)``, one per split.
        train, test: the numbers of training and test rows of a split.
        level: the confidence level of the interval.

    Returns:
        The test; NaN with fewer than two splits or an infinite difference.

    Raises:
        ValueError: there are no training or no test rows.

    Nadeau and Bengio (2003), Inference for the generalization error, Machine Learning 52.
    """
    d = np.asarray(differences, dtype=float)
    splits = len(d)
    ratio = split_ratio(train, test)
    if splits < 2 or not np.isfinite(d).all():
        return TTest(math.nan, UNKNOWN_ESTIMATE)
    mean, error = float(d.mean()), float(d.std(ddof=1)) * math.sqrt(1 / splits + ratio)
    reach = float(stats.t.ppf((1 + level) / 2, splits - 1)) * error
    with np.errstate(divide="ignore"):  # equal differences on all splits: t is infinite
        t = np.divide(abs(mean), error) if mean else 0.0
    return TTest(float(2 * stats.t.sf(t, splits - 1)), Estimate(mean, mean - reach, mean + reach))


def split_ratio(train: int, test: int) -> float:
    """Return the ratio of test rows to training rows; raise ``ValueError`` if either is below 1."""
    if train < 1 or test < 1:
        raise ValueError(f"train and test must be at least 1 row each, got {train} and {test}")
    return test / train


@lru_cache(maxsize=1024)
def corrected_t_detectable(splits: int, train: int, test: int, alpha: float = 0.05, power: float = 0.8) -> float:
    r"""Return the mean difference that the corrected t test detects with the given power.

    The unit is s, the standard deviation of the differences between splits. If the assumed correlation is right,
    t is noncentral with J − 1 degrees of freedom and noncentrality
    :math:`\delta / \sqrt{1/J + n_\text{test}/n_\text{train}}`. With many splits the difference approaches a limit
    that only more rows can lower.

    Args:
        splits: J; infinite below 2.
        train, test: the numbers of training and test rows of a split.
        alpha: the significance level.
        power: the probability of p ≤ alpha.

    >>> [round(corrected_t_detectable(splits, 142, 36), 2) for splits in (12, 24, 100)]
    [1.79, 1.59, 1.45]
    """
    ratio = split_ratio(train, test)
    if splits < 2:
        return math.inf
    df, critical = splits - 1, float(stats.t.isf(alpha / 2, splits - 1))
    noncentrality = optimize.brentq(lambda nc: stats.nct.sf(critical, df, nc) - power, 0.0, critical + 50.0)
    return float(noncentrality) * math.sqrt(1 / splits + ratio)


class MarginTest(NamedTuple):
    """The result of a test against a margin.

    Attributes:
        p: the p-value; equivalence is declared at 5 % if it is at most 0.05.
        interval: interval of the shift of level 1 − 2α: 90 % if α is 5 %.
    """

    p: float
    interval: Interval


def equivalence(differences: ArrayLike, margin: float, alpha: float = 0.05) -> MarginTest:
    r"""Test whether the shift lies within ±margin, by two one-sided signed-rank tests.

    :math:`p = \max(p_>(-\Delta), p_<(\Delta))`, the larger p of the null hypotheses ``θ ≤ −Δ`` and ``θ ≥ Δ``.
    ``p ≤ α`` if and only if the interval of level 1 − 2α lies strictly between −Δ and Δ.

    Args:
        differences: d, ``(n,)``, as in ``signed_rank``.
        margin: Δ > 0, in the unit of the differences; for log ratios, ``log(1.05)`` is 5 %.
        alpha: the level of each one-sided test.

    Raises:
        ValueError: the margin is not positive and finite.

    Schuirmann (1987), A comparison of the two one-sided tests procedure and the power approach, J. Pharmacokinet.
    Biopharm. 15.
    """
    return MarginTest(float(equivalence_p(differences, margin)), pseudomedian(differences, 1 - 2 * alpha))


def equivalence_p(differences: ArrayLike, margin: float) -> NDArray[np.float64]:
    """Return p of :func:`equivalence` for each sample, ``(...)``, from differences ``(..., n)``."""
    if not 0 < margin < math.inf:
        raise ValueError(
            f"margin must be positive and finite, got {margin}; state the smallest effect that matters"
        )
    return np.maximum(signed_rank(differences, -margin, GREATER), signed_rank(differences, margin, LESS))


def interaction(panel: ArrayLike, other: ArrayLike, level: float = 0.95) -> PairedTest:
    """Test whether the effect of an arm differs between two panels, by the signed-rank test.

    Replicate i contributes ``panel[i] − other[i]``, a difference of paired differences; for log ratios, the log of
    a ratio of ratios. Two infinite differences of the same sign give 0.

    Args:
        panel, other: the paired differences between the arms in each panel, ``(n,)``, for the same replicates.
        level: the confidence level of the interval.

    Raises:
        ValueError: the panels have different numbers of replicates.
    """
    a, b = np.asarray(panel, dtype=float), np.asarray(other, dtype=float)
    if a.shape != b.shape:
        raise ValueError(
            f"panels must have the same replicates, got {len(a)} and {len(b)}; keep those that are in both"
        )
    return paired_test(differences(a, b), level)


def mean_over_splits(values: Numbers) -> Numbers:
    """Return the mean of each replicate over P splits, ``(n,)``, from values ``(n, P)``.

    The unit of a test is the replicate, as runs of one replicate on several splits are not independent: counting
    n·P values would declare differences that do not exist.

    A mean is infinite, with the sign of the majority, unless ∞ and −∞ are equally frequent. Then they cancel, and
    the mean is that of the finite values, or 0 without any.

    >>> mean_over_splits(np.array([[1.0, 3.0], [np.inf, 2.0], [np.inf, -np.inf]])).tolist()
    [2.0, inf, 0.0]
    """
    finite = np.isfinite(values)
    balance = np.where(finite, 0.0, np.sign(values)).sum(axis=1)
    means = np.where(finite, values, 0.0).sum(axis=1) / np.maximum(finite.sum(axis=1), 1)
    return np.where(balance == 0, means, np.copysign(np.inf, balance))


class ShareTest(NamedTuple):
    """The comparison of two shares.

    Attributes:
        p: p of the exact two-sided test.
        difference: the share of the arm minus the share of the baseline, with its 95 % interval.
    """

    p: float
    difference: Estimate


def compare_paired_shares(arm: ArrayLike, baseline: ArrayLike) -> ShareTest:
    r"""Compare two paired shares of failed runs by McNemar's exact test.

    Let only the arm fail in b replicates and only the baseline in c. If the shares are equal, b is binomial with
    ``b + c`` trials and probability one half: ``p = P(|B − (b+c)/2| ≥ |b − c|/2)``, or 1 if b + c = 0.

    The interval is Newcombe's method 10, which combines Wilson's intervals :math:`(l_k, u_k)` of the shares
    :math:`p_k`:

    .. math::
        \theta - \sqrt{(p_1 - l_1)^2 - 2\phi (p_1 - l_1)(u_2 - p_2) + (u_2 - p_2)^2}, \qquad
        \theta + \sqrt{(u_1 - p_1)^2 - 2\phi (u_1 - p_1)(p_2 - l_2) + (p_2 - l_2)^2}

    with ``θ = p₁ − p₂`` and φ the correlation of the failures, corrected for continuity. SciPy has no interval for
    a difference of paired shares.

    Args:
        arm, baseline: whether each replicate failed, ``(n,)``.

    Raises:
        ValueError: the arms have different numbers of replicates.

    McNemar (1947), Psychometrika 12. Newcombe (1998), Improved confidence intervals for the difference between
    binomial proportions based on paired data, Statist. Med. 17, 2635.
    """
    a, b = np.asarray(arm, dtype=bool), np.asarray(baseline, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(
            f"paired shares must have equally many replicates, got {len(a)} and {len(b)}; keep the shared ones"
        )
    if not len(a):
        return ShareTest(math.nan, UNKNOWN_ESTIMATE)
    both, only_arm, only_baseline, neither = (int((x & y).sum()) for x, y in ((a, b), (a, ~b), (~a, b), (~a, ~b)))
    discordant = only_arm + only_baseline
    p = float(stats.binomtest(only_arm, discordant).pvalue) if discordant else 1.0
    phi = failure_correlation(both, only_arm, only_baseline, neither)
    n = len(a)
    return ShareTest(p, newcombe(share_estimate(both + only_arm, n), share_estimate(both + only_baseline, n), phi))


def newcombe(first: Estimate, second: Estimate, phi: float = 0.0) -> Estimate:
    """Return the difference of two shares with Newcombe's interval, from Wilson's intervals and φ."""
    down, up = first.value - first.low, first.high - first.value
    other_down, other_up = second.value - second.low, second.high - second.value
    value = first.value - second.value
    low = math.sqrt(down**2 - 2 * phi * down * other_up + other_up**2)
    high = math.sqrt(up**2 - 2 * phi * up * other_down + other_down**2)
    return Estimate(value, max(-1.0, value - low), min(1.0, value + high))


def failure_correlation(both: int, only_arm: int, only_baseline: int, neither: int) -> float:
    """Return φ, the correlation of the failures of two arms, corrected for continuity if it is positive.

    ``φ = C / √(product of the margins)``, 0 if a margin is 0. With ``Δ = both·neither − only_arm·only_baseline``,
    C is Δ if Δ ≤ 0, else ``max(Δ − n/2, 0)``.
    """
    n = both + only_arm + only_baseline + neither
    margins = (both + only_arm) * (only_baseline + neither) * (both + only_baseline) * (only_arm + neither)
    excess = float(both * neither - only_arm * only_baseline)
    if excess > 0:
        excess = max(excess - n / 2, 0.0)
    return excess / math.sqrt(margins) if margins else 0.0


@lru_cache(maxsize=4096)
def detectable_shift(n: int, level: float = 0.05) -> float:
    r"""Return the shift that the two-sided signed-rank test of n pairs detects with 80 % power.

    The unit is the standard deviation of the paired differences, which are assumed normal. Infinite if no p of n
    pairs is as small as the level.

    Up to 24 pairs the shift is simulated. The test declares ``d = z + δ`` positive if at least c of the averages
    :math:`(z_i + z_j)/2`, ``i ≤ j``, exceed −δ, that is, if δ exceeds the negative of their c-th largest. The
    shift is the 80 % quantile of this value over samples z, drawn with a fixed seed. From 25 pairs on it is that
    of the z test, :math:`(z_{\alpha/2} + z_{0.2}) / \sqrt{0.955\,n}`, with a correction of order 1/n that makes
    both agree at 24 pairs.

    Args:
        n: the number of pairs.
        level: the significance level: 0.05/m for m comparisons.
    """
    if n < 1 or 2.0 ** (1 - n) > level:
        return math.inf
    if n <= SIMULATED:
        return simulated_shift(n, level)
    correction = 0.0
    if level >= 2.0 ** (1 - SIMULATED):
        correction = simulated_shift(SIMULATED, level) / asymptotic_shift(SIMULATED, level) - 1
    return asymptotic_shift(n, level) * (1 + correction * SIMULATED / n)


def asymptotic_shift(n: int, level: float) -> float:
    """Return the shift that a z test with 0.955 n pairs detects with 80 % power."""
    return float(stats.norm.isf(level / 2) + stats.norm.isf(1 - POWER)) / math.sqrt(EFFICIENCY * n)


@lru_cache(maxsize=4096)
def simulated_shift(n: int, level: float) -> float:
    """Return the shift that is detected with 80 % power in simulated samples of n pairs."""
    tail = null_tail(tuple(range(2, 2 * n + 2, 2)))[::2]
    critical = int(np.argmax(2 * tail <= level))
    averages = sampled_averages(n)
    return float(np.quantile(-averages[:, averages.shape[1] - critical], POWER))


@lru_cache(maxsize=2)
def sampled_averages(n: int) -> Numbers:
    """Return sorted Walsh averages of normal samples with a fixed seed, ``(20000, n(n + 1)/2)``."""
    z = np.random.default_rng(n).normal(size=(DRAWN, n)).astype(np.float32)
    first, second = np.triu_indices(n)
    return np.sort((z[:, first] + z[:, second]) / 2, axis=1)


def replicates_for(difference: float, level: float = 0.05) -> int:
    """Return the smallest number of pairs that detects a difference with 80 % power.

    Args:
        difference: the difference in standard deviations of the paired differences.
        level: as in :func:`detectable_shift`.

    Raises:
        ValueError: the difference is not positive.
    """
    if not difference > 0:
        raise ValueError(f"difference must be positive, got {difference}; state the smallest effect that matters")
    high = 2
    while detectable_shift(high, level) > difference:
        high *= 2
    low = high // 2  # too few
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if detectable_shift(middle, level) <= difference else (middle, high)
    return high
