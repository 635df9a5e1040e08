import io
import math

import pandas as pd
import pytest

from normlab.report import LINE_WIDTH
from normlab.report.console import (
    MEAN_NOTE,
    configuration_table,
    csv_text,
    footnotes,
    format_mean,
    run_table,
    table_lines,
    table_title,
)
from normlab.report.report_data import ReportOptions, build_report_data
from normlab.results.result import Status
from normlab.results.sweep import read_sweep


@pytest.fixture
def mixed(make_run, tmp_path):
    """Two configurations with two finished seeds, and one with a diverged and a stopped run."""
    make_run("model=bn seed=0", [4.0, 2.0, 3.0])
    make_run("model=bn seed=1", [6.0, 4.0, 5.0])
    make_run("model=ln seed=0", [9.0, math.nan], status=Status.DIVERGED)
    make_run("model=ln seed=1", [9.0, 8.0], status=Status.STOPPED)
    make_run("model=nobn seed=0", [8.0, 7.0, 6.0], seconds=3.0)
    make_run("model=nobn seed=1", [8.0, 7.0, 7.0], seconds=4.0)
    return tmp_path / "sweep"


def read_back(table):
    return pd.read_csv(io.StringIO(csv_text(table)))


def test_printed_table(mixed):
    sweep = build_report_data(read_sweep(mixed), ReportOptions()).summary
    assert table_title(sweep) == "loss at the end of training (lower is better)"
    # Standard errors: of 3 and 5, √2/√2 = 1; of 6 and 7, 0.5; the fixture doubles and halves them.
    assert table_lines(sweep) == [
        "model  runs  diverged  stopped  failed   train_eval          val        test     epochs",
        "bn        2         0        0       0  2.00 ± 0.50    4.0 ± 1.0   8.0 ± 2.0  inf (1/2)",
        "ln        2         1        1       0          inf          inf         inf  inf (0/1)",
        "nobn      2         0        0       0  3.25 ± 0.25  6.50 ± 0.50  13.0 ± 1.0  inf (0/2)",
    ]
    assert footnotes(sweep) == [
        f"{MEAN_NOTE} ± standard error over the seeds of each configuration",
        "train_eval: measured on the whole training split in evaluation mode, with statistics re-estimated on it",
        "a configuration with one seed has no standard error, and one seed supports no claim",
        "epochs: until val/loss is at most the target, 3; median over seeds (seeds that reach it / all seeds)",
        "a diverged run counts as inf, the worst value, and so does the mean of its configuration",
        "stopped runs are excluded from all means; summary.csv lists them",
    ]


def test_configuration_table_round_trips_as_csv(mixed):
    table = read_back(
        configuration_table(build_report_data(read_sweep(mixed), ReportOptions()).summary)
    ).set_index("arm")
    assert table["model"].tolist() == ["bn", "ln", "nobn"]
    assert table["best_mean"].tolist() == [3.0, math.inf, 6.5]
    assert table["best_se"].tolist() == pytest.approx([1.0, math.nan, 0.5], nan_ok=True)
    assert table["train_eval_mean"].tolist() == [2.0, math.inf, 3.25]
    assert table["val_mean"].tolist() == [4.0, math.inf, 6.5]
    assert table["test_mean"].tolist() == [8.0, math.inf, 13.0]
    assert table["test_se"].tolist() == pytest.approx([2.0, math.nan, 1.0], nan_ok=True)
    assert table["epochs_to_target"].tolist() == [math.inf] * 3
    assert table[["runs", "finished", "diverged", "stopped", "failed"]].to_numpy().tolist() == [
        [2, 2, 0, 0, 0],
        [2, 0, 1, 1, 0],
        [2, 2, 0, 0, 0],
    ]
    assert set(table["metric"]) == {"val/loss"}
    assert set(table["target"]) == {3.0}


def test_run_table_has_a_row_per_run(mixed):
    records = read_sweep(mixed)
    table = read_back(run_table(build_report_data(records, ReportOptions()).summary, records, mixed)).set_index(
        "name"
    )
    assert table["status"].tolist() == ["finished", "finished", "diverged", "stopped", "finished", "finished"]
    assert table["seed"].tolist() == [0, 1] * 3
    assert table.loc["model=bn,seed=0", ["model", "best/val/loss", "last/val/loss"]].tolist() == [
        "bn",
        2.0,
        3.0,
    ]
    assert table.loc["model=bn,seed=0", ["best_epoch", "epochs", "steps", "seconds"]].tolist() == [
        2,
        3,
        15,
        1.0,
    ]
    assert table.loc["model=bn,seed=0", ["last/train/loss", "test/loss"]].tolist() == [1.5, 6.0]
    finals = ["final/train_eval/loss", "final/val/loss", "final/test/loss"]
    assert table.loc["model=bn,seed=0", finals].tolist() == [1.5, 3.0, 6.0]
    assert table.loc["model=ln,seed=0", ["best/val/loss", "last/val/loss"]].tolist() == [math.inf, math.inf]
    assert math.isnan(table.loc["model=ln,seed=0", "test/loss"])
    # The row of a stopped run has its values so far, although means exclude them.
    assert table.loc["model=ln,seed=1", ["best/val/loss", "last/val/loss"]].tolist() == [8.0, 8.0]
    assert all((mixed / folder / "result.json").exists() for folder in table["folder"])
    assert "last/train/lr" not in table


def test_one_seed_has_no_standard_error(make_run, tmp_path):
    make_run("model=bn")
    make_run("model=nobn", [5.0, 4.0])
    sweep = build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions()).summary
    assert table_lines(sweep)[1:] == [
        "bn        1         0       0         1.5    3     6    2 (1/1)",
        "nobn      1         0       0           2    4     8  inf (0/1)",
    ]
    assert footnotes(sweep)[0] == "one seed per configuration: no standard error, and one seed supports no claim"
    assert not any("±" in line for line in [*table_lines(sweep), *footnotes(sweep)])


def test_untrained_runs_are_counted(make_run, tmp_path):
    """The best constant predictor has loss 1: a loss of 0.91 is untrained, 0.9 and a diverged run are not."""
    for seed, loss in enumerate((0.91, 0.9)):
        final = {"train_eval/loss": loss, "val/loss": 1.0, "test/loss": 1.0}
        make_run(f"model=bn seed={seed}", (1.0, 1.0, 1.0), final=final, chance=1.0)
    make_run("model=bn seed=2", (1.0, math.nan), status=Status.DIVERGED, chance=1.0)
    make_run("model=nobn seed=0", (1.0, 0.5, 0.5), chance=1.0)
    sweep = build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions()).summary
    header, bn, nobn = (line.split() for line in table_lines(sweep))
    assert header[:6] == ["model", "runs", "diverged", "failed", "untrained", "train_eval"]
    assert (bn[:5], nobn[:5]) == (["bn", "3", "1", "0", "1"], ["nobn", "1", "0", "0", "0"])
    assert (
        "untrained: finished with a training loss above 90 % of that of the best constant predictor"
        in footnotes(sweep)
    )


def test_untrained_column_is_absent_without_untrained_runs(make_run, tmp_path):
    make_run("model=bn", chance=10.0)
    sweep = build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions()).summary
    assert "untrained" not in " ".join([*table_lines(sweep), *footnotes(sweep)])


def test_table_without_finished_runs(make_run, tmp_path):
    make_run("model=bn", status=Status.FAILED)
    make_run("model=nobn", status=Status.STOPPED)
    sweep = build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions()).summary
    assert table_lines(sweep)[1:] == [
        "bn        1         0        0       1           -    -     -       -",
        "nobn      1         0        1       0           -    -     -       -",
    ]
    assert footnotes(sweep) == [
        "no run finished",
        "stopped and failed runs are excluded from all means; summary.csv lists them",
    ]


def test_runs_without_metric_are_noted(make_run, tmp_path):
    make_run("model=bn seed=0")
    make_run("model=bn seed=1", recorded="val/mse")
    lines = footnotes(build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions()).summary)
    assert lines[-1] == "finished runs without val/loss, excluded from all means: 1"


def test_sweep_without_varied_keys(make_run, tmp_path):
    make_run("optimizer=adam")
    header, row = table_lines(build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions()).summary)
    assert header.startswith("configuration  runs")
    assert row.startswith("model=bn          1")


def test_table_fits_a_terminal(make_run, tmp_path):
    for lr in ("0.0001", "0.01"):
        for batch in (32, 128):
            for seed in range(2):
                for model, loss in (("bn_formula", 170.0), ("nobn", 16000.0)):
                    run = f"model={model} optimizer.lr={lr} data.batch_size={batch} seed={seed}"
                    make_run(run, [2 * loss, loss * (1 + seed / 20)])
    sweep = build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions()).summary
    assert max(map(len, [*table_lines(sweep), *footnotes(sweep)])) <= LINE_WIDTH


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (-0.123456, 0.0321, "-0.123 ± 0.032"),
        (1.0, 0.0996, "1.000 ± 0.100"),
        (12.0, 99.0, "12 ± 99"),
        (0.0, 1e-9, "0.0e+00 ± 1.0e-09"),
        (math.nan, math.nan, "-"),
        (-math.inf, math.nan, "-inf"),
    ],
)
def test_error_has_two_digits(mean, error, text):
    assert format_mean(mean, error) == text
