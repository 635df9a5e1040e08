"""Verdicts from parts with given p-values."""

import math

import pytest

from normlab.claims.verdict import Answer, Part, decide
from normlab.stats.regions import Region


def part(p, p_against=1.0, effect=0.5, needed=20, name="bn against nobn, test/loss"):
    return Part(name, "ratio", effect, (0.4, 0.6), 95, Region(high=1.0), 12, p, p_against, needed)


class TestAnswer:
    def test_holds_if_every_part_is_shown(self):
        verdict = decide([part(0.05), part(0.01)])
        assert (verdict.answer, verdict.p) == (Answer.HOLDS, 0.05)  # no correction within
        assert verdict.sentence == (
            "holds: bn against nobn, test/loss: ratio 0.5 (95 % interval 0.4 to 0.6, n = 12), required below 1"
        )
        assert verdict.needed is None

    def test_one_part_that_is_not_shown_leaves_it_undecided(self):
        verdict = decide([part(0.001), part(0.06, effect=0.9)])
        assert (verdict.answer, verdict.effect) == (Answer.UNDECIDED, 0.9)
        assert [one.answer for one in verdict.parts] == [Answer.HOLDS, Answer.UNDECIDED]

    def test_does_not_hold_after_holm(self):
        # Holm with two parts: the smaller p is doubled.
        verdict = decide([part(0.001), part(1.0, 0.025, effect=1.5)])
        assert (verdict.answer, verdict.effect, verdict.p_against) == (Answer.FAILS, 1.5, 0.05)
        undecided = decide([part(0.001), part(1.0, 0.03, effect=1.5)])
        assert (undecided.answer, undecided.p_against) == (Answer.UNDECIDED, 0.06)
        assert undecided.parts[1].answer == Answer.FAILS  # its own answer is uncorrected

    def test_holm_has_steps_but_the_smallest_p_decides(self):
        verdict = decide([part(1.0, 0.02), part(1.0, 0.04), part(1.0, 0.04)])
        assert (verdict.answer, verdict.p_against) == (Answer.UNDECIDED, pytest.approx(0.06))


class TestReplicatesNeeded:
    def test_all_open_parts_must_be_shown(self):
        verdict = decide([part(0.01, needed=5), part(0.2, needed=30), part(0.3, needed=40)])
        assert verdict.needed == 40
        assert verdict.sentence.endswith(
            "about 40 replicates would decide with 80 % power, if the estimate is right"
        )

    def test_one_failing_part_decides(self):
        outside = [part(0.9, 0.2, effect=1.2, needed=60), part(0.9, 0.3, effect=1.1, needed=90)]
        assert decide([part(0.3, needed=30), *outside]).needed == 60

    def test_more_than_there_are(self):
        assert decide([part(0.2, needed=8)]).needed == 13

    def test_none_would_decide(self):
        verdict = decide([part(0.2, needed=None), part(0.3, needed=30)])
        assert verdict.needed is None
        assert "more replicates would not decide" in verdict.sentence

    def test_part_without_replicates(self):
        empty = Part("bn, val/loss", "value", math.nan, (math.nan, math.nan), 90, Region(high=1.0), 0, 1.0, 1.0)
        verdict = decide([empty])
        assert verdict.sentence == "undecided: bn, val/loss: no replicate has the values"
