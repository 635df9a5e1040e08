"""The comparison of paired scores of any origin, :func:`compare`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from normlab.errors import ConfigError, require
from normlab.stats.comparison import DIFFERENCE, RATIO, paired_effects
from normlab.stats.sentences import p_value, two_digits
from normlab.stats.signed_rank import paired_test


@dataclass(frozen=True)
class Comparison:
    """The effect of a against b over n pairs of scores.

    Attributes:
        effect: ``difference`` (a − b) or ``ratio`` (a / b).
        estimate: Hodges–Lehmann estimate; of a ratio, of the logarithms.
        low, high: the ends of the confidence interval.
        p: of the exact two-sided signed-rank test.
        n: number of pairs.
    """

    effect: str
    estimate: float
    low: float
    high: float
    p: float
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        interval = f"{100 * self.level:g} % interval {two_digits(self.low)} to {two_digits(self.high)}"
        return f"{self.effect} {two_digits(self.estimate)} ({interval}, p = {p_value(self.p)}, n = {self.n})"


def compare(a: ArrayLike, b: ArrayLike, effect: str = DIFFERENCE, level: float = 0.95) -> Comparison:
    r"""Compare paired scores of any origin by the signed-rank test and its interval.

    .. math::
        \hat\theta = \mathrm{median}_{i \le j}\, \frac{d_i + d_j}{2}, \qquad d = a - b \ \text{or}\ \log a - \log b

    Pair scores with the same seed, split or task. A score that diverged is ``inf``.

    Args:
        a, b: scores, ``(n,)``.
        effect: ``difference``, or ``ratio`` for positive scores.
        level: of the interval, between 0 and 1.

    Raises:
        ConfigError: for other shapes, missing values, or scores that are not positive with ``ratio``.

    Hodges and Lehmann (1963), Estimates of location based on rank tests, Ann. Math. Statist. 34.

    >>> print(compare([0.9, 0.8, 1.1, 0.7, 0.9, 0.8], [1.0, 1.0, 1.2, 1.0, 1.1, 1.1], effect="ratio"))
    ratio 0.81 (95 % interval 0.7 to 0.92, p = 0.031, n = 6)
    """
    first, second = (np.asarray(scores, dtype=float) for scores in (a, b))
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ConfigError(f"a and b must be scores of the same pairs, (n,), got {first.shape} and {second.shape}")
    require(effect in (DIFFERENCE, RATIO), "effect", f"{DIFFERENCE} or {RATIO}", effect)
    require(0 < level < 1, "level", "between 0 and 1", level)
    if np.isnan(first).any() or np.isnan(second).any():
        raise ConfigError("a and b must have no missing values, got NaN; leave out both scores of such a pair")
    if effect == RATIO and ((first <= 0).any() or (second <= 0).any()):
        raise ConfigError("a ratio needs positive scores; use effect='difference'")
    test = paired_test(paired_effects(effect, first, second), level)
    numbers = (test.shift.value, test.shift.low, test.shift.high)
    estimate, low, high = np.exp(numbers).tolist() if effect == RATIO else numbers
    return Comparison(effect, estimate, low, high, test.p, len(first), level)
