import math

import numpy as np
import pytest

from normlab.analysis.comparing import Pair, detectable_difference, p_and_side, pair, spread, timed, verdict
from normlab.analysis.planning import detectable
from normlab.analysis.resampling import Draws

INF, NAN = math.inf, math.nan


def array(*values):
    return np.array(values, dtype=float)


def draws():
    return Draws(np.random.default_rng(0), 100)


class TestPair:
    def test_over_the_seeds_that_both_have(self):
        found = pair(array(1, NAN, 3, 4), array(5, 6, NAN, 8))
        assert (found.arm.tolist(), found.baseline.tolist(), found.paired) == ([1, 4], [5, 8], True)
        assert found.seeds == 2

    def test_unpaired_where_that_is_too_few_and_each_has_enough(self):
        arm, baseline = np.full(15, NAN), np.full(15, NAN)
        arm[:8], baseline[7:] = 1.0, 2.0
        found = pair(arm, baseline)
        assert (len(found.arm), len(found.baseline), found.paired) == (8, 8, False)
        arm[8] = 1.0
        assert not pair(arm, baseline).paired, "two of them are shared"
        assert pair(arm, np.where(np.arange(15) < 8, 1.0, NAN)).seeds == 8

    def test_unpaired_where_nothing_is_shared(self):
        found = pair(array(1, NAN), array(NAN, 2))
        assert (found.paired, found.seeds) == (False, 1)
        assert pair(array(NAN), array(1)).seeds == 0


class TestPAndSide:
    def test_paired(self):
        p, side = p_and_side(Pair(np.arange(8.0), np.arange(8.0) + 1, paired=True), draws())
        assert (p, side) == (2 / 2**8, -1.0)

    def test_unpaired(self):
        p, side = p_and_side(Pair(np.arange(10.0, 18.0), np.arange(8.0), paired=False), draws())
        assert (p, side) == (pytest.approx(2 / math.comb(16, 8)), 1.0)

    def test_where_all_diverged_nothing_differs(self):
        for paired in (True, False):
            assert p_and_side(Pair(np.full(8, INF), np.full(8, INF), paired), draws()) == (1.0, 0.0)


class TestVerdict:
    ROW = {"seeds": 8, "p_holm": 0.01, "side": -1.0, "difference": -2.0, "improvement": 0.9}  # noqa: RUF012

    def test_by_the_test_alone(self):
        assert verdict(self.ROW, True, 1.0) == "better"
        assert verdict({**self.ROW, "side": 1.0, "difference": 2.0}, True, 1.0) == "worse"
        assert verdict({**self.ROW, "p_holm": 0.051}, True, 1.0) == "no difference shown"
        assert verdict({**self.ROW, "p_holm": 0.05}, True, 1.0) == "better"

    def test_where_large_is_good(self):
        assert verdict({**self.ROW, "difference": 2.0}, True, -1.0) == "better"

    def test_needs_eight_seeds_that_did_not_tune(self):
        assert verdict({**self.ROW, "seeds": 7}, True, 1.0) == "too few seeds for a verdict"
        assert verdict(self.ROW, False, 1.0) == "too few seeds for a verdict"

    def test_neither_is_better_where_mean_and_middle_half_disagree(self):
        assert verdict({**self.ROW, "difference": 0.1}, True, 1.0) == "different, neither better"
        assert verdict({**self.ROW, "difference": 0.0}, True, 1.0) == "different, neither better"

    def test_where_too_many_diverged_for_a_mean_the_pairs_tell(self):
        assert verdict({**self.ROW, "difference": NAN}, True, 1.0) == "better"
        assert (
            verdict({**self.ROW, "difference": NAN, "improvement": 0.4}, True, 1.0) == "different, neither better"
        )


def test_the_spread_of_paired_differences():
    assert spread(Pair(array(1, 2, 3), array(0, 0, 0), paired=True)) == 1.0
    assert spread(Pair(array(1, 2, INF), array(0, 0, 0), paired=True)) == pytest.approx(math.sqrt(1 / 3))
    assert math.isnan(spread(Pair(array(1, 2), array(0, 0), paired=False)))
    assert math.isnan(spread(Pair(array(1), array(0), paired=True)))


def test_the_difference_that_would_be_declared():
    assert detectable_difference({"seeds": 8, "spread": 2.0}, 1) == 2 * detectable(8)
    assert detectable_difference({"seeds": 8, "spread": 2.0}, 7) == INF
    assert math.isnan(detectable_difference({"seeds": 8, "spread": NAN}, 1))


def test_times_and_the_shares_that_reach_the_target():
    steps = Pair(array(10, 20, 30, INF), array(40, 40, 40, 40), paired=True)
    seconds = Pair(array(NAN), array(NAN), paired=True)
    found = timed(steps, Pair(seconds.arm[:0], seconds.baseline[:0], True), draws())
    assert found["steps_ratio"] == 25 / 40
    assert math.isnan(found["seconds_ratio"])
    assert (found["reached"], found["baseline_reached"]) == (0.75, 1.0)
    assert 0 < found["reached_low"] < 0.75 < found["reached_high"] < 1
