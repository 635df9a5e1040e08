"""Populations that end in another way than all members together."""

import logging
import sys
import weakref
from pathlib import Path
from types import ModuleType

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from normlab.results.result import Result, Status
from normlab.sweep.workers import train_groups
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = str(Path(__file__).parents[2] / "conf")


def runs_of(folder: Path, members: int, *overrides: str) -> list[Run]:
    """Return short runs that differ in their seeds."""
    with initialize_config_dir(CONF, version_base="1.3"):
        configs = [compose("train", overrides=[*overrides, f"seed={seed}"]) for seed in range(members)]
    return [Run(config, folder / str(k), str(k), {"model": "bn"}, []) for k, config in enumerate(configs)]


class Small(pl.Callback):
    """A device that has no room for more than two members in the second epoch."""

    error: BaseException = torch.OutOfMemoryError("CUDA out of memory")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1 and pl_module.population.members > 2:
            raise self.error


class Gone(pl.Callback):
    """Notes which populations of before are still in memory when one begins; the first has no room."""

    populations: list[weakref.ref] = []  # noqa: RUF012 - each test gets a list of its own
    alive: list[int] = []  # noqa: RUF012
    error: BaseException | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.alive.append(sum(population() is not None for population in self.populations))
        self.populations.append(weakref.ref(pl_module))
        if len(self.populations) == 1:
            raise MemoryError
        if self.error is not None:
            raise self.error


class Late(pl.Callback):
    """Ends the training in its tenth epoch."""

    error: BaseException = RuntimeError("out of luck")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 9:
            raise self.error


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    module = ModuleType("somebody")
    module.Small, module.Late, module.Gone = Small, Late, Gone
    monkeypatch.setattr(Gone, "populations", [])
    monkeypatch.setattr(Gone, "alive", [])
    monkeypatch.setitem(sys.modules, "somebody", module)


ON_THE_CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), MemoryError(), ON_THE_CPU])
def test_a_population_that_the_memory_does_not_hold_is_halved(tmp_path, monkeypatch, caplog, error):
    monkeypatch.setattr(Small, "error", error)
    runs = runs_of(tmp_path, 5, "trainer.max_epochs=3", "+callbacks.extra.x._target_=somebody.Small")
    with caplog.at_level(logging.WARNING, logger="normlab"):
        ((_, values),) = train_groups([runs], n_jobs=1)
    results = [Result.read(run.folder) for run in runs]
    assert values == [result.objective.value for result in results]
    assert {result.status for result in results} == {Status.FINISHED}
    assert not (runs[4].folder / "error.txt").exists()
    said = "out of memory with %d runs at once; continuing with half as many"
    assert [record.msg for record in caplog.records] == [said] * 2
    assert [record.args for record in caplog.records] == [(5,), (3,)]


def test_a_population_is_gone_from_memory_when_the_next_begins(tmp_path):
    runs = runs_of(tmp_path, 4, "trainer.max_epochs=1", "+callbacks.extra.x._target_=somebody.Gone")
    ((_, values),) = train_groups([runs], n_jobs=1)
    assert len(values) == 4
    assert Gone.alive == [0, 0, 0]


def test_ctrl_c_after_memory_ran_out_leaves_no_run_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(Gone, "error", KeyboardInterrupt())
    runs = runs_of(tmp_path, 4, "trainer.max_epochs=1", "+callbacks.extra.x._target_=somebody.Gone")
    with pytest.raises(KeyboardInterrupt):
        list(train_groups([runs], n_jobs=1))
    assert [Result.read(run.folder).status for run in runs] == [Status.STOPPED] * 4


def test_a_run_alone_that_the_memory_does_not_hold_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(Late, "error", torch.OutOfMemoryError("CUDA out of memory"))
    runs = runs_of(tmp_path, 1, "trainer.max_epochs=11", "+callbacks.extra.x._target_=somebody.Late")
    ((_, (value,)),) = train_groups([runs], n_jobs=1)
    assert isinstance(value, torch.OutOfMemoryError)
    assert Result.read(runs[0].folder).status == Status.FAILED


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("out of luck"), Status.FAILED), (KeyboardInterrupt(), Status.STOPPED)]
)
def test_a_member_that_stopped_early_is_finished_whatever_ends_the_rest(tmp_path, monkeypatch, error, status):
    monkeypatch.setattr(Late, "error", error)
    stopping = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2", "data.standardize=true"]
    common = ["trainer.max_epochs=20", "+callbacks.extra.x._target_=somebody.Late", *stopping]
    runs = [run for lr in (1e-9, 1e-2) for run in runs_of(tmp_path / str(lr), 1, *common, f"optimizer.lr={lr}")]
    with pytest.raises(type(error)):
        train(runs)
    early, late = (Result.read(run.folder) for run in runs)
    assert (early.status, late.status) == (Status.FINISHED, status)
    assert early.epochs < late.epochs == 9
    assert early.test
    assert not late.test
