"""The sweeper: grids, the seed plan, and options of the verdict."""

import re
from pathlib import Path

import pandas as pd
import pytest

EXPERIMENT = """# @package _global_
trainer: {max_epochs: 1}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      model: bn,nobn
    grids:
      - {net.hidden: "[8]", optimizer.lr: "0.1,0.01"}
      - {net.hidden: "[4,4]", optimizer.lr: 0.5}
"""


@pytest.fixture
def sweep(run_train, tmp_path):
    """Return a function that runs a user's experiment and returns the trained configurations, sorted."""
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(EXPERIMENT)

    def swept(*arguments: str) -> list[tuple]:
        mine = f"hydra.searchpath=[file://{folder.parent}]"
        outcome = run_train("experiment=mine", mine, "hydra.sweep.dir=sweep", "logger=csv", *arguments)
        assert outcome.code == 0, outcome.err
        runs = pd.read_csv("sweep/summary.csv")
        keys = [key for key in ("model", "net.hidden", "optimizer.lr", "seed") if key in runs]
        return sorted(tuple(row) for row in runs[keys].astype(str).to_numpy().tolist())

    return swept


def test_grids_are_joined_and_combined_with_params(sweep):
    hidden = [("[4, 4]", "0.5"), ("[8]", "0.01"), ("[8]", "0.1")]
    assert sweep() == sorted((model, *values, "0") for model in ("bn", "nobn") for values in hidden)
    assert (Path("sweep") / "model=bn,net.hidden=[8],optimizer.lr=0.1").is_dir()


def test_override_applies_to_every_grid(sweep):
    assert sweep("optimizer.lr=0.2", "seed=0,1", "model=bn") == [
        ("[4, 4]", "0"),
        ("[4, 4]", "1"),
        ("[8]", "0"),
        ("[8]", "1"),
    ]
    assert len(list(Path("sweep").glob("*/result.json"))) == 4


def test_invalid_grid_value_raises(run_train, sweep, tmp_path):
    path = tmp_path / "conf" / "experiment" / "mine.yaml"
    path.write_text(EXPERIMENT.replace("optimizer.lr: 0.5", "optimizer.lr: -1"))
    outcome = run_train("experiment=mine", f"hydra.searchpath=[file://{path.parents[1]}]")
    assert outcome.code == 1
    assert "optimizer.lr must be a finite number > 0, got -1" in outcome.err
    assert not Path("outputs").exists()


GRID = ("-m", "model=bn,nobn", "trainer.max_epochs=1", "logger=csv", "hydra.sweep.dir=sweep")


def seed_plan(outcome) -> str:
    """Return the seed plan, the log line before the number of runs."""
    lines = (outcome.out + outcome.err).splitlines()
    place = next(
        k for k, line in enumerate(lines) if line.startswith(("seeds ", "1 seed", "the learning rate is tuned"))
    )
    assert "population" in lines[place + 1] or "one by one" in lines[place + 1]
    return lines[place]


def test_seed_plan_is_logged_before_training(run_train):
    outcome = run_train(*GRID, "optimizer.lr=0.1,0.01", "seed=range(5)")
    assert seed_plan(outcome) == (
        "seeds 0 to 3 tune the learning rate, seed 4 is reported; "
        "no verdict possible on test/loss (look 1); 'seed=range(12)' "
        "would allow a verdict"
    )
    assert "too few replicates to compare bn with nobn: 1 of the 7 replicates needed" in " ".join(
        outcome.out.split()
    )


def test_one_seed_gives_no_verdict(run_train):
    assert seed_plan(run_train(*GRID)) == "1 seed: no verdict possible; 'seed=range(12)' would allow a verdict"


def test_seed_plan_of_table_splits(run_train):
    outcome = run_train(*GRID, "data=wine", "optimizer.lr=0.1,0.01", "seed=range(4)")
    uses = "the learning rate is tuned in each of the 4 splits, on its validation rows; all are reported"
    assert (
        seed_plan(outcome) == f"{uses}; no verdict possible on test/loss and test/acc (2 comparisons, look 1); "
        "'seed=range(12)' would allow a verdict"
    )


def test_runs_that_are_there_already_count_with_the_jobs(run_train):
    assert seed_plan(run_train(*GRID, "seed=range(4)")) == (
        "seeds 0 to 3 are reported; "
        "no verdict possible on test/loss (look 1); 'seed=range(12)' would allow a verdict"
    )
    assert seed_plan(run_train(*GRID, "seed=range(4,8)")) == (
        "seeds 0 to 7 are reported; 80 % power for an effect of 1.4 standard deviations of the paired "
        "differences in test/loss (look 1); 'seed=range(12)' would detect smaller effects"
    )


def test_run_on_other_data_is_announced_and_changes_no_verdict(run_train):
    def comparisons(outcome) -> list[str]:
        return re.findall(r"loss ratio [^()]+ \(look 1\)", " ".join(outcome.out.split()))

    two = [word.replace("bn,nobn", "bn,ln") for word in GRID]
    before = run_train(*two, "seed=range(8)")
    after = run_train(*two[:1], "model=nobn", *two[2:], "data=wine")
    assert len(comparisons(before)) == 2
    assert comparisons(after) == comparisons(before)
    warning = "warning: the folder holds 16 runs with data=fitness: these and the new runs are not compared"
    lines = (after.out + after.err).splitlines()
    assert [line.startswith(warning) for line in lines[:1]] == [True]
    assert "nobn is the only arm at data=wine: there is nothing to compare" in after.out


def test_added_seeds_count_as_second_look(run_train):
    run_train(*GRID, "seed=range(8)")
    outcome = run_train(*GRID, "seed=range(9)")
    assert seed_plan(outcome).startswith(
        "seeds 0 to 8 are reported; 80 % power for an effect of 1.6 standard deviations"
    )
    assert "(look 2); 'seed=range(12)' would detect smaller effects" in seed_plan(outcome)
    assert "(look 2), over 9 draws of the data" in " ".join(outcome.out.split())


def test_unknown_baseline_raises_before_training(run_train):
    outcome = run_train(*GRID, "baseline=ln")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.strip() == "error: baseline must be a setting of model (bn, nobn), got 'ln'"
    outcome = run_train("-m", "seed=0,1", "baseline=bn", "hydra.sweep.dir=sweep")
    assert "baseline must be empty if nothing is compared, got 'bn'; leave it out" in outcome.err
    assert not list(Path().rglob("result.json"))


def test_damaged_verdicts_raise_before_training(run_train):
    run_train(*GRID, "seed=0")
    (Path("sweep") / "verdicts.json").write_text("{")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    outcome = run_train(*GRID, "seed=0,1")
    assert outcome.code == 1
    assert outcome.err.startswith("error: sweep/verdicts.json must hold the earlier verdicts, got JSONDecodeError")
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_damaged_verdicts_keep_runs_of_other_sweeper(run_train):
    run_train(*GRID, "seed=0")
    (Path("sweep") / "verdicts.json").write_text("{")
    outcome = run_train(*GRID, "seed=1,2", "hydra/sweeper=basic")
    assert (
        "could not be summarized: sweep/verdicts.json must hold the earlier verdicts" in outcome.out + outcome.err
    )
    assert len(list(Path("sweep").rglob("result.json"))) == 6


VERDICT_OPTIONS = ("margin=0.05", "pairs=true", "baseline=bn", "max_replicates=8")


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True], ids=["new", "resumed"])
def test_verdict_options_apply_to_finished_sweeps(run_train, trained):
    grid = (
        "-m",
        "model=bn,nobn,ln",
        "trainer.max_epochs=1",
        "logger=csv",
        "hydra.sweep.dir=sweep",
        "seed=range(8)",
    )
    if trained:
        assert "max_replicates" not in run_train(*grid).out
        before = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")}
    outcome = run_train(*grid, *VERDICT_OPTIONS)
    assert outcome.code == 0, outcome.err
    output = " ".join(outcome.out.split())
    assert "(3 comparisons, look 1)" in output
    for pair in (
        r"ln (is \w+ than|against) bn",
        r"nobn (is \w+ than|against) bn",
        r"nobn (is \w+ than|against) ln",
    ):
        assert re.search(
            rf"{pair}[^;]*: test/loss ratio[^;]*; (not shown to be )?equivalent within 5 %, p = ", output
        ), pair
    warning = "max_replicates=8 has no effect: the first verdict was given without a maximum"
    assert (warning in output) == trained
    assert (warning in Path("sweep/report/index.html").read_text()) == trained
    if trained:
        assert {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")} == before
        assert "8 finished" not in outcome.out
