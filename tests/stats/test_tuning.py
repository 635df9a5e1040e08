import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from normlab.stats.tuning import (
    best_of,
    choose_settings,
    chosen_within,
    finite_differences,
    grid_edges,
    near_best_of,
    scores,
)

INF, NAN = math.inf, math.nan


def losses(*rows):
    return np.array(rows, dtype=float)


class TestScores:
    def test_iqm_over_known_losses(self):
        found = scores(losses([1, 2, 3, 100], [4, NAN, 2, NAN], [NAN, NAN, NAN, NAN]))
        np.testing.assert_array_equal(found, [2.5, 3.0, NAN])

    def test_infinite_above_a_quarter_diverged(self):
        found = scores(losses([1, 2, 3, INF], [1, 2, INF, INF], [1, INF, NAN, NAN], [INF, INF, INF, INF]))
        np.testing.assert_array_equal(found, [2.5, INF, INF, INF])


class TestBest:
    def test_lowest_score_is_best(self):
        assert best_of(losses([5, 5, 5, 5.1], [1, 1.1, 1, 1], [3, 3, 3.1, 3])) == (1, [])

    def test_outlier_does_not_choose(self):
        assert best_of(losses([1, 1, 1, 90], [2, 2, 2, 2]))[0] == 0

    def test_divergence_counts_as_worst(self):
        assert best_of(losses([0.1, 0.1, INF, INF], [2, 2, 2, 2]))[0] == 1

    def test_ties_prefer_fewer_diverged_then_first(self):
        assert best_of(losses([1, 1, 1, INF], [1, 1, 1, 5]))[0] == 1
        assert best_of(losses([1, 1, 1, 5], [1, 1, 1, 5]))[0] == 0
        assert best_of(losses([INF] * 4, [INF] * 4))[0] == 0

    def test_single_setting_needs_no_tuning_seed(self):
        assert best_of(losses([NAN, NAN])) == (0, [])
        assert best_of(np.empty((1, 0))) == (0, [])

    def test_no_known_loss_chooses_nothing(self):
        assert best_of(losses([NAN, NAN], [NAN, NAN])) == (None, [])
        assert best_of(np.empty((0, 4))) == (None, [])

    def test_unknown_setting_is_not_chosen(self):
        assert best_of(losses([NAN, NAN], [9, 9]))[0] == 1

    @given(arrays(float, (5, 4), elements=st.floats(-5, 5) | st.just(INF)), st.permutations(range(4)))
    def test_seed_order_does_not_matter(self, values, order):
        assert best_of(values)[0] == best_of(values[:, order])[0]


class TestChosenWithin:
    def test_each_replicate_takes_its_own_best(self):
        assert chosen_within(losses([1, 5, 2], [2, 4, 2], [0, 0, 0]), [0, 1]).tolist() == [0, 1, 0]

    def test_unknown_is_skipped_and_diverged_is_last(self):
        found = chosen_within(losses([NAN, INF, NAN, NAN], [3, 7, INF, NAN], [2, INF, INF, NAN]), [0, 1, 2])
        assert found.tolist() == [2, 1, 1, -1]

    def test_no_settings_choose_none(self):
        assert chosen_within(losses([1, 2]), []).tolist() == [-1, -1]

    @given(arrays(float, (4, 6), elements=st.floats(-5, 5) | st.sampled_from([INF, NAN])))
    def test_batch_equals_single_replicates(self, values):
        for found, own in zip(chosen_within(values, range(4)), values.T, strict=True):
            known = [row for row in range(4) if not math.isnan(own[row])]
            assert found == (min(known, key=lambda row: own[row]) if known else -1)


class TestNearBest:
    def test_within_one_standard_error(self):
        # d = 0, 1, 2, 1: mean 1, s² = 2/3, s/√4 = 0.41; with −2 added for every other seed it is 0.
        best, apart = [0, 0, 0, 0], [0, 1, 2, 1]
        close = [-1, 1.9, 1, -0.9]  # mean 0.25, s/√4 = 0.72
        assert near_best_of(losses(best, apart, close), 0) == [2]

    def test_constant_difference_is_not_near_best(self):
        assert near_best_of(losses([1, 2, 3, 4], [1.01, 2.01, 3.01, 4.01]), 0) == []

    def test_identical_setting_is_near_best(self):
        assert near_best_of(losses([1, 2, 3, 4], [1, 2, 3, 4]), 0) == [1]

    def test_diverging_setting_is_not_near_best(self):
        assert near_best_of(losses([1, 2, 3, 4], [1.1, 2.1, INF, INF]), 0) == []
        assert near_best_of(losses([1, 2, 3, 4], [0.5, 1.5, 2.5, INF]), 0) == [1]
        assert near_best_of(losses([INF, INF], [INF, INF]), 0) == [1]

    def test_only_shared_seeds_count(self):
        assert near_best_of(losses([1, 2, NAN, 4], [NAN, 2.1, 3, 3.9]), 0) == [1]
        assert near_best_of(losses([1, NAN], [NAN, 1]), 0) == []
        assert near_best_of(losses([1, NAN], [9, NAN]), 0) == [1], "one seed cannot tell"

    def test_infinite_difference_counts_as_largest_finite(self):
        assert finite_differences(losses([1, -3, INF, -INF])[0]).tolist() == [1, -3, 3, -3]
        assert finite_differences(losses([INF, -INF])[0]).tolist() == [1, -1]


class TestEdges:
    @pytest.mark.parametrize(("best", "end"), [("0.1", "largest"), ("1e-3", "smallest")])
    def test_best_at_end_of_grid(self, best, end):
        tried = [("0.1",), ("0.01",), ("1e-3",)]
        assert grid_edges(tried, (best,)) == [(0, end, best)]

    def test_no_edge_inside_or_for_single_value(self):
        assert grid_edges([("0.1",), ("0.01",), ("1e-3",)], ("0.01",)) == []
        assert grid_edges([("0.1", "0"), ("0.01", "0"), ("1", "0")], ("0.1", "0")) == []


class TestChooseSettings:
    """Settings are chosen on validation, whatever is reported."""

    @pytest.mark.parametrize("scope", ["seed", "draw", "split"])
    def test_test_loss_does_not_matter(self, sweep, arm, scope):
        found = sweep(
            arm("bn", [1.0] * 12, lr="0.1", scope=scope, **{"test/loss": 9.0}),
            arm("bn", [2.0] * 12, lr="0.2", scope=scope, **{"test/loss": 1.0}),
            arm("nobn", [1.0] * 12, scope=scope),
        )
        assert found.settings["chosen"].tolist() == [1.0, 0.0, 1.0]
        assert found.arms["iqm"].tolist() == [9.0, 1.0]

    def test_each_split_takes_its_own_setting(self, sweep, arm):
        validation = {"0.1": [1.0, 1.0, 2.0] * 4, "0.2": [2.0, 2.0, 1.0] * 4}
        found = sweep(
            *(arm("bn", own, lr=lr, scope="split", **{"test/loss": float(lr)}) for lr, own in validation.items()),
            arm("nobn", [1.0] * 12, scope="split", **{"test/loss": 1.0}),
        )
        assert found.settings["chosen"].tolist() == pytest.approx([2 / 3, 1 / 3, 1.0])
        assert found.tuning[(), "bn"].common is None
        row = found.comparisons.iloc[0]
        assert row["replicates"] == 12
        assert row["estimate"] == pytest.approx(math.sqrt(0.1 * 0.2)), (
            "36 averages of two are log 0.1, 10 are log 0.2, 32 between"
        )

    def test_frozen_settings_are_chosen_others_may_be_near_best(self, sweep, arm):
        found = sweep(arm("bn", [1.0] * 12, lr="0.1"), arm("bn", [2.0] * 12, lr="0.2"), arm("nobn", [1.0] * 12))
        again = choose_settings(found.grid, {((), "bn"): [("0.2",)]})
        assert [found.grid.configurations[row].tuned for row in again[(), "bn"].rows] == [("0.1",), ("0.2",)]
        assert (again[(), "bn"].common, again[(), "bn"].near_best) == (1, [0])

    def test_frozen_settings_are_chosen_within_splits(self, sweep, arm):
        how = {"scope": "split"}
        runs = arm("bn", [1.0] * 12, lr="0.1", **how), arm("bn", [2.0] * 12, lr="0.2", **how)
        found = sweep(*runs, arm("nobn", [1.0] * 12, **how))
        assert found.tuning[(), "bn"].common == 0
        assert choose_settings(found.grid, {((), "bn"): [("0.2",)]})[(), "bn"].common == 1
