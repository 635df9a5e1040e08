"""Simulations of the statistical tests on arrays of paired differences with a known distribution.

Each simulation takes the number of repetitions and a generator, and returns tables by title. The pseudomedian of
the differences is 0 unless stated otherwise.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, optimize, special
from simulation_tables import Tables

from normlab.stats.comparison import ALPHA
from normlab.stats.looks import look_level, obrien_fleming
from normlab.stats.paired_tests import detectable_shift, equivalence_p, replicates_for
from normlab.stats.signed_rank import LESS, pseudomedian, signed_rank

Numbers = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Numbers]
LOOKS = range(8, 41, 4)
PSEUDOMEDIAN = "log-normal – normal, pseudomedian 0"
NORMAL_SD = 0.5
"""Standard deviation of the normal runs that are compared with log-normal ones."""


@lru_cache(maxsize=16)
def lognormal_pseudomedian(sigma: float) -> float:
    """Return θ with ``P((X + Y)/2 ≤ θ) = 1/2`` for log-normal X and Y, by numerical integration."""

    def below(u: float, theta: float) -> float:
        rest = max(2 * theta - float(np.exp(sigma * special.ndtri(u))), 1e-300)
        return float(special.ndtr(np.log(rest) / sigma))

    def excess(theta: float) -> float:
        return integrate.quad(below, 0.0, 1.0, (theta,), limit=200)[0] - 0.5

    return float(optimize.brentq(excess, 0.5, 10.0))


@lru_cache(maxsize=1)
def mixed_pseudomedian() -> float:
    """Return the pseudomedian of a log-normal minus a centered normal run, by Gauss–Hermite quadrature."""
    z, weights = np.polynomial.hermite_e.hermegauss(60)
    sums, joint = np.add.outer(np.exp(z), np.exp(z)), np.multiply.outer(weights, weights) / (2 * np.pi)
    spread = np.sqrt(2) * NORMAL_SD
    return float(optimize.brentq(lambda t: (joint * special.ndtr((2 * t - sums) / spread)).sum() - 0.5, 0.0, 10.0))


def skewed(sigma: float) -> Draw:
    """Return a sampler of log-normal differences, shifted to pseudomedian 0."""
    return lambda generator, shape: np.exp(sigma * generator.normal(size=shape)) - lognormal_pseudomedian(sigma)


def lognormal_minus_normal(center: float) -> Draw:
    """Return a sampler of a log-normal run (σ = 1) minus a normal run with mean ``center``."""
    return lambda generator, shape: (
        np.exp(generator.normal(size=shape)) - center - NORMAL_SD * generator.normal(size=shape)
    )


def mixtures() -> dict[str, Draw]:
    """Return samplers of log-normal minus normal runs: equal means, equal medians, pseudomedian 0."""
    centers = {"means": float(np.exp(0.5)), "medians": 1.0}
    equal = {f"log-normal – normal, equal {name}": lognormal_minus_normal(at) for name, at in centers.items()}
    return equal | {PSEUDOMEDIAN: lognormal_minus_normal(mixed_pseudomedian())}


SYMMETRIC: dict[str, tuple[Draw, float]] = {
    "normal": (lambda g, shape: g.normal(size=shape), 1.0),
    "log-normal runs": (
        lambda g, shape: np.exp(g.normal(size=shape)) - np.exp(g.normal(size=shape)),
        float(np.sqrt(2 * np.e * (np.e - 1))),
    ),
    "heavy-tailed": (lambda g, shape: g.standard_t(3, size=shape), float(np.sqrt(3))),
}
"""Samplers of differences symmetric about 0, with their standard deviations."""
SKEWED: dict[str, tuple[Draw, float]] = {
    f"skewed, σ = {sigma}": (skewed(sigma), float(np.exp(sigma**2 / 2) * np.sqrt(np.expm1(sigma**2))))
    for sigma in (0.5, 1.0)
}
"""Samplers of skewed differences with pseudomedian 0, with their standard deviations."""
KINDS = SYMMETRIC | SKEWED


def declared(differences: Numbers, level: float = ALPHA) -> float:
    """Return the rate at which the signed-rank test declares a difference, over samples ``(N, n)``."""
    return float((signed_rank(differences) <= level).mean())


def shapes(size: int, generator: np.random.Generator) -> Tables:
    """Estimate the signed-rank test's rejection rate for differences of several shapes."""
    draws = {kind: draw for kind, (draw, _) in KINDS.items()}
    table = {
        kind: {f"n = {n}": declared(draw(generator, (size, n))) for n in (8, 12, 32)}
        for kind, draw in (draws | mixtures()).items()
    }
    return {"declared by the signed-rank test": table}


def looks(size: int, generator: np.random.Generator) -> Tables:
    """Estimate rejection rates of sequential rules for looks after 8, 12, … 40 pairs, at 0 and 0.6 sd."""
    rules = {
        "p ≤ 5 % at any look": np.full(len(LOOKS), ALPHA),
        "α/(k(k + 1))": np.array([look_level(look) for look in range(1, len(LOOKS) + 1)]),
        "O'Brien–Fleming": obrien_fleming(LOOKS, LOOKS[-1]),
        "once, at 40": np.array([0.0] * (len(LOOKS) - 1) + [ALPHA]),
    }
    tables: Tables = {}
    for kind, (draw, sd) in SYMMETRIC.items():
        for shift, title in (
            (0.0, "looks after 8, 12, … 40 pairs: declared"),
            (0.6, "the same with 0.6 sd: declared"),
        ):
            d = draw(generator, (size, LOOKS[-1])) + shift * sd
            p = np.stack([signed_rank(d[:, :n]) for n in LOOKS], axis=1)
            for rule, levels in rules.items():
                below = p <= levels
                tables.setdefault(title, {}).setdefault(rule, {})[kind] = float(below.any(axis=1).mean())
                if shift:
                    used = np.where(below.any(axis=1), np.array(LOOKS)[below.argmax(axis=1)], LOOKS[-1]).mean()
                    pairs = tables.setdefault("the same with 0.6 sd: mean number of pairs", {})
                    pairs.setdefault(rule, {})[kind] = float(used)
    return tables


def coverage(size: int, generator: np.random.Generator) -> Tables:
    """Estimate the coverage of the interval of the pseudomedian."""
    table = {
        kind: {
            f"n = {n}": float(np.mean([not pseudomedian(d).excludes(0.0) for d in draw(generator, (size, n))]))
            for n in (8, 12, 32)
        }
        for kind, (draw, _) in KINDS.items()
    }
    return {"coverage of the 95 % interval of the pseudomedian": table}


def power(size: int, generator: np.random.Generator) -> Tables:
    """Estimate the power at 1.0 and 1.5 sd; compute detectable differences and required numbers of pairs."""
    rates = {
        kind: {
            f"n = {n}, {shift} sd": declared(draw(generator, (size, n)) + shift * sd)
            for n in (8, 12)
            for shift in (1.0, 1.5)
        }
        for kind, (draw, sd) in SYMMETRIC.items()
    }
    detectable = {
        f"n = {n}": {f"m = {m}": detectable_shift(n, ALPHA / m) for m in (1, 3, 7)}
        for n in (8, 12, 16, 24, 32, 64)
    }
    needed = {
        f"{shift} sd": {f"m = {m}": float(replicates_for(shift, ALPHA / m)) for m in (1, 3, 7)}
        for shift in (0.25, 0.5, 1.0, 1.5)
    }
    return {
        "power of the signed-rank test": rates,
        "difference in sd found with 80 % power, m comparisons": detectable,
        "pairs that a difference needs, m comparisons": needed,
    }


def equivalent(size: int, generator: np.random.Generator) -> Tables:
    """Estimate how often arms are declared equivalent, or not worse, at a margin of 1 sd."""
    tables: Tables = {}
    for kind, (draw, sd) in KINDS.items():
        for n in (12, 32):
            d = draw(generator, (size, n)) / sd
            for title, p in (
                ("difference at the upper margin: equivalent", equivalence_p(d + 1.0, 1.0)),
                ("difference at the lower margin: equivalent", equivalence_p(d - 1.0, 1.0)),
                ("difference at the upper margin: not worse", signed_rank(d + 1.0, 1.0, LESS)),
                ("no difference, margin 1 sd: equivalent", equivalence_p(d, 1.0)),
            ):
                rate = float((p <= ALPHA).mean())
                tables.setdefault(title, {}).setdefault(kind, {})[f"n = {n}"] = rate
    return tables
