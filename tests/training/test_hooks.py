"""Under ``module=lightning`` a callback's hooks are called in the order that Lightning documents."""

import sys
from types import ModuleType
from typing import ClassVar

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

STEP = [
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
]
VALIDATION = [
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
]
EPOCH = ["on_train_epoch_start", *STEP, *STEP, *VALIDATION, "on_train_epoch_end"]
FIT = ["setup", "on_fit_start", "on_train_start", *EPOCH, *EPOCH, "on_train_end", "on_fit_end", "teardown"]
"""Two epochs of two minibatches; lightning.ai/docs/pytorch/stable/common/lightning_module.html#hooks."""


class Recorder(pl.Callback):
    """Records the names of its hooks during fit, and the metrics that it sees at the end of an epoch."""

    called: ClassVar[list[str]] = []
    seen: ClassVar[list[dict[str, float]]] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.seen.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def recording(name: str, inner):
    def hook(self, trainer, *arguments, **named):
        if trainer.state.fn == "fit":
            self.called.append(name)
        return inner(self, trainer, *arguments, **named)

    return hook


for hook_name in {*FIT}:
    setattr(Recorder, hook_name, recording(hook_name, getattr(Recorder, hook_name)))


class Late(pl.LightningModule):
    """Logs a number at the end of an epoch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", float(self.current_epoch + 1))

    def validation_step(self, batch, batch_idx) -> None:
        self.log("val/loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


@pytest.fixture(autouse=True)
def mylab(monkeypatch) -> None:
    """Make the classes importable as ``mylab``, and forget earlier calls."""
    module = ModuleType("mylab")
    vars(module).update(Recorder=Recorder, Late=Late)
    monkeypatch.setitem(sys.modules, "mylab", module)
    Recorder.called, Recorder.seen = [], []


COMMAND = ["net.hidden=[4]", "data.train=64", "data.batch_size=32", "trainer.max_epochs=2", "hydra.run.dir=run"]


@pytest.mark.parametrize("probes", ["none", "light"])
def test_hooks_are_called_in_the_documented_order(run_train, probes):
    words = ["module=lightning", f"probes={probes}", "+callbacks.extra.mine._target_=mylab.Recorder"]
    outcome = run_train(*COMMAND, *words)
    assert outcome.code == 0, outcome.err
    assert Recorder.called == FIT


def test_callback_sees_the_metrics_of_the_epoch_at_its_end(run_train):
    outcome = run_train(*COMMAND, "module=lightning", "+callbacks.extra.mine._target_=mylab.Recorder")
    assert outcome.code == 0, outcome.err
    curves = pd.read_csv("run/curves.csv")
    for epoch, seen in enumerate(Recorder.seen, 1):
        rows = curves[(curves["epoch"] == epoch) & (curves["metric"] == "loss")]
        recorded = dict(zip(rows["split"], rows["value"], strict=True))
        assert (seen["train/loss"], seen["val/loss"]) == (recorded["train"], recorded["val"])


def test_numbers_logged_at_the_end_of_an_epoch_are_recorded(run_train):
    words = [
        "module._target_=mylab.Late",
        "+callbacks.extra.keep._target_=pytorch_lightning.callbacks.ModelCheckpoint",
    ]
    outcome = run_train(*COMMAND, *words, "+callbacks.extra.keep.monitor=train/loss")
    assert outcome.code == 0, outcome.err
    curves = pd.read_csv("run/curves.csv")
    assert curves[(curves["split"] == "train") & (curves["metric"] == "loss")]["value"].tolist() == [1.0, 2.0]
