"""Trainer arguments that this machine or the data rule out are refused in one line, before anything trains."""

from pathlib import Path

import pytest
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator

from normlab.errors import ConfigError
from normlab.training.trainer_checks import check_accelerator, served_batches

SHORT = [
    "trainer.max_epochs=1",
    "logger=csv",
    "data.train=60",
    "data.val=20",
    "data.test=20",
    "data.batch_size=30",
]


def refuse(outcome, answer: str) -> None:
    assert outcome.code == 1
    assert answer in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert not Path("outputs").exists()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(kind, "is_available", staticmethod(lambda: False))


@pytest.mark.parametrize(
    ("words", "answer"),
    {
        ("accelerator=gpu",): "trainer.accelerator=gpu: this machine has no GPU that torch can use; use cpu",
        (
            "accelerator=cuda",
        ): "trainer.accelerator=cuda: this machine has no CUDA device that torch can use; use cpu",
        (
            "accelerator=mps",
        ): "trainer.accelerator=mps: this machine has no MPS device that torch can use; use cpu",
        ("accelerator=nosuch",): "trainer.accelerator must be one of auto, cpu, cuda, gpu, mps, tpu, got nosuch",
        (
            "accelerator=mps",
            "precision=64-true",
        ): "trainer.precision=64-true: MPS has no float64; use trainer.accele",
    }.items(),
    ids=str,
)
@pytest.mark.usefixtures("no_gpu")
def test_accelerators(run_train, words, answer):
    typed = [f"trainer.{word}" for word in words]
    for how in (["module=population"], ["module=lightning"], ["-m", "module=population,lightning"]):
        refuse(run_train(*how, *typed, *SHORT), answer)


def test_gpu_that_is_mps_has_no_float64(monkeypatch):
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: False))
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    check_accelerator({"accelerator": "gpu", "precision": "32-true"})
    with pytest.raises(ConfigError, match=r"trainer.accelerator=gpu is MPS here, which has no float64; use cpu"):
        check_accelerator({"accelerator": "gpu", "precision": "64-true"})


@pytest.mark.parametrize(
    ("word", "answer"),
    {
        "val_check_interval=5": "trainer.val_check_interval must be an integer from 1 to 2, the minibatches",
        "val_check_interval=1.5": "trainer: You have passed invalid value 1.5 for val_check_interval",
        "limit_train_batches=0": "trainer.limit_train_batches must be above 0, as nothing trains otherwise, got 0",
        "limit_train_batches=0.1": "trainer.limit_train_batches must be 0, or at least 0.5, one of 2",
        "limit_val_batches=0": "trainer.limit_val_batches must be above 0, as optimized_metric=val/loss is",
        "limit_val_batches=0.5": "trainer.limit_val_batches must be 0, or at least 1, one of 1 minibatches",
        "overfit_batches=0.01": "trainer.overfit_batches must be 0, or at least 0.5, one of 2 minibatches",
        "accumulate_grad_batches=0": "trainer.accumulate_grad_batches must be an integer of at least 1, got 0",
        "max_time=soon": "trainer: `Timer(duration='soon')` is not a valid duration",
        "profiler=nosuch": "trainer: When passing string value for the `profiler` parameter of `Trainer`, it can",
        "barebones=true": "trainer.barebones has no effect here: it switches off the logging",
    }.items(),
)
def test_minibatches(run_train, word, answer):
    refuse(run_train("module=lightning", f"+trainer.{word}", *SHORT), answer)


def test_possible_numbers_of_minibatches(run_train):
    words = ["+trainer.val_check_interval=2", "+trainer.limit_train_batches=2", "+trainer.limit_test_batches=0"]
    outcome = run_train("module=lightning", *words, *SHORT)
    assert outcome.code == 0, outcome.err


def test_served_batches():
    assert served_batches("key", None, 7) == 7
    assert served_batches("key", 3, 7) == 3
    assert served_batches("key", 30, 7) == 7
    assert served_batches("key", 0.5, 7) == 3
    assert served_batches("key", 1.0, 7) == 7
    assert served_batches("key", 0.0, 7) == 0
