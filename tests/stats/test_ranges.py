import math

import numpy as np
import pytest

from normlab.stats.tuning import good_range, largest_ratio

RATES = [0.001, 0.01, 0.1, 1.0]


class TestGoodRange:
    def test_by_hand(self):
        assert good_range(RATES, [1.5, 1.05, 1.0, 1.09]) == (0.01, 1.0, pytest.approx(2.0), True)
        assert good_range(RATES, [1.5, 1.05, 1.0, 1.2]) == (0.01, 0.1, pytest.approx(1.0), False)

    def test_range_is_contiguous(self):
        assert good_range(RATES, [1.0, 5.0, 1.0, 1.0]) == (0.001, 0.001, 0.0, True)

    def test_setting_order_does_not_matter(self):
        assert good_range(RATES[::-1], [1.2, 1.0, 1.05, 1.5]) == (0.01, 0.1, pytest.approx(1.0), False)

    def test_tolerance_is_relative_to_absolute_loss(self):
        # A score of 0.9 where large is good: 0.82 is within 10 %, 0.80 is not.
        assert good_range(RATES, [-0.80, -0.82, -0.9, -0.5], within=10)[:2] == (0.01, 0.1)

    def test_diverged_and_unknown_are_outside(self):
        assert good_range(RATES, [1.0, math.inf, 1.0, math.nan])[:2] == (0.001, 0.001)

    def test_equal_settings_count_with_lowest_loss(self):
        assert good_range([0.1, 0.1, 0.2], [9.0, 1.0, 1.0])[:2] == (0.1, 0.2)

    def test_none_for_one_setting_or_all_diverged(self):
        assert good_range([0.1], [1.0]) is None
        assert good_range([0.1, 0.2], [math.inf, math.nan]) is None

    def test_zero_setting_has_nan_decades(self):
        assert math.isnan(good_range([0.0, 0.1], [1.0, 1.0]).decades)


def test_largest_ratio():
    assert largest_ratio(np.array([2.0, 3.0, 1.0])) == 3.0
    for values in ([1.0], [1.0, math.nan], [1.0, -1.0], [0.0, 1.0]):
        assert math.isnan(largest_ratio(np.array(values)))
