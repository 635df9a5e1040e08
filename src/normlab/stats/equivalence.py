"""Whether two arms are equivalent within a margin: two one-sided signed-rank tests."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normlab.stats.pseudomedian import Interval, pseudomedian
from normlab.stats.signed_rank import GREATER, LESS, signed_rank


class MarginTest(NamedTuple):
    """The result of a test against a margin.

    Attributes:
        p: of the test; a claim holds at 5 % where it is at most 0.05.
        interval: of the shift, with both tails at the test's level: 90 % where that is 5 %.
    """

    p: float
    interval: Interval


def equivalence(differences: ArrayLike, margin: float, alpha: float = 0.05) -> MarginTest:
    r"""Test whether paired differences lie within ±margin: two one-sided signed-rank tests.

    :math:`p = \max(p_>(-\Delta), p_<(\Delta))` of the hypotheses ``θ ≤ −Δ`` and ``θ ≥ Δ``. ``p ≤ α`` exactly if
    the interval of level 1 − 2α lies strictly between −Δ and Δ.

    Args:
        differences: d, ``(n,)``, as in ``signed_rank``.
        margin: Δ > 0, in the unit of the differences: of log ratios, ``log(1.05)`` for 5 %.
        alpha: the level of each test.

    Schuirmann (1987), A comparison of the two one-sided tests procedure and the power approach, J. Pharmacokinet.
    Biopharm. 15.
    """
    return MarginTest(float(equivalence_p(differences, margin)), pseudomedian(differences, 1 - 2 * alpha))


def equivalence_p(differences: ArrayLike, margin: float) -> NDArray[np.float64]:
    """Return p of the test of :func:`equivalence` of each sample, ``(...)``, from differences ``(..., n)``."""
    if not 0 < margin < math.inf:
        raise ValueError(
            f"margin must be positive and finite, got {margin}; state the smallest effect that matters"
        )
    return np.maximum(signed_rank(differences, -margin, GREATER), signed_rank(differences, margin, LESS))
