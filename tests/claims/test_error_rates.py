"""Simulated error rates of criteria at the ends of their regions, where neither answer is right."""

import math

import numpy as np
import pytest

from normlab.claims import (
    AllOf,
    Answer,
    Better,
    Correlation,
    Difference,
    Equivalent,
    Interaction,
    NotWorse,
    Ratio,
    Share,
    Slope,
    Within,
)

SIMULATIONS = 600
LIMIT = 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / SIMULATIONS)
"""A true rate of 5 % exceeds this in one of 200 tests."""
PAIR = {"arm": "bn", "baseline": "nobn", "metric": "test/loss"}


def pair_of(ratio, sd=0.1):
    """Return a function that draws values of both arms whose log ratio has a mean of ``log(ratio)``."""

    def draw(rng, n):
        nobn = np.exp(rng.normal(0, 1, n))
        bn = nobn * ratio * np.exp(rng.normal(0, sd, n))
        return {("test/loss", "bn"): bn, ("test/loss", "nobn"): nobn}

    return draw


def difference_of(shift):
    def draw(rng, n):
        nobn = rng.normal(0, 1, n)
        return {("test/loss", "bn"): nobn + shift + rng.normal(0, 0.1, n), ("test/loss", "nobn"): nobn}

    return draw


def quantity_of(value, sd):
    return lambda rng, n: {("probe/x", "bn"): rng.normal(value, sd, n)}


def panels_with(change):
    """Return a function that draws both arms in two panels; the log ratio changes by ``log(change)``."""

    def draw(rng, n):
        values = {}
        for batch, ratio in ((4, 1.3 * change), (60, 1.3)):
            for (metric, arm), drawn in pair_of(ratio)(rng, n).items():
                values[metric, arm, f"batch={batch}"] = drawn
        return values

    return draw


def growth_of(slope):
    """Return a function that draws a quantity with this slope of its logarithm on x."""

    def draw(rng, n):
        rate = rng.normal(slope, 0.02, n)
        return {(f"norm@{x}", "bn"): np.exp(rate * x + rng.normal(0, 0.01, n)) for x in (1, 2, 4)}

    return draw


def lower_with(probability):
    def draw(rng, n):
        return {
            ("test/loss", "bn"): np.where(rng.random(n) < probability, 0.5, 2.0),
            ("test/loss", "nobn"): np.ones(n),
        }

    return draw


def correlated(rho):
    """Return a function that draws normal pairs with Spearman's correlation rho."""
    pearson = 2 * math.sin(math.pi * rho / 6)

    def draw(rng, n):
        x = rng.normal(size=n)
        y = pearson * x + math.sqrt(1 - pearson**2) * rng.normal(size=n)
        return {("probe/x", "bn"): x, ("probe/y", "bn"): y}

    return draw


BATCHES = {"panel": {"batch": 4}, "other": {"batch": 60}}
GROWTH = {"arm": "bn", "metric": "norm@{x}", "at": [1, 2, 4]}
BOUNDARIES = {
    "better": (Better(**PAIR), pair_of(1.0)),
    "better by a margin": (Better(**PAIR, margin=0.1), pair_of(1 / 1.1)),
    "not worse": (NotWorse(**PAIR, margin=0.05), pair_of(1.05)),
    "equivalent, upper end": (Equivalent(**PAIR, margin=0.1), pair_of(1.1)),
    "equivalent, lower end": (Equivalent(**PAIR, margin=0.1), pair_of(1 / 1.1)),
    "equivalent, narrow": (Equivalent(**PAIR, margin=0.001), pair_of(1.001)),
    "ratio": (Ratio(**PAIR, above=2), pair_of(2.0)),
    "ratio between bounds": (Ratio(**PAIR, above=0.999, below=1.001), pair_of(1.001)),
    "difference": (Difference(**PAIR, below=0.3), difference_of(0.3)),
    "interaction": (Interaction(**PAIR, **BATCHES, above=0), panels_with(1.0)),
    "interaction within": (Interaction(**PAIR, **BATCHES, margin=0.1), panels_with(1.1)),
    "within": (Within(arm="bn", metric="probe/x", value=1, margin=0.1), quantity_of(1.1, 0.1)),
    "within, narrow": (Within(arm="bn", metric="probe/x", value=1, margin=0.001), quantity_of(1.001, 0.1)),
    "slope": (Slope(**GROWTH, above=0), growth_of(0.0)),
    "slope within": (Slope(**GROWTH, value=0.19, margin=0.02), growth_of(0.21)),
    "share": (Share(**PAIR, above=0.5), lower_with(0.5)),
    "share above 0.8": (Share(**PAIR, above=0.8), lower_with(0.8)),
    "correlation": (Correlation(arm="bn", metric="probe/x", other="probe/y", above=0), correlated(0.0)),
    "correlation above 0.5": (
        Correlation(arm="bn", metric="probe/x", other="probe/y", above=0.5),
        correlated(0.5),
    ),
}


def rates(fake, criterion, draw, n, seed=0, **how):
    """Return the shares of simulated sweeps in which a claim holds, and in which it does not hold."""
    rng = np.random.default_rng(seed)
    answers = [criterion(fake(draw(rng, n), **how)).answer for _ in range(SIMULATIONS)]
    return answers.count(Answer.HOLDS) / SIMULATIONS, answers.count(Answer.FAILS) / SIMULATIONS


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 24])
@pytest.mark.parametrize("name", BOUNDARIES)
def test_boundary_is_decided_in_5_percent_in_either_direction(fake, name, n):
    holds, fails = rates(fake, *BOUNDARIES[name], n)
    assert max(holds, fails) <= LIMIT


@pytest.mark.thorough
def test_two_parts_at_their_boundaries(fake):
    """With every part on an end, Holm keeps the rate of *does not hold* for all of them together."""

    def draw(rng, n):
        return {(f"test/{k}", arm): values for k in range(3) for (_, arm), values in pair_of(1.0)(rng, n).items()}

    parts = [Better(arm="bn", baseline="nobn", metric=f"test/{k}") for k in range(3)]
    holds, fails = rates(fake, AllOf(criteria=parts), draw, 12)
    assert max(holds, fails) <= LIMIT


@pytest.mark.thorough
def test_overlapping_splits(fake):
    """Splits that share rows have correlated effects: 5 % by the corrected test, far more by ranks."""
    train, test, n, sd = 60, 20, 24, 0.1
    correlation = test / (test + train)

    def draw(rng, n):
        common = rng.normal(0, sd * math.sqrt(correlation))
        ratio = np.exp(common + rng.normal(0, sd * math.sqrt(1 - correlation), n))
        return {("test/loss", "bn"): ratio, ("test/loss", "nobn"): np.ones(n)}

    holds, fails = rates(fake, Better(**PAIR), draw, n, rows=(train, test))
    assert max(holds, fails) <= LIMIT
    assert sum(rates(fake, Better(**PAIR), draw, n)) > 0.2


@pytest.mark.thorough
@pytest.mark.parametrize(("ratio", "answer"), [(0.9, 0), (1.1, 1)])
def test_power(fake, ratio, answer):
    """With 12 replicates and an sd of 0.1, 10 % is shown in more than 80 %, with the right sign."""
    found = rates(fake, Better(**PAIR), pair_of(ratio), 12)
    assert found[answer] > 0.8
    assert found[1 - answer] == 0
