import math

import numpy as np
import pytest

from normlab.analysis.design import Design
from normlab.analysis.words import sentence

NAN = math.nan
DESIGN = Design("model", ("bn", "nobn"), "nobn", (), (), "val/loss", "min", (), tuple(range(32)))
ROW = {
    **{"arm": "bn", "baseline": "nobn", "panel": "", "verdict": "better", "seeds": 32, "paired": True},
    **{"p_holm": 0.0031, "ratio": 0.62, "ratio_low": 0.58, "ratio_high": 0.66},
    **{"difference": -0.2, "difference_low": -0.25, "difference_high": -0.15},
    **{"improvement": 0.9, "improvement_low": 0.8, "improvement_high": 0.95},
    **{"steps_ratio": 0.43, "steps_ratio_low": 0.38, "steps_ratio_high": 0.51},
    **{"seconds_ratio": NAN, "seconds_ratio_low": NAN, "seconds_ratio_high": NAN},
    **{"reached": 1.0, "reached_low": 0.9, "reached_high": 1.0},
    **{"baseline_reached": 1.0, "baseline_reached_low": 0.9, "baseline_reached_high": 1.0},
}
TIMES = "; bn reaches the target in 0.43 times the steps of nobn, 95 % CI 0.38–0.51, 32 paired seeds"


def said(**changed):
    return sentence({**ROW, **changed}, DESIGN)


def without_times(**changed):
    return said(reached=NAN, **changed)


def test_a_declared_difference_and_the_times():
    assert said() == (
        "bn is better than nobn in val/loss, p = 0.0031, 32 paired seeds; "
        "val/loss is 0.62 times that of nobn, 95 % CI 0.58–0.66" + TIMES
    )
    assert without_times(verdict="worse", panel="data.batch_size=8", ratio=NAN) == (
        "bn is worse than nobn in val/loss at data.batch_size=8, p = 0.0031, 32 paired seeds; "
        "val/loss differs by -0.2, 95 % CI -0.25 to -0.15"
    )


class TestNoDifferenceShown:
    def test_what_the_interval_excludes(self):
        found = without_times(verdict="no difference shown", p_holm=0.31, ratio_low=0.97, ratio_high=1.04)
        assert found == (
            "bn against nobn: no difference shown in val/loss, p = 0.31, 32 paired seeds; "
            "differences above 4 % are excluded by the 95 % interval"
        )

    @pytest.mark.parametrize(
        ("changed", "excluded"),
        [
            ({"ratio_low": 0.9, "ratio_high": 1.02}, "differences above 10 % are"),
            ({"ratio_low": 0.5, "ratio_high": 3.0}, "ratios below 0.5 and above 3 are"),
            (
                {"ratio": NAN, "ratio_low": NAN, "ratio_high": NAN, "difference_high": 0.1},
                "differences above 0.25 are",
            ),
        ],
    )
    def test_in_percent_as_ratios_or_in_the_metrics_unit(self, changed, excluded):
        assert f"; {excluded} excluded by the 95 % interval" in without_times(
            verdict="no difference shown", **changed
        )

    def test_an_interval_that_leaves_no_difference_out_is_told_and_declares_nothing(self):
        found = without_times(verdict="no difference shown", p_holm=0.07)
        assert found.endswith(
            "p = 0.07, 32 paired seeds; val/loss is 0.62 times that of nobn, 95 % CI 0.58–0.66, "
            "which declares nothing by itself"
        )

    def test_nothing_is_excluded_without_ends(self):
        ends = {"ratio_low": 0.5, "ratio_high": math.inf, "difference_low": -1, "difference_high": math.inf}
        found = without_times(verdict="no difference shown", **ends)
        assert found.endswith("; no difference is excluded by a 95 % interval")


def test_too_few_seeds_give_numbers_and_how_far_their_interval_can_be_trusted():
    found = without_times(verdict="too few seeds for a verdict", seeds=4)
    assert found.startswith(
        "bn against nobn: too few seeds for a verdict, 4 paired seeds of 8 that it needs; val/loss is"
    )
    assert ", which with 4 seeds holds the truth in 8" in found
    found = without_times(verdict="too few seeds for a verdict", seeds=1, ratio_low=NAN, ratio_high=NAN)
    assert found.endswith("1 paired seed of 8 that it needs; val/loss is 0.62 times that of nobn")


def test_no_winner_where_mean_and_middle_half_disagree():
    found = without_times(verdict="different, neither better")
    assert "bn against nobn: different, neither better, p = 0.0031" in found
    assert "better than" not in found


def test_too_many_diverged_for_a_mean():
    found = without_times(ratio=NAN, difference=NAN)
    assert found.endswith("and one of bn is better in 90 % of pairs (95 % CI 80–95 %)")


def test_what_cannot_be_compared():
    nothing = {**ROW, **dict.fromkeys(ROW, NAN), "arm": "bn", "baseline": "nobn", "panel": "", "seeds": 0}
    assert sentence({**nothing, "verdict": "not comparable: nobn has no run to report"}, DESIGN) == (
        "bn against nobn: not comparable: nobn has no run to report"
    )


class TestTimes:
    def test_an_end_that_is_infinite(self):
        assert "0.43 times the steps of nobn, 95 % CI more than 0.38, 32" in said(steps_ratio_high=math.inf)

    def test_seconds(self):
        found = said(seconds_ratio=0.6, seconds_ratio_low=0.5, seconds_ratio_high=0.7)
        assert "95 % CI 0.38–0.51, and in 0.6 times the seconds of nobn, 95 % CI 0.5–0.7, 32 paired seeds" in found

    def test_shares_where_half_of_an_arm_never_gets_there(self):
        found = said(steps_ratio=NAN, baseline_reached=0.25, baseline_reached_low=0.1, baseline_reached_high=0.5)
        assert found.endswith(
            "; the target is reached by 100 % of bn (95 % CI 90–100 %) and by 25 % of nobn (95 % CI 10–50 %)"
        )

    def test_no_ratio_is_said_without_an_interval(self):
        assert "times the steps" not in said(steps_ratio_low=NAN, steps_ratio_high=NAN)


def test_every_comparison_of_a_sweep_has_its_sentence(sweep, arm):
    draws = np.random.default_rng(0)
    arms = [arm(name, draws.normal(loc=5 + place, size=9)) for place, name in enumerate(("bn", "nobn", "ln"))]
    found = sweep(*arms, arm("few", [1.0]), arm("none", [None]), arm("lost", [math.inf] * 9))
    sentences = [sentence(row, found.design) for row in found.comparisons.to_dict("records")]
    assert len(sentences) == 5
    assert all("nan" not in text and "inf" not in text for text in sentences)
