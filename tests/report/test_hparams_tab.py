import math

import pytest

from normlab.report.report_data import ReportOptions, build_report_data
from normlab.report.tensorboard import hyperparameters, run_numbers
from normlab.results.result import Result, Status
from normlab.results.sweep import read_sweep


@pytest.fixture
def sweep(tmp_path):
    """Return a function that reads the sweep and returns its summary."""

    def read():
        records = read_sweep(tmp_path / "sweep")
        return build_report_data(records, ReportOptions()).summary

    return read


def rows(sweep):
    summary = sweep()
    numbers = run_numbers(summary)
    return {summary.records[number].folder.name: row.dropna().to_dict() for number, row in numbers.iterrows()}


def test_varied_keys_come_first_without_seed(make_run, sweep):
    for lr in ("0.1", "0.01"):
        for seed in range(2):
            make_run(f"optimizer.lr={lr} seed={seed}")
    names = ["optimizer.lr", "data", "net", "model", "optimizer", "data.seed", "data.batch_size"]
    assert hyperparameters(sweep()) == [*names, "trainer.max_epochs"]


def test_key_equal_to_seed_has_no_column(make_run, sweep):
    for seed in range(2):
        folder = make_run(f"model=bn seed={seed}")
        result = Result.read(folder)
        result.config["data"]["seed"] = seed
        result.write(folder)
    assert "data.seed" not in hyperparameters(sweep())
    assert "data.batch_size" in hyperparameters(sweep())


def test_killed_run_keeps_columns(make_run, sweep):
    make_run("model=bn seed=0")
    make_run("model=nobn seed=0")
    before = hyperparameters(sweep())
    (make_run("model=nobn seed=1") / "result.json").unlink()
    assert hyperparameters(sweep()) == before


def test_run_has_numbers_of_tables(make_run, sweep):
    make_run("model=bn seed=0", [4.0, 1.0, 3.0], seconds=2.0, probes={"probe/curvature/batch/trace": 7.0})
    make_run("model=nobn seed=0", [4.0, 3.5, 2.0])
    numbers = rows(sweep)
    assert numbers["model=bn,seed=0"] == {
        "best/val/loss": 1.0,
        "last/val/loss": 3.0,
        "reached": 1.0,
        "seconds": 2.0,
        "diverged": 0.0,
        "epochs_to_target": 2.0,
        "test/loss": 6.0,
        "last/train/loss": 1.5,
        "probe/curvature/batch/trace": 7.0,
    }
    assert list(numbers["model=bn,seed=0"])[:2] == ["best/val/loss", "last/val/loss"]


def test_diverged_run_has_worst_values_and_failed_run_none(make_run, sweep):
    probes = {"probe/curvature/batch/trace": 7.0}
    for seed, status in enumerate((Status.FINISHED, Status.DIVERGED, Status.STOPPED, Status.FAILED)):
        make_run(f"model=bn seed={seed}", [4.0, 2.0], status=status, probes=probes)
    make_run("model=bn seed=4", [4.0, 2.0])
    numbers = rows(sweep)
    diverged = numbers["model=bn,seed=1"]
    worst = dict.fromkeys(("best/val/loss", "last/val/loss", "last/train/loss", "test/loss"), math.inf)
    assert diverged == {**worst, "reached": 0.0, "diverged": 1.0, "epochs_to_target": math.inf}
    assert numbers["model=bn,seed=2"] == numbers["model=bn,seed=3"] == {}


@pytest.mark.parametrize("direction", ["min", "max"])
def test_worst_value_depends_on_direction(make_run, sweep, direction):
    for seed, status in enumerate((Status.FINISHED, Status.DIVERGED)):
        make_run(f"seed={seed}", status=status, metric="val/gain", recorded="val/gain", direction=direction)
    worst = math.inf if direction == "min" else -math.inf
    numbers = rows(sweep)["seed=1"]
    assert numbers["best/val/gain"] == numbers["last/val/gain"] == worst
