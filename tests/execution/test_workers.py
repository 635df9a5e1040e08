"""Populations that run out of memory, fail or are stopped."""

import logging
import sys
import weakref
from pathlib import Path
from types import ModuleType

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from normlab.config.validation import validate
from normlab.execution.executors import InProcess, train_groups
from normlab.execution.grouping import Group
from normlab.results.result import Result, Status
from normlab.training.dry_run import dry_run_once
from normlab.training.member_callbacks import MemberTrainer
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = str(Path(__file__).parents[2] / "conf")


def runs_of(folder: Path, members: int, *overrides: str) -> list[Run]:
    """Return short runs that differ in their seeds."""
    with initialize_config_dir(CONF, version_base="1.3"):
        configs = [validate(compose("train", overrides=[*overrides, f"seed={seed}"])) for seed in range(members)]
    return [Run(config, folder / str(k), str(k), {"model": "bn"}, []) for k, config in enumerate(configs)]


def group_of(runs: list[Run]) -> Group:
    """Return a group of runs, even if their callbacks handle single runs."""
    return Group(list(range(len(runs))), runs, dry_run_once(runs[0].config))


class LimitedMemory(pl.Callback):
    """Runs out of memory in the second epoch with more than two members."""

    error: BaseException = torch.OutOfMemoryError("CUDA out of memory")

    def on_train_epoch_start(self, trainer: MemberTrainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1 and trainer.population.population.members > 2:
            raise self.error


class MemoryTracker(pl.Callback):
    """Counts earlier populations still in memory at each start; the first runs out of memory."""

    populations: list[weakref.ref] = []  # noqa: RUF012 - a fixture replaces the list for each test
    alive: list[int] = []  # noqa: RUF012
    error: BaseException | None = None

    def on_train_start(self, trainer: MemberTrainer, pl_module: pl.LightningModule) -> None:
        if trainer.k > 0:  # another member of the same population
            return
        self.alive.append(sum(population() is not None for population in self.populations))
        self.populations.append(weakref.ref(trainer.population))
        if len(self.populations) == 1:
            raise MemoryError
        if self.error is not None:
            raise self.error


class FailsInEpoch10(pl.Callback):
    """Raises an error in the tenth epoch."""

    error: BaseException = RuntimeError("out of luck")

    def on_train_epoch_start(self, trainer: MemberTrainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 9:
            raise self.error


@pytest.fixture(autouse=True)
def user_module(monkeypatch):
    module = ModuleType("user_module")
    module.LimitedMemory, module.FailsInEpoch10, module.MemoryTracker = (
        LimitedMemory,
        FailsInEpoch10,
        MemoryTracker,
    )
    monkeypatch.setattr(MemoryTracker, "populations", [])
    monkeypatch.setattr(MemoryTracker, "alive", [])
    monkeypatch.setitem(sys.modules, "user_module", module)


CPU_ERROR = RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), MemoryError(), CPU_ERROR])
def test_population_is_halved_if_memory_runs_out(tmp_path, monkeypatch, caplog, error):
    monkeypatch.setattr(LimitedMemory, "error", error)
    runs = runs_of(tmp_path, 5, "trainer.max_epochs=3", "+callbacks.extra.x._target_=user_module.LimitedMemory")
    with caplog.at_level(logging.WARNING, logger="normlab"):
        ((_, values),) = train_groups([group_of(runs)], InProcess())
    results = [Result.read(run.folder) for run in runs]
    assert values == [result.objective.value for result in results]
    assert {result.status for result in results} == {Status.FINISHED}
    assert not (runs[4].folder / "error.txt").exists()
    message = "out of memory with %d runs at once; continuing with half as many"
    assert [record.msg for record in caplog.records] == [message] * 2
    assert [record.args for record in caplog.records] == [(5,), (3,)]


def test_population_is_freed_before_the_next_begins(tmp_path):
    runs = runs_of(tmp_path, 4, "trainer.max_epochs=1", "+callbacks.extra.x._target_=user_module.MemoryTracker")
    ((_, values),) = train_groups([group_of(runs)], InProcess())
    assert len(values) == 4
    assert MemoryTracker.alive == [0, 0, 0]


def test_ctrl_c_after_out_of_memory_marks_runs_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(MemoryTracker, "error", KeyboardInterrupt())
    runs = runs_of(tmp_path, 4, "trainer.max_epochs=1", "+callbacks.extra.x._target_=user_module.MemoryTracker")
    with pytest.raises(KeyboardInterrupt):
        list(train_groups([group_of(runs)], InProcess()))
    assert [Result.read(run.folder).status for run in runs] == [Status.STOPPED] * 4


def test_single_run_out_of_memory_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(FailsInEpoch10, "error", torch.OutOfMemoryError("CUDA out of memory"))
    runs = runs_of(tmp_path, 1, "trainer.max_epochs=11", "+callbacks.extra.x._target_=user_module.FailsInEpoch10")
    ((_, (value,)),) = train_groups([group_of(runs)], InProcess())
    assert isinstance(value, torch.OutOfMemoryError)
    assert Result.read(runs[0].folder).status == Status.FAILED


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("out of luck"), Status.FAILED), (KeyboardInterrupt(), Status.STOPPED)]
)
def test_early_stopped_member_is_finished(tmp_path, monkeypatch, error, status):
    monkeypatch.setattr(FailsInEpoch10, "error", error)
    stopping = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2", "data.standardize=true"]
    common = ["trainer.max_epochs=20", "+callbacks.extra.x._target_=user_module.FailsInEpoch10", *stopping]
    runs = [run for lr in (1e-9, 1e-2) for run in runs_of(tmp_path / str(lr), 1, *common, f"optimizer.lr={lr}")]
    with pytest.raises(type(error)):
        train(runs)
    early, late = (Result.read(run.folder) for run in runs)
    assert (early.status, late.status) == (Status.FINISHED, status)
    assert early.epochs < late.epochs == 9
    assert early.test
    assert not late.test
