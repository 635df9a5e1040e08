"""Whether two arms differ: the one test by which a difference is declared, and Holm's correction."""

import math
from functools import lru_cache
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
EXACT_SEEDS = 40
"""Pairs up to which all flips are counted; so many take a tenth of a second."""
EXACT_SPLITS = 100_000
"""Ways to split values into two arms up to which all are counted."""
DRAWN = 19_999
"""Flips or splits that are drawn where there are more."""
TIE = 1e-12
"""Sums that differ by less, relative to the sum of all magnitudes, are equal: rounding moves them by less."""


def finite_differences(differences: Numbers) -> Numbers:
    """Return differences with the largest finite magnitude among them in place of each infinite one.

    It is 1 if there is none. That is a function of the magnitudes alone, which no flip of a sign changes: the
    test stays exact.
    """
    finite = np.isfinite(differences)
    largest = float(np.abs(differences[finite]).max(initial=0.0)) or 1.0
    return np.where(finite, differences, np.sign(differences) * largest)


def sign_flip(differences: Numbers, generator: np.random.Generator) -> float:
    r"""Return p of the two-sided sign-flip test of paired differences: whether they are symmetric about 0.

    :math:`p = 2^{-n} \#\{s \in \{-1, 1\}^n : |\sum_i s_i d_i| \ge |\sum_i d_i|\}`. Exact up to 40 pairs: the
    sums of either half of them are listed, 2^(n/2), and those of one sorted; the pairs of sums that are far
    enough out are counted by bisection. Beyond, (b + 1)/(m + 1) of m flips that are drawn.

    Args:
        differences: d, ``(n,)``; infinite where one of the two diverged, see ``finite_differences``.
        generator: what flips are drawn from.
    """
    d = finite_differences(np.asarray(differences, dtype=float))
    size = np.abs(d)
    if not size.any():
        return 1.0
    d, size = d / size.max(), np.sort(size / size.max())
    least = abs(float(d.sum())) - TIE * float(size.sum())
    if least <= 0:
        return 1.0
    if len(d) > EXACT_SEEDS:
        signs = generator.integers(2, size=(DRAWN, len(d)), dtype=np.int8) * 2 - 1
        return (int((np.abs(signs @ size) >= least).sum()) + 1) / (DRAWN + 1)
    # The first sign is held: the other half of the flips has the same sums with the other sign.
    half = (len(d) + 1) // 2
    some, others = signed_sums(size[0], size[1:half]), signed_sums(0.0, size[half:])
    above = len(others) - np.searchsorted(others, least - some, side="left")
    below = np.searchsorted(others, -least - some, side="right")
    return int((above + below).sum()) / 2 ** (len(d) - 1)


def signed_sums(start: float, sizes: Numbers) -> Numbers:
    """Return ``start ± s₁ ± s₂ …`` for all 2^n signs of n sizes, sorted."""
    sums = np.array([start])
    for size in sizes:
        sums = np.concatenate((sums - size, sums + size))
    return np.sort(sums)


def signed_patterns(n: int) -> Numbers:
    """Return all ways to give n values a sign, that of the first held, ``(2^(n − 1), n)``; first, all positive."""
    return np.array([(1.0, *rest) for rest in product((1.0, -1.0), repeat=n - 1)])


def label_permutation(arm: Numbers, baseline: Numbers, generator: np.random.Generator) -> float:
    """Return p of the two-sided permutation test of two unpaired arms: whether one distribution made both.

    p is the share of the ways to split all values into two arms of these sizes whose means differ by as much.
    Exact up to 100,000 ways; beyond, (b + 1)/(m + 1) of m splits that are drawn. A diverged run counts as the
    worst finite value of both arms, which no split changes.

    Args:
        arm, baseline: ``(n,)`` and ``(m,)``.
        generator: what splits are drawn from.
    """
    pooled = np.concatenate([arm, baseline]).astype(float)
    few, n = min(len(arm), len(baseline)), len(pooled)
    finite = pooled[np.isfinite(pooled)]
    if few == 0 or not len(finite):
        return 1.0
    pooled = np.clip(pooled, finite.min(), finite.max())
    pooled -= pooled.mean()
    smaller = pooled[: len(arm)] if len(arm) == few else pooled[len(arm) :]
    # With the mean of all at 0, the sum over one arm tells how far apart the two means are.
    least = abs(float(smaller.sum())) - TIE * float(np.abs(pooled).sum())
    if least <= 0:
        return 1.0
    if math.comb(n, few) <= EXACT_SPLITS:
        return float((np.abs(pooled[splits(n, few)].sum(axis=1)) >= least).mean())
    drawn = generator.permuted(np.tile(np.sort(pooled), (DRAWN, 1)), axis=1)[:, :few].sum(axis=1)
    return (int((np.abs(drawn) >= least).sum()) + 1) / (DRAWN + 1)


@lru_cache(maxsize=8)
def splits(n: int, few: int) -> NDArray[np.intp]:
    """Return all ways to choose few of n, ``(ways, few)``."""
    return np.array(list(combinations(range(n), few)), dtype=np.intp)


def holm(p: Numbers) -> Numbers:
    """Return p-values ``(k,)`` corrected for there being k of them; NaN are none and stay.

    Of the i-th smallest, ``max over j ≤ i of min(1, (k − j + 1)·p_j)``: with these at most α, the probability
    of any false declaration is at most α (Holm 1979).
    """
    p = np.asarray(p, dtype=float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    corrected = np.full(p.shape, np.nan)
    steps = np.arange(len(order), 0, -1) * p[order]
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected
