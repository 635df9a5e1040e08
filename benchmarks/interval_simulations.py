"""Coverage of descriptive intervals: interquartile means, shares, and ratios of median times.

Run values are normal, skewed (log-normal), heavy-tailed (Student's t with 3 degrees of freedom), or normal with
one run in ten diverged. Runs of one replicate have correlation 0.5 before the transformation to these
distributions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, special, stats
from simulation_tables import Tables

from normlab.stats.estimates import Resampler, iqm_estimate, share_estimate
from normlab.stats.learning_speed import time_ratio

Numbers = NDArray[np.float64]
SAME = 0.5
"""Correlation of the runs of one replicate, before the transformation to their distribution."""
FEW, MANY = (2, 3, 4, 5, 6, 7), (8, 32)
SHIFT, SPREAD, STEPS, EVERY = 0.5, 0.4, 304.0, 10.0
"""Simulated times: difference between the arms, spread and middle of the times, steps between evaluations."""


@dataclass(frozen=True)
class Runs:
    """A distribution of run values, as a function ``of`` standard normal numbers."""

    of: Callable[[Numbers], Numbers]

    def draw(self, generator: np.random.Generator, size: tuple[int, ...]) -> Numbers:
        """Draw run values of shape ``size``, with replicates on the last axis; runs of a replicate correlate."""
        shared = generator.normal(size=size[-1])
        return self.of(np.sqrt(SAME) * shared + np.sqrt(1 - SAME) * generator.normal(size=size))

    def iqm(self) -> float:
        """Return the true interquartile mean, ``2 ∫ q(u) du`` between the quartiles."""
        return float(2 * integrate.quad(lambda u: self.of(special.ndtri(u)), 0.25, 0.75)[0])


RUNS = {
    "normal": Runs(lambda z: z),
    "skewed": Runs(np.exp),
    "heavy-tailed": Runs(lambda z: special.stdtrit(3, special.ndtr(z))),
    "diverging": Runs(lambda z: np.where(z < special.ndtri(0.9), z, np.inf)),
}
PLAIN = ("normal", "skewed", "heavy-tailed")


def descriptions(size: int, generator: np.random.Generator) -> Tables:
    """Estimate the coverage of all descriptive intervals."""
    means, times = "coverage of the 95 % interval: {}".format, "ratio of median times"
    tables: Tables = {means("interquartile mean"): {}, means(times): {}}
    for kind, runs in RUNS.items():
        for n in (*(FEW if kind in PLAIN else ()), *MANY):
            tables[means("interquartile mean")].setdefault(kind, {})[f"n = {n}"] = of_mean(
                runs, n, size, generator
            )
        for n in MANY:
            tables[means(times)].setdefault(kind, {})[f"n = {n}"] = of_times(runs, n, size, generator)
    return tables | {means("share"): {f"n = {n}": of_share(n) for n in MANY}}


def of_mean(runs: Runs, n: int, size: int, generator: np.random.Generator) -> float:
    """Return the coverage of the interval of the IQM of n runs; undefined intervals are not counted."""
    truth = runs.iqm()
    estimates = [iqm_estimate(runs.draw(generator, (n,)), Resampler(generator)) for _ in range(size)]
    return float(np.mean([each.low <= truth <= each.high for each in estimates if not np.isnan(each.low)]))


def of_times(runs: Runs, n: int, size: int, generator: np.random.Generator) -> float:
    """Return the coverage of the interval of the ratio of median times; undefined ones are not counted."""
    middle = float(runs.of(np.array(0.0)))

    def time_of(losses: Numbers) -> Numbers:
        return np.ceil(STEPS * np.exp(SPREAD * losses) / EVERY) * EVERY

    shift = np.array([[SHIFT], [0.0]])
    truth = float(time_of(np.array(middle - SHIFT)) / time_of(np.array(middle)))
    inside = []
    for _ in range(size):
        first, second = time_of(runs.draw(generator, (2, n)) - shift)
        ratio = time_ratio(first, second, Resampler(generator))
        if not np.isnan(ratio.low):
            inside.append(ratio.low - 1e-9 <= truth <= ratio.high + 1e-9)
    return float(np.mean(inside))


def of_share(n: int) -> dict[str, float]:
    """Return the exact coverage of Wilson's interval for a share of n runs, for three true shares."""
    coverage = {}
    for truth in (0.5, 0.7, 0.9):
        ends = [share_estimate(count, n) for count in range(n + 1)]
        inside = [count for count, end in enumerate(ends) if end.low <= truth <= end.high]
        coverage[f"{100 * truth:.0f} %"] = float(stats.binom.pmf(inside, n, truth).sum())
    return coverage
