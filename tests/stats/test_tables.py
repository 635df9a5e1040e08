import math

import numpy as np
import pandas as pd
import pytest

from normlab.stats.design import GENERALIZATION, Metric
from normlab.stats.learning_speed import time_per_step_ratio

INF, NAN = math.inf, math.nan
GOOD, BAD = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1], [5.0, 6.0] * 6


def rows(frame, *columns):
    return frame[list(columns)].to_numpy().tolist()


class TestSettings:
    def test_row_per_learning_rate(self, sweep, arm):
        found = sweep(
            arm("bn", BAD, lr="0.1"), arm("bn", GOOD, lr="0.01"), arm("nobn", GOOD, lr="0.1"), resamples=200
        ).settings
        assert rows(found, "arm", "optimizer.lr", "tuning_seeds", "report_seeds", "chosen", "near_best") == [
            ["bn", "0.01", 4, 8, 1.0, False],
            ["bn", "0.1", 4, 8, 0.0, False],
            ["nobn", "0.1", 4, 8, 1.0, False],
        ]
        # Of 1.0 … 1.3 and of 1.4 … 2.1 the middle halves, of 5, 6, 5, 6 two and of eight four.
        np.testing.assert_allclose(rows(found, "tuning_iqm", "iqm"), [[1.15, 1.75], [5.5, 5.5], [1.15, 1.75]])
        assert (found["iqm_low"] <= found["iqm"]).all()

    def test_tuning_seeds_validate_and_others_report(self, sweep, arm):
        test = {"test/loss": 7.0}
        found = sweep(arm("bn", BAD, lr="0.1", **test), arm("bn", GOOD, lr="0.01", **test)).settings
        assert rows(found, "tuning_iqm", "iqm") == [[pytest.approx(1.15), 7.0], [5.5, 7.0]]

    def test_no_iqm_above_a_quarter_diverged(self, sweep, arm):
        values = [INF, INF, 1, 1, INF, INF, INF, 1, 1, 1, 1, 1]
        untrained = [0] * 9 + [1] * 3
        found = sweep(arm("bn", values, lr="0.1", untrained=untrained), arm("bn", [2.0] * 12, lr="0.2")).settings
        assert rows(found, "diverged", "untrained") == [[5 / 12, 3 / 12], [0, 0]]
        assert found["chosen"].tolist() == [0, 1]
        assert found["iqm"].isna().tolist() == found["tuning_iqm"].isna().tolist() == [True, False]

    def test_maximized_metric(self, sweep, arm):
        found = sweep(arm("bn", [0.9] * 12), arm("bn", [0.5] * 12, lr="0.2"), direction="max").settings
        assert rows(found, "tuning_iqm", "iqm", "chosen") == [[0.9, 0.9, 1.0], [0.5, 0.5, 0.0]]


class TestArms:
    def test_best_setting_over_reported_seeds(self, sweep, arm):
        found = sweep(arm("bn", BAD, lr="0.1"), arm("bn", GOOD, lr="0.01"), arm("nobn", BAD, lr="0.1")).arms
        assert rows(found, "arm", "optimizer.lr", "tuning_seeds", "seeds", "runs", "finished") == [
            ["bn", "0.01", 4, 8, 24, 24],
            ["nobn", "0.1", 4, 8, 12, 12],
        ]
        assert found["iqm"].tolist() == pytest.approx([1.75, 5.5])

    def test_counts_by_status(self, sweep, arm):
        found = sweep(
            arm("bn", [1, INF, None, 2], untrained=[0, 0, NAN, 1]), arm("nobn", [1], status="stopped")
        ).arms
        counts = ["runs", "finished", "diverged", "failed", "stopped", "seeds"]
        assert rows(found, "arm", *counts, "diverged_share", "untrained_share")[0] == [
            *("bn", 4, 2, 1, 1, 0, 3, pytest.approx(1 / 3), pytest.approx(1 / 3))
        ]
        assert rows(found, *counts)[1] == [1, 0, 0, 0, 1, 1]

    def test_all_metrics_and_best_epoch(self, sweep, arm):
        metrics = [Metric("test/loss", "min", GENERALIZATION), Metric("test/acc", "max", GENERALIZATION)]
        found = sweep(
            arm("bn", [2.0] * 4, **{"test/loss": 3.0, "test/acc": 0.5, "best": [1.0, 1.0, 2.0, 2.0]}),
            metrics=metrics,
        ).arms
        assert rows(found, "test/loss", "test/acc", "validation", "best") == [[3.0, 0.5, 2.0, 1.5]]

    def test_different_chosen_settings_show_none(self, sweep, arm):
        other = [3.0, 0.5] * 6
        arms = arm("bn", [1.0] * 12, scope="split"), arm("bn", other, lr="0.2", scope="split")
        found = sweep(*arms, arm("nobn", [1.0] * 12, scope="split")).arms
        assert rows(found, "arm", "optimizer.lr", "iqm", "seeds") == [
            ["bn", None, 0.75, 12],
            ["nobn", "0.1", 1.0, 12],
        ]


class TestRanges:
    def test_learning_rate_range(self, sweep, arm):
        values = {"0.001": 2.0, "0.01": 1.05, "0.1": 1.0, "1": 3.0}
        found = sweep(*(arm("bn", [value] * 6, lr=lr) for lr, value in values.items())).ranges
        assert rows(found, "key", "within", "smallest", "largest", "open") == [
            ["optimizer.lr", 10, 0.01, 0.1, False]
        ]
        assert found["decades"].tolist() == pytest.approx([1.0])

    def test_range_uses_validation(self, sweep, arm):
        values = {"0.01": 1.0, "0.1": 2.0}
        found = sweep(*(arm("bn", [own] * 6, lr=lr, **{"test/loss": 1.0}) for lr, own in values.items())).ranges
        assert rows(found, "smallest", "largest") == [[0.01, 0.01]]

    @pytest.mark.parametrize(("lost", "largest"), [(1, 1.0), (2, 0.1)])
    def test_untrained_counts_as_diverged(self, sweep, arm, lost, largest):
        """Two of six runs are more than a quarter."""
        untrained = [1] * lost + [0] * (6 - lost)
        arms = arm("bn", [1.0] * 6, lr="0.1", untrained=0), arm("bn", [1.0] * 6, lr="1", untrained=untrained)
        assert sweep(*arms).ranges["largest"].tolist() == [largest]

    def test_batch_size_ratio(self, sweep, arm):
        values = {("bn", "8"): 1.0, ("bn", "16"): 1.5, ("nobn", "8"): 4.0, ("nobn", "16"): 1.0}
        found = sweep(*(arm(name, [value] * 3, batch_size=size) for (name, size), value in values.items()))
        assert rows(found.batch_sizes, "arm", "batch_sizes", "ratio") == [["bn", 2, 1.5], ["nobn", 2, 4.0]]

    def test_nothing_varied(self, sweep, arm):
        found = sweep(arm("bn", GOOD), arm("nobn", GOOD))
        assert found.ranges.empty
        assert found.batch_sizes.empty
        assert isinstance(found.ranges, pd.DataFrame)


class TestTimeRatios:
    """Both arms reach their last value at step 40; bn reaches the target in half the steps."""

    @pytest.fixture
    def timed(self, sweep, arm):
        steps = (10, 20, 30, 40)
        curves = pd.DataFrame(
            [
                (run, step, NAN, 1.0 if step >= (10 * (1 + run % 2) if run < 8 else 20 * (1 + run % 2)) else 9.0)
                for run in range(16)
                for step in steps
            ],
            columns=["run", "step", "seconds", "value"],
        )

        def found(rounds=None):
            arms = arm("bn", [1.0] * 8), arm("nobn", [1.0] * 8)
            seconds = None if rounds is None else {((), name): np.array(own) for name, own in rounds.items()}
            ratios = sweep(*arms, curves=curves, target=1.0, resamples=200, timed=seconds).time_ratios
            return ratios.iloc[0]

        return found

    def test_untimed_arms_have_only_steps(self, timed):
        row = timed()
        assert (row["steps_ratio"], row["steps_ratio_low"], row["steps_ratio_high"]) == (0.5, 0.5, 0.5)
        assert row[["step_time_ratio", "seconds_ratio", "seconds_ratio_low"]].isna().all()

    def test_seconds_ratio_combines_both_intervals(self, timed):
        rounds = {"bn": [2.0, 2.2, 2.4, 2.6, 2.8, 3.0], "nobn": [1.0] * 6}
        row = timed(rounds)
        step = time_per_step_ratio(np.array(rounds["bn"]), np.ones(6))
        assert step.low == pytest.approx(2.0)
        assert step.high == pytest.approx(3.0)
        assert row["seconds_ratio"] == pytest.approx(0.5 * step.value)
        assert (row["seconds_ratio_low"], row["seconds_ratio_high"]) == pytest.approx((0.5 * 2.0, 0.5 * 3.0))

    def test_half_widths_add_in_squares(self, sweep, arm):
        draws = np.random.default_rng(0)
        times = np.exp(draws.normal(size=(2, 8))).round(2) * 100
        curves = pd.DataFrame(
            [(run, step, NAN, 1.0) for run, step in enumerate(times.ravel())],
            columns=["run", "step", "seconds", "value"],
        )
        rounds = {((), name): np.exp(draws.normal(size=12)) for name in ("bn", "nobn")}
        arms = arm("bn", [1.0] * 8), arm("nobn", [1.0] * 8)
        row = sweep(*arms, curves=curves, target=1.0, resamples=400, timed=rounds).time_ratios.iloc[0]
        for end in ("low", "high"):
            logs = [math.log(row[f"{name}_{end}"] / row[name]) for name in ("steps_ratio", "step_time_ratio")]
            assert math.log(row[f"seconds_ratio_{end}"] / row["seconds_ratio"]) == pytest.approx(
                math.copysign(math.hypot(*logs), logs[0])
            )

    def test_few_rounds_give_unbounded_interval(self, timed):
        row = timed({"bn": [2.0] * 3, "nobn": [1.0] * 3})
        assert (row["seconds_ratio"], row["seconds_ratio_low"], row["seconds_ratio_high"]) == (
            pytest.approx(1.0),
            0.0,
            INF,
        )

    def test_arm_without_runs_has_no_ratio(self, sweep, arm):
        assert sweep(arm("bn", [None] * 8), arm("nobn", [1.0] * 8)).time_ratios.empty
