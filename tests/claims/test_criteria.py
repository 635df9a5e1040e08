"""Criteria on sweeps with given values, by hand."""

import math

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from normlab.claims import (
    AllOf,
    Answer,
    Better,
    Correlation,
    Difference,
    Equivalent,
    Interaction,
    NotWorse,
    Ratio,
    Share,
    Slope,
    Within,
)
from normlab.claims.quantities import slopes
from normlab.errors import ConfigError

INF = math.inf
PAIR = {"arm": "bn", "baseline": "nobn", "metric": "test/loss"}
ONE = [1.0] * 6
HALVES = [0.5, 0.51, 0.52, 0.53, 0.54, 0.55]


@pytest.fixture
def losses(fake):
    """Return a function that makes a sweep of bn against nobn from their losses."""

    def sweep(bn, nobn=None, **how):
        return fake({("test/loss", "bn"): bn, ("test/loss", "nobn"): nobn or [1.0] * len(bn)}, **how)

    return sweep


class TestBetter:
    def test_by_hand(self, losses):
        verdict = Better(**PAIR)(losses(HALVES))
        assert (verdict.answer, verdict.n, verdict.p) == (Answer.HOLDS, 6, 2 / 64)
        assert verdict.interval.low == pytest.approx(0.5)  # the smallest and the largest ratio at n = 6
        assert verdict.interval.high == pytest.approx(0.55)
        assert verdict.sentence.endswith("n = 6), required below 1")

    def test_worse_arm_does_not_hold(self, losses):
        verdict = Better(**PAIR)(losses([2.0, 2.1, 2.2, 2.3, 2.4, 2.5]))
        assert (verdict.answer, verdict.p_against) == (Answer.FAILS, 2 / 64)

    def test_five_replicates_are_too_few(self, losses):
        verdict = Better(**PAIR)(losses(HALVES[:5]))
        assert (verdict.answer, verdict.needed) == (Answer.UNDECIDED, 6)

    def test_diverged_baseline(self, losses):
        assert Better(**PAIR)(losses(HALVES, [INF] * 2 + [1.0] * 4)).answer == Answer.HOLDS

    def test_accuracy(self, fake):
        sweep = fake({("test/acc", "bn"): [0.9, 0.91, 0.92, 0.93, 0.94, 0.95], ("test/acc", "nobn"): [0.8] * 6})
        better = Better(arm="bn", baseline="nobn", metric="test/acc", margin=0.05)
        assert better(sweep).answer == Answer.HOLDS
        assert better(sweep).parts[0].unit == "points"
        assert better(sweep).parts[0].region.low == 5.0
        too_much = Better(arm="bn", baseline="nobn", metric="test/acc", margin=0.2)
        assert too_much(sweep).answer == Answer.FAILS

    def test_margin_makes_equality_a_failure(self, losses):
        equal = losses([1.01, 0.99, 1.02, 0.98, 1.03, 0.97, 1.0, 1.01])
        assert Better(**PAIR)(equal).answer == Answer.UNDECIDED
        assert Better(**PAIR, margin=0.2)(equal).answer == Answer.FAILS

    def test_replicates_are_paired(self, fake):
        """Replicate 2 of nobn is missing, and its place is not taken by replicate 3."""
        bn = {0: 0.5, 1: 5.0, 3: 50.0}
        nobn = {3: 100.0, 2: 7.0, 1: 10.0, 0: 1.0}
        verdict = Better(**PAIR)(fake({("test/loss", "bn"): bn, ("test/loss", "nobn"): nobn}))
        assert (verdict.n, verdict.effect) == (3, pytest.approx(0.5))

    def test_near_best_setting_of_the_baseline_prevents_it(self, losses):
        rivals = {("test/loss", "nobn"): [[0.4] * 6]}
        assert Better(**PAIR)(losses(HALVES, near_best=rivals)).answer == Answer.UNDECIDED
        # Against a near-best setting of its own it is not the worse arm that would be tested.
        rivals = {("test/loss", "bn"): [[2.0, 2.1, 2.2, 2.3, 2.4, 2.5]]}
        assert Better(**PAIR)(losses(HALVES, near_best=rivals)).answer == Answer.HOLDS

    def test_near_best_setting_of_the_arm_prevents_failure(self, losses):
        rivals = {("test/loss", "bn"): [HALVES]}
        verdict = Better(**PAIR)(losses([2.0, 2.1, 2.2, 2.3, 2.4, 2.5], near_best=rivals))
        assert verdict.answer == Answer.UNDECIDED

    def test_overlapping_splits_need_more_than_ranks(self, losses):
        close = [0.9, 1.0, 0.7, 0.99, 0.95, 0.6, 0.97, 0.98]
        assert Better(**PAIR)(losses(close)).answer == Answer.HOLDS
        verdict = Better(**PAIR)(losses(close, rows=(60, 20)))
        assert (verdict.answer, verdict.needed) == (Answer.UNDECIDED, None)


class TestMargins:
    NEAR = (1.01, 0.99, 1.02, 0.98, 1.03, 0.97)

    def test_equivalent(self, losses):
        verdict = Equivalent(**PAIR, margin=0.05)(losses(list(self.NEAR)))
        assert (verdict.answer, verdict.p) == (Answer.HOLDS, 1 / 64)  # two one-sided tests, not doubled
        assert verdict.parts[0].region.low == pytest.approx(1 / 1.05)
        assert verdict.parts[0].level == 90

    def test_equivalent_not(self, losses):
        assert Equivalent(**PAIR, margin=0.05)(losses(HALVES)).answer == Answer.FAILS

    def test_not_worse(self, losses):
        not_worse = NotWorse(**PAIR, margin=0.05)
        assert not_worse(losses(list(self.NEAR[:5]))).p == 1 / 32
        assert not_worse(losses(HALVES)).answer == Answer.HOLDS
        assert not_worse(losses([1.2, 1.3, 1.4, 1.5, 1.6])).answer == Answer.FAILS

    def test_not_worse_of_an_accuracy(self, fake):
        lower = fake({("test/acc", "bn"): [0.88, 0.881, 0.882, 0.883, 0.884], ("test/acc", "nobn"): [0.9] * 5})
        names = {"arm": "bn", "baseline": "nobn", "metric": "test/acc"}
        assert NotWorse(**names, margin=0.03)(lower).answer == Answer.HOLDS
        assert NotWorse(**names, margin=0.01)(lower).answer == Answer.FAILS

    def test_within(self, fake):
        sweep = fake({("probe/edge", "bn"): [0.96, 0.97, 1.01, 1.02, 1.03]})
        verdict = Within(arm="bn", metric="probe/edge", value=1.0, margin=0.1)(sweep)
        assert (verdict.answer, verdict.p, verdict.effect) == (Answer.HOLDS, 1 / 32, 0.995)
        # Noise that surrounds the value is no support: the interval is wider than the margin.
        noisy = fake({("probe/edge", "bn"): [0.1, 0.5, 1.0, 1.6, 2.0]})
        assert Within(arm="bn", metric="probe/edge", value=1.0, margin=0.1)(noisy).answer == Answer.UNDECIDED


class TestBounds:
    def test_ratio(self, losses):
        sweep = losses([2.1, 2.2, 2.3, 2.4, 2.5, 2.6])
        assert Ratio(**PAIR, above=2)(sweep).answer == Answer.HOLDS
        assert Ratio(**PAIR, above=3)(sweep).answer == Answer.FAILS
        verdict = Ratio(**PAIR, above=2, below=3)(sweep)
        assert verdict.answer == Answer.HOLDS
        assert verdict.parts[0].region == pytest.approx((2, 3))

    def test_ratio_of_negative_values(self, losses):
        with pytest.raises(
            ConfigError, match="metric must be one with positive values for a ratio, got test/loss of -1"
        ):
            Ratio(**PAIR, above=2)(losses([2.0, -1.0]))

    def test_difference_in_points(self, fake):
        sweep = fake({("drop/acc", "bn"): [0.16, 0.17, 0.18, 0.19, 0.2, 0.21], ("drop/acc", "nobn"): [0.1] * 6})
        verdict = Difference(arm="bn", baseline="nobn", metric="drop/acc", above=5)(sweep)
        assert (verdict.answer, verdict.interval.low) == (Answer.HOLDS, pytest.approx(6))


BATCHES = {
    ("test/loss", "bn", "batch=4"): [3.0, 3.3, 3.6, 3.9, 4.2, 4.5],
    ("test/loss", "gn", "batch=4"): [1.0] * 6,
    ("test/loss", "bn", "batch=60"): ONE,
    ("test/loss", "gn", "batch=60"): [2.0] * 6,
}
CHANGE = {"arm": "bn", "baseline": "gn", "metric": "test/loss", "panel": {"batch": 4}, "other": {"batch": 60}}


class TestInteraction:
    def test_ratio_of_ratios(self, fake):
        verdict = Interaction(**CHANGE, above=0)(fake(BATCHES))
        assert (verdict.answer, verdict.p) == (Answer.HOLDS, 2 / 64)
        assert verdict.interval[1:] == pytest.approx((6.0, 9.0))  # 3 : 1 against 1 : 2
        assert Interaction(**CHANGE, below=0)(fake(BATCHES)).answer == Answer.FAILS
        assert Interaction(**CHANGE, above=9)(fake(BATCHES)).answer == Answer.FAILS  # above a ratio of 10

    def test_no_change_within_a_margin(self, fake):
        same = {key: [2.0, 2.01, 2.02, 2.03, 2.0, 2.01] for key in BATCHES}
        verdict = Interaction(**CHANGE, margin=0.05)(fake(same))
        assert (verdict.answer, verdict.parts[0].level) == (Answer.HOLDS, 90)


class TestSlope:
    def test_log_quantity_of_layers(self, fake):
        """Gradients that grow by 1.2 a layer have the slope log 1.2 in every replicate."""
        growth = {(f"norm@{x}", "bn"): [base * 1.2**x for base in (1, 2, 3, 4, 5)] for x in (1, 2, 4)}
        slope = Slope(arm="bn", metric="norm@{x}", at=[1, 2, 4], value=math.log(1.21), margin=0.02)
        verdict = slope(fake(growth))
        assert (verdict.answer, verdict.effect) == (Answer.HOLDS, pytest.approx(math.log(1.2)))
        far = Slope(arm="bn", metric="norm@{x}", at=[1, 2, 4], value=0.0, margin=0.02)
        assert far(fake(growth)).answer == Answer.UNDECIDED  # 2 · 2⁻⁵ > 5 %

    def test_slope_on_log_depth_equals_polyfit(self, fake):
        depths, generator = [4, 8, 16, 32], np.random.default_rng(0)
        y = np.stack([generator.uniform(1, 2, 7) / math.sqrt(depth) for depth in depths])
        expected = np.polyfit(np.log(depths), np.log(y), 1)[0]
        assert slopes(np.array(depths), y, math.inf, log_x=True, log_y=True) == pytest.approx(expected)
        sweep = fake(
            {("ratio", "bn", f"net.depth={depth}"): list(row) for depth, row in zip(depths, y, strict=True)}
        )
        verdict = Slope(arm="bn", metric="ratio", at=depths, key="net.depth", log_x=True, below=0)(sweep)
        assert verdict.answer == Answer.HOLDS
        assert min(expected) <= verdict.effect <= max(expected)

    def test_infinite_value_is_outside(self, fake):
        sweep = fake({("x1", "bn"): [1.0] * 6, ("x2", "bn"): [math.inf] * 6})
        for bound in ({"above": 1}, {"below": 1}):
            slope = Slope(arm="bn", metric="x{x}", at=[1, 2], **bound)
            assert slope(sweep).answer == Answer.FAILS


class TestShare:
    def test_by_hand(self, losses):
        # Lower in 9 of 10; one tie does not count: p = 2 · (10 + 1) / 2¹⁰.
        sweep = losses([0.5] * 9 + [2.0, 1.0])
        verdict = Share(**PAIR, above=0.5)(sweep)
        assert (verdict.n, verdict.effect, verdict.p) == (10, 0.9, pytest.approx(22 / 1024))
        assert Share(**PAIR, above=0.5, higher=True)(sweep).answer == Answer.FAILS

    def test_overlapping_splits_are_refused(self, losses):
        with pytest.raises(ConfigError, match="overlapping test splits"):
            Share(**PAIR, above=0.5)(losses(HALVES, rows=(60, 20)))


def test_correlation(fake):
    x = np.arange(20.0)
    sweep = fake({("probe/a", "bn"): x, ("val/loss", "bn"): x**3, ("val/acc", "bn"): -x})
    names = {"arm": "bn", "metric": "probe/a"}
    assert Correlation(**names, other="val/loss", above=0.5)(sweep).answer == Answer.HOLDS
    assert Correlation(**names, other="val/acc", above=0)(sweep).answer == Answer.FAILS


def test_all_parts_must_hold(losses):
    """Noisy batch norm: better than none, but not equivalent to batch norm."""
    parts = [Better(**PAIR), Equivalent(**PAIR, margin=0.1)]
    verdict = AllOf(criteria=parts)(losses([0.5, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56]))
    assert verdict.answer == Answer.FAILS
    assert [part.answer for part in verdict.parts] == [Answer.HOLDS, Answer.FAILS]


def test_hydra_makes_criteria():
    config = {
        "_target_": "normlab.claims.AllOf",
        "criteria": [{"_target_": "normlab.claims.Better", **PAIR, "panel": {"data.batch_size": 4}}],
    }
    with pytest.raises(
        InstantiationException, match="_convert_: all"
    ):  # Hydra would turn dataclasses into mappings
        instantiate(config)
    (better,) = instantiate(config, _convert_="all").criteria
    assert isinstance(better, Better)
    assert better.name == "bn against nobn, test/loss, data.batch_size=4"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Better(**PAIR, margin=-0.1), "margin must be a number ≥ 0, got -0.1"),
        (lambda: Equivalent(**PAIR, margin=0.0), "margin must be a number > 0, got 0.0"),
        (lambda: Within(arm="bn", metric="x", value=1, margin=INF), "margin must be a number > 0, got inf"),
        (lambda: Ratio(**PAIR), "above must be a number, or below one, got None"),
        (lambda: Ratio(**PAIR, above=3, below=2), "above must be less than below=2, got 3"),
        (lambda: Ratio(**PAIR, below=0), "below must be a ratio > 0, got 0"),
        (lambda: Share(**PAIR, above=1.5), "above, below must be shares between 0 and 1, got [1.5]"),
        (lambda: Slope(arm="bn", metric="x{x}", at=[1], above=0), "at must be at least two values of x, got [1]"),
        (lambda: Slope(arm="bn", metric="x", at=[1, 2], above=0), "key must be a key, or {x} part of the metric"),
        (lambda: Interaction(**PAIR, other={}, above=0, margin=1), "margin must be null with bounds, got 1"),
        (lambda: Slope(arm="bn", metric="{x}", at=[1, 2], above=0, value=1), "value must be given with a margin"),
        (lambda: AllOf(criteria=[]), "criteria must be at least one criterion, got []"),
    ],
)
def test_parameters_are_checked(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value).startswith(message)
