"""Every form of a verdict sentence, as full text."""

import math

import numpy as np
import pytest

from normlab.stats.design import GENERALIZATION, OPTIMIZATION, Metric
from normlab.stats.looks import History

INF = math.inf
ACC = [Metric("test/acc", "max", GENERALIZATION)]
ONES, TWOS = [1.0] * 12, [2.0] * 12
SPREAD = list(np.linspace(1.0, 1.5, 12))
UNTUNED = "at lr 0.1, not tuned: other rates may reverse it"
HALF = "test/loss ratio 0.5, 95 % CI 0.5–0.5, p = 0.00049"


class TestVerdict:
    def test_better(self, verdict_text, arm):
        assert verdict_text(arm("bn", ONES), arm("nobn", TWOS)) == (
            f"bn is better than nobn: {HALF}, over 12 seeds on this split; {UNTUNED}"
        )

    def test_worse_in_a_panel(self, verdict_text, arm):
        arms = (
            arm(name, own, batch_size=size) for name, own in (("bn", TWOS), ("nobn", ONES)) for size in ("8", "16")
        )
        assert verdict_text(*arms) == (
            "bn is worse than nobn at data.batch_size=8: test/loss ratio 2, 95 % CI 2–2, p = 0.00098 (2 "
            "comparisons), "
            f"over 12 seeds on this split; {UNTUNED}"
        )

    def test_more_points(self, verdict_text, arm):
        high, low = (np.linspace(start, start + 0.11, 12) for start in (0.8, 0.775))
        arms = arm("bn", ONES, **{"test/acc": high}), arm("nobn", ONES, **{"test/acc": low})
        assert verdict_text(*arms, metrics=ACC) == (
            "bn is better than nobn: test/acc difference +2.5 points, 95 % CI 2.5 to 2.5, p = 0.00049, "
            f"over 12 seeds on this split; {UNTUNED}"
        )

    def test_nonpositive_loss_has_difference(self, verdict_text, arm):
        assert verdict_text(arm("bn", [-2.0] * 8), arm("nobn", [0.0] * 8)) == (
            "bn is better than nobn: test/loss difference -2, 95 % CI -2 to -2, p = 0.0078, "
            f"over 8 seeds on this split; {UNTUNED}"
        )

    def test_no_difference_shown(self, verdict_text, arm):
        assert verdict_text(arm("bn", SPREAD), arm("nobn", SPREAD[::-1])) == (
            "no difference shown between bn and nobn: test/loss ratio 1, 95 % CI 0.83–1.2, p = 1, "
            f"over 12 seeds on this split; {UNTUNED}"
        )

    def test_look_number(self, verdict_text, arm):
        history = History()
        for count, p in ((8, "0.016 (look 1)"), (12, "0.0029 (look 2)")):
            text = verdict_text(arm("bn", ONES[:count]), arm("nobn", TWOS[:count]), history=history)
            assert f", p = {p}, over {count} seeds" in text

    def test_both_corrections(self, verdict_text, arm):
        text = verdict_text(arm("bn", ONES), arm("ln", ONES), arm("nobn", TWOS), history=History())
        assert ", p = 0.002 (2 comparisons, look 1), over 12 seeds on this split; " in text


class TestScope:
    def test_draws(self, verdict_text, arm):
        assert verdict_text(arm("bn", ONES, scope="draw"), arm("nobn", TWOS, scope="draw")) == (
            f"bn is better than nobn: {HALF}, over 12 draws of the data; {UNTUNED}"
        )

    def test_splits_and_new_tables(self, verdict_text, arm):
        split = {"scope": "split", "train_rows": 142.0, "test_rows": 36.0}
        noisy = np.exp(np.random.default_rng(0).normal(loc=0.8, scale=1.0, size=12))
        assert verdict_text(arm("bn", ONES, **split), arm("nobn", TWOS, **split)) == (
            f"bn is better than nobn: {HALF}, over 12 splits of this table; "
            f"also holds for new tables like this one, p = 0; {UNTUNED}"
        )
        assert verdict_text(arm("bn", ONES, **split), arm("nobn", noisy, **split)) == (
            "bn is better than nobn: test/loss ratio 0.44, 95 % CI 0.27–0.77, p = 0.0034, over 12 splits of this "
            f"table; not shown to hold for new tables like this one, p = 0.08; {UNTUNED}"
        )

    def test_new_tables_with_diverged_run(self, verdict_text, arm):
        split = {"scope": "split", "train_rows": 142.0, "test_rows": 36.0}
        assert verdict_text(arm("bn", ONES, **split), arm("nobn", [INF, *TWOS[1:]], **split)) == (
            f"bn is better than nobn: {HALF}, over 12 splits of this table; not testable for new tables like "
            f"this one, as runs diverged; {UNTUNED}; bn failed to train in 0 of 12 runs, nobn in 1, p = 1"
        )

    def test_new_tables_with_unknown_rows(self, verdict_text, arm):
        text = verdict_text(arm("bn", ONES, scope="split"), arm("nobn", TWOS, scope="split"))
        assert "; not testable for new tables like this one, as the number of rows is unknown; " in text

    @pytest.mark.parametrize("name", ["train_eval/loss", "val/loss"])
    def test_new_tables_only_for_test_metrics(self, verdict_text, arm, name):
        arms = (
            arm(model, own, scope="split", train_rows=142.0, test_rows=36.0, **{name: own})
            for model, own in (("bn", ONES), ("nobn", TWOS))
        )
        assert "new tables" not in verdict_text(*arms, metrics=[Metric(name, "min", OPTIMIZATION)])

    def test_several_splits(self, verdict_text, arm):
        arms = [arm(name, own, data_seed=seed) for name, own in (("bn", ONES), ("nobn", TWOS)) for seed in "123"]
        assert verdict_text(*arms) == (
            f"bn is better than nobn at all 3 data.seed: {HALF}, over 12 seeds on these 3 splits; {UNTUNED}"
        )
        assert verdict_text(*arms, place=1) == (
            "bn against nobn at data.seed=1, part of the pooled comparison: test/loss ratio 0.5, 95 % CI 0.5–0.5"
        )

    @pytest.mark.parametrize(
        ("scope", "over"), [("split", "12 × 3 splits of this table"), ("draw", "12 × 3 draws of the data")]
    )
    def test_several_splits_of_each_replicate(self, verdict_text, arm, scope, over):
        arms = [
            arm(name, own, data_seed=seed, scope=scope)
            for name, own in (("bn", ONES), ("nobn", TWOS))
            for seed in "123"
        ]
        assert f", over {over}; " in verdict_text(*arms)


class TestTooFew:
    def test_eight_pairs_with_three_ties(self, verdict_text, arm):
        assert verdict_text(arm("bn", ONES[:8]), arm("nobn", ONES[:3] + TWOS[:5])) == (
            "too few replicates to compare bn with nobn: 5 of 8 replicates differ, 6 must; test/loss "
            f"ratio 0.71, 95 % CI 0.5–1; {UNTUNED}"
        )

    def test_look_needs_more_replicates(self, verdict_text, arm):
        assert verdict_text(arm("bn", ONES[:6]), arm("nobn", TWOS[:6]), history=History()) == (
            "too few replicates to compare bn with nobn: 6 of the 7 replicates needed; test/loss ratio 0.5, "
            f"95 % CI 0.5–0.5; {UNTUNED}"
        )

    def test_one_replicate(self, verdict_text, arm):
        assert verdict_text(arm("bn", [1.0]), arm("nobn", [2.0])) == (
            f"too few replicates to compare bn with nobn: 1 of the 6 replicates needed; test/loss ratio 0.5; "
            f"{UNTUNED}"
        )

    def test_replicates_that_choose_and_report(self, verdict_text, arm):
        arms = [arm(name, [own] * 4, lr=lr) for name, own in (("bn", 1.0), ("nobn", 2.0)) for lr in ("0.1", "0.2")]
        assert verdict_text(*arms) == (
            "too few replicates to compare bn with nobn: the same 4 replicates chose the settings; test/loss "
            "ratio 0.5; at lr 0.1, chosen on 4 of these seeds"
        )

    def test_more_than_declared_maximum(self, verdict_text, arm):
        assert verdict_text(arm("bn", ONES), arm("nobn", TWOS), history=History(max_replicates=8)) == (
            f"no verdict beyond max_replicates for bn against nobn; test/loss ratio 0.5, 95 % CI 0.5–0.5; "
            f"{UNTUNED}"
        )


class TestDiverged:
    def test_share_of_pairs_above_29_percent_diverged(self, verdict_text, arm):
        assert verdict_text(arm("bn", [INF] * 4 + ONES[4:]), arm("nobn", TWOS)) == (
            "no difference shown between bn and nobn: too many runs diverged to estimate test/loss; bn is "
            "better in "
            "67 % of the pairs (95 % CI 39–86 %), p = 0.84, over 12 seeds on this split; "
            f"{UNTUNED}; bn failed to train in 4 of 12 runs, nobn in 0, p = 0.12"
        )

    def test_untrained_runs_failed(self, verdict_text, arm):
        assert verdict_text(arm("bn", ONES, untrained=[1] * 6 + [0] * 6), arm("nobn", TWOS, untrained=0)) == (
            f"bn is better than nobn: {HALF}, over 12 seeds on this split; {UNTUNED}; "
            "bn failed to train in 6 of 12 runs, nobn in 0, p = 0.031"
        )

    def test_runs_stopped_early(self, verdict_text, arm):
        assert verdict_text(arm("bn", ONES, shortened=[1] * 3 + [0] * 9), arm("nobn", TWOS, shortened=0)) == (
            f"bn is better than nobn: {HALF}, over 12 seeds on this split; {UNTUNED}; "
            "runs that stopped early, counted with the last tenth of their own epochs: 3"
        )


class TestUndeclared:
    def test_interval_is_not_corrected(self, verdict_text, arm):
        # The adverse ratio has rank 3 of 8: there are 5 such or smaller sets of ranks, p = 2 · 5 / 2^8.
        ratios = [0.9, 0.8, 1 / 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
        even = [0.95, 1.05, 0.94, 1.06, 0.93, 1.07, 0.92, 1.08]
        assert verdict_text(arm("bn", ratios), arm("ln", even), arm("nobn", ONES[:8])) == (
            "no difference shown between bn and nobn: test/loss ratio 0.54, 95 % CI 0.3–0.926, p = 0.078 (2 "
            "comparisons), "
            f"over 8 seeds on this split; the interval is not corrected for multiple comparisons; {UNTUNED}"
        )

    def test_near_best_settings(self, verdict_text, arm):
        best, near = [1.0, 1.2, 1.0, 1.2], [1.2, 1.02, 1.2, 1.02]
        arms = (
            arm("bn", [*(value / 2 for value in best), *[0.5] * 8]),
            arm("nobn", [*best, *[1.0] * 8]),
            arm("nobn", [*near, *[0.4] * 8], lr="0.2"),
        )
        assert verdict_text(*arms) == (
            "no difference shown between bn and nobn: test/loss ratio 0.5, 95 % CI 0.5–0.5, p = 1, over 8 seeds "
            "on this split; near-best settings of nobn are not shown to be worse; at lr 0.1, chosen on 4 other "
            "seeds; bn had one setting, not tuned: other rates may reverse it"
        )
