"""Drawing seeds with replacement, and what the draws say of a statistic."""

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 5000
LEVEL = 0.95


class Draws:
    """Seeds drawn with replacement, the same for all statistics of as many seeds.

    What is drawn depends on the generator's state and on the number of seeds alone: neither the order of the
    runs nor the names of the arms move an interval, and seeds are drawn jointly for all arms.
    ``scipy.stats.bootstrap`` draws anew for each statistic, which takes more than ten times as long.

    Args:
        generator: what all is drawn from; it is moved on by one number.
        resamples: R, how often seeds are drawn; 0 makes all intervals NaN.
    """

    def __init__(self, generator: np.random.Generator, resamples: int = RESAMPLES) -> None:
        self.resamples = resamples
        self._root = int(generator.integers(2**63))
        self._kept: dict[tuple[str, int], NDArray] = {}

    def seeds(self, n: int) -> NDArray[np.intp]:
        """Return which of n seeds each resample takes, ``(n, R)``.

        One half of the resamples is the mirror image of the other: the last seed for the first, and so on. So an
        interval is turned around, and is the same otherwise, when the values are, as when two arms are exchanged.
        """
        key = ("seeds", n)
        if key not in self._kept:
            generator = np.random.default_rng([self._root, n, 2])
            half = generator.integers(n, size=(n, (self.resamples + 1) // 2))
            self._kept[key] = np.concatenate((half, n - 1 - half), axis=1)[:, : self.resamples]
        return self._kept[key]

    def middle(self, n: int) -> NDArray[np.intp]:
        """Return the middle half of each resample of n sorted values, ``(n − 2⌊n/4⌋, R)``.

        What is drawn from sorted values is sorted when its indices are: they are sorted once, and no resample is.
        """
        key = ("middle", n)
        if key not in self._kept:
            cut = n // 4
            self._kept[key] = np.ascontiguousarray(np.sort(self.seeds(n), axis=0)[cut : n - cut])
        return self._kept[key]


def percentiles(resampled: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval of a statistic from what it is in R resamples, ``(R,)``.

    The ends are resampled values, the next ones outwards, so that an end can be infinite. A resample that has
    no value (∞ − ∞, ∞/∞) counts as −∞ at the lower end and as ∞ at the upper.
    """
    if not len(resampled):
        return np.nan, np.nan
    unknown = np.isnan(resampled)
    ends = []
    for share, outside in (((1 - level) / 2, -np.inf), ((1 + level) / 2, np.inf)):
        place = share * (len(resampled) - 1)
        at = int(np.floor(place) if share < 0.5 else np.ceil(place))
        values = np.where(unknown, outside, resampled) if unknown.any() else resampled
        ends.append(float(np.partition(values, at)[at]))
    return ends[0], ends[1]
