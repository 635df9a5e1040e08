"""Simulations of the array functions of the next verdicts; ``simulations.py --tests`` runs them.

Each function takes the number of simulations and a generator, and returns tables by their titles. Differences are
paired differences d with known distribution; their pseudomedian is 0 unless said. Rates are shares of simulations.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, optimize, special, stats

from normlab.analysis.corrected_t import corrected_t, corrected_t_detectable
from normlab.analysis.equivalence import equivalence_p
from normlab.analysis.looks import look_level, obrien_fleming
from normlab.analysis.outcomes import final_mean
from normlab.analysis.power import detectable_shift, replicates_for
from normlab.analysis.pseudomedian import pseudomedian
from normlab.analysis.signed_rank import LESS, signed_rank
from normlab.analysis.significance import sign_flip

Numbers = NDArray[np.float64]
Table = dict[str, dict[str, float]]
Tables = dict[str, Table]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Numbers]
ALPHA = 0.05
LOOKS = range(8, 41, 4)
NORMAL_SD = 0.5
"""Standard deviation of the normal runs that are compared with log-normal ones."""


@lru_cache(maxsize=16)
def lognormal_pseudomedian(sigma: float) -> float:
    """Return θ with ``P((X + Y)/2 ≤ θ) = 1/2`` of log-normal X and Y, by integration over the quantiles of X."""

    def below(u: float, theta: float) -> float:
        rest = max(2 * theta - float(np.exp(sigma * special.ndtri(u))), 1e-300)
        return float(special.ndtr(np.log(rest) / sigma))

    def excess(theta: float) -> float:
        return integrate.quad(below, 0.0, 1.0, (theta,), limit=200)[0] - 0.5

    return float(optimize.brentq(excess, 0.5, 10.0))


@lru_cache(maxsize=1)
def mixed_pseudomedian() -> float:
    """Return the pseudomedian of a log-normal minus a normal run with mean 0, by Gauss–Hermite integration."""
    z, weights = np.polynomial.hermite_e.hermegauss(60)
    sums, joint = np.add.outer(np.exp(z), np.exp(z)), np.multiply.outer(weights, weights) / (2 * np.pi)
    spread = np.sqrt(2) * NORMAL_SD
    return float(optimize.brentq(lambda t: (joint * special.ndtr((2 * t - sums) / spread)).sum() - 0.5, 0.0, 10.0))


def skewed(sigma: float) -> Draw:
    """Return a sampler of log-normal differences, moved so that their pseudomedian is 0."""
    return lambda generator, shape: np.exp(sigma * generator.normal(size=shape)) - lognormal_pseudomedian(sigma)


def lognormal_minus_normal(center: float) -> Draw:
    """Return a sampler of a log-normal run (σ = 1) minus a normal one whose mean is the center."""
    return lambda generator, shape: (
        np.exp(generator.normal(size=shape)) - center - NORMAL_SD * generator.normal(size=shape)
    )


SYMMETRIC: dict[str, tuple[Draw, float]] = {
    "normal": (lambda g, shape: g.normal(size=shape), 1.0),
    "of skewed runs": (
        lambda g, shape: np.exp(g.normal(size=shape)) - np.exp(g.normal(size=shape)),
        float(np.sqrt(2 * np.e * (np.e - 1))),
    ),
    "heavy-tailed": (lambda g, shape: g.standard_t(3, size=shape), float(np.sqrt(3))),
}
"""Distributions of differences that are symmetric about 0, with their standard deviations."""
SKEWED: dict[str, tuple[Draw, float]] = {
    f"skewed, σ = {sigma}": (skewed(sigma), float(np.exp(sigma**2 / 2) * np.sqrt(np.expm1(sigma**2))))
    for sigma in (0.5, 1.0)
}
"""Skewed distributions of differences whose pseudomedian is 0, with their standard deviations."""
KINDS = SYMMETRIC | SKEWED


def epochs(size: int, generator: np.random.Generator) -> Tables:
    """Compare arms with equal expectations and epoch noise 0.25 and 0.5 by two outcomes of 100 epochs, sd 0.3."""
    minimum: dict[str, float] = {}
    last: dict[str, float] = {}
    for n in (8, 12, 24):
        noise = np.array([0.25, 0.5])[:, None, None] * generator.normal(size=(size, 2, n, 100))
        curves = noise + 0.3 * generator.normal(size=(size, 2, n, 1))
        for rates, outcome in (
            (minimum, curves.min(axis=-1)),
            (last, final_mean(curves, np.full((size, 2, n), 100))),
        ):
            rates[f"n = {n}"] = declared(outcome[:, 0] - outcome[:, 1])
    return {"equal arms, one with noisier epochs: declared": {"minimum": minimum, "last 10 %": last}}


def declared(differences: Numbers, level: float = ALPHA) -> float:
    """Return the share of samples ``(N, n)`` in which the signed-rank test declares a difference."""
    return float((signed_rank(differences) <= level).mean())


def shapes(size: int, generator: np.random.Generator) -> Tables:
    """Test differences of several shapes with pseudomedian 0, and log-normal against normal runs."""
    mixtures = {
        "equal means": lognormal_minus_normal(float(np.exp(0.5))),
        "equal medians": lognormal_minus_normal(1.0),
        "pseudomedian 0": lognormal_minus_normal(mixed_pseudomedian()),
    }
    rates: Tables = {"pseudomedian 0: declared by the signed-rank test": {}}
    for kind, (draw, _) in KINDS.items():
        rates["pseudomedian 0: declared by the signed-rank test"][kind] = {
            f"n = {n}": declared(draw(generator, (size, n))) for n in (8, 16, 32)
        }
    for name, draw in mixtures.items():
        for n in (8, 16, 32):
            d = draw(generator, (size, n))
            flips = np.mean([sign_flip(row, generator) <= ALPHA for row in d[: size // 2]])
            for test, rate in (("signed-rank test", declared(d)), ("sign-flip test", float(flips))):
                title = f"log-normal against normal runs: declared by the {test}"
                rates.setdefault(title, {}).setdefault(name, {})[f"n = {n}"] = rate
    return rates


def looks(size: int, generator: np.random.Generator) -> Tables:
    """Look at the signed-rank test after 8, 12, … 40 pairs by several rules: no difference, and 0.6 sd."""
    rules = {
        "p ≤ 5 % at any": np.full(len(LOOKS), ALPHA),
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
                    pairs.setdefault(rule, {})[f"pairs, {kind}"] = float(used)
    return tables


def coverage(size: int, generator: np.random.Generator) -> Tables:
    """Measure how often the interval holds the pseudomedian."""
    table = {
        kind: {
            f"n = {n}": float(np.mean([not pseudomedian(d).excludes(0.0) for d in draw(generator, (size, n))]))
            for n in (8, 12, 32)
        }
        for kind, (draw, _) in KINDS.items()
    }
    return {"coverage of the 95 % interval of the pseudomedian": table}


def power(size: int, generator: np.random.Generator) -> Tables:
    """Measure the power at 1.0 and 1.5 sd, and list the differences found with 80 % power and the pairs needed."""
    rates = {
        kind: {
            f"n = {n}, {shift} sd": declared(draw(generator, (size, n)) + shift * sd)
            for n in (8, 12)
            for shift in (1.0, 1.5)
        }
        for kind, (draw, sd) in SYMMETRIC.items()
    }
    found = {
        f"n = {n}": {f"difference, m = {m}": detectable_shift(n, ALPHA / m) for m in (1, 3, 7)}
        for n in (8, 12, 16, 24, 32, 64)
    }
    needed = {
        f"{shift} sd": {f"pairs for it, m = {m}": float(replicates_for(shift, ALPHA / m)) for m in (1, 3, 7)}
        for shift in (0.25, 0.5, 1.0, 1.5)
    }
    return {
        "power of the signed-rank test": rates,
        "difference in sd found with 80 % power, m comparisons": found,
        "pairs that a difference needs, m comparisons": needed,
    }


def equivalent(size: int, generator: np.random.Generator) -> Tables:
    """Measure how often arms are declared equivalent or not worse at a margin of 1 sd."""
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


def overlapping_splits(
    size: int, generator: np.random.Generator, splits: int, train: int, test: int, inputs: int = 5
) -> Numbers:
    """Return differences in squared test error between two learners of equal expected error, ``(size, splits)``.

    The target is the sum of two groups of inputs and noise, all independent and standard normal. Least squares on
    the first group is one learner, on the second the other. Exchanging the groups leaves the law of a table and of
    its random splits the same and turns the difference around: it is symmetric about 0, whatever the splits share.
    On one table either learner may be ahead, and on all of its splits at once.
    """
    rows = train + test
    x = generator.normal(size=(size, rows, 2 * inputs))
    y = x.sum(axis=-1) + generator.normal(size=(size, rows))
    found = np.empty((size, splits))
    for split in range(splits):
        order = generator.permuted(np.tile(np.arange(rows), (size, 1)), axis=1)
        xs, ys = np.take_along_axis(x, order[..., None], axis=1), np.take_along_axis(y, order, axis=1)
        errors = [test_error(xs[..., group], ys, train) for group in (slice(inputs), slice(inputs, None))]
        found[:, split] = errors[0] - errors[1]
    return found


def test_error(x: Numbers, y: Numbers, train: int) -> Numbers:
    """Return the mean squared error of least squares on the rows after the first, ``(N,)``."""
    past, target = x[:, :train], y[:, :train, None]
    weights = np.linalg.solve(past.transpose(0, 2, 1) @ past, past.transpose(0, 2, 1) @ target)
    return np.asarray((((x[:, train:] @ weights)[..., 0] - y[:, train:]) ** 2).mean(axis=1))


def splits(size: int, generator: np.random.Generator) -> Tables:
    """Measure how often equal learners differ on splits of one table of 100 rows, and list what can be found."""
    rates: Table = {}
    for train, test in ((75, 25), (90, 10)):
        for count in (12, 24, 100):
            d = overlapping_splits(size, generator, count, train, test)
            for name, p in (
                ("corrected t", np.array([corrected_t(row, train, test).p for row in d])),
                ("t test", stats.ttest_1samp(d, 0, axis=1).pvalue),
                ("signed-rank", signed_rank(d)),
            ):
                rates.setdefault(f"{name}, {train}/{test}", {})[f"J = {count}"] = float((p <= ALPHA).mean())
    found = {
        f"{train} to {test} rows": {
            f"difference, J = {count}": corrected_t_detectable(count, train, test) for count in (12, 24, 100)
        }
        for train, test in ((60, 20), (75, 25), (80, 20), (90, 10))
    }
    return {
        "equal learners on J splits of one table: declared": rates,
        "difference in sd that the corrected t finds with 80 % power": found,
    }


SIMULATIONS: dict[str, tuple[Callable[[int, np.random.Generator], Tables], float]] = {
    "epochs": (epochs, 0.1),
    "shapes": (shapes, 1.0),
    "looks": (looks, 1.0),
    "coverage": (coverage, 1.0),
    "power": (power, 1.0),
    "equivalence": (equivalent, 1.0),
    "splits": (splits, 0.5),
}
"""Each simulation by its name, and its size as a share of ``--simulations``."""


def simulate_tests(names: list[str], simulations: int, seed: int) -> Tables:
    """Return the tables of some simulations; each draws from a generator of its own."""
    tables: Tables = {}
    for name in names:
        run, share = SIMULATIONS[name]
        tables |= run(
            max(1, int(simulations * share)), np.random.default_rng([seed, list(SIMULATIONS).index(name)])
        )
    return tables
