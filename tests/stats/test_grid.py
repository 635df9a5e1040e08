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
    """Batch size, model, learning rate, seed, value."""
    frame = pd.DataFrame(rows, columns=[*KEYS, "seed", "test/score"])
    frame = frame.astype({"seed": "Int64", "test/score": float}).assign(status="finished", **columns)
    frame = frame.assign(validation=columns.get("validation", frame["test/score"]))
    return grid_of(frame, design_of(frame, KEYS, [SCORE], Metric("val/score", "max")))


def test_a_row_per_setting_in_natural_order_and_a_column_per_seed():
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


def test_runs_that_repeat_a_seed_count_once_with_their_mean():
    grid = table(("1", "bn", "0.1", 0, 2.0), ("1", "bn", "0.1", 0, 4.0), ("1", "bn", "0.1", 1, 5.0))
    assert grid.values.tolist() == [[3.0, 5.0]]


def test_one_diverged_run_among_repeated_ones_makes_them_diverged():
    assert table(("1", "bn", "0.1", 0, 2.0), ("1", "bn", "0.1", 0, -INF)).values[0, 0] == -INF


def test_a_run_without_a_seed_is_nowhere():
    grid = table(("1", "bn", "0.1", None, 2.0), ("1", "bn", "0.1", 0, 1.0))
    assert grid.values.tolist() == [[1.0]]
    assert grid.column.tolist() == [-1, 0]


def test_an_unknown_number_does_not_spoil_the_mean_of_known_ones():
    found = mean_by_cell(np.array([1.0, np.nan, 3.0]), np.array([0, 0, 0]), np.array([0, 0, 0]), (1, 2))
    np.testing.assert_array_equal(found, [[2.0, np.nan]])


def test_a_diverged_and_an_untrained_run_failed():
    rows = [("1", "bn", "0.1", seed, value) for seed, value in enumerate([1.0, -INF, 1.0, math.nan])]
    grid = table(*rows, untrained=[False, False, True, False])
    np.testing.assert_array_equal(grid.failed, [[0, 1, 1, np.nan]])


class TestUses:
    """Which replicates choose settings, and which report."""

    @staticmethod
    def use(*arms, scope="seed", rates=("0.1", "0.2"), **columns):
        """Return the use of one panel's seeds, of arms with these seeds."""
        rows = [
            ("1", f"arm{k}", rate, seed, 1.0) for k, seeds in enumerate(arms) for rate in rates for seed in seeds
        ]
        grid = table(*rows, scope=scope, **columns)
        (use,) = grid.uses.values()
        return use, *([grid.seeds[column] for column in columns] for columns in (use.tuning, use.report))

    @pytest.mark.parametrize("scope", ["seed", "draw"])
    @pytest.mark.parametrize(("count", "tuning"), [(5, 4), (12, 4), (13, 5), (24, 8), (48, 16)])
    def test_a_third_chooses_and_at_least_four(self, count, tuning, scope):
        use, chose, reported = self.use(range(count), range(count), scope=scope)
        assert (chose, reported) == (list(range(tuning)), list(range(tuning, count)))
        assert (use.scope, use.within, use.is_disjoint) == (Scope(scope), False, True)

    @pytest.mark.parametrize("count", [1, 4])
    def test_too_few_are_for_both_and_allow_no_verdict(self, count):
        use, chose, reported = self.use(range(count), range(count))
        assert chose == reported == list(range(count))
        assert not use.is_disjoint

    def test_splits_of_a_table_choose_each_for_itself_and_all_report(self):
        use, chose, reported = self.use(range(12), range(12), scope="split", train_rows=142.0, test_rows=36.0)
        assert chose == reported == list(range(12))
        assert (use.within, use.is_disjoint, use.train, use.test) == (True, True, 142, 36)

    @pytest.mark.parametrize("scope", list(Scope))
    def test_none_chooses_where_every_arm_has_one_setting(self, scope):
        use, chose, reported = self.use(range(12), range(12), rates=["0.1"], scope=scope)
        assert (chose, reported, use.within, use.is_disjoint) == ([], list(range(12)), False, True)

    def test_of_12_and_36_seeds_those_choose_that_both_have(self):
        """The first third of all 36 would leave the arm with 12 of them nothing to report."""
        _, chose, reported = self.use(range(12), range(36))
        assert (chose, reported) == ([0, 1, 2, 3], list(range(4, 36)))

    def test_arms_that_share_seeds_give_up_the_same(self):
        assert self.use([0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])[1:] == ([1, 2, 3, 4], [0, 5, 6])

    def test_arms_that_share_none_give_up_their_own(self):
        assert self.use(range(12), range(20, 32))[1:] == (
            [0, 1, 2, 3, 20, 21, 22, 23],
            [*range(4, 12), *range(24, 32)],
        )

    def test_an_arm_with_few_seeds_does_not_move_the_others(self):
        assert self.use(range(12), range(12), [11])[1:] == ([0, 1, 2, 3], list(range(4, 12)))

    def test_panels_have_uses_of_their_own(self):
        rows = [
            (size, "bn", rate, seed, 1.0)
            for size, rates in (("1", "12"), ("2", "1"))
            for rate in rates
            for seed in range(6)
        ]
        grid = table(*rows)
        assert [len(use.tuning) for use in grid.uses.values()] == [4, 0]
        assert [len(use.report) for use in grid.uses.values()] == [2, 6]
