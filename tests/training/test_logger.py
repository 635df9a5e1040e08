"""Lightning's TensorBoardLogger writes the events of a LightningModule to the event file of its run."""

import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn


class Logging(pl.LightningModule):
    """Logs a number per step, and a histogram by the experiment of its logger."""

    def __init__(self, net: nn.Module, lr: float = 1e-4) -> None:
        super().__init__()
        self.net = net
        self.save_hyperparameters(ignore="net")

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        self.log("train/step_loss", loss, on_step=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def on_train_epoch_end(self):
        self.logger.experiment.add_histogram("weights", self.net.output.weight, self.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


@pytest.fixture(autouse=True)
def mylab(monkeypatch) -> None:
    """Make the class importable as ``mylab``."""
    module = ModuleType("mylab")
    vars(module).update(Logging=Logging)
    monkeypatch.setitem(sys.modules, "mylab", module)


def tags(folder: str) -> dict[str, list[int]]:
    """Return the steps of each tag in the event file that a training has written."""
    (path,) = (path for path in Path(folder).glob("events.*.normlab") if "closed" not in path.name)
    steps = defaultdict(list)
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            steps[value.tag].append(event.step)
    return steps


COMMAND = ["net.hidden=[4]", "trainer.max_epochs=2", "hydra.run.dir=run"]


def test_module_writes_to_the_event_file_of_its_run(run_train):
    for words in ([], ["retrain=true"]):
        outcome = run_train(*COMMAND, "module._target_=mylab.Logging", *words)
        assert outcome.code == 0, outcome.err
    written = tags("run")
    assert written["train/step_loss"] == [*range(10)]
    assert written["train/loss"] == written["val/loss"] == [4, 9]
    assert written["weights"] == [5, 10]
    assert not list(Path("run").glob("hparams.yaml"))


def test_each_metric_has_one_tag_and_the_run_one_hparams_summary(run_train):
    outcome = run_train(*COMMAND, "module=lightning", "probes=light", "statistics=reestimated")
    assert outcome.code == 0, outcome.err
    written = tags("run")
    assert all(len(steps) == len(set(steps)) for tag, steps in written.items() if tag != "epoch")
    assert written["_hparams_/session_start_info"] == written["_hparams_/session_end_info"] == [0]
    assert len(written["config/text_summary"]) == 1
    # Lightning writes what the module logs, normlab the rest.
    assert written["train/loss"] == written["val/loss"] == [4, 9]
    assert written["train/lr"] == written["~train_eval/loss"] == [5, 10]
    assert written["~val_activation/hidden1/after_std"] == [5, 10]
    assert any(tag.startswith("~probe/") for tag in written)
    assert "~test/loss" in written


def test_own_hyperparameters_of_a_module_add_no_summary(run_train):
    outcome = run_train(*COMMAND, "module._target_=mylab.Logging")
    assert outcome.code == 0, outcome.err
    assert tags("run")["_hparams_/session_start_info"] == [0]


def test_csv_logger_has_no_event_file(run_train):
    outcome = run_train(*COMMAND, "module=lightning", "logger=csv")
    assert outcome.code == 0, outcome.err
    assert not list(Path("run").glob("events.*"))
