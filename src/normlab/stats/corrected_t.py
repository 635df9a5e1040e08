"""The corrected t test of arms compared on overlapping splits of one table. The entry is :func:`corrected_t`."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from normlab.stats.estimates import UNKNOWN, Estimate


class TTest(NamedTuple):
    """The result of a t test: two-sided p, and the mean difference with its interval."""

    p: float
    mean: Estimate


def corrected_t(differences: ArrayLike, train: int, test: int, level: float = 0.95) -> TTest:
    r"""Test the mean paired difference over J random splits of one table: the corrected resampled t test.

    .. math::
        t = \frac{\bar d}{\sqrt{\left(\frac1J + \frac{n_\text{test}}{n_\text{train}}\right) s^2}}, \qquad
        J - 1 \text{ degrees of freedom}

    Splits of one table share rows. Their differences are correlated, and more splits do not add more rows:
    without the second term the test would declare a difference between equal learners if only J is large. The
    term takes the correlation for :math:`n_\text{test}/(n_\text{test} + n_\text{train})`. Ranks have no such
    correction.

    SciPy's ``ttest_1samp`` takes the differences for independent.

    Args:
        differences: d, ``(J,)``, one of each split.
        train, test: the number of training and of test rows of a split.
        level: the confidence of the interval.

    Returns:
        The test; NaN with fewer than two splits or an infinite difference, for a mean has no value then.

    Raises:
        ValueError: there are no training or no test rows.

    Nadeau and Bengio (2003), Inference for the generalization error, Machine Learning 52.
    """
    d = np.asarray(differences, dtype=float)
    splits = len(d)
    ratio = split_ratio(train, test)
    if splits < 2 or not np.isfinite(d).all():
        return TTest(math.nan, UNKNOWN)
    mean, error = float(d.mean()), float(d.std(ddof=1)) * math.sqrt(1 / splits + ratio)
    reach = float(stats.t.ppf((1 + level) / 2, splits - 1)) * error
    with np.errstate(divide="ignore"):  # equal differences on all splits: t is infinite
        t = np.divide(abs(mean), error) if mean else 0.0
    return TTest(float(2 * stats.t.sf(t, splits - 1)), Estimate(mean, mean - reach, mean + reach))


def split_ratio(train: int, test: int) -> float:
    """Return test rows over training rows; raise ``ValueError`` if there are none of either."""
    if train < 1 or test < 1:
        raise ValueError(f"train and test must be at least 1 row each, got {train} and {test}")
    return test / train


@lru_cache(maxsize=1024)
def corrected_t_detectable(splits: int, train: int, test: int, alpha: float = 0.05, power: float = 0.8) -> float:
    r"""Return the mean difference that the corrected t test finds with 80 % power.

    In standard deviations s of the differences between splits. Where the correction is right, t is noncentral
    with J − 1 degrees of freedom and noncentrality :math:`\delta / \sqrt{1/J + n_\text{test}/n_\text{train}}`.
    With many splits it approaches a limit that only more rows lower.

    Args:
        splits: J; below 2 no difference is found: infinite.
        train, test: the number of training and of test rows of a split.
        alpha: what p must be at most.
        power: the probability of that.

    >>> [round(corrected_t_detectable(splits, 142, 36), 2) for splits in (12, 24, 100)]
    [1.79, 1.59, 1.45]
    """
    ratio = split_ratio(train, test)
    if splits < 2:
        return math.inf
    df, beyond = splits - 1, float(stats.t.isf(alpha / 2, splits - 1))
    found = optimize.brentq(lambda nc: stats.nct.sf(beyond, df, nc) - power, 0.0, beyond + 50.0)
    return float(found) * math.sqrt(1 / splits + ratio)
