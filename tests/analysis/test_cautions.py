import math

import numpy as np
import pytest

INF = math.inf
FINE = list(np.linspace(1, 2, 12))


def test_a_sweep_in_which_all_is_well_has_none(sweep, arm):
    assert sweep(arm("bn", FINE), arm("nobn", FINE)).warnings == []


def test_runs_that_do_not_count(sweep, arm, frame):
    runs = frame(
        [
            *arm("bn", [*FINE, None]),
            *arm("nobn", [math.nan], status="finished"),
            *arm("nobn", [math.nan], status="stopped", seeds=[1]),
            *arm("nobn", [1.0], seeds=[None]),
            *arm("bn", [1.0]),
        ]
    )
    assert sweep(runs).warnings[:5] == [
        "stopped runs, which count nowhere: 1",
        "failed runs, which count nowhere: 1",
        "finished runs without val/loss, which count nowhere: 1",
        "runs without a seed, which count nowhere: 1",
        "runs that repeat a seed of their setting, and count once with their mean: 1",
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([None, None], "no run came to its end: there is nothing to compare"),
        ([INF, INF], "every run diverged"),
        ([1.0], "one seed: no spread can be given, and it supports no claim"),
        ([1.0] * 5, "seeds that are reported: 5; a verdict needs 8"),
    ],
)
def test_too_little_to_say_anything(sweep, arm, values, said):
    assert said in sweep(arm("bn", values), arm("nobn", values)).warnings


def test_below_eight_seeds_the_coverage_that_was_measured(sweep, arm):
    found = sweep(arm("bn", FINE[:4]), arm("nobn", FINE[:4])).warnings
    assert any("with 4 seeds, the 95 % intervals hold the truth in 8" in line for line in found)


def test_seeds_that_tune_and_report(sweep, arm):
    rates = [arm("bn", FINE, lr="0.1"), arm("bn", FINE, lr="0.2")]
    assert "seeds that settings were chosen on: 4; that are reported: 8" in sweep(*rates).warnings
    few = [arm("bn", [1.0, 2.0], lr="0.1"), arm("bn", [1.0, 2.0], lr="0.2")]
    said = "the same seeds tune and report, as there are but 2: the numbers flatter what was tuned"
    assert said in sweep(*few).warnings


def test_the_best_at_the_edge_of_the_grid_and_an_arm_that_was_not_tuned(sweep, arm):
    worse = [value + 5 for value in FINE]
    found = sweep(
        arm("bn", FINE, lr="0.1"), arm("bn", worse, lr="0.2"), arm("nobn", FINE), arm("ln", worse, lr="0.1"),
        arm("ln", FINE, lr="0.2"), arm("ln", worse, lr="0.3"),
    ).warnings  # fmt: skip
    assert found[1:] == [
        "bn: the best optimizer.lr is the smallest that was tried, 0.1; it may lie beyond",
        "nobn: not tuned, one setting alone was run",
    ]


def test_settings_that_were_tuned_on_fewer_seeds(sweep, arm):
    found = sweep(arm("bn", FINE, lr="0.1"), arm("bn", [None, *FINE[1:]], lr="0.2")).warnings
    assert "all runs: settings were tuned on 3 to 4 seeds" in found


def test_comparisons_that_cannot_be_made_or_are_not_paired(sweep, arm):
    assert "bn: not comparable: nobn has no run to report" in sweep(arm("bn", FINE), arm("nobn", [None])).warnings
    found = sweep(arm("bn", FINE), arm("nobn", FINE, seeds=range(50, 62))).warnings
    assert "comparisons of arms that share too few seeds, and are not paired: 1" in found


def test_so_many_comparisons_that_no_p_is_small_enough(sweep, arm):
    arms = [arm(f"m{k}", FINE[:8]) for k in range(8)]
    assert sweep(*arms).warnings == [
        "nothing can be declared: with so few seeds p is at least 0.0078, and the clearest of 7 comparisons needs "
        "0.0071; it takes 9 seeds"
    ]
    assert not sweep(*arms[:7]).warnings


def test_rivals_that_were_not_run_on_the_report_seeds(sweep, arm):
    same = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    found = sweep(
        arm("bn", [*same, *FINE]),
        arm("nobn", [*same, *[value + 5 for value in FINE]]),
        arm("nobn", same, lr="0.2"),
    )
    assert found.comparisons["untested"].tolist() == [1]
    assert any(
        line.startswith("bn: settings that may as well be the best one of the other") for line in found.warnings
    )
