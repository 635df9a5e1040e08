"""The plan of the seeds, printed before a sweep trains: its text, and its numbers for the runs of a folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from normlab.report.plan import PlannedRun, plan_lines, seed_plan
from normlab.report.report_data import write_history
from normlab.results.result import Objective, Result, Status
from normlab.stats.design import GENERALIZATION, Design, Metric, Scope
from normlab.stats.looks import History, comparison_key
from normlab.stats.paired_tests import detectable_shift
from normlab.stats.replicate_plan import ReplicatePlan

OF_PAIRS = "standard deviations of the paired differences in test/loss"


def lines(tuning=(), report=range(8), tuned=("optimizer.lr",), **parts):
    """Format a plan; by default one comparison in which all seeds are reported."""
    metric = Metric("loss", "min", GENERALIZATION)
    design = Design("model", ("bn", "nobn"), "nobn", tuned, (), (metric,), metric)
    defaults = {"within": False, "disjoint": True, "comparisons": 1, "too_few": 0, "look": 1}
    plan = ReplicatePlan(Scope.DRAW, tuple(tuning), tuple(report), **(defaults | {"detectable": 1.44} | parts))
    return plan_lines(plan, design)


def test_tuning_and_reported_seeds_with_power():
    uses = "seeds 0 to 3 tune the learning rate, seeds 4 to 11 are reported"
    assert lines(range(4), range(4, 12)) == [f"{uses}; 80 % power for an effect of 1.4 {OF_PAIRS} (look 1)"]


def test_more_seeds_are_suggested():
    more = "'seed=range(12)' would detect smaller effects"
    assert lines() == [f"seeds 0 to 7 are reported; 80 % power for an effect of 1.4 {OF_PAIRS} (look 1); {more}"]
    nothing = {"detectable": float("inf")}
    assert lines(report=range(4), **nothing) == [
        "seeds 0 to 3 are reported; "
        "no verdict possible on test/loss (look 1); 'seed=range(12)' would allow a verdict"
    ]
    assert lines(range(4), range(4), disjoint=False, **nothing) == [
        "seeds 0 to 3 tune the learning rate and are reported; no verdict possible on test/loss (look 1); "
        "'seed=range(12)' would allow a verdict"
    ]
    assert lines(report=range(4, 8), comparisons=3, look=2, **nothing) == [
        "seeds 4 to 7 are reported; no verdict possible on test/loss (3 comparisons, look 2); "
        "'seed=range(4,16)' would allow a verdict"
    ]
    assert lines(report=range(4), max_replicates=4, **nothing) == [
        "seeds 0 to 3 are reported; no verdict possible on test/loss (look 1); "
        "no number of seeds within max_replicates allows a verdict"
    ]


def test_splits_tune_on_their_own_validation_rows():
    (line,) = lines(range(12), range(12), within=True)
    assert line.startswith(
        "the learning rate is tuned in each of the 12 splits, on its validation rows; all are reported; 80 %"
    )


def test_underpowered_comparisons_are_counted():
    (line,) = lines(report=range(12), comparisons=3, too_few=2)
    assert line.endswith("(3 comparisons, look 1); 2 of them have too few replicates for a verdict")


def test_one_seed():
    assert lines(report=(0,)) == ["1 seed: no verdict possible; 'seed=range(12)' would allow a verdict"]
    assert lines(report=(0,), comparisons=0) == []


def test_one_arm():
    assert lines(range(4), range(4, 12), comparisons=0) == [
        "seeds 0 to 3 tune the learning rate, seeds 4 to 11 are reported"
    ]
    assert lines(report=range(3), comparisons=0) == []


def test_all_tuned_keys_are_named():
    (line,) = lines(range(4), range(4, 12), tuned=("optimizer.lr", "scheduler.gamma"))
    assert line.startswith("seeds 0 to 3 tune the learning rate and gamma, seeds 4 to 11 are reported")


class TestSeedPlan:
    """Plans of runs before training, including the runs that their folder holds."""

    @pytest.fixture
    def plan(self, tmp_path):
        """Return a function that plans a grid of models, seeds and learning rates."""

        def lines(models, seeds, rates=("0.01",), generated=True, classes=False, **config):
            jobs = []
            for model, seed, lr in ((m, s, r) for m in models for s in seeds for r in rates):
                words = [f"model={model}", f"seed={seed}", *([f"optimizer.lr={lr}"] if len(rates) > 1 else [])]
                own = {"seed": seed, "optimizer": {"lr": float(lr)}, "data": {"seed": 42}, "replicate": "data"}
                own |= {"trainer": {"max_epochs": 3}}
                own |= config
                result = Result("", Status.FINISHED, own, {"model": model}, words, Objective("", "", 0.0), data={})
                result.data["generated"] = generated
                folder = tmp_path / "sweep" / f"model={model},optimizer.lr={lr},seed={seed}"
                jobs.append(PlannedRun(own, result, Path(folder), classes))
            return seed_plan(jobs, tmp_path / "sweep")

        return lines

    def test_power_accounts_for_look_and_comparisons(self, plan):
        """p is multiplied by 2 at the first look, and by the number of comparisons of a question."""
        for models, classes, count, note in (
            (("bn", "nobn"), False, 1, "look 1"),
            (("bn", "ln", "nobn"), False, 2, "2 comparisons, look 1"),
            (("bn", "ln", "nobn"), True, 4, "4 comparisons, look 1"),
        ):
            (line,) = plan(models, range(12), classes=classes)
            effect = detectable_shift(12, 0.05 / (2 * count))
            metrics = f"{OF_PAIRS}{' and test/acc' * classes}"
            assert (
                line == f"seeds 0 to 11 are reported; 80 % power for an effect of {effect:.2g} {metrics} ({note})"
            )

    def test_all_pairs_are_compared(self, plan):
        (line,) = plan(("bn", "ln", "nobn"), range(12), pairs=True)
        assert "(3 comparisons, look 1)" in line

    def test_draws_split_the_seeds_and_splits_tune_within(self, plan):
        rates = ("0.01", "0.1")
        (line,) = plan(("bn", "nobn"), range(12), rates)
        assert line.startswith("seeds 0 to 3 tune the learning rate, seeds 4 to 11 are reported; ")
        (line,) = plan(("bn", "nobn"), range(12), rates, generated=False)
        assert line.startswith("the learning rate is tuned in each of the 12 splits, on its validation rows")
        (line,) = plan(("bn", "nobn"), range(12), rates, generated=False, replicate="seed")
        assert line.startswith("seeds 0 to 3 tune the learning rate, seeds 4 to 11 are reported; ")

    def test_added_seeds_are_the_next_look(self, plan, tmp_path):
        (tmp_path / "sweep").mkdir()
        key = comparison_key("model", "bn", "nobn", "")
        write_history(tmp_path / "sweep", History(looks={key: [tuple(range(8))]}))
        (line,) = plan(("bn", "nobn"), range(12))
        effect = detectable_shift(12, 0.05 / 6)
        assert line == f"seeds 0 to 11 are reported; 80 % power for an effect of {effect:.2g} {OF_PAIRS} (look 2)"
        (line,) = plan(("bn", "nobn"), range(8))
        assert "(look 1)" in line

    def test_suggested_seeds_suffice(self, plan):
        """Of 24 declared replicates, 8 reported ones are too few for the boundary of the first look."""
        (line,) = plan(("bn", "nobn"), range(12), ("0.01", "0.1"), max_replicates=24)
        assert line.startswith(
            "seeds 0 to 3 tune the learning rate, seeds 4 to 11 are reported; "
            "no verdict possible on test/loss (look 1); "
        )
        total = int(line.rpartition("range(")[2].partition(")")[0])
        assert 12 < total <= 36
        (enough,) = plan(("bn", "nobn"), range(total), ("0.01", "0.1"), max_replicates=24)
        assert "80 % power" in enough
        (short,) = plan(("bn", "nobn"), range(total - 1), ("0.01", "0.1"), max_replicates=24)
        assert "no verdict" in short

    def test_maximum_too_small_for_a_verdict(self, plan):
        assert plan(("bn", "nobn"), range(3), max_replicates=4) == [
            "seeds 0 to 2 are reported; no verdict possible on test/loss (look 1); "
            "no number of seeds within max_replicates allows a verdict"
        ]

    def test_maximum_of_existing_runs_counts(self, plan, make_run):
        for model in ("bn", "nobn"):
            for seed in range(3):
                make_run(f"model={model} seed={seed}", started="2026-01-01", max_replicates=4)
        assert plan(("bn", "nobn"), range(8), max_replicates=40) == plan(
            ("bn", "nobn"), range(8), max_replicates=4
        )


def test_import_loads_no_slow_library():
    code = "import sys, normlab.report.plan; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "matplotlib", "tensorboard"} & set(loaded.split())
