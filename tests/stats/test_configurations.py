import math

import numpy as np
import pandas as pd
import pytest

from normlab.stats import design as configurations
from normlab.stats.design import mean_and_error, natural, replicates, varied_keys

INF, NAN = math.inf, math.nan


def runs(*rows):
    """Return a frame of runs; a row is configuration, seed, status, best, test, epochs to target, seconds."""
    columns = ["configuration", "seed", "status", "best", "test", "epochs_to_target", "seconds"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(val=frame["test"] + 1, train_eval=frame["test"] - 1, untrained=frame["best"] == 5.0)


def summarize(runs):
    """Return the summary of the configurations with their times to the target."""
    return configurations.summarize(runs).join(configurations.target_summary(runs))


def keys(given, settings=None):
    return varied_keys(pd.DataFrame(given), pd.DataFrame(given if settings is None else settings))


class TestVariedKeys:
    def test_seed_does_not_count_as_varied(self):
        assert keys({"model": ["bn", "nobn"], "optimizer.lr": ["0.1", "0.1"], "seed": ["0", "1"]}) == ["model"]

    def test_same_override_with_other_value_does_not_vary(self):
        given = {"model": ["bn", "nobn"], "data.seed": ["${seed}", "${seed}"]}
        assert keys(given, {"model": ["bn", "nobn"], "data.seed": ["0", "1"]}) == ["model"]

    def test_key_overridden_in_some_runs_varies(self):
        given = {"optimizer.lr": ["0.1", None], "net.bias": ["true", None]}
        assert keys(given, {"optimizer.lr": ["0.1", "0.01"], "net.bias": ["true", "true"]}) == ["optimizer.lr"]

    def test_unknown_run_makes_nothing_vary(self):
        given = {"model": ["bn", "nobn", None], "optimizer": ["sgd", "sgd", None]}
        assert keys(given) == ["model"]

    def test_no_overrides(self):
        nothing = pd.DataFrame(index=range(2))
        assert varied_keys(nothing, nothing) == []


def test_natural_sort_orders_numbers_by_value():
    assert sorted(["bn", "1e-3", "[100]", "0.1", "x²", "[20, 3]"], key=natural) == [
        "1e-3",
        "0.1",
        "[20, 3]",
        "[100]",
        "bn",
        "x²",
    ]


class TestMeanAndError:
    def test_by_hand(self):
        # Σ(x − 2.5)² = 5, s² = 5/3, s.e. = √(5/3)/2
        assert mean_and_error([1, 2, 3, 4]) == (2.5, pytest.approx(0.6454972243679028))

    def test_one_value_has_no_error(self):
        mean, error = mean_and_error([3.5])
        assert mean == 3.5
        assert math.isnan(error)

    def test_no_values_have_no_mean(self):
        assert all(map(math.isnan, mean_and_error([])))
        assert all(map(math.isnan, mean_and_error([NAN, NAN])))

    def test_nan_is_ignored(self):
        assert mean_and_error([1.0, NAN, 3.0]) == (2.0, pytest.approx(1.0))

    @pytest.mark.parametrize("worst", [INF, -INF])
    def test_infinite_value_makes_mean_infinite(self, worst):
        mean, error = mean_and_error([1.0, 2.0, worst])
        assert mean == worst
        assert math.isnan(error)


class TestSummarize:
    def test_by_hand(self):
        table = summarize(
            runs(
                ("bn", 0, "finished", 1.0, 2.0, 4, 1.0),
                ("bn", 1, "finished", 3.0, 6.0, 7, 3.0),
                ("nobn", 0, "finished", 5.0, 5.0, INF, 2.0),
            )
        )
        bn, nobn = table.loc["bn"], table.loc["nobn"]
        assert (bn.runs, bn.finished, bn.seeds) == (2, 2, 2)
        # s = √2, s.e. = √2/√2 = 1 of 1 and 3; 2 of 2 and 6
        assert (bn.best_mean, bn.best_se) == (2.0, pytest.approx(1.0))
        assert (bn.test_mean, bn.test_se) == (4.0, pytest.approx(2.0))
        assert (bn.epochs_to_target, bn.reached, bn.timed, bn.seconds) == (5.5, 2, 2, 2.0)
        assert (bn.val_mean, bn.train_eval_mean, bn.untrained, nobn.untrained) == (5.0, 3.0, 0, 1)
        assert (nobn.best_mean, nobn.epochs_to_target, nobn.reached, nobn.timed) == (5.0, INF, 0, 1)
        assert math.isnan(nobn.best_se)

    def test_diverged_run_counts_as_infinite(self):
        rows = [("bn", seed, "finished", 1.0, 1.0, 10 + seed, 4.0) for seed in range(6)]
        rows += [("bn", seed, "diverged", INF, INF, INF, 0.1) for seed in (6, 7)]
        arm = summarize(runs(*rows)).loc["bn"]
        assert (arm.runs, arm.finished, arm.diverged, arm.seeds) == (8, 6, 2, 8)
        assert arm.best_mean == INF
        assert math.isnan(arm.best_se)
        # 10 … 15 and two that never get there: the middle two of eight are 13 and 14
        assert (arm.epochs_to_target, arm.reached, arm.timed) == (13.5, 6, 8)
        assert arm.seconds == 4.0

    def test_median_time_is_infinite_if_half_miss_target(self):
        arm = summarize(runs(("a", 0, "finished", 1, 1, 3, 1), ("a", 1, "finished", 2, 2, INF, 1))).loc["a"]
        assert (arm.epochs_to_target, arm.reached, arm.timed) == (INF, 1, 2)

    def test_stopped_and_failed_runs_are_not_averaged(self):
        arm = summarize(
            runs(
                ("a", 0, "finished", 1.0, 2.0, 3, 5.0),
                ("a", 1, "stopped", NAN, NAN, NAN, 9.0),
                ("a", 2, "failed", NAN, NAN, NAN, 0.0),
                ("a", None, "failed", NAN, NAN, NAN, 0.0),
            )
        ).loc["a"]
        assert (arm.runs, arm.finished, arm.stopped, arm.failed, arm.seeds) == (4, 1, 1, 2, 1)
        assert (arm.best_mean, arm.test_mean, arm.epochs_to_target, arm.seconds) == (1.0, 2.0, 3, 5.0)
        assert math.isnan(arm.best_se)

    def test_configuration_without_known_run(self):
        arm = summarize(runs(("a", 0, "failed", NAN, NAN, NAN, 0.0))).loc["a"]
        assert arm.seeds == arm.timed == 0
        assert arm[["best_mean", "test_mean", "epochs_to_target", "seconds"]].isna().all()

    def test_finished_run_without_metric_is_not_averaged(self):
        arm = summarize(runs(("a", 0, "finished", 4.0, 4.0, 1, 2), ("a", 1, "finished", NAN, NAN, NAN, 4))).loc[
            "a"
        ]
        assert (arm.finished, arm.seeds, arm.best_mean, arm.seconds) == (2, 1, 4.0, 3.0)

    def test_repeated_seed_counts_once(self):
        once = runs(("a", 0, "finished", 1.0, 1.0, 1, 1), ("a", 1, "finished", 2.0, 2.0, 1, 1))
        twice = pd.concat([once, once])
        assert len(replicates(twice)) == 2
        assert summarize(twice).loc["a", "best_se"] == summarize(once).loc["a", "best_se"]

    def test_run_order_does_not_matter(self):
        rng = np.random.default_rng(0)
        rows = [
            (arm, seed, "finished", *rng.normal(size=2), rng.integers(1, 9), 1.0)
            for arm in "abc"
            for seed in range(5)
        ]
        table = summarize(runs(*rows))
        shuffled = summarize(runs(*(rows[k] for k in rng.permutation(len(rows)))))
        pd.testing.assert_frame_equal(shuffled.sort_index(), table)
