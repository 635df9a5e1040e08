"""How often intervals hold the truth when there are few seeds, as simulations measured it."""

COVERAGE = {2: 0.48, 3: 0.74, 4: 0.87, 5: 0.90, 6: 0.90, 7: 0.91}
"""Seeds, and the share of 95 % intervals of the interquartile mean that hold the true one: the lowest over normal,
skewed and heavy-tailed runs. Measured by ``benchmarks/simulations.py --only descriptions``."""


def coverage_of(seeds: int) -> float | None:
    """Return the measured coverage of a 95 % interval where it falls short of that, below 8 seeds."""
    return COVERAGE.get(seeds)
