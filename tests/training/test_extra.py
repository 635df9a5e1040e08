"""Loggers of ``logger.extra``, with the real packages: one for each run, named after it."""

import re
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
SWEEP = ["-m", "model=bn,nobn", "seed=0,1", "trainer.max_epochs=2", "hydra.sweep.dir=sweep"]
RUNS = [f"model={model},seed={seed}" for model in ("bn", "nobn") for seed in (0, 1)]


def value(run: str, name: str) -> float:
    """Return a metric of the last epoch in ``curves.csv``."""
    frame = pd.read_csv(f"sweep/{run}/curves.csv")
    return float(frame["value"][frame["split"] + "/" + frame["metric"] == name].iloc[-1])


@pytest.fixture
def typed(warm_python, tmp_path, monkeypatch) -> Callable:
    """Return a function that runs the command in a new process: the service of W&B serves it until its end."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: warm_python.run([ROOT / "train.py", *words], tmp_path)


def rows_of(database: str, query: str) -> list[tuple]:
    with sqlite3.connect(database) as connection:
        return connection.execute(query).fetchall()


def wandb_records(folder: Path) -> list:
    """Return the records of the only offline run of W&B below a folder; the file is a log of LevelDB's format."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, position, whole, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # a header never crosses a block's end
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            records.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return records


def history(records: list, name: str) -> list[float]:
    items = [item for record in records for item in record.history.item]
    return [float(i.value_json) for i in items if name in (i.key, "/".join(i.nested_key))]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["population", "lightning"])
def test_each_run_has_an_offline_run_of_wandb(typed, module):
    done = typed(*SWEEP, "logger=wandb", f"module={module}")
    assert done.returncode == 0, done.stderr
    assert ("4 runs in 2 populations" in done.stdout) == (module == "population")
    for run in RUNS:
        records = wandb_records(Path("sweep") / run)
        (started,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        assert (started.project, started.display_name, started.run_group) == ("normlab", run, "sweep")
        assert history(records, "val/loss")[-1] == pytest.approx(value(run, "val/loss"), rel=1e-6)
        assert history(records, "test/loss") == pytest.approx([value(run, "test/loss")], rel=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("module", ["population", "lightning"])
def test_each_run_has_a_run_of_mlflow(typed, module):
    done = typed(*SWEEP, "logger=mlflow", f"module={module}")
    assert done.returncode == 0, done.stderr
    assert rows_of("sweep/mlflow.db", "select name from experiments where name != 'Default'") == [("sweep",)]
    names = dict(rows_of("sweep/mlflow.db", "select name, run_uuid from runs"))
    assert sorted(names) == RUNS
    for run, number in names.items():
        query = f"select value from metrics where run_uuid = '{number}' and key = 'val/loss' order by step"
        losses = [row[0] for row in rows_of("sweep/mlflow.db", query)]
        assert len(losses) == 2
        assert losses[-1] == pytest.approx(value(run, "val/loss"), rel=1e-6)
        query = f"select status from runs where run_uuid = '{number}'"
        assert rows_of("sweep/mlflow.db", query) == [("FINISHED",)]
        query = f"select value from params where run_uuid = '{number}' and key = 'optimizer/lr'"
        assert rows_of("sweep/mlflow.db", query) == [("0.01",)]


@pytest.mark.parametrize("module", ["population", "lightning"])
def test_each_run_has_metrics_of_the_csv_logger(run_train, module):
    outcome = run_train(*SWEEP, "logger=csv_lightning", f"module={module}")
    assert (outcome.code, outcome.err) == (0, "")
    for run in RUNS:
        frame = pd.read_csv(f"sweep/{run}/csv/metrics.csv")
        assert frame["val/loss"].dropna().tolist()[-1] == pytest.approx(value(run, "val/loss"), rel=1e-6)
        assert frame["epoch"][frame["val/loss"].notna()].tolist() == [0, 1]
        assert "optimizer" in Path(f"sweep/{run}/csv/hparams.yaml").read_text()


def test_logger_by_target_is_named_after_its_run(run_train):
    logger = "+logger.extra.own._target_=pytorch_lightning.loggers.CSVLogger"
    outcome = run_train(*SWEEP, logger, "+logger.extra.own.save_dir=logs", "+logger.extra.own.prefix='{run}'")
    assert outcome.code == 0, outcome.err
    for run in RUNS:
        assert f"{run}-val/loss" in pd.read_csv(f"logs/{run}/version_0/metrics.csv")


@pytest.mark.slow
def test_wandb_without_create_new_is_refused(typed):
    logger = "+logger.extra.own._target_=pytorch_lightning.loggers.WandbLogger"
    done = typed(*SWEEP, logger, "+logger.extra.own.offline=true")
    assert done.returncode == 1
    line = "logger.extra.own gives 2 runs one experiment; use logger=wandb, or add "
    assert f"{line}+logger.extra.own.reinit=create_new" in done.stderr


@pytest.mark.slow
def test_missing_package_is_named():
    words = "sys.modules['wandb'] = None; sys.argv[1:] = ['logger=wandb']"
    code = f"import runpy, sys; {words}; runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert re.search(r"^error: .*logger\.extra\.wandb.*wandb", done.stderr)
    assert "Traceback" not in done.stderr
