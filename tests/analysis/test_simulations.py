"""Small versions of the simulations of the tests for the next verdicts, with bounds that chance alone explains."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "verdict_simulations.py"
SPEC = importlib.util.spec_from_file_location("verdict_simulations", PATH)
simulations = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(simulations)
SIZE = 400


def simulated(run, size=SIZE):
    return run(size, np.random.default_rng(5))


def beyond(share, size=SIZE):
    """Return by how much a share of simulations may exceed its expectation: three standard errors."""
    return 3 * math.sqrt(share * (1 - share) / size)


def test_the_minimum_over_epochs_rewards_noise_and_the_final_mean_does_not():
    (table,) = simulated(simulations.epochs).values()
    assert table["minimum"]["n = 8"] > 0.6
    assert max(table["last 10 %"].values()) <= 0.05 + beyond(0.05)


class TestShapes:
    @pytest.fixture(scope="class")
    @classmethod
    def tables(cls):
        return simulated(simulations.shapes)

    @pytest.mark.parametrize("kind", simulations.KINDS)
    def test_differences_with_pseudomedian_zero_are_rarely_declared(self, tables, kind):
        rates = tables["pseudomedian 0: declared by the signed-rank test"][kind].values()
        most = 0.05 if kind in simulations.SYMMETRIC else 0.07
        assert max(rates) <= most + beyond(most)

    def test_equal_means_of_other_shapes_are_a_difference_of_medians(self, tables):
        table = tables["log-normal against normal runs: declared by the signed-rank test"]
        assert table["equal means"]["n = 32"] > 0.1
        assert table["pseudomedian 0"]["n = 32"] <= 0.07 + beyond(0.07)


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_the_pseudomedian_of_a_lognormal_is_the_median_of_averages(sigma):
    pairs = np.exp(sigma * np.random.default_rng(0).normal(size=(400_000, 2))).mean(axis=1)
    assert simulations.lognormal_pseudomedian(sigma) == pytest.approx(np.median(pairs), rel=0.01)


def test_the_pseudomedian_of_a_lognormal_minus_a_normal_is_the_median_of_averages():
    generator = np.random.default_rng(0)
    d = simulations.lognormal_minus_normal(0.0)(generator, (400_000, 2)).mean(axis=1)
    assert simulations.mixed_pseudomedian() == pytest.approx(np.median(d), rel=0.01)


def test_rules_for_looks_keep_the_level_and_looking_without_one_does_not():
    table = simulated(simulations.looks)["looks after 8, 12, … 40 pairs: declared"]
    assert min(table["p ≤ 5 % at any"].values()) > 0.1
    for rule in ("α/(k(k + 1))", "O'Brien–Fleming", "once, at 40"):
        assert max(table[rule].values()) <= 0.05 + beyond(0.05)


def test_the_interval_holds_the_pseudomedian():
    (table,) = simulated(simulations.coverage, 200).values()
    for kind in simulations.KINDS:
        for n in ("n = 12", "n = 32"):
            assert 0.93 - beyond(0.93, 200) <= table[kind][n] <= 0.97 + beyond(0.97, 200)


def test_twelve_pairs_find_one_and_one_and_a_half_standard_deviations():
    table = simulated(simulations.power)["power of the signed-rank test"]["normal"]
    assert table["n = 12, 1.0 sd"] >= 0.8 - beyond(0.8)
    assert table["n = 12, 1.5 sd"] >= 0.95 - beyond(0.95)


def test_a_difference_at_a_margin_is_rarely_called_equivalent():
    tables = simulated(simulations.equivalent)
    for title in [title for title in tables if "at the" in title]:
        for kind in simulations.SYMMETRIC:
            assert max(tables[title][kind].values()) <= 0.05 + beyond(0.05)
    assert tables["no difference, margin 1 sd: equivalent"]["normal"]["n = 32"] > 0.9


class TestSplits:
    def test_learners_of_equal_expected_error(self):
        d = simulations.overlapping_splits(SIZE, np.random.default_rng(0), 6, 75, 25)
        means = d.mean(axis=1)
        assert abs(means.mean()) < 3 * means.std() / math.sqrt(SIZE)
        assert np.corrcoef(d.T)[0, 1:].mean() > 0.1, "splits of one table share rows"

    def test_the_correction_is_needed(self):
        d = simulations.overlapping_splits(SIZE, np.random.default_rng(1), 24, 75, 25)
        corrected = np.mean([simulations.corrected_t(row, 75, 25).p <= 0.05 for row in d])
        assert corrected <= 0.08 + beyond(0.08)
        assert simulations.declared(d) > 0.3
