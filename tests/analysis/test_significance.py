import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from normlab.analysis.significance import (
    DRAWN,
    finite_differences,
    holm,
    label_permutation,
    sign_flip,
    signed_patterns,
)

INF = math.inf


def generator(seed=0):
    return np.random.default_rng(seed)


def flipped(*values):
    return sign_flip(np.array(values, dtype=float), generator())


def by_listing(differences):
    sums = np.array(list(product((1, -1), repeat=len(differences)))) @ differences
    return (np.abs(sums) >= abs(differences.sum()) - 1e-9).mean()


HUNDREDTHS = st.integers(-900, 900).map(lambda x: x / 100)


class TestSignFlip:
    def test_by_hand(self):
        # Of 1, 2, −4 the eight sums are ±1, ±3, ±5, ±7, and −1 was found; of 1, 2, 4 it is the largest.
        assert flipped(1, 2, -4) == 1.0
        assert flipped(1, 2, 4) == 0.25
        # Of 1, 1, −3, 5 the sums are ±10, ±8 twice, ±6, ±4, ±2 twice and 0 twice, and 4 was found.
        assert flipped(1, 1, -3, 5) == 10 / 16

    @pytest.mark.parametrize("n", [4, 8, 12])
    def test_where_all_have_one_sign_it_is_the_smallest_there_is(self, n):
        assert sign_flip(np.arange(1.0, n + 1), generator()) == 2 / 2**n

    @pytest.mark.parametrize("n", [1, 2, 3, 9, 12])
    def test_scipy_and_a_list_of_all_flips_have_the_same(self, n):
        differences = generator(n).normal(loc=0.4, size=n)
        found = sign_flip(differences, generator())
        assert found == pytest.approx(by_listing(differences))
        if n > 1:
            theirs = stats.permutation_test(
                (differences,), np.mean, permutation_type="samples", n_resamples=math.inf
            )
            assert found == pytest.approx(theirs.pvalue)

    @given(st.lists(st.integers(-5, 5), min_size=1, max_size=10))
    def test_ties_count(self, values):
        differences = np.array(values) / 10  # tenths are not exact in binary
        assert sign_flip(differences, generator()) == pytest.approx(by_listing(np.array(values)))

    @given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=14), st.randoms(use_true_random=False))
    @settings(max_examples=50)
    def test_order_sign_and_unit_do_not_matter(self, values, random):
        differences, p = np.array(values), flipped(*values)
        random.shuffle(values)
        assert flipped(*values) == pytest.approx(p)
        assert sign_flip(-differences, generator()) == pytest.approx(p)
        assert sign_flip(1024 * differences, generator()) == pytest.approx(p)

    def test_very_different_sizes_are_no_tie(self):
        assert flipped(1e9, 1, 1) == 0.25

    def test_many_pairs_are_exact_too(self):
        # Of 40 equal differences, 28 positive: twice the binomial tail.
        differences = np.array([1.0] * 28 + [-1.0] * 12)
        assert sign_flip(differences, generator()) == pytest.approx(stats.binomtest(28, 40).pvalue)

    def test_beyond_flips_are_drawn(self):
        differences = np.array([1.0] * 40 + [-1.0] * 20)
        assert sign_flip(differences, generator()) == pytest.approx(stats.binomtest(40, 60).pvalue, abs=0.003)
        assert sign_flip(np.ones(60), generator()) == 1 / (DRAWN + 1)

    def test_no_differences_and_none_at_all(self):
        assert flipped(0, 0, 0) == 1.0
        assert flipped() == 1.0

    def test_a_diverged_run_counts_with_the_largest_difference(self):
        np.testing.assert_array_equal(finite_differences(np.array([1, -3, INF, -INF])), [1, -3, 3, -3])
        assert flipped(1, -3, INF) == flipped(1, -3, 3)
        assert flipped(*[INF] * 8) == 2 / 2**8
        assert flipped(INF, 0) == flipped(1, 0)

    @given(st.lists(st.sampled_from([1.0, -2.0, 3.0, INF, -INF]), min_size=3, max_size=8))
    def test_with_diverged_runs_it_keeps_its_level(self, values):
        """Among all flips of given magnitudes, at most a share α has p ≤ α."""
        sizes = np.abs(values)
        p = np.array([sign_flip(signs * sizes, generator()) for signs in signed_patterns(len(sizes))])
        for level in (0.05, 0.25, 0.5):
            assert (p <= level).mean() <= level


class TestLabelPermutation:
    def test_by_hand(self):
        # The six ways to choose two of 1, 2, 3, 10: sums 3, 4, 11, 5, 12, 13; 3 of 16 is as far from 8 as 13 is.
        assert label_permutation(np.array([1.0, 2.0]), np.array([3.0, 10.0]), generator()) == 2 / 6

    @pytest.mark.parametrize("sizes", [(4, 4), (3, 6), (6, 3), (2, 5)])
    def test_scipy_has_the_same(self, sizes):
        draws = generator(1)
        a, b = (draws.normal(loc=place, size=n) for place, n in enumerate(sizes))
        # Of arms of unequal sizes scipy doubles the smaller tail, instead of adding the two.
        theirs = stats.permutation_test(
            (a, b),
            lambda x, y: abs(x.mean() - y.mean()),
            alternative="greater",
            vectorized=False,
            n_resamples=math.inf,
        )
        assert label_permutation(a, b, generator()) == pytest.approx(theirs.pvalue)

    def test_beyond_splits_are_drawn(self):
        draws = generator(2)
        a, b = draws.normal(size=12), draws.normal(loc=0.8, size=14)
        theirs = stats.permutation_test(
            (a, b), lambda x, y: x.mean() - y.mean(), vectorized=False, rng=generator()
        )
        assert label_permutation(a, b, generator()) == pytest.approx(theirs.pvalue, abs=0.01)

    @given(st.lists(HUNDREDTHS, min_size=2, max_size=6), st.lists(HUNDREDTHS, min_size=2, max_size=6))
    def test_order_and_which_arm_comes_first_do_not_matter(self, ours, theirs):
        a, b = np.array(ours), np.array(theirs)
        p = label_permutation(a, b, generator())
        assert label_permutation(b[::-1], a[::-1], generator()) == pytest.approx(p)

    def test_a_diverged_run_counts_as_the_worst_finite_value(self):
        a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, INF, INF])
        assert label_permutation(a, b, generator()) == label_permutation(a, np.array([2.0, 3.0, 3.0]), generator())
        assert label_permutation(np.full(3, INF), np.full(3, INF), generator()) == 1.0

    def test_nothing_to_compare(self):
        assert label_permutation(np.array([]), np.array([1.0]), generator()) == 1.0
        assert label_permutation(np.array([1.0]), np.array([1.0, 1.0]), generator()) == 1.0


class TestHolm:
    def test_by_hand(self):
        # Sorted 0.01, 0.02, 0.03, 0.04, times 4, 3, 2, 1, and never below an earlier one.
        assert holm(np.array([0.04, 0.01, 0.03, 0.02])).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])

    def test_one_is_not_corrected_and_none_is_nothing(self):
        assert holm(np.array([0.03])).tolist() == [0.03]
        assert holm(np.array([])).size == 0

    def test_what_is_not_tested_does_not_count(self):
        found = holm(np.array([np.nan, 0.02, np.nan, 0.5]))
        assert found[[1, 3]].tolist() == [0.04, 0.5]
        assert np.isnan(found[[0, 2]]).all()

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_between_the_uncorrected_and_bonferroni(self, values):
        p = np.array(values)
        found = holm(p)
        assert (found >= p).all()
        assert (found <= np.minimum(1, len(p) * p)).all()
        np.testing.assert_array_equal(holm(p[::-1]), found[::-1])
