"""Sentences of equivalence, settings, times and interactions, as full text."""

import math

import numpy as np
import pytest

from normlab.stats.design import GENERALIZATION, Metric
from normlab.stats.sentences import interaction_sentence, sentence, time_sentence

INF, NAN = math.inf, math.nan
ACC = [Metric("test/acc", "max", GENERALIZATION)]
ONES, TWOS = [1.0] * 12, [2.0] * 12
SPREAD = list(np.linspace(1.0, 1.5, 12))
UNTUNED = "at lr 0.1, not tuned: other rates may reverse it"


class TestEquivalence:
    def test_within_margin_of_ratio(self, verdict_text, arm):
        close = [value * (1.01 if k % 2 else 0.99) for k, value in enumerate(SPREAD)]
        assert verdict_text(arm("bn", close), arm("nobn", SPREAD), margin=0.05) == (
            "no difference shown between bn and nobn: test/loss ratio 1, 95 % CI 0.99–1.01, p = 0.16, over 12 "
            f"seeds on this split; equivalent within 5 %, p = 0.00024, 90 % CI 0.99–1.01; {UNTUNED}"
        )

    def test_not_shown(self, verdict_text, arm):
        assert verdict_text(arm("bn", SPREAD), arm("nobn", SPREAD[::-1]), margin=0.05) == (
            "no difference shown between bn and nobn: test/loss ratio 1, 95 % CI 0.83–1.2, p = 1, over 12 seeds "
            f"on this split; not shown to be equivalent within 5 %, p = 0.26, 90 % CI 0.86–1.16; {UNTUNED}"
        )

    def test_in_points_and_metric_unit(self, verdict_text, arm):
        acc = {"test/acc": 0.5}
        assert "; equivalent within 2.5 points, p = 0.00024, 90 % CI 0 to 0; " in verdict_text(
            arm("bn", ONES, **acc), arm("nobn", ONES, **acc), metrics=ACC, margin=0.025
        )
        assert "; equivalent within 0.1, p = 0.00024, 90 % CI 0 to 0; " in verdict_text(
            arm("bn", [-1.0] * 12), arm("nobn", [-1.0] * 12), margin=0.1
        )

    @pytest.mark.parametrize("values", [SPREAD, [1.0] * 12, [INF] * 12])
    def test_no_equivalence_without_margin(self, verdict_text, arm, values):
        assert "equivalent" not in verdict_text(arm("bn", values), arm("nobn", values[::-1]))


class TestSettings:
    def arms(self, arm, scope="seed", best=("0.1", "0.2")):
        values = {"bn": 1.0, "nobn": 2.0}
        return [
            arm(name, [own if lr == chosen else 9.0] * 12, lr=lr, scope=scope)
            for (name, own), chosen in zip(values.items(), best, strict=True)
            for lr in ("0.1", "0.2", "0.3")
        ]

    def test_chosen_on_other_seeds(self, verdict_text, arm):
        assert verdict_text(*self.arms(arm)).endswith("; nobn at lr 0.2, bn at lr 0.1, chosen on 4 other seeds")
        assert verdict_text(*self.arms(arm, best=("0.2", "0.2"))).endswith("; at lr 0.2, chosen on 4 other seeds")

    def test_chosen_within_each_split(self, verdict_text, arm):
        assert verdict_text(*self.arms(arm, "split")).endswith("; lr chosen on the validation part of each split")

    def test_arm_with_one_setting(self, verdict_text, arm):
        assert verdict_text(arm("bn", ONES), *self.arms(arm)[3:]).endswith(
            "; nobn at lr 0.2, bn at lr 0.1, chosen on 4 other seeds; bn had one setting, not tuned: other rates "
            "may "
            "reverse it"
        )

    def test_different_untuned_learning_rates(self, verdict_text, arm):
        assert verdict_text(arm("bn", ONES, lr="0.3"), arm("nobn", TWOS)).endswith(
            "; nobn at lr 0.1, bn at lr 0.3, not tuned: other rates may reverse it"
        )

    def test_unknown_learning_rate(self, verdict_text, arm):
        runs = [[{**run, "lr": ""} for run in arm(name, own)] for name, own in (("bn", ONES), ("nobn", TWOS))]
        assert verdict_text(*runs).endswith("over 12 seeds on this split")

    def test_pooled_splits_with_different_settings(self, verdict_text, arm):
        rates = {"1": "0.1", "2": "0.2"}
        arms = [
            arm(name, [own if lr == rates[seed] else 9.0] * 12, lr=lr, data_seed=seed)
            for name, own in (("bn", 1.0), ("nobn", 2.0))
            for seed in rates
            for lr in ("0.1", "0.2")
        ]
        assert verdict_text(*arms).endswith("; at lr 0.1 or lr 0.2, chosen on 4 other seeds")


def test_not_comparable(verdict_text, arm):
    assert verdict_text(arm("bn", ONES), arm("nobn", [None] * 12)) == (
        "bn and nobn are not comparable: no run of nobn is reported"
    )


class TestTimes:
    ROW = {  # noqa: RUF012
        **{"arm": "bn", "baseline": "nobn", "panel": ""},
        **{"steps_ratio": 0.43, "steps_ratio_low": 0.38, "steps_ratio_high": 0.51},
        **{"seconds_ratio": NAN, "seconds_ratio_low": NAN, "seconds_ratio_high": NAN},
        **{"step_time_ratio": NAN, "step_time_ratio_low": NAN, "step_time_ratio_high": NAN},
    }
    SECONDS = {"seconds_ratio": 0.6, "seconds_ratio_low": 0.5, "seconds_ratio_high": 0.7}  # noqa: RUF012

    def test_steps(self):
        assert (
            time_sentence(self.ROW) == "bn reaches the target in 0.43 times the steps of nobn, 95 % CI 0.38–0.51"
        )

    def test_infinite_end(self):
        assert time_sentence({**self.ROW, "steps_ratio_high": INF}) == (
            "bn reaches the target in 0.43 times the steps of nobn, 95 % CI more than 0.38"
        )

    def test_seconds(self):
        assert time_sentence({**self.ROW, **self.SECONDS, "panel": "data.batch_size=8"}) == (
            "bn reaches the target at data.batch_size=8 in 0.43 times the steps of nobn, 95 % CI 0.38–0.51, "
            "and in 0.6 times the seconds of nobn, 95 % CI 0.5–0.7"
        )

    @pytest.mark.parametrize("ends", [(NAN, NAN), (0.0, INF)])
    def test_no_sentence_without_interval(self, ends):
        assert (
            time_sentence({**self.ROW, **dict(zip(("steps_ratio_low", "steps_ratio_high"), ends, strict=True))})
            == ""
        )

    def test_step_time(self):
        step = {"step_time_ratio": 1.004, "step_time_ratio_low": 0.998, "step_time_ratio_high": 1.2}
        verdict_text = "a step of bn takes 1.004 times as long as a step of nobn, 95 % CI 0.998–1.2"
        assert time_sentence({**self.ROW, **step}).endswith(f"CI 0.38–0.51; {verdict_text}")
        assert time_sentence({**self.ROW, **step, "steps_ratio_low": NAN}) == verdict_text


class TestInteraction:
    ROW = {  # noqa: RUF012
        **{"arm": "bn", "baseline": "nobn", "panel": "data.batch_size=64", "other": "data.batch_size=8"},
        **{"effect": "ratio", "estimate": 1.42, "estimate_low": 1.1, "estimate_high": 1.8},
        **{"p_adjusted": 0.031, "replicates": 6},
    }
    START = "the effect of bn against nobn"
    PANELS = "from data.batch_size=8 to data.batch_size=64"

    def test_change(self):
        assert interaction_sentence(self.ROW) == (
            f"{self.START} changes {self.PANELS}: ratio of ratios 1.42, 95 % CI 1.1–1.8, p = 0.031, 6 replicates"
        )

    def test_no_change_in_points(self):
        changed = {
            "effect": "points",
            "p_adjusted": 0.5,
            "estimate": -1.0,
            "estimate_low": -3.0,
            "estimate_high": 0.5,
        }
        assert interaction_sentence({**self.ROW, **changed}) == (
            f"{self.START} is not shown to change {self.PANELS}: difference of differences -1 points, 95 % "
            "CI -3 to "
            "0.5, p = 0.5, 6 replicates"
        )

    def test_without_an_estimate(self):
        nothing = dict.fromkeys(("estimate", "estimate_low", "estimate_high"), NAN)
        assert interaction_sentence({**self.ROW, **nothing}) == (
            f"{self.START} changes {self.PANELS}: too many runs diverged for an estimate, p = 0.031, 6 replicates"
        )


@pytest.mark.parametrize("scope", ["seed", "draw", "split"])
@pytest.mark.parametrize("margin", [None, 0.05])
def test_every_comparison_has_a_sentence(sweep, arm, scope, margin):
    draws = np.random.default_rng(0)
    arms = [arm(name, np.exp(draws.normal(size=9)), scope=scope) for name in ("bn", "nobn", "ln")]
    others = {"few": [1.0], "none": [None], "lost": [INF] * 9, "half": [1.0, INF] * 4, "same": [1.0] * 9}
    found = sweep(*arms, *(arm(name, own, scope=scope) for name, own in others.items()), pairs=True, margin=margin)
    texts = [sentence(row, found.grid, found.tuning) for row in found.comparisons.to_dict("records")]
    assert len(texts) == 28
    assert all("nan" not in text and "inf" not in text for text in texts)
