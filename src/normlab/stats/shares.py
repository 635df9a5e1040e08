"""How the shares of failed runs of two arms differ: an exact test, and Newcombe's interval of the difference."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from normlab.stats.estimates import UNKNOWN, Estimate, share


class ShareTest(NamedTuple):
    """The comparison of two shares.

    Attributes:
        p: of the exact two-sided test.
        difference: the share of the arm minus that of the baseline, with its 95 % interval.
    """

    p: float
    difference: Estimate


def compare_paired_shares(arm: ArrayLike, baseline: ArrayLike) -> ShareTest:
    r"""Compare two shares of failed runs, replicate by replicate: McNemar's exact test.

    Of b replicates in which the arm alone fails and c in which the baseline alone does, b is binomial with
    probability one half if the shares are equal: ``p = P(|B − (b+c)/2| ≥ |b − c|/2)``, 1 without any.

    The interval is Newcombe's method 10, Wilson's intervals :math:`(l_k, u_k)` of the shares :math:`p_k`
    combined:

    .. math::
        \theta - \sqrt{(p_1 - l_1)^2 - 2\phi (p_1 - l_1)(u_2 - p_2) + (u_2 - p_2)^2}, \qquad
        \theta + \sqrt{(u_1 - p_1)^2 - 2\phi (u_1 - p_1)(p_2 - l_2) + (p_2 - l_2)^2}

    with ``θ = p₁ − p₂`` and φ the correlation of the failures, corrected for continuity. SciPy has no interval of
    a difference of shares.

    Args:
        arm, baseline: whether each replicate failed, ``(n,)``.

    Raises:
        ValueError: the arms differ in their number of replicates.

    McNemar (1947), Psychometrika 12. Newcombe (1998), Improved confidence intervals for the difference between
    binomial proportions based on paired data, Statist. Med. 17, 2635.
    """
    a, b = np.asarray(arm, dtype=bool), np.asarray(baseline, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"paired shares must have equally many replicates, got {len(a)} and {len(b)}")
    if not len(a):
        return ShareTest(math.nan, UNKNOWN)
    both, only_arm, only_baseline, neither = (int((x & y).sum()) for x, y in ((a, b), (a, ~b), (~a, b), (~a, ~b)))
    discordant = only_arm + only_baseline
    p = float(stats.binomtest(only_arm, discordant).pvalue) if discordant else 1.0
    phi = failure_correlation(both, only_arm, only_baseline, neither)
    n = len(a)
    return ShareTest(p, newcombe(share(both + only_arm, n), share(both + only_baseline, n), phi))


def newcombe(first: Estimate, second: Estimate, phi: float = 0.0) -> Estimate:
    """Return the difference of two shares with Newcombe's interval, from Wilson's of each and φ."""
    down, up = first.value - first.low, first.high - first.value
    other_down, other_up = second.value - second.low, second.high - second.value
    value = first.value - second.value
    low = math.sqrt(down**2 - 2 * phi * down * other_up + other_up**2)
    high = math.sqrt(up**2 - 2 * phi * up * other_down + other_down**2)
    return Estimate(value, max(-1.0, value - low), min(1.0, value + high))


def failure_correlation(both: int, only_arm: int, only_baseline: int, neither: int) -> float:
    """Return φ, the correlation of the failures of two arms; a positive one is corrected for continuity.

    ``φ = C / √(product of the margins)``, where C is ``Δ = both·neither − only_arm·only_baseline`` if that is
    negative, and ``max(Δ − n/2, 0)`` else; 0 if a margin is 0.
    """
    n = both + only_arm + only_baseline + neither
    margins = (both + only_arm) * (only_baseline + neither) * (both + only_baseline) * (only_arm + neither)
    excess = float(both * neither - only_arm * only_baseline)
    if excess > 0:
        excess = max(excess - n / 2, 0.0)
    return excess / math.sqrt(margins) if margins else 0.0
