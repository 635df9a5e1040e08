"""The exact Wilcoxon signed-rank test of paired differences. The entry is :func:`signed_rank`."""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]
TWO_SIDED, GREATER, LESS = "two-sided", "greater", "less"
DIGITS, FINE_DIGITS = 9, 12
"""Significant digits of differences, and of numbers computed from them: rounding errors break no tie."""


def signed_rank(differences: ArrayLike, shift: ArrayLike = 0.0, alternative: str = TWO_SIDED) -> Numbers:
    r"""Return p of the exact Wilcoxon signed-rank test that differences are symmetric about a shift θ.

    With :math:`e_i = d_i - \theta` and the midrank :math:`r_i` of :math:`|e_i|` among all n, zeros included:

    .. math::
        W = \sum_{i: e_i > 0} r_i, \qquad
        p_> = P\Big(\sum_{i: e_i \ne 0} b_i r_i \ge W\Big), \quad b_i \in \{0, 1\} \text{ fair coins},

    ``p = min(1, 2 min(p_>, p_<))`` two-sided. Zeros are ranked and then dropped (Pratt 1959), so that :math:`p_>`
    never falls as θ grows and the test can be inverted. The null distribution is that of the actual midranks,
    given the ties and zeros: exact for every n. Infinite differences share the highest ranks. Differences are
    rounded to 9 significant digits, so that rounding errors break no tie.

    ``scipy.stats.wilcoxon`` is exact without ties and zeros only; with them it lists or draws flips of signs.

    Args:
        differences: d, ``(..., n)``; ±∞ where one run of a pair diverged, 0 where both did.
        shift: θ, a number or ``(..., 1)``.
        alternative: ``two-sided``, ``greater`` (differences lie above θ) or ``less``.

    Returns:
        p, ``(...)``; 1 without a nonzero difference.

    Raises:
        ValueError: a difference is NaN, or the alternative is unknown.

    Wilcoxon (1945), Individual comparisons by ranking methods. Pratt (1959), Remarks on zeros and ties in the
    Wilcoxon signed rank procedures, JASA 54.
    """
    if alternative not in (TWO_SIDED, GREATER, LESS):
        raise ValueError(f"alternative must be {TWO_SIDED}, {GREATER} or {LESS}, got {alternative!r}")
    shifted = known(differences) - np.asarray(shift)
    if not shifted.size:
        return np.ones(shifted.shape[:-1])
    ranks = doubled_signed_ranks(shifted)
    flat = ranks.reshape(-1, ranks.shape[-1])
    above, below = (np.where(side * flat > 0, np.abs(flat), 0).sum(axis=1) for side in (1, -1))
    statistics = {GREATER: above, LESS: below, TWO_SIDED: np.maximum(above, below)}
    p = upper_tails(np.sort(np.abs(flat), axis=1), statistics[alternative])
    return (np.minimum(1.0, 2 * p) if alternative == TWO_SIDED else p).reshape(ranks.shape[:-1])


def known(differences: ArrayLike) -> Numbers:
    """Return differences rounded to 9 significant digits; raise ``ValueError`` if one is NaN."""
    d = np.asarray(differences, dtype=float)
    if np.isnan(d).any():
        raise ValueError("differences must be numbers, got NaN; leave out pairs of which a value is missing")
    return rounded(d, DIGITS)


def rounded(values: Numbers, digits: int) -> Numbers:
    """Return values rounded to significant decimal digits, so that those equal but for rounding errors are equal.

    >>> rounded(np.array([0.95 - 0.94, -2 / 3, 0.0, np.inf]), 3).tolist()
    [0.01, -0.667, 0.0, inf]
    """
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        magnitude = np.floor(np.log10(np.abs(values)))
        places = np.clip(np.where(np.isfinite(magnitude), digits - 1 - magnitude, 0), -300, 300)
        scale = 10.0 ** np.abs(
            places
        )  # a division by it is exact to the last bit, a product with its inverse is not
        finer, coarser = np.round(values * scale) / scale, np.round(values / scale) * scale
    return np.where(np.isfinite(magnitude), np.where(places >= 0, finer, coarser), values)


def doubled_signed_ranks(differences: Numbers) -> Counts:
    """Return twice the midrank of each ``|d|`` with the sign of d, whole numbers, ``(..., n)``; 0 where d is 0.

    >>> doubled_signed_ranks(np.array([0.0, -1.0, 2.0, 2.0, np.inf])).tolist()
    [0, -4, 7, 7, 10]
    """
    sizes = rounded(np.abs(differences), FINE_DIGITS)
    doubled = np.rint(2 * stats.rankdata(sizes, axis=-1)).astype(np.int64)
    return doubled * np.sign(differences).astype(np.int64)


def upper_tails(ranks: Counts, statistics: Counts) -> Numbers:
    """Return the null probability of at least each statistic, ``(N,)``.

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
    """Return P(W ≥ w) for w = 0 … S, where W is the sum of ranks that fair coins choose and S the sum of all.

    By convolution: each rank r turns the distribution f(w) into ``(f(w) + f(w − r)) / 2``.

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
    """Return the smallest two-sided p that differences with these zeros can have: ``2 / 2^m`` with m nonzero.

    Ties do not matter: only equal signs of all m give the largest sum.

    >>> attainable_p([0, 0, 0, 1, 2, 2, -4, 5])  # 8 pairs with 3 zeros
    0.0625
    """
    return float(min(1.0, 2.0 ** (1 - np.count_nonzero(known(differences)))))
