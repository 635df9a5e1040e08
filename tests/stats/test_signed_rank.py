import math
import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from normlab.stats.signed_rank import (
    GREATER,
    LESS,
    attainable_p,
    doubled_signed_ranks,
    null_tail,
    rounded,
    signed_rank,
)

INF = math.inf
GRID = st.sampled_from([*range(-4, 5), INF, -INF]).map(lambda x: x / 4)
DIFFERENCES = st.lists(GRID, min_size=1, max_size=9)


def by_listing(values, alternative="two-sided"):
    """Return p by enumeration of all signs of the nonzero midranks."""
    d = np.array(values, dtype=float)
    ranks = stats.rankdata(np.abs(d))[d != 0]
    signs = np.array(list(product((1, -1), repeat=len(ranks))))
    sums, found = signs @ ranks, (np.sign(d[d != 0]) * ranks).sum()
    if alternative == GREATER:
        return (sums >= found).mean()
    return (sums <= found).mean() if alternative == LESS else (np.abs(sums) >= abs(found)).mean()


class TestByHand:
    def test_without_ties(self):
        # Ranks 1, 2, 3 of 1, 2, −4: W = 3, and of the sums 0, 1, 2, 3, 3, 4, 5, 6 five are at least 3.
        assert signed_rank([1, 2, -4], alternative=GREATER) == 5 / 8
        assert signed_rank([1, 2, -4]) == 1.0
        # All positive: the largest sum, one in eight.
        assert signed_rank([1, 2, 4], alternative=GREATER) == 1 / 8
        assert signed_rank([1, 2, 4], alternative=LESS) == 1.0
        assert signed_rank([1, 2, 4]) == 0.25

    def test_ties_share_midranks(self):
        # Midranks 1.5, 1.5, 3: W = 4.5, and the sums are 0, 1.5, 1.5, 3, 3, 4.5, 4.5, 6.
        assert signed_rank([1, -1, 2], alternative=GREATER) == 3 / 8

    def test_zeros_are_ranked_and_dropped(self):
        # Of 0, 0, 1, −2, 3 the ranks 3, 4, 5 are left: W = 8; sums 0, 3, 4, 5, 7, 8, 9, 12, three at least 8.
        assert signed_rank([0, 0, 1, -2, 3], alternative=GREATER) == 3 / 8
        # Ranks 1, 2, 3 have sums of 3 or more five times in eight, and 2, 3, 4 sums of 5 or more four times.
        assert signed_rank([1, 2, -3], alternative=GREATER) == 5 / 8
        assert signed_rank([0, 1, 2, -3], alternative=GREATER) == 4 / 8

    def test_diverged_runs_share_the_highest_ranks(self):
        assert doubled_signed_ranks(np.array([INF, -INF, 3.0, -1.0])).tolist() == [7, -7, 4, -2]
        assert signed_rank([INF] * 8) == 2 / 2**8
        assert signed_rank([INF, -INF, 1, 2]) == signed_rank([9, -9, 1, 2])

    def test_all_zero_differences(self):
        assert signed_rank([0, 0, 0]) == 1.0
        assert signed_rank([]) == 1.0

    def test_attainable_p_with_zeros(self):
        assert attainable_p([0, 0, 0, 1, 2, 3, 4, 5]) == 0.0625
        assert attainable_p([1.0] * 8) == 2 / 2**8
        assert attainable_p([0, 0]) == 1.0
        assert attainable_p([0, 1]) == 1.0

    def test_null_distribution(self):
        # The sums of ranks 1, 2, 2, doubled: 0, 2, 4, 4, 6, 6, 8, 10.
        assert null_tail((2, 4, 4))[[0, 2, 4, 6, 8, 10]].tolist() == [1, 7 / 8, 6 / 8, 4 / 8, 2 / 8, 1 / 8]


class TestAgainstReferences:
    @given(DIFFERENCES, st.sampled_from(["two-sided", GREATER, LESS]))
    def test_equals_enumeration_of_signs(self, values, alternative):
        assert signed_rank(values, alternative=alternative) == by_listing(values, alternative)

    @pytest.mark.parametrize("n", [3, 12, 40])
    @pytest.mark.parametrize("alternative", ["two-sided", GREATER, LESS])
    def test_equals_scipy_without_ties(self, n, alternative):
        d = np.random.default_rng(n).normal(loc=0.2, size=n)
        theirs = stats.wilcoxon(d, alternative=alternative, method="exact").pvalue
        assert signed_rank(d, alternative=alternative) == pytest.approx(theirs)

    def test_equals_scipy_enumeration_with_ties_and_zeros(self):
        d = np.array([0, 1, 1, -2, 3, 3, 0, -1, 4, 2])
        method = stats.PermutationMethod(n_resamples=math.inf)
        theirs = stats.wilcoxon(d, zero_method="pratt", method=method).pvalue
        assert signed_rank(d) == pytest.approx(theirs)

    def test_hundreds_of_pairs_match_normal_limit_quickly(self):
        d = np.random.default_rng(0).normal(loc=0.1, size=400).round(2)
        started = time.perf_counter()
        p = signed_rank(d)
        assert time.perf_counter() - started < 1, "about 20 ms"
        assert p == pytest.approx(stats.wilcoxon(d, zero_method="pratt", method="asymptotic").pvalue, rel=0.05)


class TestProperties:
    @given(DIFFERENCES)
    def test_p_is_valid_over_all_signs(self, values):
        """p is valid for any ties, zeros and infinite differences."""
        sizes = np.abs(values)
        flips = np.array(list(product((1, -1), repeat=len(sizes)))) * np.where(sizes > 0, sizes, 1)
        p = signed_rank(np.where(sizes > 0, flips, 0))
        for level in (0.05, 0.25, 0.5):
            assert (p <= level).mean() <= level
        assert p.min() == attainable_p(values)

    @given(DIFFERENCES, st.randoms(use_true_random=False))
    def test_order_sign_and_unit_do_not_matter(self, values, random):
        p = signed_rank(values)
        assert signed_rank(-np.array(values)) == p
        assert signed_rank(8 * np.array(values)) == p
        assert signed_rank(values, alternative=GREATER) == signed_rank(-np.array(values), alternative=LESS)
        random.shuffle(values)
        assert signed_rank(values) == p

    @given(DIFFERENCES, st.lists(st.integers(-10, 10).map(lambda x: x / 8), min_size=2, max_size=2))
    def test_one_sided_p_is_monotone_in_shift(self, values, shifts):
        low, high = sorted(shifts)
        assert signed_rank(values, low, GREATER) <= signed_rank(values, high, GREATER)
        assert signed_rank(values, low, LESS) >= signed_rank(values, high, LESS)

    @given(st.lists(st.lists(GRID, min_size=5, max_size=5), min_size=1, max_size=8))
    @settings(max_examples=30)
    def test_batch_equals_single_samples(self, rows):
        together = signed_rank(np.array(rows))
        assert together.tolist() == [float(signed_rank(row)) for row in rows]

    def test_rounding_errors_tie(self):
        differences = np.array([0.95 - 0.94, 0.13 - 0.12, -(0.03 - 0.02), 0.2])
        assert len(np.unique(np.abs(differences))) == 3, "one is not quite the other"
        assert signed_rank(differences) == signed_rank([1, 1, -1, 20])
        assert signed_rank(differences, 0.02) == signed_rank([1, 1, -1, 20], 2)

    def test_tenths_tie_at_shift_of_half(self):
        assert signed_rank([0.1, 0.9, 0.6, -0.3, 1.3], 0.5) == signed_rank([1, 9, 6, -3, 13], 5)

    @given(st.floats(allow_nan=False))
    def test_rounding_is_relative(self, value):
        value = 0.0 if abs(value) < 1e-280 else value
        for digits in (9, 12):
            found = float(rounded(np.array(value), digits))
            assert found == value or abs(found / value - 1) <= 10.0 ** (1 - digits)
            assert float(rounded(np.array(-value), digits)) == -found
            assert float(rounded(np.array(found), digits)) == found


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: signed_rank([1.0, math.nan]), "differences must be numbers, got NaN"),
        (lambda: signed_rank([1.0], alternative="larger"), "alternative must be two-sided, greater or less"),
    ],
)
def test_invalid_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()
