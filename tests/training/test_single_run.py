"""Any LightningModule trains from the command line, and leaves the files of a run."""

import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from normlab.results.result import Result
from normlab.training.norm_module import NormModule

SHORT = ["trainer.max_epochs=2", "hydra.run.dir=run", "net.hidden=[8]"]
FILES = {"curves.csv", "result.json", "checkpoints", ".hydra", "train.log"}


class Mixup(NormModule):
    """Trains on convex combinations of samples."""

    def __init__(self, *parts, alpha: float = 0.2, **named) -> None:
        super().__init__(*parts, **named)
        self.alpha = alpha

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        share, other = torch.distributions.Beta(self.alpha, self.alpha).sample(), torch.randperm(len(x))
        mixed = (share * part + (1 - share) * part[other] for part in (x, y))
        return super().training_step(tuple(mixed), batch_idx)


class FromScratch(pl.LightningModule):
    """Takes the net alone, and has neither a test step nor the configured optimizer."""

    def __init__(self, net: nn.Module, lr: float = 0.01) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch, batch_idx):
        loss = nn.functional.huber_loss(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.huber_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=self.lr)


class GAN(pl.LightningModule):
    """Has two nets of its own and two optimizers, with manual optimization."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 5))
        self.discriminator = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 1))

    def loss(self, x: Tensor, target: float) -> Tensor:
        logits = self.discriminator(x)
        return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    def training_step(self, batch, batch_idx):
        generator, discriminator = self.optimizers()
        fake = self.generator(torch.randn(len(batch[0]), 4))
        for optimizer in (discriminator, generator):
            is_generator = optimizer is generator
            loss = self.loss(fake, 1) if is_generator else self.loss(batch[0], 1) + self.loss(fake.detach(), 0)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train/loss", loss, on_step=False, on_epoch=True)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(self.generator(torch.randn(len(batch[0]), 4)), 1))

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters()) for part in (self.generator, self.discriminator)]


@pytest.fixture(autouse=True)
def mylab(monkeypatch) -> None:
    """Make the classes importable as ``mylab``."""
    module = ModuleType("mylab")
    vars(module).update(Mixup=Mixup, FromScratch=FromScratch, GAN=GAN)
    monkeypatch.setitem(sys.modules, "mylab", module)


def result(folder: str = "run") -> Result:
    found = Result.read(Path(folder))
    assert found is not None
    return found


def last(name: str = "last") -> dict[str, Tensor]:
    return torch.load(f"run/checkpoints/{name}.pt", weights_only=True)["state_dict"]


def test_files_of_both_modules_are_the_same(run_train):
    for module in ("population", "lightning"):
        outcome = run_train(
            *SHORT[:1], f"hydra.run.dir={module}", f"module={module}", "probes=light", "trainer.precision=64-true"
        )
        assert outcome.code == 0, outcome.err
    one, other = (
        {path.relative_to(module).as_posix() for path in Path(module).rglob("*") if "tfevents" not in path.name}
        for module in ("population", "lightning")
    )
    assert one == other
    assert one >= {*FILES, "probes.csv", "checkpoints/best.pt", "checkpoints/last.pt"}
    assert all(list(Path(module).glob("*tfevents*")) for module in ("population", "lightning"))
    probes = [pd.read_csv(f"{module}/probes.csv") for module in ("population", "lightning")]
    keys = ["epoch", "step", "probe", "mode", "quantity"]
    assert probes[0][keys].equals(probes[1][keys])
    values = [frame["value"].to_numpy() for frame in probes]
    assert values[0] == pytest.approx(values[1], rel=1e-5, abs=1e-7, nan_ok=True)


def test_sweep_mixes_both_modules(run_train):
    sweep = ["module=population,lightning", "model=bn,nobn", "seed=0,1", "hydra.sweep.dir=sweep"]
    outcome = run_train("-m", *SHORT[:1], *SHORT[2:], *sweep)
    assert outcome.code == 0, outcome.err
    assert "8 runs in 2 populations, 4 alone" in outcome.out
    reason = "module._target_=normlab.training.norm_module.NormModule trains a single run"
    assert f"seed=0 are trained one by one: {reason}" in outcome.out
    summary = pd.read_csv("sweep/summary.csv")
    assert summary["status"].tolist() == ["finished"] * 8
    losses = summary.groupby(["model", "seed"])["best/val/loss"].agg(["min", "max", "count"])
    assert losses["count"].tolist() == [2] * 4
    assert losses["max"].to_numpy() == pytest.approx(losses["min"].to_numpy(), rel=1e-4)


def test_subclass_with_an_argument(run_train):
    outcome = run_train(*SHORT, "module._target_=mylab.Mixup", "+module.alpha=0.5")
    assert outcome.code == 0, outcome.err
    assert (result().status, result().epochs, result().steps) == ("finished", 2, 10)
    assert result().config["module"] == {"_target_": "mylab.Mixup", "alpha": 0.5}
    assert not any(name.startswith("net.") for name in last())


def test_module_from_scratch_says_what_it_does_not_take(run_train):
    outcome = run_train(*SHORT, "module._target_=mylab.FromScratch", "+module.lr=0.1")
    assert outcome.code == 0, outcome.err
    assert "takes no loss and no metrics and no optimizer and no scheduler" in outcome.out
    curves = pd.read_csv("run/curves.csv")
    assert set(curves["split"]) >= {"train", "val", "train_eval", "activation"}
    assert set(curves[curves["metric"] == "lr"]["value"]) == {0.1}
    assert result().test == {}


def test_manual_optimization_with_two_optimizers(run_train):
    outcome = run_train("data=random", "data.in_features=5", *SHORT, "module._target_=mylab.GAN")
    assert outcome.code == 0, outcome.err
    assert (result().status, result().steps) == ("finished", 20)
    assert {name.partition(".")[0] for name in last("best")} == {"generator", "discriminator"}


def test_manual_optimization_enters_the_report_of_a_sweep(run_train):
    words = ["data=random", "data.in_features=5", "module._target_=mylab.GAN", "+module.width=4,8", "seed=0,1"]
    outcome = run_train("-m", *SHORT[:1], *words, "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    summary = pd.read_csv("sweep/summary.csv")
    assert summary["status"].tolist() == ["finished"] * 4
    assert summary["module.width"].tolist() == [4, 4, 8, 8]
    assert summary["best/val/loss"].notna().all()
    curves = pd.read_csv("sweep/+module.width=4,seed=0/curves.csv")
    assert {*zip(curves["split"], curves["metric"], strict=True)} >= {("train", "loss"), ("val", "loss")}
    assert Path("sweep/report/index.html").exists()


def test_trainer_arguments_reach_lightning(run_train):
    words = [
        "+trainer.accumulate_grad_batches=2",
        "+trainer.limit_train_batches=4",
        "trainer.precision=bf16-mixed",
    ]
    outcome = run_train(*SHORT, "module=lightning", *words)
    assert outcome.code == 0, outcome.err
    assert (result().epochs, result().steps) == (2, 4)


def test_training_ends_after_max_steps(run_train):
    outcome = run_train(*SHORT, "module=lightning", "+trainer.max_steps=7")
    assert outcome.code == 0, outcome.err
    assert (result().status, result().epochs, result().steps) == ("finished", 2, 7)
    assert "test/loss" in result().final


def test_optimizer_with_a_closure(run_train):
    removed = [f"~optimizer.{key}" for key in ("betas", "eps", "weight_decay")]
    outcome = run_train(*SHORT, "module=lightning", "optimizer._target_=torch.optim.LBFGS", *removed)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_accumulated_minibatches_equal_one_of_twice_the_size(run_train, optimizer):
    # Whole minibatches of 64: their first and second halves are the minibatches of 32, in the same order.
    data = ["data=random", "data.train=320", "model=nobn", f"optimizer={optimizer}", "trainer.precision=64-true"]
    states = []
    for words in (["data.batch_size=64"], ["data.batch_size=32", "+trainer.accumulate_grad_batches=2"]):
        folder = f"hydra.run.dir=run{len(states)}"
        outcome = run_train("trainer.max_epochs=2", "module=lightning", *data, *words, "logger=csv", folder)
        assert outcome.code == 0, outcome.err
        path = f"run{len(states)}/checkpoints/last.pt"
        states.append(torch.load(path, weights_only=True)["state_dict"])
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-10, atol=1e-10)


MISTAKES = {
    "module=lightning +module.foo=2": "module.foo: normlab.training.norm_module.NormModule takes no such argument",
    "module._target_=torch.nn.Identity": "module._target_ must be a LightningModule of pytorch_lightning",
    "module._target_=torch.nn.Linear": "module: torch.nn.Linear needs the argument in_features; write",
    "module._target_=mylab.Nope": "module._target_=mylab.Nope cannot be loaded",
    "+module.compiles=true": "module.compiles: module=population takes no arguments",
    "module=lightning timing=true": "timing must be false with module._target_=normlab.training.norm_module",
    "module=lightning trainer.compile=true": "trainer.compile must be null or false with module._target_=normlab",
    "module=[population,lightning]": "a run has one module; choose one",
    "trainer.devices=2": "module=lightning takes others",
    "trainer.precision=bf16-mixed": "must be 32-true or 64-true (module=lightning takes others), got bf16-mixed",
    "module=lightning trainer.precision=banana": "Precision 'banana' is invalid",
    "module._target_=mylab.GAN probes=light": "probes must be none with module._target_=mylab.GAN",
}


@pytest.mark.parametrize(("mistake", "answer"), MISTAKES.items(), ids=MISTAKES)
def test_mistake_gives_one_line_and_writes_nothing(run_train, mistake, answer):
    outcome = run_train(*SHORT, *mistake.split(" "))
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("error: ")
    assert answer in line
    assert not Path("run").exists()
