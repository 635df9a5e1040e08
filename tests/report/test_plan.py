"""What is printed of the seeds before a sweep trains."""

import subprocess
import sys

import pytest

from normlab.analysis.design import Design
from normlab.analysis.seed_plan import SeedPlan
from normlab.report.plan import plan_lines


def said(
    tuning, report, comparisons=1, smallest=None, needed=8, total=12, apart=True, tuned=("optimizer.lr",), at=0
):
    seeds = range(at, at + (tuning + report if apart else report))
    design = Design("model", ("bn", "nobn"), "nobn", tuned, (), "", "min", (), ())
    plan = SeedPlan(tuning, report, apart, comparisons, smallest or report, needed, total)
    return plan_lines(plan, design, seeds)


def test_enough():
    assert said(4, 8) == ["seeds: 4 choose the learning rate, 8 report"]
    assert said(0, 8, total=8) == ["seeds: 8 report"]


def test_too_few():
    assert said(4, 4) == [
        "seeds: 4 choose the learning rate, 4 report; a verdict needs 8 that report: seed=range(12)"
    ]
    assert said(4, 4, apart=False) == [
        "seeds: the same 4 choose the learning rate and report; a verdict needs 8 that report: seed=range(12)"
    ]
    assert said(0, 8, comparisons=7, needed=9, total=9, at=4) == [
        "seeds: 8 report; a verdict in 7 comparisons needs 9 that report: seed=range(4,13)"
    ]
    assert said(0, 8, smallest=3, total=8) == [
        "seeds: 8 report, 3 of them in the smallest comparison; a verdict needs 8 that report: seed=range(8)"
    ]


def test_one_seed():
    assert said(0, 1, total=8) == ["1 seed: no verdict; seed=range(8) gives one"]


def test_one_arm():
    assert said(4, 8, comparisons=0) == ["seeds: 4 choose the learning rate, 8 report"]
    assert said(1, 1, comparisons=0, apart=False) == ["1 seed chooses the learning rate and is reported"]
    assert said(0, 3, comparisons=0) == []


@pytest.mark.parametrize(
    ("tuned", "names"), [(("optimizer.lr", "scheduler.gamma"), "the learning rate and gamma")]
)
def test_all_that_is_tuned_is_named(tuned, names):
    assert said(4, 8, tuned=tuned) == [f"seeds: 4 choose {names}, 8 report"]


def test_importing_it_draws_nothing():
    code = "import sys, normlab.report.plan; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "matplotlib", "tensorboard"} & set(loaded.split())
