"""The plan of the seeds agrees with what the analysis of the finished sweep does."""

from itertools import chain, product

import pytest

from normlab.analysis.comparing import TOO_FEW
from normlab.analysis.design import design_of, split
from normlab.analysis.seed_plan import plan_seeds, total_for, unpaired_seeds_for

KEYS = ["model", "optimizer.lr", "data.batch_size"]


@pytest.fixture
def plan(frame):
    """Return what plans the seeds of some arms."""

    def planned(*arms):
        runs = frame(list(chain(*arms)))
        keys = [key for key in KEYS if runs[key].nunique() > 1]
        return plan_seeds(runs, design_of(runs, keys, "val/loss", "min"))

    return planned


@pytest.fixture
def grid(arm):
    """Return what makes a grid of models, learning rates and batch sizes, in which bn is better by one."""

    def made(models, rates=("0.1",), sizes=("32",), seeds=8):
        values = {model: [float(model != "bn") + 0.01 * seed for seed in range(seeds)] for model in models}
        cells = product(models, rates, sizes)
        return [arm(model, values[model], lr=lr, batch_size=size) for model, lr, size in cells]

    return made


def test_a_third_of_eight_is_too_few(plan, grid):
    found = plan(*grid(["bn", "nobn"], ["0.1", "0.2", "0.3"]))
    assert (found.tuning, found.report, found.needed, found.total) == (4, 4, 8, 12)
    assert not found.is_enough


def test_without_a_choice_all_report(plan, grid):
    found = plan(*grid(["bn", "nobn"]))
    assert (found.tuning, found.report, found.total, found.is_enough) == (0, 8, 8, True)


def test_seeds_that_choose_and_report_are_not_enough(plan, grid):
    assert not plan(*grid(["bn", "nobn"], ["0.1", "0.2"], seeds=4)).is_enough


def test_the_smallest_comparison_counts(plan, arm):
    found = plan(arm("bn", [1.0] * 12), arm("nobn", [1.0] * 12), arm("ln", [1.0] * 5))
    assert (found.report, found.smallest, found.is_enough) == (12, 5, False)


def test_arms_that_share_no_seed_need_as_many_each(plan, arm):
    found = plan(arm("bn", [1.0] * 8), arm("nobn", [1.0] * 8, seeds=range(8, 16)))
    assert (found.smallest, found.needed, found.is_enough) == (8, 8, True)
    assert unpaired_seeds_for(400) == 9, "2 / C(16, 8) is 1/6435, and 2 / C(18, 9) 1/24310"


def test_one_arm_is_compared_with_nothing(plan, grid):
    found = plan(*grid(["bn"], ["0.1", "0.2"], seeds=12))
    assert (found.tuning, found.report, found.comparisons, found.needed) == (4, 8, 0, 0)


@pytest.mark.parametrize("report", range(1, 60))
def test_so_many_seeds_are_enough_and_fewer_are_not(report):
    total = total_for(report)
    assert split(list(range(total)))[0] != split(list(range(total)))[1]
    assert len(split(list(range(total)))[1]) >= report
    tuning, rest = split(list(range(total - 1)))
    assert tuning == rest or len(rest) < report


@pytest.mark.parametrize(
    ("models", "rates", "sizes"),
    [
        (["bn", "nobn"], ["0.1"], ["32"]),
        (["bn", "nobn"], ["0.1", "0.2"], ["32"]),
        (["bn", "nobn"], ["0.1"], [str(size) for size in range(7)]),
        (["bn", "nobn", "ln"], ["0.1", "0.2"], ["1", "2", "3", "4"]),
    ],
)
def test_the_seeds_that_are_asked_for_come_to_a_verdict_and_one_less_does_not(
    plan, grid, sweep, models, rates, sizes
):
    total = plan(*grid(models, rates, sizes)).total
    for seeds, enough in ((total, True), (total - 1, False)):
        arms = grid(models, rates, sizes, seeds)
        assert plan(*arms).is_enough == enough
        found = sweep(*arms, resamples=0)
        none = "nothing can be declared" in " ".join(found.warnings)
        assert ((found.comparisons["verdict"] == TOO_FEW).any() or none) != enough
