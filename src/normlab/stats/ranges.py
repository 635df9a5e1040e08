"""How much it matters what was set: the range of learning rates that are nearly as good, and the batch size."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WITHIN = 10.0
"""Percent of the best."""
BATCH_SIZE = "data.batch_size"


class Range(NamedTuple):
    """A range of settings.

    Attributes:
        smallest, largest: its ends.
        decades: how many factors of ten lie between them; NaN if they are not positive.
        open: whether an end is the last setting that was tried, so that the range may go on.
    """

    smallest: float
    largest: float
    decades: float
    open: bool


def good_range(settings: Sequence[float], losses: Sequence[float], within: float = WITHIN) -> Range | None:
    """Return the settings about the best whose loss is within some percent of its: ``L ≤ L* + within/100·|L*|``.

    They are neighbours of the best without a gap. None with fewer than two settings, or if no loss is finite.

    Args:
        settings: numbers, ``(S,)``, in any order; of equal ones, the best loss counts.
        losses: of each, small is good; NaN and ∞ are not within anything.
        within: percent.
    """
    best: dict[float, float] = {}
    for setting, loss in zip(settings, losses, strict=True):
        best[setting] = min(best.get(setting, np.inf), np.inf if np.isnan(loss) else loss)
    tried = sorted(best)
    found = np.array([best[setting] for setting in tried])
    if len(tried) < 2 or not np.isfinite(found).any():
        return None
    good = found <= found.min() + within / 100 * abs(found.min())
    low = high = int(found.argmin())
    while low > 0 and good[low - 1]:
        low -= 1
    while high < len(tried) - 1 and good[high + 1]:
        high += 1
    smallest, largest = tried[low], tried[high]
    decades = float(np.log10(largest / smallest)) if smallest > 0 else np.nan
    return Range(smallest, largest, decades, low == 0 or high == len(tried) - 1)


def largest_ratio(values: NDArray[np.float64]) -> float:
    """Return the largest over the smallest of ``(B,)`` values, NaN unless all are known and positive."""
    if len(values) < 2 or not (np.isfinite(values) & (values > 0)).all():
        return np.nan
    return float(values.max() / values.min())
