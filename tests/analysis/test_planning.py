import math

import numpy as np
import pytest
from scipy import stats

from normlab.analysis.planning import detectable, seeds_for, smallest_p
from normlab.analysis.significance import sign_flip


@pytest.mark.parametrize(("n", "difference"), [(8, 1.16), (32, 0.51)])
def test_as_simulations_of_others_found(n, difference):
    assert detectable(n) == pytest.approx(difference, abs=0.02)


@pytest.mark.parametrize(("n", "level"), [(8, 0.05), (9, 0.05 / 3), (20, 0.05)])
def test_it_is_found_in_four_of_five_sweeps(n, level):
    generator = np.random.default_rng(1)
    values = generator.normal(loc=detectable(n, level), size=(600, n))
    power = np.mean([sign_flip(row, generator) <= level for row in values])
    assert power == pytest.approx(0.8, abs=0.05)


def test_where_simulation_ends_the_formula_goes_on():
    t_test = stats.ttest_1samp(np.random.default_rng(0).normal(loc=detectable(12), size=(4000, 12)), 0, axis=1)
    assert np.mean(t_test.pvalue <= 0.05) == pytest.approx(0.8, abs=0.02)
    assert detectable(12) > detectable(13) > detectable(14)


def test_no_difference_is_large_enough_without_enough_seeds():
    assert detectable(7) == math.inf
    assert detectable(8, 0.05 / 6) < 2.5
    assert detectable(8, 0.05 / 7) == math.inf, "p is at least 1/128"


@pytest.mark.parametrize("comparisons", [1, 3, 6, 7, 13, 40])
def test_so_many_seeds_are_enough_and_fewer_are_not(comparisons):
    n = seeds_for(comparisons)
    assert smallest_p(n) <= 0.05 / comparisons
    assert n == 8 or smallest_p(n - 1) > 0.05 / comparisons


def test_the_smallest_p():
    generator = np.random.default_rng(0)
    assert smallest_p(8) == sign_flip(np.arange(1.0, 9.0), generator)
    assert smallest_p(3, paired=False) == 2 / 20
