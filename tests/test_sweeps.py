"""Sweeps with a failing run, another sweeper, added seeds or a diverged run."""

import sys
import time
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import pytorch_lightning as pl

from normlab.norms import BatchNorm1d
from normlab.results.result import Result, Status


class FailsInEpoch2(pl.Callback):
    """Raises in the second epoch of a net with BatchNorm."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        normalized = any(isinstance(layer, BatchNorm1d) for layer in pl_module.modules())
        if trainer.current_epoch == 1 and normalized:
            raise RuntimeError("out of luck")


@pytest.fixture
def failing_callback(monkeypatch):
    """Return the override that adds a failing callback from a user module."""
    module = ModuleType("user_module")
    module.FailsInEpoch2 = FailsInEpoch2
    monkeypatch.setitem(sys.modules, "user_module", module)
    return "+callbacks.extra.bomb._target_=user_module.FailsInEpoch2"


def test_sweep_continues_after_a_failed_run(run_train, failing_callback):
    outcome = run_train("-m", "model=bn,nobn", "trainer.max_epochs=3", "hydra.sweep.dir=sweep", failing_callback)
    assert outcome.code == 1
    assert outcome.err.strip().splitlines()[-1] == "error: out of luck"
    assert "failed runs are excluded from all means; summary.csv lists them" in outcome.out
    runs = pd.read_csv("sweep/summary.csv").set_index("model")
    assert runs["status"].to_dict() == {"bn": "failed", "nobn": "finished"}
    assert runs.loc["bn", "error"] == "out of luck"
    assert Path("sweep/curves.png").exists()
    assert "RuntimeError: out of luck" in Path("sweep/model=bn/error.txt").read_text()
    result = Result.read(Path("sweep/model=bn"))
    assert result is not None
    assert (result.status, result.epochs) == (Status.FAILED, 1)


def test_basic_sweeper_writes_a_report(run_train):
    outcome = run_train(
        "-m", "hydra/sweeper=basic", "model=bn,nobn", "trainer.max_epochs=1", "hydra.sweep.dir=sweep"
    )
    assert outcome.code == 0, outcome.err
    assert "one seed supports no claim" in outcome.out
    assert len(pd.read_csv("sweep/summary.csv")) == 2
    folders = sorted(path.name for path in Path("sweep").iterdir() if (path / ".hydra").is_dir())
    assert folders == ["0_model=bn,trainer.max_epochs=1", "1_model=nobn,trainer.max_epochs=1"]


@pytest.mark.thorough
def test_seeds_can_be_added_to_a_sweep(run_train):
    for seeds, plan in (("range(2)", "4 runs in 2 populations"), ("range(3)", "2 runs, one by one")):
        before, started = set(Path().glob("sweep/*/result.json")), time.time_ns()
        outcome = run_train(
            "-m", "model=bn,nobn", f"seed={seeds}", "trainer.max_epochs=1", "hydra.sweep.dir=sweep"
        )
        assert outcome.code == 0, outcome.err
        assert plan in outcome.out.splitlines()[:2]
        written = {path for path in before if path.stat().st_mtime_ns > started}
        assert not written, "a run that was done is left alone"
    table = pd.read_csv("sweep/table.csv")
    assert table["runs"].tolist() == [3, 3]


def test_diverged_run_does_not_fail_the_sweep(run_train):
    arguments = ["model=bn,nobn", "optimizer=sgd", "optimizer.lr=100", "trainer.max_epochs=5", "logger=csv"]
    outcome = run_train("-m", *arguments, "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert pd.read_csv("sweep/summary.csv").set_index("model").loc["nobn", "status"] == "diverged"
