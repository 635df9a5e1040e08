import math

import pandas as pd
import pytest

INF = math.inf


def falling(lasts, steps=(10, 20, 30, 40)):
    """Return curves that decrease by one per evaluation to their last value."""
    rows = [
        (run, step, step / 100, last + len(steps) - place)
        for run, last in lasts.items()
        for place, step in enumerate(steps, 1)
    ]
    return pd.DataFrame(rows, columns=["run", "step", "seconds", "value"])


def table(found, *columns):
    return found[list(columns)].to_numpy().tolist()


class TestTarget:
    def test_median_of_best_arm_within_75_percent_budget(self, sweep, arm):
        # By step 30 the arms are at 2, 3, 4 and at 6, 7, 8.
        found = sweep(
            arm("bn", [1, 2, 3]), arm("nobn", [5, 6, 7]), curves=falling(dict(enumerate([1, 2, 3, 5, 6, 7])))
        )
        assert table(found.targets, "target", "rule", "budget", "resolution") == [[3.0, "best arm", 40.0, 10.0]]
        assert (
            "the target was set by the same runs whose times are reported, which favours the arm that set it"
            in found.warnings
        )
        # 2, 3, 4 at step 30: reached at 30, 30 and 40; the other arm never gets there.
        assert table(found.arms, "arm", "steps", "seconds", "reached") == [
            ["bn", 30, 0.3, 1.0],
            ["nobn", INF, INF, 0],
        ]

    def test_baseline_target(self, sweep, arm):
        curves = falling(dict(enumerate([1, 2, 3, 5, 6, 7])))
        found = sweep(arm("bn", [1, 2, 3]), arm("nobn", [5, 6, 7]), curves=curves, target="baseline")
        assert table(found.targets, "target", "rule") == [[7.0, "baseline"]]
        assert table(found.time_ratios, "arm", "baseline", "steps_ratio") == [["bn", "nobn", pytest.approx(1 / 3)]]
        assert math.isnan(found.time_ratios["seconds_ratio"][0]), "the arms were not timed"

    def test_given_target(self, sweep, arm):
        found = sweep(arm("bn", [1]), arm("nobn", [5]), curves=falling({0: 1, 1: 5}), target=6)
        assert table(found.targets, "target", "rule") == [[6, "given"]]
        assert table(found.arms, "steps") == [[10], [30]]
        assert not [line for line in found.warnings if "target" in line]

    def test_other_text_raises(self, sweep, arm):
        with pytest.raises(ValueError, match=r"target must be a number or 'baseline' .*, got 'bset'"):
            sweep(arm("bn", [1]), target="bset")

    def test_tuning_seeds_set_target_at_best_setting(self, sweep, arm):
        good, bad = [1, 1, 1, 1, 9, 9, 9, 9], [50] * 8
        runs = [*arm("bn", good, lr="0.1"), *arm("bn", bad, lr="0.2"), *arm("nobn", bad, lr="0.1")]
        found = sweep(runs, curves=falling(dict(enumerate([*good, *bad, *bad]))))
        assert table(found.targets, "target") == [[2.0]]
        assert table(found.arms, "arm", "reached") == [["bn", 0.0], ["nobn", 0.0]]

    def test_splits_set_target_on_reported_seeds(self, sweep, arm):
        good, bad = [1.0, 2.0, 3.0], [9.0] * 3
        runs = [
            *arm("bn", good, lr="0.1", scope="split"),
            *arm("bn", bad, lr="0.2", scope="split"),
            *arm("nobn", bad, scope="split"),
        ]
        found = sweep(runs, curves=falling(dict(enumerate([*good, *bad, *bad]))))
        assert table(found.targets, "target") == [[3.0]]

    def test_each_panel_has_its_own_target(self, sweep, arm):
        runs = arm("bn", [1], batch_size="32"), arm("bn", [5], batch_size="8"), arm("ln", [3], batch_size="8")
        curves = pd.concat([falling({0: 1}), falling({1: 5, 2: 3}, steps=(5, 10))])
        found = sweep(*runs, curves=curves)
        assert table(found.targets, "data.batch_size", "target", "budget", "resolution") == [
            ["8", 4.0, 10.0, 5.0],
            ["32", 2.0, 40.0, 10.0],
        ]


class TestTimes:
    def test_diverged_run_never_reaches_target(self, sweep, arm):
        found = sweep(
            arm("bn", [1, INF]), arm("nobn", [1, 1]), curves=falling(dict.fromkeys(range(4), 1)), target=4
        )
        assert table(found.arms, "arm", "reached", "steps") == [["bn", 0.5, INF], ["nobn", 1.0, 10.0]]
        assert math.isnan(found.time_ratios["steps_ratio"][0])

    def test_unfinished_run_is_in_no_share(self, sweep, arm):
        found = sweep(
            arm("bn", [1, None]), arm("nobn", [1, 1]), curves=falling(dict.fromkeys(range(4), 1)), target=4
        )
        assert table(found.arms, "arm", "reached") == [["bn", 1.0], ["nobn", 1.0]]

    def test_run_without_curves_has_no_time(self, sweep, arm):
        found = sweep(arm("bn", [1, 2]), arm("nobn", [1, 2]), curves=falling({0: 1, 2: 1, 3: 1}), target=4)
        assert table(found.arms, "steps") == [[10], [10]]
        assert math.isnan(sweep(arm("bn", [1]), curves=falling({7: 1}), target=4).arms["steps"][0])

    def test_unknown_seconds(self, sweep, arm):
        curves = falling(dict.fromkeys(range(4), 1)).assign(seconds=math.nan)
        found = sweep(arm("bn", [1, 2]), arm("nobn", [1, 2]), curves=curves, target=4)
        assert found.time_ratios["steps_ratio"][0] == 1.0
        assert found.arms["seconds"].isna().all()

    def test_no_target_if_all_runs_diverged(self, sweep, arm):
        found = sweep(arm("bn", [INF]), arm("nobn", [INF]), curves=falling({0: 1, 1: 1}))
        assert math.isnan(found.targets["target"][0])
        assert "panels without a target, because most runs diverged: 1" in found.warnings
        assert found.arms["steps"].isna().all()

    def test_maximized_metric(self, sweep, arm):
        curves = falling({0: 1, 1: 1}).assign(value=[0.1, 0.5, 0.9, 0.8, 0.1, 0.2, 0.3, 0.4])
        found = sweep(arm("bn", [0.9]), arm("nobn", [0.4]), direction="max", curves=curves)
        assert table(found.targets, "target") == [[0.9]]
        assert table(found.arms, "steps") == [[30], [INF]]
