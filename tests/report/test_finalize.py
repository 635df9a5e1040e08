import logging
import subprocess
import sys

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from normlab.report import finalize_sweep
from normlab.results.result import Status

FILES = {"table.csv", "summary.csv", "curves.png", "curves.svg"}


@pytest.fixture
def captured(caplog):
    """Capture the log captured of normlab."""
    caplog.set_level(logging.INFO, "normlab")
    return caplog


def files(folder):
    return {path.name for path in folder.iterdir() if path.is_file()}


def experiment(folder):
    events = EventAccumulator(str(folder)).Reload()
    content = events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    found = metadata.parse_experiment_plugin_data(content)
    return [info.name for info in found.hparam_infos], [info.display_name for info in found.metric_infos]


def test_outputs_are_written_and_logged(make_run, tmp_path, captured, monkeypatch):
    make_run("model=bn seed=0", events=True)
    make_run("model=nobn seed=0", events=True)
    monkeypatch.chdir(tmp_path)
    finalize_sweep(tmp_path / "sweep")
    folder = tmp_path / "sweep"
    written = files(folder)
    assert written > FILES
    assert [name.startswith("events.out.tfevents.") for name in written - FILES] == [True]
    assert len(pd.read_csv(folder / "summary.csv")) == 2
    assert pd.read_csv(folder / "table.csv")["arm"].tolist() == ["model=bn", "model=nobn"]
    assert captured.messages[-3:] == [
        "sweep: table.csv, summary.csv, curves.png, curves.svg",
        "report: sweep/report/index.html",
        "curves of all runs: tensorboard --logdir sweep",
    ]
    assert (folder / "report" / "index.html").exists()
    assert all(record.name == "normlab" and record.levelno == logging.INFO for record in captured.records)


def test_hparams_columns(make_run, tmp_path):
    for lr in ("0.1", "0.01"):
        make_run(f"model=bn optimizer.lr={lr} seed=0", events=True)
    finalize_sweep(tmp_path / "sweep")
    hparams, metrics = experiment(tmp_path / "sweep")
    groups = ["data", "net", "model", "optimizer"]
    assert hparams == ["optimizer.lr", *groups, "data.seed", "data.batch_size", "trainer.max_epochs"]
    ends = ["reached", "seconds", "diverged", "epochs_to_target"]
    assert metrics == ["best/val/loss", "last/val/loss", *ends, "test/loss", "last/train/loss"]


def test_configuration_curves_are_logged_with_several_seeds(make_run, tmp_path, captured, monkeypatch):
    for seed in range(3):
        make_run(f"model=bn seed={seed}", events=True)
    monkeypatch.chdir(tmp_path)
    finalize_sweep(tmp_path / "sweep")
    assert captured.messages[-2:] == [
        "median curves of the configurations: tensorboard --logdir sweep/arms",
        "all runs and hyperparameters: tensorboard --logdir sweep",
    ]


def test_second_call_replaces_only_its_own_files(make_run, tmp_path):
    run = make_run("model=bn seed=0", events=True)
    trained = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    folder = tmp_path / "sweep"
    (folder / "notes.txt").write_text("mine")
    finalize_sweep(folder)
    before = files(folder)
    make_run("model=nobn seed=0", events=True)
    finalize_sweep(folder)
    after = files(folder)
    assert after - before != before - after
    assert {name for name in after if not name.startswith("events")} == {*FILES, "notes.txt"}
    assert len(after) == len(before)
    assert {path: path.read_bytes() for path in trained} == trained
    assert len(list(run.iterdir())) == len(trained) + len([".hydra", "closed"])
    assert len(pd.read_csv(folder / "table.csv")) == 2


def test_no_event_files_are_added_without_tensorboard(make_run, tmp_path, captured):
    make_run("model=bn seed=0")
    finalize_sweep(tmp_path / "sweep")
    assert files(tmp_path / "sweep") == FILES
    assert "tensorboard" not in captured.text


def test_event_files_of_a_single_run_are_kept(make_run):
    run = make_run("model=bn seed=0", events=True)
    [trace] = run.glob("events.*")
    content = trace.read_bytes()
    finalize_sweep(run)
    assert list(run.glob("events.*")) == [trace]
    assert trace.read_bytes() == content
    assert files(run) >= FILES


def test_failed_stopped_killed_and_damaged_runs(make_run, tmp_path, captured):
    make_run("model=bn seed=0")
    make_run("model=bn seed=1", status=Status.FAILED)
    make_run("model=bn seed=2", status=Status.STOPPED)
    (make_run("model=bn seed=3") / "result.json").unlink()
    (make_run("model=bn seed=4") / "result.json").write_text("{")
    finalize_sweep(tmp_path / "sweep")
    [row] = pd.read_csv(tmp_path / "sweep" / "table.csv").to_dict("records")
    assert (row["runs"], row["finished"], row["stopped"], row["failed"]) == (5, 1, 1, 3)
    errors = pd.read_csv(tmp_path / "sweep" / "summary.csv").set_index("folder")["error"]
    assert errors["model=bn,seed=4"] == "result.json is damaged"
    assert sum("is damaged" in message for message in captured.messages) == 1


def test_sweep_stopped_before_its_second_run_has_no_curves(make_run, tmp_path):
    make_run("model=bn seed=0", status=Status.STOPPED)
    (make_run("model=bn seed=1", status=Status.STOPPED) / "curves.csv").unlink()
    finalize_sweep(tmp_path / "sweep")
    assert pd.read_csv(tmp_path / "sweep" / "summary.csv")["status"].tolist() == ["stopped", "stopped"]
    assert not (tmp_path / "sweep" / "curves.png").exists()


@pytest.mark.parametrize("there", [True, False])
def test_sweep_without_runs_is_logged(tmp_path, captured, there):
    folder = tmp_path / "sweep"
    if there:
        folder.mkdir()
        (folder / "multirun.yaml").touch()
    finalize_sweep(folder)
    [message] = captured.messages
    assert "no run started" in message
    assert not there or files(folder) == {"multirun.yaml"}


def test_unwritable_file_is_logged_in_one_line(make_run, tmp_path, captured):
    make_run("model=bn")
    (tmp_path / "sweep" / "table.csv").mkdir()
    finalize_sweep(tmp_path / "sweep")
    [message] = captured.messages
    assert "could not be summarized" in message
    assert "table.csv" in message


@pytest.mark.parametrize("seeds", [6, 7])
def test_verdict_needs_enough_seeds(make_run, tmp_path, captured, seeds):
    for seed in range(seeds):
        make_run(f"model=bn seed={seed}", [2.0, 1.5, 1.0])
        make_run(f"model=nobn seed={seed}", [9.0, 8.5, 4.0])
    finalize_sweep(tmp_path / "sweep")
    words = "\n".join(captured.messages).replace("lower is better", "")
    assert not any(claim in words for claim in ("wins", "best arm", "significant"))
    if seeds < 7:  # p is at least 2/64, doubled at the first look
        assert "better" not in words
        assert "too few replicates to compare bn with nobn: 6 of the 7 replicates needed" in words
    else:  # 2 · 2/128
        assert "bn is better than nobn: test/loss ratio 0.25, 95 % CI" in words
        assert "p = 0.031 (look 1), over 7 draws of the data" in words
        assert "95 % CI" in words


def test_import_loads_no_slow_library():
    code = "import sys, normlab.report; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "matplotlib", "pandas", "tensorboard"} & set(loaded.split())


def test_runs_with_different_targets_are_finalized(make_run, tmp_path, captured):
    for target in (3.5, 2.5):
        for model in ("bn", "nobn"):
            make_run(f"model={model} target={target}", [4.0, 3.0, 2.0])
    finalize_sweep(tmp_path / "sweep")
    assert (tmp_path / "sweep/table.csv").read_text().count("\n") == 3
    assert (tmp_path / "sweep/report/index.html").exists()
