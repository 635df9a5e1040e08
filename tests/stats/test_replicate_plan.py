"""The plan of the replicates agrees with the analysis of the finished sweep."""

import math
from itertools import chain, product

import pytest

from normlab.stats.comparison import TOO_FEW
from normlab.stats.design import Metric, design_of
from normlab.stats.looks import History
from normlab.stats.paired_tests import detectable_shift
from normlab.stats.replicate_plan import SUGGESTED, plan_replicates, suggested_seeds

KEYS = ["model", "optimizer.lr", "data.batch_size", "data.seed"]
RATES = ("0.1", "0.2")


@pytest.fixture
def plan(frame):
    """Return a function that plans the replicates of some arms."""

    def planned(*arms, history=None, **asked):
        runs = frame(list(chain(*arms)))
        keys = [key for key in KEYS if runs[key].nunique() > 1]
        outcome = Metric("outcome", "min")
        return plan_replicates(runs, design_of(runs, keys, [outcome], outcome, **asked), history or History())

    return planned


@pytest.fixture
def grid(arm):
    """Return a function that builds a grid of models (each better than the next), rates and batch sizes."""

    def made(models, rates=("0.1",), sizes=("32",), seeds=8, **columns):
        values = {model: [1 + place + 0.01 * seed for seed in range(seeds)] for place, model in enumerate(models)}
        grid = product(models, rates, sizes)
        return [arm(model, values[model], lr=lr, batch_size=size, **columns) for model, lr, size in grid]

    return made


class TestUse:
    @pytest.mark.parametrize("scope", ["seed", "draw"])
    def test_third_tunes(self, plan, grid, scope):
        found = plan(*grid(["bn", "nobn"], RATES, seeds=12, scope=scope))
        assert (found.tuning, found.report) == ((0, 1, 2, 3), tuple(range(4, 12)))
        assert (found.scope, found.within, found.disjoint) == (scope, False, True)
        assert (found.comparisons, found.too_few, found.look) == (1, 0, 1)

    def test_splits_tune_within(self, plan, grid):
        found = plan(*grid(["bn", "nobn"], RATES, seeds=12, scope="split"))
        assert found.tuning == found.report == tuple(range(12))
        assert (found.within, found.disjoint, found.detectable) == (True, True, detectable_shift(12, 0.05 / 2))

    def test_all_report_without_choice(self, plan, grid):
        found = plan(*grid(["bn", "nobn"]))
        assert (found.tuning, found.report) == ((), tuple(range(8)))

    def test_seeds_that_tune_and_report_detect_nothing(self, plan, grid):
        found = plan(*grid(["bn", "nobn"], RATES, seeds=4))
        assert (found.disjoint, found.detectable) == (False, math.inf)

    def test_comparisons_with_too_few_replicates_are_counted(self, plan, arm):
        found = plan(arm("bn", [1.0] * 12), arm("nobn", [1.0] * 12), arm("ln", [1.0] * 5))
        assert (len(found.report), found.comparisons, found.too_few) == (12, 2, 1)
        assert found.detectable == detectable_shift(12, 0.05 / 2 / 2), "in the comparison with the most replicates"

    def test_arms_without_shared_seed_are_not_counted(self, plan, arm):
        found = plan(arm("bn", [1.0] * 8), arm("nobn", [1.0] * 8, seeds=range(8, 16)))
        assert found.comparisons == 0

    def test_pooled_splits_are_one_comparison(self, plan, arm):
        found = plan(*(arm(name, [1.0] * 8, data_seed=seed) for name in ("bn", "nobn") for seed in "123"))
        assert (found.comparisons, found.detectable) == (1, detectable_shift(8, 0.05 / 2))

    def test_all_pairs(self, plan, grid):
        assert plan(*grid(["bn", "gn", "ln", "nobn"]), pairs=True).comparisons == 6

    def test_single_arm_has_no_comparison(self, plan, grid):
        found = plan(*grid(["bn"], RATES, seeds=12))
        assert (len(found.tuning), len(found.report), found.comparisons, found.detectable) == (4, 8, 0, math.inf)

    def test_none_without_seeds(self, plan, arm):
        assert plan(arm("bn", [1.0], seeds=[None])) is None


class TestDetectable:
    def test_first_look_with_all_comparisons(self, plan, grid):
        assert plan(*grid(["bn", "nobn"], seeds=12)).detectable == detectable_shift(12, 0.05 / 2)
        assert plan(*grid(["bn", "ln", "nobn"], seeds=12)).detectable == detectable_shift(12, 0.05 / 2 / 2)

    def test_later_look(self, plan, grid, sweep):
        history = History()
        sweep(*grid(["bn", "nobn"], seeds=12), history=history)
        again, more = (plan(*grid(["bn", "nobn"], seeds=seeds), history=history) for seeds in (12, 16))
        assert (again.look, again.detectable) == (1, detectable_shift(12, 0.05 / 2))
        assert (more.look, more.detectable) == (2, detectable_shift(16, 0.05 / 6))

    def test_declared_maximum(self, plan, grid):
        found = plan(*grid(["bn", "nobn"], seeds=12), history=History(max_replicates=12))
        assert found.detectable == pytest.approx(detectable_shift(12, 0.05))
        assert plan(*grid(["bn", "nobn"], seeds=13), history=History(max_replicates=12)).detectable == math.inf

    def test_seeds_of_earlier_verdict_tune(self, plan, grid, sweep):
        history = History()
        sweep(*grid(["bn", "nobn"], RATES, seeds=12), history=history)
        assert plan(*grid(["bn", "nobn"], RATES, seeds=24), history=history).tuning == (0, 1, 2, 3)


class TestSuggested:
    def test_twelve(self, plan, grid):
        assert suggested_seeds(plan(*grid(["bn", "nobn"], seeds=2))) == SUGGESTED == 12
        assert suggested_seeds(plan(*grid(["bn", "nobn"], RATES, seeds=5))) == 12

    @pytest.mark.parametrize(
        ("models", "rates", "sizes", "scope"),
        [
            (["bn", "nobn"], ["0.1"], ["32"], "seed"),
            (["bn", "nobn"], RATES, ["32"], "draw"),
            (["bn", "nobn"], RATES, ["32"], "split"),
            (["bn", "nobn"], RATES, [str(size) for size in range(7)], "seed"),
            (["bn", "nobn", "ln"], RATES, [str(size) for size in range(6)], "seed"),
            (["bn", "nobn", "ln"], RATES, [str(size) for size in range(6)], "split"),
        ],
    )
    def test_suggested_seeds_allow_each_verdict(self, plan, grid, sweep, models, rates, sizes, scope):
        total = suggested_seeds(plan(*grid(models, rates, sizes, 2, scope=scope)))
        for seeds, enough in ((total, True), *(((total - 1, False),) if total > SUGGESTED else ())):
            arms = grid(models, rates, sizes, seeds, scope=scope)
            found = sweep(*arms, history=History())
            assert (found.comparisons["verdict"] == TOO_FEW).any() != enough
            assert math.isinf(plan(*arms).detectable) != enough

    @pytest.mark.parametrize("history", [History(max_replicates=most) for most in (40, 20, 8)])
    def test_suggestion_with_maximum_allows_first_look(self, plan, grid, history):
        total = suggested_seeds(plan(*grid(["bn", "nobn"], seeds=8), history=history))
        found = plan(*grid(["bn", "nobn"], seeds=total), history=history)
        assert math.isfinite(found.detectable)
        assert total <= history.max_replicates

    def test_later_look(self, plan, grid, sweep):
        history = History()
        for seeds in range(8, 12):
            sweep(*grid(["bn", "nobn"], seeds=seeds), history=history)
        found = plan(*grid(["bn", "nobn"], seeds=12), history=history)
        assert found.look == 5
        assert math.isfinite(plan(*grid(["bn", "nobn"], seeds=suggested_seeds(found)), history=history).detectable)
