import math

import numpy as np
import pytest

from normlab.stats.estimates import Resampler, percentile_interval


def draws(seed=0, resamples=400):
    return Resampler(np.random.default_rng(seed), resamples)


def test_resamples_depend_on_generator_and_count():
    one, other = draws(), draws()
    other.seeds(9)
    other.middle(5)
    np.testing.assert_array_equal(one.seeds(8), other.seeds(8))
    assert not np.array_equal(draws(1).seeds(8), one.seeds(8))


def test_middle_equals_middle_of_sorted_resample():
    values = np.random.default_rng(1).normal(size=9)
    drawn = draws()
    resampled = np.sort(np.sort(values)[drawn.seeds(9)], axis=0)[2:7]
    np.testing.assert_array_equal(np.sort(values)[drawn.middle(9)], resampled)


def test_percentiles_round_outwards_to_values():
    # Of 0 … 99 the places are 2.475 and 96.525.
    assert percentile_interval(np.arange(100.0)) == (2.0, 97.0)
    assert percentile_interval(-np.arange(100.0)) == (-97.0, -2.0)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_nan_resample_widens_both_ends(share):
    values = np.arange(100.0)
    values[: int(100 * share)] = np.nan
    assert percentile_interval(values) == (-math.inf, math.inf)


def test_end_can_be_infinite():
    values = np.append(np.arange(90.0), [math.inf] * 10)
    assert percentile_interval(values) == (2.0, math.inf)


def test_no_resamples_give_no_interval():
    assert all(map(math.isnan, percentile_interval(draws(resamples=0).seeds(8)[0].astype(float))))
