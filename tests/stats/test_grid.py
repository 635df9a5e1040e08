import math

import numpy as np
import pandas as pd
import pytest

from normlab.stats.design import Metric, Scope, design_of
from normlab.stats.grid import grid_of, mean_by_cell

INF = math.inf
KEYS = ["data.batch_size", "model", "optimizer.lr"]
SCORE = Metric("test/score", "max")


def table(*rows, **columns):
    """Return a grid; a row is batch size, model, learning rate, seed, value."""
    frame = pd.DataFrame(rows, columns=[*KEYS, "seed", "test/score"])
    frame = frame.astype({"seed": "Int64", "test/score": float}).assign(status="finished", **columns)
    frame = frame.assign(validation=columns.get("validation", frame["test/score"]))
    return grid_of(frame, design_of(frame, KEYS, [SCORE], Metric("val/score", "max")))


def test_rows_are_configurations_and_columns_seeds():
    grid = table(
        ("100", "bn", "0.1", 1, 5.0),
        ("20", "ln", "0.1", 0, 4.0),
        ("20", "bn", "1e-2", 0, 3.0),
        ("20", "bn", "0.1", 1, 2.0),
    )
    assert [(*setting.panel, setting.arm, *setting.tuned) for setting in grid.configurations] == [
        ("20", "bn", "1e-2"),
        ("20", "bn", "0.1"),
        ("20", "ln", "0.1"),
        ("100", "bn", "0.1"),
    ]
    np.testing.assert_array_equal(grid.values, [[3, np.nan], [np.nan, 2], [4, np.nan], [np.nan, 5]])
    np.testing.assert_array_equal(grid.losses(SCORE), -grid.values)
    np.testing.assert_array_equal(grid.choice, -grid.values)
    assert list(grid.groups()) == [(("20",), "bn", [0, 1]), (("20",), "ln", [2]), (("100",), "bn", [3])]
    assert grid.panel_name(("20",)) == "data.batch_size=20"


def test_repeated_seeds_are_averaged():
    grid = table(("1", "bn", "0.1", 0, 2.0), ("1", "bn", "0.1", 0, 4.0), ("1", "bn", "0.1", 1, 5.0))
    assert grid.values.tolist() == [[3.0, 5.0]]


def test_repeated_seed_with_diverged_run_is_diverged():
    assert table(("1", "bn", "0.1", 0, 2.0), ("1", "bn", "0.1", 0, -INF)).values[0, 0] == -INF


def test_run_without_seed_is_excluded():
    grid = table(("1", "bn", "0.1", None, 2.0), ("1", "bn", "0.1", 0, 1.0))
    assert grid.values.tolist() == [[1.0]]
    assert grid.column.tolist() == [-1, 0]


def test_nan_is_ignored_in_cell_mean():
    found = mean_by_cell(np.array([1.0, np.nan, 3.0]), np.array([0, 0, 0]), np.array([0, 0, 0]), (1, 2))
    np.testing.assert_array_equal(found, [[2.0, np.nan]])


def test_diverged_and_untrained_runs_failed():
    rows = [("1", "bn", "0.1", seed, value) for seed, value in enumerate([1.0, -INF, 1.0, math.nan])]
    grid = table(*rows, untrained=[False, False, True, False])
    np.testing.assert_array_equal(grid.failed, [[0, 1, 1, np.nan]])


class TestUses:
    """The use of the replicates for tuning and for the report."""

    @staticmethod
    def use(*arms, scope="seed", rates=("0.1", "0.2"), **columns):
        """Return the use of the seeds of one panel, for arms with the given seeds."""
        rows = [
            ("1", f"arm{k}", rate, seed, 1.0) for k, seeds in enumerate(arms) for rate in rates for seed in seeds
        ]
        grid = table(*rows, scope=scope, **columns)
        (use,) = grid.uses.values()
        return use, *([grid.seeds[column] for column in columns] for columns in (use.tuning, use.report))

    @pytest.mark.parametrize("scope", ["seed", "draw"])
    @pytest.mark.parametrize(("count", "tuning"), [(5, 4), (12, 4), (13, 5), (24, 8), (48, 16)])
    def test_third_but_at_least_four_tune(self, count, tuning, scope):
        use, chose, reported = self.use(range(count), range(count), scope=scope)
        assert (chose, reported) == (list(range(tuning)), list(range(tuning, count)))
        assert (use.scope, use.within, use.is_disjoint) == (Scope(scope), False, True)

    @pytest.mark.parametrize("count", [1, 4])
    def test_too_few_seeds_tune_and_report_without_verdict(self, count):
        use, chose, reported = self.use(range(count), range(count))
        assert chose == reported == list(range(count))
        assert not use.is_disjoint

    def test_splits_tune_within_and_all_report(self):
        use, chose, reported = self.use(range(12), range(12), scope="split", train_rows=142.0, test_rows=36.0)
        assert chose == reported == list(range(12))
        assert (use.within, use.is_disjoint, use.train, use.test) == (True, True, 142, 36)

    @pytest.mark.parametrize("scope", list(Scope))
    def test_single_settings_need_no_tuning_seeds(self, scope):
        use, chose, reported = self.use(range(12), range(12), rates=["0.1"], scope=scope)
        assert (chose, reported, use.within, use.is_disjoint) == ([], list(range(12)), False, True)

    def test_shared_seeds_of_12_and_36_tune(self):
        """The first third of all 36 would leave no reported seed to the arm with 12."""
        _, chose, reported = self.use(range(12), range(36))
        assert (chose, reported) == ([0, 1, 2, 3], list(range(4, 36)))

    def test_arms_use_the_same_shared_tuning_seeds(self):
        assert self.use([0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])[1:] == ([1, 2, 3, 4], [0, 5, 6])

    def test_arms_without_shared_seeds_use_their_own(self):
        assert self.use(range(12), range(20, 32))[1:] == (
            [0, 1, 2, 3, 20, 21, 22, 23],
            [*range(4, 12), *range(24, 32)],
        )

    def test_arm_with_few_seeds_does_not_limit_others(self):
        assert self.use(range(12), range(12), [11])[1:] == ([0, 1, 2, 3], list(range(4, 12)))

    def test_each_panel_has_its_own_use(self):
        rows = [
            (size, "bn", rate, seed, 1.0)
            for size, rates in (("1", "12"), ("2", "1"))
            for rate in rates
            for seed in range(6)
        ]
        grid = table(*rows)
        assert [len(use.tuning) for use in grid.uses.values()] == [4, 0]
        assert [len(use.report) for use in grid.uses.values()] == [2, 6]
