import math

import pytest

from normlab.report.sweep_summary import summarize_sweep
from normlab.report.tensorboard import bands, configuration_curves
from normlab.results.result import Result, Status
from normlab.results.series import ProbeRecord, append_probes, headlines
from normlab.results.sweep import read_sweep


@pytest.fixture
def curves(tmp_path):
    """Return a function that reads the curves of each configuration, by metric and step."""

    def read():
        sweep = summarize_sweep(read_sweep(tmp_path / "sweep"))
        curves = {}
        for configuration, points in configuration_curves(sweep).items():
            metrics = curves.setdefault(configuration, {})
            for point in points:
                for name, value in point.metrics.items():
                    metrics.setdefault(name, {})[point.step] = value
        return curves

    return read


def test_curve_is_median_over_seeds(make_run, curves):
    for seed, losses in enumerate(([4.0, 1.0], [8.0, 2.0], [6.0, 9.0])):
        make_run(f"model=bn seed={seed}", losses)
    make_run("model=nobn seed=0", [5.0, 5.0])
    found = curves()
    assert list(found) == ["model=bn", "model=nobn"]
    assert found["model=bn"]["val/loss"] == {5: 6.0, 10: 2.0}
    lower, median, upper = (found["model=bn"][band] for band in bands("val/loss"))
    assert median == found["model=bn"]["val/loss"]
    assert (lower, upper) == ({5: 5.0, 10: 1.5}, {5: 7.0, 10: 5.5})
    assert found["model=bn"]["train/loss"] == {5: 3.0, 10: 1.0}
    assert found["model=nobn"]["val/loss"] == {5: 5.0, 10: 5.0}


def test_learning_rate_has_no_quartiles(make_run, curves):
    make_run("model=bn seed=0")
    found = curves()["model=bn"]
    assert set(found["train/lr"].values()) == {0.01}
    assert not set(bands("train/lr")) & set(found)


def test_diverged_run_counts_as_worst_value(make_run, curves):
    for seed, losses in enumerate(([3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [2.0, 2.0, 2.0])):
        make_run(f"model=bn seed={seed}", losses)
    for seed, losses in enumerate(([5.0, math.nan], [1.0, 7.0, math.inf]), 3):
        make_run(f"model=bn seed={seed}", losses, status=Status.DIVERGED)
    found = curves()["model=bn"]
    assert found["val/loss"] == {5: 3.0, 10: 2.0, 15: 2.0}
    assert found["quartiles/val/loss/upper"] == {5: 3.0, 10: 7.0, 15: math.inf}
    # Quantities without a direction are taken from finished runs only.
    assert list(found["train/lr"]) == [5, 10, 15]


@pytest.mark.parametrize(("metric", "direction"), [("val/loss", "min"), ("val/acc", "max"), ("val/gain", "max")])
def test_median_is_infinite_if_half_diverged(make_run, curves, metric, direction):
    objective = {"metric": metric, "direction": direction, "recorded": metric}
    make_run("model=bn seed=0", [0.5, 0.5], **objective)
    make_run("model=bn seed=1", [0.5, math.nan], status=Status.DIVERGED, **objective)
    worst = math.inf if direction == "min" else -math.inf
    assert curves()["model=bn"][metric] == {5: 0.5, 10: worst}


def test_diverged_curve_ends_with_its_last_run(make_run, curves):
    make_run("model=nobn seed=0", [1.0] * 9)
    for seed in range(2):
        make_run(f"model=bn seed={seed}", [9.0, math.nan], status=Status.DIVERGED)
    found = curves()["model=bn"]
    assert found["val/loss"] == {5: 9.0, 10: math.inf}
    assert "train/lr" not in found


def test_median_ends_with_shortest_run(make_run, curves):
    make_run("model=bn seed=0", [3.0, 2.0, 1.0])
    make_run("model=bn seed=1", [5.0, 4.0])
    assert curves()["model=bn"]["val/loss"] == {5: 4.0, 10: 3.0}


def test_unfinished_and_repeated_runs_are_excluded(make_run, curves):
    make_run("model=bn seed=0", [3.0, 2.0])
    make_run("model=bn seed=1", [9.0], status=Status.STOPPED)
    make_run("model=bn seed=2", [9.0], status=Status.FAILED)
    make_run("seed=0 model=bn", [8.0, 8.0])
    make_run("model=ln seed=0", [9.0], status=Status.FAILED)
    found = curves()
    assert list(found) == ["model=bn"]
    assert found["model=bn"]["val/loss"] == {5: 3.0, 10: 2.0}


def test_probe_median_is_over_finished_seeds(make_run, curves, tmp_path):
    for seed, value in enumerate((1.0, 2.0, math.inf, 100.0)):
        status = Status.DIVERGED if seed == 3 else Status.FINISHED
        folder = make_run(f"model=bn seed={seed}", status=status)
        numbers = {"lambda_max": value, "hidden1/trace": value}
        founds = [
            ProbeRecord(step, 5 * step, 0.0, "curvature", "batch", numbers, headline=("lambda_max",))
            for step in (0, 2)
        ]
        append_probes(folder, founds)
        result = Result.read(folder)
        result.probes = headlines(founds)
        result.write(folder)
    found = curves()["model=bn"]
    assert found["probe/curvature/batch/lambda_max"] == {0: 1.5, 10: 1.5}
    assert found["probe/curvature/batch/hidden1/trace"] == {0: 1.5, 10: 1.5}
    assert found["quartiles/probe/curvature/batch/lambda_max/lower"] == {0: 1.25, 10: 1.25}
    assert not set(bands("probe/curvature/batch/hidden1/trace")) & set(found)


def test_test_and_best_values_are_no_curves(make_run, curves):
    folder = make_run("model=bn seed=0")
    with (folder / "curves.csv").open("a") as file:
        file.write("2,10,test,loss,1.0\n2,10,best,val/loss,2.0\n")
    assert not {"test/loss", "best/val/loss"} & set(curves()["model=bn"])
