import math

import numpy as np
import pandas as pd
import pytest

from normlab.analysis.significance import sign_flip

INF, NAN = math.inf, math.nan
GOOD, BAD = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1], [5.0, 6.0] * 6


def rows(frame, *columns):
    return frame[list(columns)].to_numpy().tolist()


class TestSettings:
    def test_what_every_learning_rate_gave(self, sweep, arm):
        found = sweep(arm("bn", BAD, lr="0.1"), arm("bn", GOOD, lr="0.01"), arm("nobn", GOOD, lr="0.1")).settings
        assert rows(found, "arm", "optimizer.lr", "tuning_seeds", "report_seeds", "chosen", "rival") == [
            ["bn", "0.01", 4, 8, True, False],
            ["bn", "0.1", 4, 8, False, False],
            ["nobn", "0.1", 4, 8, True, False],
        ]
        # Of 1.0 … 1.3 and of 1.4 … 2.1 the middle halves, of 5, 6, 5, 6 two and of eight four.
        np.testing.assert_allclose(rows(found, "tuning_iqm", "iqm"), [[1.15, 1.75], [5.5, 5.5], [1.15, 1.75]])
        assert (found["iqm_low"] <= found["iqm"]).all()

    def test_diverged_runs_are_a_share_and_above_a_quarter_leave_no_mean(self, sweep, arm):
        values = [INF, INF, 1, 1, INF, INF, INF, 1, 1, 1, 1, 1]
        found = sweep(arm("bn", values, lr="0.1"), arm("bn", [2.0] * 12, lr="0.2")).settings
        assert found["diverged"].tolist() == [5 / 12, 0]
        assert found["chosen"].tolist() == [False, True]
        assert found["iqm"].isna().tolist() == found["tuning_iqm"].isna().tolist() == [True, False]

    def test_where_large_is_good(self, sweep, arm):
        found = sweep(arm("bn", [0.9] * 12), arm("bn", [0.5] * 12, lr="0.2"), direction="max").settings
        assert rows(found, "tuning_iqm", "iqm", "chosen") == [[0.9, 0.9, True], [0.5, 0.5, False]]


class TestArms:
    def test_at_the_best_setting_over_the_report_seeds(self, sweep, arm):
        found = sweep(arm("bn", BAD, lr="0.1"), arm("bn", GOOD, lr="0.01"), arm("nobn", BAD, lr="0.1")).arms
        assert rows(found, "arm", "optimizer.lr", "tuning_seeds", "seeds", "runs", "finished") == [
            ["bn", "0.01", 4, 8, 24, 24],
            ["nobn", "0.1", 4, 8, 12, 12],
        ]
        assert found["iqm"].tolist() == pytest.approx([1.75, 5.5])

    def test_how_runs_ended(self, sweep, arm):
        found = sweep(arm("bn", [1, INF, None, 2]), arm("nobn", [1], status="stopped")).arms
        assert rows(
            found, "arm", "runs", "finished", "diverged", "failed", "stopped", "seeds", "diverged_share"
        ) == [
            ["bn", 4, 2, 1, 1, 0, 3, pytest.approx(1 / 3)],
            ["nobn", 1, 0, 0, 0, 1, 1, 0],
        ]

    def test_the_gap_is_positive_where_validation_is_worse(self, sweep, arm, frame):
        runs = frame([*arm("bn", [3.0, 4.0, INF, 5.0]), *arm("nobn", [1.0, 1.0, 1.0, 1.0])])
        runs["train_value"] = [1.0, 1.0, INF, 1.0, NAN, NAN, NAN, NAN]
        gaps = sweep(runs).arms["gap"]
        assert gaps[0] == 3.0  # of 2, 3, 4
        assert math.isnan(gaps[1])
        assert sweep(runs, direction="max").arms["gap"][0] == -3.0


class TestComparisons:
    def test_each_arm_against_the_baseline_of_its_panel(self, sweep, arm):
        found = sweep(
            *(arm(name, GOOD, batch_size=size) for name in ("bn", "nobn", "ln") for size in ("8", "16"))
        ).comparisons
        assert rows(found, "data.batch_size", "panel", "arm", "baseline", "verdict") == [
            [size, f"data.batch_size={size}", name, "nobn", "no difference shown"]
            for size in ("8", "16")
            for name in ("bn", "ln")
        ]
        assert found["p_holm"].tolist() == [1.0] * 4

    def test_by_the_test_of_the_paired_differences(self, sweep, arm):
        draws = np.random.default_rng(0)
        ours, theirs = draws.normal(size=12), draws.normal(loc=1, size=12)
        row = sweep(arm("bn", ours), arm("nobn", theirs)).comparisons.iloc[0]
        assert row["p"] == row["p_rivals"] == row["p_holm"] == sign_flip(ours - theirs, draws)
        assert (row["seeds"], row["paired"]) == (12, True)
        assert row["spread"] == pytest.approx(np.std(ours - theirs, ddof=1))

    def test_a_declared_difference_with_all_its_numbers(self, sweep, arm):
        row = sweep(arm("bn", GOOD), arm("nobn", [2 * value for value in GOOD])).comparisons.iloc[0]
        assert (row["verdict"], row["declared"], row["p_holm"]) == ("better", True, 2 / 2**12)
        assert row["ratio"] == pytest.approx(0.5)
        assert row["difference"] == pytest.approx(-1.55)  # of 1.0 … 2.1 the middle six
        assert row["improvement"] > 0.8

    def test_against_the_other_settings_that_may_be_the_best(self, sweep, arm):
        good, twins = np.arange(12.0), [np.tile([5.0, 6.0], 6), np.tile([6.0, 5.2], 6)]
        better = [value - 100 for value in good]
        found = sweep(arm("bn", better), arm("nobn", twins[0]), arm("nobn", twins[1], lr="0.2")).comparisons.iloc[
            0
        ]
        assert (found["rivals"], found["p"], found["p_rivals"]) == (1, 2 / 2**8, 2 / 2**8)
        # The tuning seeds cannot tell the settings of nobn apart, and on the others bn is not below the second.
        mixed = [*twins[1][:4], *better[4:]]
        found = sweep(arm("bn", better), arm("nobn", twins[0]), arm("nobn", mixed, lr="0.2")).comparisons.iloc[0]
        assert (found["p"], found["p_rivals"], found["verdict"]) == (2 / 2**8, 1.0, "no difference shown")

    def test_all_rows_that_are_tested_are_corrected_for(self, sweep, arm):
        others = [arm(name, [10 * value for value in GOOD]) for name in ("bn", "ln")]
        found = sweep(arm("nobn", GOOD), *others, arm("few", GOOD[:3])).comparisons
        assert found["p_holm"].isna().tolist() == [False, True, False]
        assert found["p_holm"].dropna().tolist() == [4 / 2**12] * 2

    def test_few_seeds_give_numbers_and_no_verdict(self, sweep, arm):
        row = sweep(arm("bn", GOOD[:7]), arm("nobn", BAD[:7])).comparisons.iloc[0]
        assert (row["verdict"], row["declared"], row["detectable"]) == ("too few seeds for a verdict", False, INF)
        assert math.isnan(row["p"])
        assert row["ratio_low"] < row["ratio"] < row["ratio_high"]

    def test_seeds_that_tuned_as_well_give_no_verdict(self, sweep, arm):
        runs = [arm(name, GOOD[:4], lr=lr) for name in ("bn", "nobn") for lr in ("0.1", "0.2")]
        assert set(sweep(*runs).comparisons["verdict"]) == {"too few seeds for a verdict"}

    def test_arms_that_share_no_seed_are_not_paired(self, sweep, arm):
        row = sweep(arm("bn", GOOD), arm("nobn", BAD, seeds=range(100, 112))).comparisons.iloc[0]
        assert (row["paired"], row["seeds"], row["verdict"]) == (False, 12, "better")
        assert math.isnan(row["detectable"])

    @pytest.mark.parametrize("diverged", [3, 12])
    def test_an_arm_that_diverges_is_worse_by_the_test_and_by_its_pairs(self, sweep, arm, diverged):
        row = sweep(
            arm("bn", [INF] * 12), arm("nobn", [*GOOD[: 12 - diverged], *[INF] * diverged])
        ).comparisons.iloc[0]
        assert math.isnan(row["difference"])
        assert row["verdict"] == ("worse" if diverged == 3 else "no difference shown")

    def test_what_cannot_be_compared_says_why(self, sweep, arm):
        found = sweep(arm("bn", GOOD), arm("nobn", [None] * 12), arm("ln", GOOD))
        assert set(found.comparisons["verdict"]) == {"not comparable: nobn has no run to report"}
        found = sweep(arm("bn", [None] * 12), arm("nobn", GOOD))
        assert found.comparisons["verdict"].tolist() == ["not comparable: bn has no run to report"]
        found = sweep(arm("bn", GOOD, batch_size="1"), arm("nobn", GOOD), arm("ln", GOOD))
        assert rows(found.comparisons, "arm", "verdict") == [
            ["bn", "not comparable: nobn differs in data.batch_size"],
            ["ln", "no difference shown"],
        ]

    def test_one_arm_has_nothing_to_be_compared_with(self, sweep, arm):
        found = sweep(arm("bn", GOOD))
        assert found.comparisons.empty
        assert {"panel", "arm", "p_holm", "verdict"} <= set(found.comparisons)


class TestHowMuchSettingsMatter:
    def test_the_range_of_learning_rates(self, sweep, arm):
        values = {"0.001": 2.0, "0.01": 1.05, "0.1": 1.0, "1": 3.0}
        found = sweep(*(arm("bn", [value] * 6, lr=lr) for lr, value in values.items())).ranges
        assert rows(found, "key", "within", "smallest", "largest", "open") == [
            ["optimizer.lr", 10, 0.01, 0.1, False]
        ]
        assert found["decades"].tolist() == pytest.approx([1.0])

    def test_the_batch_size(self, sweep, arm):
        values = {("bn", "8"): 1.0, ("bn", "16"): 1.5, ("nobn", "8"): 4.0, ("nobn", "16"): 1.0}
        found = sweep(*(arm(name, [value] * 3, batch_size=size) for (name, size), value in values.items()))
        assert rows(found.batch_sizes, "arm", "batch_sizes", "ratio") == [["bn", 2, 1.5], ["nobn", 2, 4.0]]

    def test_nothing_varied(self, sweep, arm):
        found = sweep(arm("bn", GOOD), arm("nobn", GOOD))
        assert found.ranges.empty
        assert found.batch_sizes.empty
        assert isinstance(found.ranges, pd.DataFrame)
