import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.analysis.target import common_target, epochs_to_target

INF, NAN = math.inf, math.nan


def runs(**arms):
    rows = [(arm, seed, best) for arm, values in arms.items() for seed, best in enumerate(values)]
    return pd.DataFrame(rows, columns=["arm", "seed", "best"])


def curves(**by_run):
    rows = [(run, epoch, value) for run, values in by_run.items() for epoch, value in enumerate(values, 1)]
    return pd.DataFrame(rows, columns=["run", "epoch", "value"])


class TestCommonTarget:
    @pytest.mark.parametrize(("direction", "target"), [("min", 5.0), ("max", 2.0)])
    def test_the_worst_arms_median_seed(self, direction, target):
        # Medians: 2 and, of an even number, the worse of 4 and 5.
        assert common_target(runs(a=[1.0, 2.0, 30.0], b=[4.0, 5.0]), direction) == target

    def test_the_worse_of_the_middle_two_where_large_is_good(self):
        assert common_target(runs(a=[0.8, 0.9], b=[0.85, 0.95]), "max") == 0.8

    def test_arms_with_one_seed(self):
        assert common_target(runs(a=[1.0], b=[3.0], c=[2.0]), "min") == 3.0

    def test_different_numbers_of_seeds(self):
        assert common_target(runs(a=[1.0, 2.0, 3.0, 4.0], b=[2.5]), "min") == 3.0

    def test_a_diverged_seed_counts_as_the_worst(self):
        assert common_target(runs(a=[1.0, INF, 2.0], b=[1.5]), "min") == 2.0
        assert common_target(runs(a=[0.9, -INF, 0.8], b=[0.85]), "max") == 0.8

    def test_an_arm_whose_median_seed_diverged_is_left_out(self):
        assert common_target(runs(a=[INF, INF, 1.0], b=[4.0]), "min") == 4.0

    def test_runs_that_did_not_end_do_not_count(self):
        assert common_target(runs(a=[NAN, 3.0, NAN], b=[NAN]), "min") == 3.0

    def test_no_arm_has_one(self):
        assert math.isnan(common_target(runs(a=[INF], b=[NAN]), "min"))

    @given(st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=7), min_size=1, max_size=5))
    def test_most_seeds_of_every_arm_reach_it(self, arms):
        target = common_target(runs(**{f"arm{k}": values for k, values in enumerate(arms)}), "min")
        for values in arms:
            assert sum(value <= target for value in values) > len(values) / 2


class TestEpochsToTarget:
    CURVES = curves(quick=[5.0, 3.0, 4.0, 2.0], slow=[9.0, 8.0, 7.0, 3.0], never=[9.0, 9.0])

    def test_the_first_epoch_that_is_as_good(self):
        assert epochs_to_target(self.CURVES, 3.0, "min").to_dict() == {"quick": 2, "slow": 4, "never": INF}

    def test_where_large_is_good(self):
        assert epochs_to_target(self.CURVES, 8.0, "max").to_dict() == {"quick": INF, "slow": 1, "never": 1}

    def test_nan_is_never_good_enough(self):
        assert epochs_to_target(curves(run=[NAN, 1.0]), 2.0, "min").to_dict() == {"run": 2}

    def test_epochs_without_validation_keep_their_numbers(self):
        sparse = pd.DataFrame({"run": [0, 0], "epoch": [5, 10], "value": [2.0, 1.0]})
        assert epochs_to_target(sparse, 1.0, "min").to_dict() == {0: 10}

    def test_the_order_of_the_rows_does_not_matter(self):
        turned = self.CURVES.iloc[::-1]
        assert epochs_to_target(turned, 3.0, "min").to_dict() == {"quick": 2, "slow": 4, "never": INF}

    def test_no_curves(self):
        assert epochs_to_target(curves(), 3.0, "min").empty
