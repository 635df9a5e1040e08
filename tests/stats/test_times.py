import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.stats.estimates import Resampler
from normlab.stats.learning_speed import (
    best_arm_median,
    best_within_budget,
    evaluation_steps,
    median,
    time_ratio,
    times_to,
)

INF, NAN = math.inf, math.nan


def curves(**by_run):
    """Return curves of the given values by run, at steps 10, 20, …, one second each."""
    rows = [
        (run, 10 * place, float(place), value)
        for run, values in by_run.items()
        for place, value in enumerate(values, 1)
    ]
    return pd.DataFrame(rows, columns=["run", "step", "seconds", "value"])


CURVES = curves(quick=[5.0, 3.0, 4.0, 2.0], slow=[9.0, 8.0, 7.0, 3.0], never=[9.0, 9.0])


def steps(frame, target, direction="min"):
    return times_to(frame, pd.Series(target, index=frame["run"].unique()), direction)["steps"].to_dict()


class TestTimesTo:
    def test_first_evaluation_as_good_as_target(self):
        assert steps(CURVES, 3.0) == {"quick": 20, "slow": 40, "never": INF}

    def test_seconds_are_of_the_same_evaluation(self):
        found = times_to(CURVES, pd.Series({"quick": 3.0, "slow": 8.0, "never": NAN}), "min")
        assert found["seconds"].to_dict() == {"quick": 2.0, "slow": 2.0, "never": pytest.approx(NAN, nan_ok=True)}

    def test_maximized_metric(self):
        assert steps(CURVES, 8.0, "max") == {"quick": INF, "slow": 10, "never": 10}

    def test_nan_never_reaches_target(self):
        assert steps(curves(run=[NAN, 1.0]), 2.0) == {"run": 20}

    def test_unknown_time_is_not_taken_from_later_evaluation(self):
        frame = curves(run=[1.0, 1.0]).assign(seconds=[NAN, 2.0])
        found = times_to(frame, pd.Series({"run": 1.0}), "min")
        assert found["steps"].tolist() == [10.0]
        assert found["seconds"].isna().all()

    def test_row_order_does_not_matter(self):
        assert steps(CURVES.iloc[::-1], 3.0) == steps(CURVES, 3.0)

    def test_no_curves(self):
        assert times_to(CURVES[:0], pd.Series(dtype=float), "min").empty


class TestTarget:
    def test_best_within_75_percent_of_budget(self):
        found = best_within_budget(CURVES, pd.Series({"quick": 40, "slow": 40, "never": 40}), "min")
        assert found.to_dict() == {"quick": 3.0, "slow": 7.0, "never": 9.0}
        assert best_within_budget(CURVES, pd.Series({"quick": 40, "slow": 40, "never": 12}), "max").to_dict() == {
            "quick": 5.0,
            "slow": 9.0,
        }

    @pytest.mark.parametrize(("direction", "target"), [("min", 2.0), ("max", 5.0)])
    def test_best_median_over_arms(self, direction, target):
        assert (
            best_arm_median({"a": np.array([1.0, 2.0, 9.0]), "b": np.array([4.0, 5.0, 6.0])}, direction) == target
        )

    def test_half_diverged_arm_sets_no_target(self):
        assert best_arm_median({"a": np.array([1.0, INF]), "b": np.array([4.0])}, "min") == 4.0
        assert math.isnan(best_arm_median({"a": np.array([INF]), "b": np.array([])}, "min"))

    def test_last_step_and_largest_gap(self):
        frame = pd.DataFrame({"run": [0, 0, 1, 1], "step": [50, 20, 10, 15]})
        assert evaluation_steps(frame).to_dict("index") == {0: {"last": 50, "gap": 30}, 1: {"last": 15, "gap": 10}}


def ratio(arm, baseline, resamples=1000):
    return time_ratio(
        np.array(arm, dtype=float),
        np.array(baseline, dtype=float),
        Resampler(np.random.default_rng(0), resamples),
    )


class TestRatio:
    def test_ratio_of_medians_by_hand(self):
        assert ratio([10, 20, 30], [40, 30, 90]).value == 0.5
        assert median(np.array([10.0, 20.0])) == 15.0

    def test_constant_ratio_has_zero_width_interval(self):
        baseline = [100, 200, 500, 900, 1000]
        assert ratio([2 * time for time in baseline], baseline) == (2.0, 2.0, 2.0)

    @given(st.lists(st.integers(1, 50), min_size=4, max_size=9), st.data())
    def test_swapped_arms_invert_the_ratio(self, arm, data):
        baseline = data.draw(st.lists(st.integers(1, 50), min_size=len(arm), max_size=len(arm)))
        there, back = ratio(arm, baseline), ratio(baseline, arm)
        assert [there.value, there.low, there.high] == pytest.approx([1 / back.value, 1 / back.high, 1 / back.low])

    def test_infinite_resamples_give_infinite_end(self):
        found = ratio([10, 10, 10, 20, INF, INF, 10, 10], [10] * 8)
        assert (found.value, found.low, found.high) == (1.0, 1.0, INF)

    def test_infinite_over_infinite_leaves_no_end(self):
        found = ratio([10, 10, 10, INF, INF], [20, 20, 20, INF, INF])
        assert (found.value, found.low, found.high) == (0.5, 0.0, INF)

    @pytest.mark.parametrize("arms", [([10, INF], [10, 10]), ([10, 10], [INF, INF]), ([], [10]), ([10], [])])
    def test_no_ratio_if_half_miss_target(self, arms):
        assert all(map(math.isnan, ratio(*arms)))

    def test_one_seed_has_no_interval(self):
        assert math.isnan(ratio([10], [20]).low)
        assert ratio([10], [20]).value == 0.5
        assert math.isnan(ratio([10, 20], [20, 40], resamples=0).low)
