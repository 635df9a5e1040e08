"""Commands of a user who knows Lightning's documentation and not normlab's."""

import os
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from normlab.models import MLP
from normlab.norms import BatchNorm1d

ROOT = Path(__file__).parents[1]
SWEEP = "-m model=bn,nobn seed=0,1 trainer.max_epochs=4 hydra.sweep.dir=sweep"
RUNS = [f"model={model},seed={seed}" for model in ("bn", "nobn") for seed in (0, 1)]
STOP = "+callbacks.extra.stop._target_=pytorch_lightning.callbacks.EarlyStopping"
STOP += " +callbacks.extra.stop.monitor=val/loss"
KEEP = "+callbacks.extra.keep._target_=pytorch_lightning.callbacks.ModelCheckpoint"
RATES = "+callbacks.extra.rates._target_=pytorch_lightning.callbacks.LearningRateMonitor"
OWN_CSV = "+logger.extra.own._target_=pytorch_lightning.loggers.CSVLogger +logger.extra.own.save_dir=logs"


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "words",
    [
        "scheduler._target_=torch.optim.lr_scheduler.StepLR scheduler.step_size=3",
        "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR scheduler.max_lr=0.1 scheduler.interval=step",
        "loss=huber loss.delta=2",
        "loss._target_=torch.nn.HuberLoss",
        "data=digits loss=cross_entropy loss.label_smoothing=0.1",
        f"trainer.check_val_every_n_epoch=2 {STOP}",
        RATES,
        f"{KEEP} +callbacks.extra.keep.monitor=val/loss",
        OWN_CSV,
        "optimizer._target_=torch.optim.RMSprop optimizer.alpha=0.9",
    ],
)
def test_population_does_as_typed(run_train, words):
    outcome = run_train(*SWEEP.split(), *shlex.split(words))
    assert (outcome.code, outcome.err) == (0, "")
    assert "4 runs in 2 populations" in outcome.out
    assert pd.read_csv("sweep/summary.csv")["status"].tolist() == ["finished"] * 4


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "words",
    [
        "module=lightning trainer.precision=bf16-mixed",
        "module=lightning +trainer.accumulate_grad_batches=2",
        "module=lightning +trainer.limit_train_batches=2",
        "module=lightning +trainer.limit_train_batches=0.5 +trainer.limit_val_batches=1",
        "module=lightning optimizer._target_=torch.optim.LBFGS optimizer.max_iter=3",
        f"module=lightning trainer.check_val_every_n_epoch=2 {STOP} {RATES} {KEEP} {OWN_CSV}",
    ],
)
def test_lightning_module_does_as_typed(run_train, words):
    outcome = run_train(*SWEEP.split(), *shlex.split(words))
    assert (outcome.code, outcome.err) == (0, "")
    assert "4 runs, one by one" in outcome.out
    assert pd.read_csv("sweep/summary.csv")["status"].tolist() == ["finished"] * 4


@pytest.mark.parametrize(
    "words",
    [
        "trainer.precision=bf16-mixed",
        "+trainer.accumulate_grad_batches=2",
        "+trainer.limit_train_batches=2",
        "trainer.devices=2",
        "optimizer._target_=torch.optim.LBFGS",
    ],
)
def test_population_names_the_module_that_does(run_train, words):
    outcome = run_train(*SWEEP.split(), *words.split())
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert "module=lightning" in outcome.err
    assert not Path("sweep").exists()


def test_limited_batches_are_steps(run_train):
    words = ["module=lightning", "+trainer.limit_train_batches=2", "hydra.run.dir=run"]
    assert run_train("trainer.max_epochs=3", *words).code == 0
    assert pd.read_csv("run/curves.csv")["step"].max() == 6


def test_checkpoint_of_a_member_loads_into_its_net(run_train):
    assert run_train(*SWEEP.split(), *KEEP.split(), "net.hidden=[7]").code == 0
    for run in RUNS[:2]:
        (path,) = Path(f"sweep/{run}/checkpoints").glob("*.ckpt")
        state = torch.load(path, weights_only=False)["state_dict"]
        net = MLP((3,), 1, hidden=[7], norm=BatchNorm1d)
        net.load_state_dict({name.removeprefix("net."): value for name, value in state.items()})
        last = torch.load(f"sweep/{run}/checkpoints/last.pt", weights_only=True)["state_dict"]
        assert all(torch.equal(value, last[name]) for name, value in net.state_dict().items())


FILES = {
    "mylab/__init__.py": "",
    "mylab/mixup.py": """
import torch

from normlab.training.norm_module import NormModule


class Mixup(NormModule):
    def training_step(self, batch, batch_idx):
        x, y = batch
        share, order = torch.rand(()), torch.randperm(len(x))
        mixed = share * x + (1 - share) * x[order]
        loss = share * self.loss(self(mixed), y) + (1 - share) * self.loss(self(mixed), y[order])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss
""",
    "conf/experiment/mine.yaml": """
# @package _global_
defaults:
  - override /module: mixup
  - override /loss: huber
  - override /scheduler: onecycle
  - override /logger: wandb
trainer:
  max_epochs: 8
callbacks:
  extra:
    stop:
      _target_: pytorch_lightning.callbacks.EarlyStopping
      monitor: val/loss
      patience: 3
""",
    "conf/module/mixup.yaml": "_target_: mylab.mixup.Mixup\n",
}


@pytest.mark.thorough
def test_forty_lines_bring_mixup_huber_onecycle_stopping_and_wandb(warm_python, tmp_path):
    assert sum(len(text.strip().splitlines()) for text in FILES.values()) < 40
    shutil.copy(ROOT / "train.py", tmp_path)
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.lstrip())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arms = ["-m", "experiment=mine", "module=mixup,population", "model=bn,nobn", "seed=range(2)"]
    done = warm_python.run(["train.py", *arms, "hydra.sweep.dir=sweep"], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "sweep/summary.csv")
    assert len(table) == 8
    assert set(table["status"]) == {"finished"}
    page = (tmp_path / "sweep/report/index.html").read_text()
    assert set(table["module"]) == {"mixup", "population"}
    assert "mixup" in page
    assert len(list((tmp_path / "sweep").glob("*/wandb/offline-run-*/*.wandb"))) == 8
