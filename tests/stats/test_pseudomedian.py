import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.stats.signed_rank import (
    GREATER,
    LESS,
    MOST_INFINITE,
    hodges_lehmann,
    pseudomedian,
    signed_rank,
    walsh_averages,
)

INF = math.inf
GRID = st.one_of(st.integers(-6, 6).map(lambda x: x / 4), st.sampled_from([INF, -INF]))
MOSTLY_FINITE = st.lists(GRID, min_size=1, max_size=14).filter(lambda d: np.isinf(d).mean() <= MOST_INFINITE)
SHIFTS = st.integers(-52, 52).map(lambda x: x / 32)
LEVELS = st.sampled_from([0.5, 0.8, 0.9, 0.95])


class TestByHand:
    def test_estimate_by_hand(self):
        # Averages of 1, 2, 6: 1, 1.5, 2, 3.5, 4, 6.
        assert pseudomedian([1, 2, 6]).value == 2.75
        assert pseudomedian([7]).value == 7.0
        # With ∞ they are 1, 1.5, 2, 2, 2.5, 3, and four infinite ones: the middle of ten.
        assert pseudomedian([1, 2, 3, INF]).value == 2.75
        # The average of ∞ and −∞ counts half on either side: the middle of the finite ones is left.
        assert pseudomedian([1, 2, 3, 4, 5, 6, INF, -INF]).value == 3.5

    def test_the_interval_of_six_pairs_is_their_range(self):
        # Only equal signs of all six have p ≤ 0.05: 2/64. A shift equal to an end leaves five, 2/32.
        found = pseudomedian([1, 2, 4, 8, 16, 32])
        assert found[1:] == (1.0, 32.0, True, True)

    def test_five_pairs_exclude_nothing(self):
        assert pseudomedian([1, 2, 3, 4, 5])[1:3] == (-INF, INF)

    def test_equals_r(self):
        # wilcox.test(x, conf.int = TRUE) of the depression data of Hollander and Wolfe (1973).
        x = [0.952, -0.147, 1.022, 0.430, 0.620, 0.590, 0.490, -0.080, 0.010]
        found = pseudomedian(x)
        assert found.value == pytest.approx(0.46)
        assert signed_rank(x) == pytest.approx(0.03906, abs=1e-5)
        assert found[1:3] == pytest.approx((0.01, 0.786))

    def test_estimate_with_many_zeros_may_be_rejected_end(self):
        # Most averages are 0, but six differences of one sign among zeros have p = 2/64.
        found = pseudomedian([0.0] * 15 + [1.0] * 6)
        assert found == (0.0, 0.0, 0.5, False, True)
        assert signed_rank([0.0] * 15 + [1.0] * 6) == 2 / 64

    def test_end_may_be_infinite(self):
        # Of nine, at most five averages may lie below a rejected shift: 1, 1.5, 2, 2 do, and 2.5 is there twice.
        found = pseudomedian([1, 2, 3, 4, 5, 6, 7, INF, INF])
        assert (found.low, found.high) == (2.5, INF)


class TestInfinite:
    @pytest.mark.parametrize("n", range(1, 60))
    def test_estimate_is_finite_up_to_29_percent_infinite(self, n):
        most = math.floor(n * MOST_INFINITE)
        assert math.isfinite(pseudomedian([INF] * most + [1.0] * (n - most)).value)
        assert math.isnan(pseudomedian([INF] * (most + 1) + [1.0] * (n - most - 1)).value)

    def test_most_averages_may_be_infinite_above_29_percent(self):
        n = 1000
        finite = [len(walsh_averages(np.array([INF] * k + [0.0] * (n - k)))) for k in (292, 294)]
        assert finite[0] > n * (n + 1) / 4 > finite[1]

    def test_nan_interval_excludes_nothing(self):
        none = pseudomedian([INF] * 8)
        assert not none.excludes(0.0)
        assert not none.is_below(1.0)
        assert math.isnan(pseudomedian([]).low)


class TestConsistency:
    @given(MOSTLY_FINITE, SHIFTS, LEVELS)
    @settings(max_examples=400, deadline=None)
    def test_interval_excludes_shift_iff_test_rejects(self, values, shift, level):
        found = pseudomedian(values, level)
        assert found.excludes(shift) == (signed_rank(values, shift) <= 1 - level + 1e-12)
        assert found.is_above(shift) == (signed_rank(values, shift, GREATER) <= (1 - level) / 2 + 1e-12)
        assert found.is_below(shift) == (signed_rank(values, shift, LESS) <= (1 - level) / 2 + 1e-12)

    @given(MOSTLY_FINITE, LEVELS)
    @settings(max_examples=200, deadline=None)
    def test_interval_ends_match_test(self, values, level):
        found = pseudomedian(values, level)
        for end in (found.low, found.high):
            if math.isfinite(end):
                assert found.excludes(end) == (signed_rank(values, end) <= 1 - level + 1e-12)
                for beside in (end - 2**-20, end + 2**-20):
                    assert found.excludes(beside) == (signed_rank(values, beside) <= 1 - level + 1e-12)

    @given(st.lists(st.floats(-100, 100), min_size=6, max_size=20), st.floats(-100, 100))
    @settings(deadline=None)
    def test_interval_matches_test_for_any_numbers(self, values, shift):
        found = pseudomedian(values)
        # Near a Walsh average, differences tie within rounding, but one of 1e-186 is not taken for 0.
        if abs(shift - walsh_averages(np.array(values))).min() > 1e-6:
            assert found.excludes(shift) == (signed_rank(values, shift) <= 0.05)

    @pytest.mark.parametrize("shift", [0.0, -1e-12, -1e-3, 1e-7])
    def test_interval_beside_ties(self, shift):
        values = [0.0, 4.0, 0.0, -1.0, -1.0, -2.0, -2.0, -3.0, -5.0, -1.5, -1.5, -0.5]
        assert pseudomedian(values).excludes(shift) == (signed_rank(values, shift) <= 0.05)

    @given(MOSTLY_FINITE, LEVELS, SHIFTS)
    @settings(deadline=None)
    def test_estimate_is_inside_and_equivariant(self, values, level, shift):
        found = pseudomedian(values, level)
        assert found.low <= found.value <= found.high
        moved = pseudomedian(np.array(values) + shift, level)
        assert moved[:3] == tuple(end + shift for end in found[:3])
        mirrored = pseudomedian(-np.array(values), level)
        assert (-mirrored.value, -mirrored.high, -mirrored.low) == found[:3]

    @given(st.lists(st.integers(-20, 20), min_size=1, max_size=12))
    @settings(deadline=None)
    def test_estimate_is_median_of_averages(self, values):
        d = np.array(values, dtype=float)
        assert hodges_lehmann(d) == np.median(walsh_averages(d))

    @given(st.lists(st.integers(-9, 9), min_size=6, max_size=14), st.integers(-9, 9))
    @settings(deadline=None)
    def test_tenths_are_as_exact_as_integers(self, values, shift):
        tenths, whole = pseudomedian(np.array(values) / 10), pseudomedian(values)
        assert tenths[:3] == pytest.approx([end / 10 for end in whole[:3]])
        assert tenths.excludes(shift / 10) == whole.excludes(shift) == (signed_rank(values, shift) <= 0.05)

    def test_higher_level_has_wider_interval(self):
        d = np.random.default_rng(0).normal(size=20)
        wide, narrow = pseudomedian(d, 0.99), pseudomedian(d, 0.9)
        assert wide.low < narrow.low < narrow.high < wide.high
