"""Sweeps with ``records=packed``: their files, their report, seeds that are added, failures and evaluation."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from normlab.results.packed import packed_runs
from normlab.results.result import Result, Status
from normlab.results.sweep import read_sweep

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.slow

SHORT = ("-m", "model=bn,nobn", "trainer.max_epochs=2")
PACKED = (*SHORT, "records=packed", "hydra.sweep.dir=packed")


def without_times(path: str) -> pd.DataFrame:
    table = pd.read_csv(path)
    return table[[name for name in table if "seconds" not in name]]


def same_but_for_times(one: Result, other: Result) -> bool:
    texts = [json.loads(result.text()) for result in (one, other)]
    for text in texts:
        for key in ("seconds", "started", "ended", "overrides"):
            text.pop(key)
    return texts[0] == texts[1]


@pytest.mark.thorough
def test_report_equals_that_of_folders(run_train):
    probed = "data=digits", "probes=curvature"
    packed = run_train(*PACKED, *probed, "seed=range(3)")
    assert packed.code == 0, packed.err
    folders = run_train(*SHORT, *probed, "hydra.sweep.dir=folders", "seed=range(3)")
    assert folders.code == 0, folders.err

    records, others = read_sweep(Path("packed")), read_sweep(Path("folders"))
    pairs = list(zip(records, others, strict=True))
    assert all(same_but_for_times(one.result, other.result) for one, other in pairs)
    for name in ("table.csv", "summary.csv", "report/comparisons.csv", "report/arms.csv"):
        pd.testing.assert_frame_equal(without_times(f"packed/{name}"), without_times(f"folders/{name}"))
    tables = [sorted(path.name for path in Path(sweep, "report").iterdir()) for sweep in ("packed", "folders")]
    assert tables[0] == tables[1]
    arms = [
        sorted(path.parent.name for path in Path(sweep).glob("arms/*/*.normlab"))
        for sweep in ("packed", "folders")
    ]
    assert arms[0] == arms[1] == ["model=bn", "model=nobn"]

    names = sorted(path.name for path in Path("packed").iterdir() if path.is_dir())
    assert names == [".normlab", "arms", "records", "report"], "no run has a folder"
    assert sorted(path.suffix for path in Path("packed/records").iterdir()) == [".parquet"] * 2 + [".pt"] * 2
    assert len(Path("packed/train.log").read_text().splitlines()) == 6
    assert not [*Path("packed").glob("events*")], "no run has an event file, so the sweep has no HParams"


@pytest.mark.thorough
def test_repeated_command_trains_missing_runs(run_train):
    assert run_train(*PACKED, "seed=range(2)").code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("packed/records").iterdir()}
    assert run_train(*PACKED, "seed=range(2)").code == 0
    assert {path: path.stat().st_mtime_ns for path in Path("packed/records").iterdir()} == before
    assert run_train(*PACKED, "seed=range(3)").code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len([*Path("packed/records").glob("*.parquet")]) == 4
    assert pd.read_csv("packed/summary.csv")["seed"].tolist() == [0, 1, 2] * 2

    damaged = min(before)
    content = damaged.with_suffix(".parquet").read_bytes()
    damaged.with_suffix(".parquet").unlink()
    damaged.with_suffix(".parquet").write_bytes(content[:100])
    outcome = run_train(*PACKED, "seed=range(3)")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("is damaged") == 1
    assert len(pd.read_csv("packed/summary.csv")) == 6
    assert damaged.with_suffix(".parquet").stat().st_size > 100

    # Runs in folders and packed runs are one sweep.
    mixed = run_train(*SHORT, "hydra.sweep.dir=packed", "seed=range(4)")
    assert mixed.code == 0, mixed.err
    assert pd.read_csv("packed/summary.csv")["seed"].tolist() == [0, 1, 2, 3] * 2
    assert sorted(path.parent.name for path in Path("packed").glob("*/result.json")) == [
        "model=bn,seed=3",
        "model=nobn,seed=3",
    ]


@pytest.mark.thorough
def test_workers_write_packed_records(run_train):
    outcome = run_train(*PACKED, "seed=range(2)", "hydra.launcher.n_jobs=2")
    assert outcome.code == 0, outcome.err
    assert {run.result().status for run in packed_runs(Path("packed/records")).values()} == {Status.FINISHED}


def test_evaluation_of_packed_runs(run_train, run_eval):
    assert run_train(*PACKED, "seed=range(2)").code == 0
    outcome = run_eval("run=packed/model=bn,seed=1")
    assert outcome.code == 0, outcome.err
    record = next(record for record in read_sweep(Path("packed")) if record.folder.name == "model=bn,seed=1")
    row = pd.read_csv("packed/eval/eval.csv").iloc[0]
    assert row["run"] == "packed/model=bn,seed=1"
    assert row["test/loss"] == pytest.approx(record.result.test["test/loss"], rel=1e-5)
    assert not record.folder.exists()

    several = run_eval("run=packed/model=*", "checkpoint=last")
    assert several.code == 0, several.err
    assert len(pd.read_csv("packed/eval-checkpoint=last/eval.csv")) == 4
    record.packed.checkpoints.unlink()
    missing = run_eval("run=packed/model=bn,seed=1")
    assert missing.code == 1
    assert f"{record.packed.checkpoints} is missing" in missing.err


@pytest.mark.thorough
def test_checkpoints_are_stacked(run_train):
    assert run_train(*SHORT, "records=packed", "hydra.sweep.dir=packed", "seed=range(2)").code == 0
    assert run_train(*SHORT, "hydra.sweep.dir=folders", "seed=range(2)").code == 0
    for path in Path("packed/records").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        for k, run in enumerate(content["runs"]):
            for name in ("best", "last"):
                own = torch.load(Path("folders", run, "checkpoints", f"{name}.pt"), weights_only=True)
                stacked = content[name]
                assert stacked["reached"][k] == {key: value for key, value in own.items() if key != "state_dict"}
                for key, tensor in own["state_dict"].items():
                    assert torch.equal(stacked["state_dict"][key][k], tensor)


@pytest.mark.thorough
def test_failed_population_is_trained_again(run_train, monkeypatch):
    def fails(self, trainer, pl_module):
        if pl_module.population.members > 1 and trainer.current_epoch == 1:
            raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr("normlab.training.callbacks.FinalMetrics.on_train_epoch_end", fails)
        outcome = run_train(*PACKED, "seed=range(2)")
    assert outcome.code == 1
    assert outcome.err.strip().splitlines()[-1] == "error: out of luck"
    runs = read_sweep(Path("packed"))
    assert [(run.result.status, run.result.error) for run in runs] == [(Status.FAILED, "out of luck")] * 4
    for run in runs:
        traceback = run.packed.pack.path.with_suffix(".txt")
        assert "RuntimeError: out of luck" in traceback.read_text()
        assert f"out of luck, see records/{traceback.name}" in Path("packed/train.log").read_text()

    assert run_train(*PACKED, "seed=range(2)").code == 0
    assert {run.result.status for run in read_sweep(Path("packed"))} == {Status.FINISHED}
    assert {path.suffix for path in Path("packed/records").iterdir()} == {".parquet", ".pt"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("records=packed",), "records=packed has no effect in a single run; a sweep needs -m"),
        (("-m", "records=packed", "hydra/launcher=basic"), "records must be folders with hydra/launcher=basic"),
        (
            ("-m", "records=packed", "module=lightning"),
            "records must be folders unless module=population, got packed",
        ),
        (
            ("-m", "records=packed", "+callbacks.extra.x._target_=pytorch_lightning.callbacks.ModelCheckpoint"),
            "records must be folders with callbacks.extra, which writes to the folder of a run, got packed",
        ),
        (("-m", "records=packed", "logger=csv_lightning"), "records must be folders with logger.extra"),
        (("-m", "records=folders,packed"), "records must be the same in all runs of a sweep"),
        (("-m", "records=files"), "records must be folders or packed, got files"),
    ],
)
def test_impossible_packing_is_refused(run_train, words, expected):
    outcome = run_train(*words, "trainer.max_epochs=1")
    assert outcome.code == 1
    assert expected in outcome.err
    assert not Path("outputs").exists()
