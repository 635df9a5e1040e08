"""How the difference between two arms changes from panel to panel, and its mean over splits."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normlab.stats.estimates import differences
from normlab.stats.pseudomedian import PairedTest, paired_test

Numbers = NDArray[np.float64]


def interaction(panel: ArrayLike, other: ArrayLike, level: float = 0.95) -> PairedTest:
    """Test whether the difference between two arms is another one in another panel.

    Replicate i contributes ``panel[i] − other[i]``, a difference of paired differences: of log ratios it is the
    log of a ratio of ratios. Two infinite differences of one sign do not differ.

    Args:
        panel, other: the paired difference between the arms in either panel, ``(n,)``, of the same replicates.
        level: the confidence of the interval.

    Raises:
        ValueError: the panels differ in their number of replicates.
    """
    a, b = np.asarray(panel, dtype=float), np.asarray(other, dtype=float)
    if a.shape != b.shape:
        raise ValueError(
            f"panels must have the same replicates, got {len(a)} and {len(b)}; keep those that both panels have"
        )
    return paired_test(differences(a, b), level)


def mean_over_splits(values: Numbers) -> Numbers:
    """Return the mean of each replicate over P splits, ``(n,)``, from values ``(n, P)``.

    The unit of a test is the replicate: n replicates on P splits are n values, not nP. Runs of one replicate on
    several splits are not independent of each other, and counting each would find differences that are not there.

    A mean is infinite where most of its infinite values have one sign. As many of ∞ as of −∞ cancel, and the
    mean is that of the finite values, 0 without any.

    >>> mean_over_splits(np.array([[1.0, 3.0], [np.inf, 2.0], [np.inf, -np.inf]])).tolist()
    [2.0, inf, 0.0]
    """
    finite = np.isfinite(values)
    balance = np.where(finite, 0.0, np.sign(values)).sum(axis=1)
    means = np.where(finite, values, 0.0).sum(axis=1) / np.maximum(finite.sum(axis=1), 1)
    return np.where(balance == 0, means, np.copysign(np.inf, balance))
