"""How large a difference must be for the declared test to find it, and how many seeds that takes."""

import math
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from normlab.analysis.significance import signed_patterns

ALPHA, POWER = 0.05, 0.8
ENOUGH = 8
"""Seeds that a verdict needs: with 8 the smallest p is 2/2⁸ = 0.008."""
SIMULATED, DRAWN = 12, 2000
"""Seeds up to which the power is simulated, on so many draws; beyond, p is fine enough for a formula."""


@lru_cache(maxsize=1024)
def detectable(n: int, level: float = ALPHA) -> float:
    """Return the difference that the sign-flip test of n pairs finds with 80 % power.

    In standard deviations of the paired differences, taken as normal. Up to 12 pairs from simulations, whose
    draws are
    the same each time: it is a constant. Beyond, that of the t test, whose power is
    ``P(T > t)`` for a noncentral T with n − 1 degrees of freedom and noncentrality ``δ√n``.

    Args:
        n: the number of pairs; below 8 no verdict is given: infinite.
        level: what p must be at most, 0.05 over the number of comparisons where there are several. Infinite if
            no p of n pairs is that small.
    """
    reached = math.floor(level * 2 ** (n - 1) + 1e-9)
    if n < ENOUGH or reached == 0:
        return math.inf
    if n > SIMULATED:
        beyond = float(stats.t.isf(level / 2, n - 1))
        return float(optimize.brentq(lambda d: stats.nct.sf(beyond, n - 1, d * math.sqrt(n)) - POWER, 1e-3, 20))
    signs = signed_patterns(n)
    noise = np.random.default_rng(0).normal(size=(DRAWN, n)) @ signs.T
    shift = signs.sum(axis=1)

    def excess(difference: float) -> float:
        sums = np.abs(noise + difference * shift)
        return float(((sums >= sums[:, :1] * (1 - 1e-9)).sum(axis=1) <= reached).mean()) - POWER

    return float(optimize.bisect(excess, 0.0, 10.0, xtol=1e-3))


def smallest_p(n: int, paired: bool = True) -> float:
    """Return the smallest p of the test with n seeds: 2/2ⁿ of pairs, else 2 over the ways to choose n of 2n.

    >>> smallest_p(8), round(1 / smallest_p(8, paired=False))
    (0.0078125, 6435)
    """
    return 2.0 ** (1 - n) if paired else 2.0 / math.comb(2 * n, n)


def seeds_for(comparisons: int) -> int:
    """Return how many seeds it takes for any of so many comparisons to be declared.

    Holm's correction asks of the smallest p that it be at most 0.05 over their number.

    >>> [seeds_for(comparisons) for comparisons in (1, 6, 7, 100)]
    [8, 8, 9, 12]
    """
    return max(ENOUGH, math.ceil(1 + math.log2(max(comparisons, 1) / ALPHA)))
