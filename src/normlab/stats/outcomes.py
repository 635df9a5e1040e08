"""The outcome of a run, a mean over its last epochs, and paired differences between outcomes."""

import numpy as np
from numpy.typing import ArrayLike

from normlab.stats.estimates import Numbers, differences

LAST = 0.1
"""The share of a run's epochs over which its outcome is averaged."""


def final_mean(values: ArrayLike, epochs: ArrayLike) -> Numbers:
    r"""Return the mean of a metric over the last 10 % of each run's own epochs, at least one.

    .. math:: \frac{1}{|L|} \sum_{e \in L} v_e, \qquad L = \{e : 0.9\,E < e \le E\}, \; e = 1, 2, \dots

    The minimum over epochs would favour noise: of two arms with equal expectations, the noisier one has the lower
    minimum. A mean over a fixed part of the training is unbiased.

    Args:
        values: v, ``(..., T)``, the metric after each epoch; NaN where it was not evaluated.
        epochs: E, ``(...)``, the number of epochs of each run, from 1 to T.

    Returns:
        The means, ``(...)``: ±∞ if a value up to E is infinite (the run diverged), the last known value if none of
        the last 10 % was evaluated, NaN if no value is known.

    Raises:
        ValueError: a number of epochs is outside 1 to T.
    """
    v, budget = np.asarray(values, dtype=float), np.asarray(epochs)[..., None]
    if not v.size:
        return np.full(v.shape[:-1], np.nan)
    if budget.size and not (budget.min() >= 1 and budget.max() <= v.shape[-1]):
        raise ValueError(
            f"epochs must be from 1 to {v.shape[-1]}, the number of values of each run, "
            f"got {budget.min()} to {budget.max()}"
        )
    epoch = np.arange(1, v.shape[-1] + 1)
    known = ~np.isnan(v) & (epoch <= budget)
    newest = np.where(known, epoch, 0).max(axis=-1, keepdims=True)
    # 10 e > 9 E in integers, because 0.9 E is not exact in binary.
    in_window = known & ((10 * epoch > 9 * budget) | (epoch == newest))
    infinite = np.where(known & np.isinf(v), v, 0.0)
    worst = np.take_along_axis(infinite, np.abs(infinite).argmax(axis=-1, keepdims=True), axis=-1)[..., 0]
    count = in_window.sum(axis=-1)
    sums = np.where(in_window & np.isfinite(v), v, 0.0).sum(axis=-1)
    means = np.divide(sums, count, out=np.full(count.shape, np.nan), where=count > 0)
    return np.where(worst == 0, means, worst)


def log_ratios(arm: ArrayLike, baseline: ArrayLike) -> Numbers:
    """Return ``log(a / b)`` of paired losses, ``(n,)``; 0 where both diverged.

    Raises:
        ValueError: a loss is not positive.
    """
    a, b = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    if (a <= 0).any() or (b <= 0).any():
        least = min(float(a.min()), float(b.min()))
        raise ValueError(
            f"losses must be positive for a log ratio, got {least}; compare their differences instead"
        )
    return differences(np.log(a), np.log(b))


def point_differences(arm: ArrayLike, baseline: ArrayLike) -> Numbers:
    """Return ``100 (a − b)`` of paired shares such as accuracies, in percentage points, ``(n,)``.

    Rounded to 1e-9 points, so that rounding errors neither break ties nor turn a 0 into a difference.

    >>> point_differences([0.95, 0.3], [0.94, 0.1 + 0.2]).tolist()
    [1.0, 0.0]
    """
    a, b = (100 * np.asarray(values, dtype=float) for values in (arm, baseline))
    return np.round(differences(a, b), 9) + 0.0  # no −0
