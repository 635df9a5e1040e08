import math

import pandas as pd

from normlab.report.console import footnotes, run_table
from normlab.report.report import build_page
from normlab.report.report_data import ReportOptions, build_report_data
from normlab.report.sweep_summary import summarize_sweep
from normlab.results.result import Result, Status
from normlab.results.sweep import read_sweep
from normlab.stats.design import ABSENT


def change_config(folder, max_epochs=3, gamma=None):
    """Change keys of the configuration that no override sets."""
    result = Result.read(folder)
    result.config["trainer"]["max_epochs"] = max_epochs
    result.config |= {"scheduler": {"gamma": gamma}} if gamma else {}
    result.write(folder)


def summary_of(folder):
    records = read_sweep(folder)
    return build_report_data(records, ReportOptions.of_runs(records)).summary


def test_summary_by_hand(make_run, tmp_path):
    make_run("model=nobn seed=0", [8.0, 6.0, 7.0])
    make_run("model=nobn seed=1", [8.0, 7.0, 3.0])
    make_run("model=bn seed=0", [6.0, 2.0, 3.0])
    make_run("model=bn seed=1", [5.0, 4.0, 3.0])
    sweep = summary_of(tmp_path / "sweep")
    assert sweep.keys == ["model"]
    assert sweep.configurations.index.tolist() == ["model=bn", "model=nobn"]
    # After three quarters of the steps (two epochs) the best losses are 2 and 4 for bn, 6 and 7 for nobn.
    assert sweep.configurations["target"].tolist() == [3.0, 3.0]
    assert sweep.runs["epochs_to_target"].tolist() == [2, 3, math.inf, 3]
    assert sweep.runs["best"].tolist() == [2.0, 3.0, 6.0, 3.0]
    assert sweep.runs["last"].tolist() == [3.0, 3.0, 7.0, 3.0]
    assert sweep.configurations["epochs_to_target"].tolist() == [2.5, math.inf]
    assert sweep.configurations[["timed", "reached"]].to_numpy().tolist() == [[2, 2], [2, 1]]


def test_each_panel_has_its_own_target(make_run, tmp_path):
    for size, loss in ((32, 1.0), (128, 5.0)):
        for model, more in (("bn", 0.0), ("nobn", 1.0)):
            make_run(f"model={model} data.batch_size={size}", [9.0, loss + more, loss + more, loss])
    configurations = summary_of(tmp_path / "sweep").configurations.set_index(["data.batch_size", "model"])
    assert configurations["target"].to_dict() == {
        ("32", "bn"): 1.0,
        ("32", "nobn"): 1.0,
        ("128", "bn"): 5.0,
        ("128", "nobn"): 5.0,
    }
    assert configurations["epochs_to_target"].unstack().loc["128"].to_dict() == {"bn": 2, "nobn": 4}


def test_target_of_the_training_command_counts(make_run, tmp_path):
    make_run("model=bn target=3.5", [8.0, 3.0, 2.0])
    sweep = summary_of(tmp_path / "sweep")
    assert sweep.configurations[["target", "epochs_to_target"]].to_numpy().tolist() == [[3.5, 2.0]]


def test_target_comes_from_the_curves(make_run, tmp_path):
    for seed in (0, 1):
        folder = make_run(f"model=bn seed={seed}", [6.0, 4.0, 5.0])
        result = Result.read(folder)
        result.best.metrics["val/loss"] = 3.0
        result.write(folder)
    sweep = summary_of(tmp_path / "sweep")
    assert sweep.runs["best"].tolist() == [3.0, 3.0]
    assert sweep.configurations["target"].tolist() == [4.0]
    assert sweep.runs["epochs_to_target"].tolist() == [2, 2]


def test_runs_are_sorted_numerically(make_run, tmp_path):
    for seed in (10, 2):
        for lr in ("0.1", "0.001", "0.02"):
            make_run(f"optimizer.lr={lr} seed={seed}")
    runs = summary_of(tmp_path / "sweep").runs
    assert runs["optimizer.lr"].tolist() == ["0.001", "0.001", "0.02", "0.02", "0.1", "0.1"]
    assert runs["seed"].tolist() == [2, 10] * 3


def test_order_of_records_does_not_matter(make_run, tmp_path):
    for model, loss in (("bn", 1.0), ("nobn", 2.0)):
        for seed in range(3):
            make_run(f"model={model} seed={seed}", [9.0, loss + seed])
    records = read_sweep(tmp_path / "sweep")
    one, other = summarize_sweep(records), summarize_sweep(records[::-1])
    pd.testing.assert_frame_equal(one.configurations, other.configurations)
    pd.testing.assert_frame_equal(one.runs.reset_index(drop=True), other.runs.reset_index(drop=True))


def test_maximized_metric(make_run, tmp_path):
    for model, losses in (("bn", [0.1, 0.9]), ("nobn", [0.5, 0.3])):
        make_run(f"model={model}", losses, metric="val/acc", direction="max", recorded="val/acc")
    make_run("model=ln", [0.5], metric="val/acc", direction="max", status=Status.DIVERGED, recorded="val/acc")
    sweep = summary_of(tmp_path / "sweep")
    assert (sweep.metric, sweep.direction) == ("val/acc", "max")
    assert set(sweep.configurations["target"]) == {0.5}
    assert sweep.configurations["best_mean"].to_dict() == {
        "model=bn": 0.9,
        "model=ln": -math.inf,
        "model=nobn": 0.5,
    }
    assert sweep.configurations["epochs_to_target"].to_dict() == {
        "model=bn": 2,
        "model=ln": math.inf,
        "model=nobn": 1,
    }


def test_diverged_run_never_reaches_the_target(make_run, tmp_path):
    make_run("model=bn", [5.0, 3.0])
    make_run("model=nobn", [1.0, math.nan], status=Status.DIVERGED)
    configurations = summary_of(tmp_path / "sweep").configurations
    assert configurations.loc["model=nobn", ["epochs_to_target", "reached", "timed"]].tolist() == [math.inf, 0, 1]


def test_no_target_if_all_runs_diverged(make_run, tmp_path):
    make_run("model=bn", [math.nan], status=Status.DIVERGED)
    sweep = summary_of(tmp_path / "sweep")
    assert sweep.configurations["target"].isna().all()
    assert sweep.configurations["timed"].tolist() == [0]


def test_stopped_run_has_no_value(make_run, tmp_path):
    make_run("model=bn", [5.0, 3.0])
    make_run("model=nobn", [1.0], status=Status.STOPPED)
    sweep = summary_of(tmp_path / "sweep")
    assert sweep.runs[["best", "last", "epochs_to_target"]].iloc[1].isna().all()
    assert set(sweep.configurations["target"]) == {5.0}


def test_missing_metric(make_run, tmp_path):
    make_run("model=bn seed=0", [5.0, 3.0])
    make_run("model=bn seed=1", [5.0, 3.0], recorded="val/mse")
    configuration = summary_of(tmp_path / "sweep").configurations.loc["model=bn"]
    assert (configuration.finished, configuration.seeds, configuration.best_mean) == (2, 1, 3.0)


def test_last_value_comes_from_last_validation(make_run, tmp_path):
    folder = make_run("model=bn", [5.0, 3.0, 4.0])
    path = folder / "result.json"
    path.write_text(path.read_text().replace('"val/loss": 4.0', '"other": 4.0'))
    assert summary_of(tmp_path / "sweep").runs["last"].tolist() == [4.0]


def test_metric_is_the_most_common_objective(make_run, tmp_path):
    make_run("model=bn seed=0")
    make_run("model=bn seed=1")
    make_run("model=bn seed=2", metric="train/loss")
    sweep = summary_of(tmp_path / "sweep")
    assert sweep.metric == "val/loss"
    assert sweep.configurations["seeds"].tolist() == [2]


def test_only_the_seed_varies(make_run, tmp_path):
    for seed in range(3):
        make_run(f"optimizer=adam seed={seed}")
    sweep = summary_of(tmp_path / "sweep")
    assert sweep.keys == []
    assert sweep.configurations.index.tolist() == ["model=bn"]
    assert sweep.configurations["seeds"].tolist() == [3]


def test_repeated_run_counts_once(make_run, tmp_path):
    for overrides in ("model=bn", "model=bn seed=0", "model=bn seed=1", "model=nobn seed=0", "model=nobn seed=1"):
        make_run(overrides)
    make_run("model=nobn", status=Status.FAILED)
    sweep = summary_of(tmp_path / "sweep")
    assert sweep.configurations[["runs", "seeds", "failed"]].to_numpy().tolist() == [[2, 2, 0]] * 2
    assert footnotes(sweep)[-1] == "2 runs repeat the configuration and seed of another; each pair counts once"
    assert len(run_table(sweep, read_sweep(tmp_path / "sweep"), None)) == 6


def test_diverged_and_finished_run_both_count(make_run, tmp_path):
    make_run("model=bn")
    make_run("model=bn seed=0", status=Status.DIVERGED)
    configuration = summary_of(tmp_path / "sweep").configurations.loc["model=bn"]
    assert (configuration.runs, configuration.finished, configuration.diverged) == (2, 1, 1)


def test_different_configurations_are_not_compared(make_run, tmp_path):
    for seed in range(8):
        change_config(make_run(f"model=bn seed={seed}", [9.0, 8.0]), max_epochs=5)
        make_run(f"model=nobn seed={seed}", [2.0, 1.0])
    data = build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions())
    assert data.analysis.comparisons["metric"].tolist() == ["test/loss", "train_eval/loss"]
    assert set(data.analysis.comparisons["verdict"]) == {"not comparable: nobn differs in trainer.max_epochs"}
    warning = "runs differ in trainer.max_epochs, not set on the command line: each value is a panel"
    assert warning in footnotes(data.summary)
    assert warning in build_page([tmp_path], data).caveats


def test_keys_without_override_are_never_tuned(make_run, tmp_path):
    for seed in range(8):
        change_config(make_run(f"model=bn seed={seed}"), gamma=0.5)
        change_config(make_run(f"model=nobn seed={seed}"), gamma=0.5)
        change_config(make_run(f"model=bn optimizer.lr=0.01 seed={seed}"), gamma=0.9)
    design = build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions()).analysis.design
    assert (design.panels, design.tuned) == (("scheduler.gamma",), ())


def test_arm_name_includes_a_key_that_others_lack(make_run, tmp_path):
    for seed in range(8):
        for momentum in ("0.05", "0.1"):
            make_run(f"model=bn model.norm.momentum={momentum} seed={seed}", [9.0, float(momentum)])
        make_run(f"model=nobn seed={seed}", [9.0, 4.0])
    data = build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions())
    compared = data.analysis.comparisons[data.analysis.comparisons["metric"] == "test/loss"]
    assert compared[["arm", "baseline", "panel", "verdict"]].to_numpy().tolist() == [
        ["bn, momentum=0.05", "nobn", "", "better"],
        ["bn, momentum=0.1", "nobn", "", "better"],
    ]
    table = run_table(data.summary, data.summary.records, None)
    assert table["model.norm.momentum"].fillna("").unique().tolist() == ["0.05", "0.1", ""]


def test_key_that_an_arm_lacks_stays_tuned(make_run, tmp_path):
    for seed in range(12):
        for momentum in ("0.5", "0.9"):
            make_run(f"model=bn optimizer.momentum={momentum} seed={seed}", [9.0, float(momentum)])
        make_run(f"model=nobn seed={seed}", [9.0, 4.0])
    data = build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions()).analysis
    assert (data.design.tuned, data.design.panels) == (("optimizer.momentum",), ())
    assert data.arms[["arm", "optimizer.momentum"]].to_numpy().tolist() == [["bn", "0.5"], ["nobn", ABSENT]]
    assert data.comparisons["verdict"].tolist() == ["better", "better"]


def test_default_and_explicit_setting_are_one_configuration(make_run, tmp_path):
    make_run("optimizer.lr=1e-2 seed=0")
    make_run("optimizer.lr=0.1 seed=0")
    make_run("seed=1")
    configurations = summary_of(tmp_path / "sweep").configurations
    assert configurations["seeds"].to_dict() == {"optimizer.lr=0.01": 2, "optimizer.lr=0.1": 1}


def test_run_with_damaged_record_has_unknown_model(make_run, tmp_path):
    make_run("model=bn")
    make_run("model=nobn")
    (make_run("model=ln") / "result.json").write_text("{")
    configurations = summary_of(tmp_path / "sweep").configurations
    assert configurations["failed"].to_dict() == {"model=bn": 0, "model=nobn": 0, "model=unknown": 1}
