"""Tests of regions: both p-values by hand, agreement with the intervals, and numbers of replicates."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normlab.stats.paired_tests import corrected_t, equivalence
from normlab.stats.regions import (
    Region,
    correlation_test,
    region_test,
    replicates_to_decide,
    share_test,
)
from normlab.stats.signed_rank import paired_test

INF = math.inf
SAMPLES = st.lists(st.integers(-9, 9), min_size=5, max_size=12)


class TestRegionTest:
    def test_half_line_by_hand(self):
        # All six differences are below 0: one-sided p = 1/64 for "below", 1 for "above".
        test = region_test([-1, -2, -3, -4, -5, -6], Region(high=0.0))
        assert (test.inside, test.outside) == (2 / 64, 1.0)
        assert test.interval[:3] == (-3.5, -6.0, -1.0)

    def test_bounded_region_by_hand(self):
        # Five differences within ±7: both one-sided p are 1/32, and none is doubled.
        test = region_test([-1, -2, 1, 2, 3], Region(-7, 7), sides=1)
        assert (test.inside, test.outside) == (1 / 32, 1.0)
        # Six above 7: p = 1/64, doubled because either end may be passed.
        beyond = region_test([8, 9, 10, 11, 12, 13], Region(-7, 7), sides=1)
        assert (beyond.inside, beyond.outside) == (1.0, 2 / 64)

    @given(SAMPLES, st.integers(-5, 5))
    def test_interval_of_95_percent_decides_half_lines(self, effects, end):
        test = region_test(effects, Region(high=end))
        assert (test.inside <= 0.05) == test.interval.is_below(end)
        assert (test.outside <= 0.05) == test.interval.is_above(end)
        assert test.interval[:3] == paired_test(effects).shift[:3]

    @given(SAMPLES, st.integers(1, 9))
    def test_interval_of_90_percent_decides_equivalence(self, effects, margin):
        test = region_test(effects, Region(-margin, margin), sides=1)
        assert test.inside == equivalence(effects, margin).p
        assert (test.inside <= 0.05) == (test.interval.is_below(margin) and test.interval.is_above(-margin))
        assert test.outside > 0.05 or test.inside > 0.05

    def test_overlapping_splits_use_the_corrected_t_test(self):
        d, rows = np.array([1.0, 2.0, 3.0, 4.0, 6.0]), (60, 20)
        test, reference = region_test(d, Region(low=0.0), rows=rows), corrected_t(d, *rows)
        assert test.inside == pytest.approx(reference.p)
        assert test.interval[:3] == pytest.approx(reference.mean)
        # t = (mean − 1)/√((1/5 + 1/3) s²) with s² = 3.7 and 4 degrees of freedom
        expected = 2 * stats.t.sf(2.2 / math.sqrt((1 / 5 + 1 / 3) * 3.7), 4)
        assert region_test(d, Region(low=1.0), rows=rows).inside == pytest.approx(expected)
        assert region_test(d, Region(high=1.0), rows=rows).outside == pytest.approx(expected)

    def test_without_information_both_p_are_1(self):
        for effects, rows in ([], None), ([1.0], (60, 20)), ([1.0, INF], (60, 20)):
            test = region_test(effects, Region(high=0.0), rows=rows)
            assert (test.inside, test.outside, test.needed) == (1.0, 1.0, None)

    def test_infinite_effects_rank_highest(self):
        test = region_test([-INF, -1, -2, -3, -4, -5], Region(high=0.0))
        assert test.inside == 2 / 64


class TestShareTest:
    def test_by_hand(self):
        # 8 of 8: the binomial tail at one half is 1/256, two-sided 2/256.
        test = share_test(8, 8, Region(low=0.5))
        assert (test.inside, test.outside) == (pytest.approx(2 / 256), 1.0)
        assert test.interval.low == pytest.approx(0.025 ** (1 / 8))  # Clopper and Pearson: p⁸ = 0.025
        assert share_test(0, 8, Region(low=0.5)).outside == pytest.approx(2 / 256)

    @given(st.integers(0, 20), st.integers(1, 19))
    def test_interval_decides(self, count, twentieths):
        share = twentieths / 20
        test = share_test(count, 20, Region(low=share))
        assert (test.inside <= 0.05) == (test.interval.low > share)
        assert (test.outside <= 0.05) == (test.interval.high < share)

    def test_no_trials(self):
        assert share_test(0, 0, Region(low=0.5))[:2] == (1.0, 1.0)


class TestCorrelationTest:
    def test_by_hand(self):
        x, y = [1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 4, 3, 6, 5, 8, 7]
        # Σd² = 8, so r = 1 − 6·8/(8·63) = 19/21
        test = correlation_test(x, y, Region(low=0.0))
        r = min(19 / 21, 1 - 1 / 8)
        error = math.sqrt((1 + r**2 / 2) / 5)
        assert test.interval.value == pytest.approx(r)
        assert test.inside == pytest.approx(2 * stats.t.sf(math.atanh(r) / error, 6))
        assert test.interval.low == pytest.approx(math.tanh(math.atanh(r) - stats.t.isf(0.025, 6) * error))

    def test_sides_mirror(self):
        x, y = np.arange(12.0), np.array([3, 1, 2, 6, 5, 4, 9, 8, 7, 12, 10, 11.0])
        up, down = correlation_test(x, y, Region(low=0.2)), correlation_test(x, -y, Region(high=-0.2))
        assert up[:2] == pytest.approx(down[:2])

    def test_constant_or_few_values_tell_nothing(self):
        assert correlation_test([1] * 8, range(8), Region(low=0.0))[:2] == (1.0, 1.0)
        assert correlation_test(range(4), range(4), Region(low=0.0))[:2] == (1.0, 1.0)
        assert correlation_test([], [], Region(low=0.0))[:2] == (1.0, 1.0)


class TestReplicatesToDecide:
    @pytest.mark.parametrize(("spread", "expected"), [(0.1, 12), (0.2, 44), (0.4, 170)])
    def test_equivalence_within_10_percent(self, spread, expected):
        margin = math.log(1.1)
        assert replicates_to_decide(0.0, spread, Region(-margin, margin), sides=1) == pytest.approx(
            expected, rel=0.1
        )

    def test_splits_of_one_table_have_a_floor(self):
        region = Region(-0.1, 0.1)
        assert replicates_to_decide(0.0, 0.1, region, 1, rows=(60, 20)) is None
        assert replicates_to_decide(0.0, 0.1, region, 1, rows=(100_000, 20)) is not None

    def test_smallest_p_limits_the_number(self):
        assert replicates_to_decide(-1.0, 1e-9, Region(high=0.0)) == 6  # 2⁻⁶ ≤ 2.5 % < 2⁻⁵

    def test_effect_on_the_end_is_never_decided(self):
        assert replicates_to_decide(0.0, 1.0, Region(high=0.0)) is None
        assert replicates_to_decide(math.nan, 1.0, Region(high=0.0)) is None

    def test_effect_outside_needs_the_nearest_end(self):
        inside = replicates_to_decide(-0.5, 1.0, Region(high=0.0))
        assert inside == replicates_to_decide(0.5, 1.0, Region(high=0.0))
        assert replicates_to_decide(0.5, 1.0, Region(-9.0, 0.0), sides=1) == inside

    @pytest.mark.slow
    @pytest.mark.parametrize("spread", [0.1, 0.2])
    def test_power_is_80_percent(self, spread):
        margin = math.log(1.1)
        region = Region(-margin, margin)
        n = replicates_to_decide(0.0, spread, region, sides=1)
        samples = np.random.default_rng(0).normal(0, spread, (400, n))
        power = np.mean([region_test(sample, region, sides=1).inside <= 0.05 for sample in samples])
        assert 0.74 < power < 0.88
