"""The sensitivity to settings: the range of near-optimal settings, and the ratio between batch sizes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WITHIN = 10.0
"""Percent above the best loss."""
BATCH_SIZE = "data.batch_size"


class Range(NamedTuple):
    """A range of settings.

    Attributes:
        smallest, largest: its ends.
        decades: ``log10(largest / smallest)``; NaN unless both are positive.
        open: True if an end is also an end of the grid, so that the range may extend further.
    """

    smallest: float
    largest: float
    decades: float
    open: bool


def good_range(settings: Sequence[float], losses: Sequence[float], within: float = WITHIN) -> Range | None:
    """Return the contiguous range of settings around the best with ``L ≤ L* + within/100·|L*|``.

    None with fewer than two settings, or if no loss is finite.

    Args:
        settings: numbers, ``(S,)``, in any order; equal settings count with their lowest loss.
        losses: L, the loss of each setting; L* is the lowest. NaN and ∞ are outside the range.
        within: tolerance in percent.
    """
    best: dict[float, float] = {}
    for setting, loss in zip(settings, losses, strict=True):
        best[setting] = min(best.get(setting, np.inf), np.inf if np.isnan(loss) else loss)
    tried = sorted(best)
    lowest = np.array([best[setting] for setting in tried])
    if len(tried) < 2 or not np.isfinite(lowest).any():
        return None
    good = lowest <= lowest.min() + within / 100 * abs(lowest.min())
    low = high = int(lowest.argmin())
    while low > 0 and good[low - 1]:
        low -= 1
    while high < len(tried) - 1 and good[high + 1]:
        high += 1
    smallest, largest = tried[low], tried[high]
    decades = float(np.log10(largest / smallest)) if smallest > 0 else np.nan
    return Range(smallest, largest, decades, low == 0 or high == len(tried) - 1)


def largest_ratio(values: NDArray[np.float64]) -> float:
    """Return the largest over the smallest of ``(B,)`` values; NaN unless all are finite and positive."""
    if len(values) < 2 or not (np.isfinite(values) & (values > 0)).all():
        return np.nan
    return float(values.max() / values.min())
