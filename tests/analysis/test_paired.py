import math

import numpy as np
import pytest

from normlab.analysis.paired import compare, iqm


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end():
    assert iqm(np.array([1.0, 2.0, 3.0, 100.0])) == 2.5
    assert iqm(np.array([[8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 700.0]])).tolist() == [4.5]


def test_a_constant_ratio_is_found_with_an_interval_of_no_width():
    other = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
    found = compare(3 * other, other, generator())
    assert (found.ratio, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))
    assert (found.seeds, found.smaller) == (8, 0)
    assert found.p == pytest.approx(2 / 2**8), "all differences have one sign: 2 of 2⁸ flips are as far out"


def test_p_is_the_share_of_flips_whose_mean_is_as_far_from_zero():
    """Differences 1, 2, −4: sums of the 8 flips are ±1, ±3, ±5, ±7, and −1 was found."""
    assert compare([2.0, 3.0, 1.0], [1.0, 1.0, 5.0], generator()).p == 1.0
    assert compare([2.0, 3.0, 5.0], [1.0, 1.0, 1.0], generator()).p == 0.25


def test_the_ratio_of_log_normal_arms_lies_in_its_interval_as_often_as_is_said():
    draws, inside = generator(1), 0
    for _ in range(200):
        other = np.exp(draws.normal(size=16))
        arm = 2 * other * np.exp(draws.normal(scale=0.5, size=16))
        found = compare(arm, other, draws)
        assert found.low <= found.ratio <= found.high
        inside += found.low <= 2 <= found.high
    assert 180 <= inside <= 199


def test_one_seed_has_a_ratio_and_nothing_else():
    found = compare([3.0], [2.0], generator())
    assert (found.seeds, found.ratio, found.p) == (1, pytest.approx(1.5), 1.0)
    assert math.isnan(found.low)


def test_equal_arms_do_not_differ():
    assert compare([1.0] * 8, [1.0] * 8, generator()).p == 1.0


def test_diverged_runs_count_as_worse_and_leave_no_ratio():
    found = compare([math.inf] * 7 + [1.0], [2.0] * 8, generator())
    assert math.isnan(found.ratio)
    assert found.smaller == 1
    assert found.p > 0.0078
    assert compare([math.inf] * 8, [2.0] * 8, generator()).p == pytest.approx(2 / 2**8)
    assert compare([math.inf] * 8, [math.inf] * 8, generator()).p == 1.0


def test_numbers_that_are_not_positive_have_no_ratio_but_a_test():
    found = compare([-0.1, -0.2, -0.1, -0.2, -0.3, -0.1, -0.2, -0.1], [0.5] * 8, generator())
    assert math.isnan(found.ratio)
    assert found.p < 0.01
