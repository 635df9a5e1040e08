import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from normlab.analysis.tuning import edges, rivals_of, scores, tune

INF, NAN = math.inf, math.nan


def losses(*rows):
    return np.array(rows, dtype=float)


class TestScores:
    def test_the_interquartile_mean_over_what_is_known(self):
        found = scores(losses([1, 2, 3, 100], [4, NAN, 2, NAN], [NAN, NAN, NAN, NAN]))
        np.testing.assert_array_equal(found, [2.5, 3.0, NAN])

    def test_a_diverged_run_is_the_worst_and_more_than_a_quarter_of_them_make_the_setting_so(self):
        found = scores(losses([1, 2, 3, INF], [1, 2, INF, INF], [1, INF, NAN, NAN], [INF, INF, INF, INF]))
        np.testing.assert_array_equal(found, [2.5, INF, INF, INF])


class TestTune:
    def test_the_lowest_score_is_the_best(self):
        found = tune(losses([5, 5, 5, 5.1], [1, 1.1, 1, 1], [3, 3, 3.1, 3]), [7, 8, 9])
        assert (found.chosen, found.rivals) == (8, [])

    def test_the_outlier_does_not_choose(self):
        assert tune(losses([1, 1, 1, 90], [2, 2, 2, 2]), [0, 1]).chosen == 0

    def test_divergence_counts_as_the_worst(self):
        assert tune(losses([0.1, 0.1, INF, INF], [2, 2, 2, 2]), [0, 1]).chosen == 1

    def test_of_equal_settings_the_one_that_diverged_less_then_the_first(self):
        assert tune(losses([1, 1, 1, INF], [1, 1, 1, 5]), [0, 1]).chosen == 1
        assert tune(losses([1, 1, 1, 5], [1, 1, 1, 5]), [0, 1]).chosen == 0
        assert tune(losses([INF] * 4, [INF] * 4), [0, 1]).chosen == 0

    def test_a_setting_alone_needs_no_tuning_seed(self):
        assert tune(losses([NAN, NAN]), [3]).chosen == 3
        assert tune(np.empty((1, 0)), [3]).chosen == 3

    def test_nothing_known_chooses_nothing(self):
        assert tune(losses([NAN, NAN], [NAN, NAN]), [0, 1]).chosen is None
        assert tune(np.empty((0, 4)), []).chosen is None

    def test_an_unknown_setting_is_not_chosen(self):
        assert tune(losses([NAN, NAN], [9, 9]), [0, 1]).chosen == 1

    @given(arrays(float, (5, 4), elements=st.floats(-5, 5) | st.just(INF)), st.permutations(range(4)))
    def test_the_order_of_the_seeds_does_not_matter(self, values, order):
        there, back = tune(values, range(5)), tune(values[:, order], range(5))
        assert there.chosen == back.chosen


class TestRivals:
    def test_within_one_standard_error_of_the_best(self):
        # d = 0, 1, 2, 1: mean 1, s² = 2/3, s/√4 = 0.41; with −2 added for every other seed it is 0.
        best, apart = [0, 0, 0, 0], [0, 1, 2, 1]
        close = [-1, 1.9, 1, -0.9]  # mean 0.25, s/√4 = 0.72
        assert rivals_of(losses(best, apart, close), 0) == [2]

    def test_a_constant_difference_is_no_matter_of_chance(self):
        assert rivals_of(losses([1, 2, 3, 4], [1.01, 2.01, 3.01, 4.01]), 0) == []

    def test_one_that_is_the_same_may_as_well_be_the_best(self):
        assert rivals_of(losses([1, 2, 3, 4], [1, 2, 3, 4]), 0) == [1]

    def test_one_that_diverges_is_worse_in_these_seeds(self):
        assert rivals_of(losses([1, 2, 3, 4], [1.1, 2.1, INF, INF]), 0) == []
        assert rivals_of(losses([1, 2, 3, 4], [0.5, 1.5, 2.5, INF]), 0) == [1]
        assert rivals_of(losses([INF, INF], [INF, INF]), 0) == [1]

    def test_over_the_seeds_that_both_have(self):
        assert rivals_of(losses([1, 2, NAN, 4], [NAN, 2.1, 3, 3.9]), 0) == [1]
        assert rivals_of(losses([1, NAN], [NAN, 1]), 0) == []
        assert rivals_of(losses([1, NAN], [9, NAN]), 0) == [1], "one seed cannot tell"


class TestEdges:
    @pytest.mark.parametrize(("best", "end"), [("0.1", "largest"), ("1e-3", "smallest")])
    def test_at_an_end_of_the_numbers_that_were_tried(self, best, end):
        tried = [("0.1",), ("0.01",), ("1e-3",)]
        assert edges(tried, (best,)) == [(0, end, best)]

    def test_not_in_between_nor_of_one(self):
        assert edges([("0.1",), ("0.01",), ("1e-3",)], ("0.01",)) == []
        assert edges([("0.1", "0"), ("0.01", "0"), ("1", "0")], ("0.1", "0")) == []
