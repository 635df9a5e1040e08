"""Two arms compared seed by seed.

Values are ``(n,)``, those of one seed at one place in both arms.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

RESAMPLES = 5000
WORST = 1e300
ENOUGH = 8
"""Seeds from which on the test can find anything: of 8 its smallest p is 2/2⁸ = 0.008."""


@dataclass(frozen=True)
class Comparison:
    """An arm against another.

    Attributes:
        seeds: how many pairs there are.
        ratio, low, high: what the arm's values are of the other's, with the 95 % interval, pointwise.
        smaller: in how many pairs the arm's value is the smaller one.
        p: of the two-sided sign-flip test of the differences.
    """

    seeds: int
    ratio: float
    low: float
    high: float
    smaller: int
    p: float


def compare(arm: ArrayLike, other: ArrayLike, generator: np.random.Generator) -> Comparison:
    r"""Return how an arm compares with another, of whose seeds it has the same.

    The ratio is ``exp(IQM(log a − log b))``, IQM the interquartile mean over the pairs; its interval is that of
    the percentile bootstrap over pairs. The test flips the signs of ``a − b``, all :math:`2^n` ways up to n = 13,
    and as many as then at random beyond.

    Args:
        arm, other: a and b, ``(n,)``; a ratio needs both to be positive, else it is NaN.
        generator: what resamples and flips are drawn from.
    """
    a, b = (np.asarray(values, dtype=float) for values in (arm, other))
    # A diverged run is worse than any, by a number whose sums are still finite.
    difference = np.clip(a, -WORST, WORST) - np.clip(b, -WORST, WORST)
    smaller, seeds = int((a < b).sum()), len(a)
    p = 1.0
    if seeds > 1 and difference.any():
        flips = stats.permutation_test(
            (difference,), np.mean, permutation_type="samples", n_resamples=2**13, rng=generator
        )
        p = float(flips.pvalue)
    if not ((a > 0).all() and (b > 0).all() and np.isfinite(a).all() and np.isfinite(b).all()):
        return Comparison(seeds, np.nan, np.nan, np.nan, smaller, p)
    logs = np.log(a) - np.log(b)
    if seeds < 2:
        return Comparison(seeds, float(np.exp(logs.mean())) if seeds else np.nan, np.nan, np.nan, smaller, p)
    resampled = logs[generator.integers(seeds, size=(RESAMPLES, seeds))]
    low, high = np.percentile(iqm(resampled), [2.5, 97.5])
    ratio, low, high = np.exp([float(iqm(logs)), low, high]).tolist()
    return Comparison(seeds, ratio, low, high, smaller, p)


def iqm(values: np.ndarray) -> np.ndarray:
    """Return the interquartile mean along the last axis: of what is left without a quarter at either end."""
    return stats.trim_mean(values, 0.25, axis=-1)
