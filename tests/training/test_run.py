"""The files of a run, however its training ends."""

import csv
import math
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from normlab.config.validation import validate
from normlab.errors import ConfigError
from normlab.results.events import hparam_group
from normlab.results.folder import require_run_folder
from normlab.results.result import Result, Status
from normlab.training import session
from normlab.training.build import make_data
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = str(Path(__file__).parents[2] / "conf")


def run_of(folder: Path, *overrides: str) -> Run:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", overrides=["trainer.max_epochs=3", *overrides])
    written = OmegaConf.to_container(config)
    return Run(validate(config), folder, "a run", {"model": "bn"}, list(overrides), written)


def train_one(folder: Path, *overrides: str) -> Result:
    (result,) = train([run_of(folder, *overrides)])
    return result


def curve(folder: Path, metric: str) -> list[float]:
    with (folder / "curves.csv").open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if f"{row['split']}/{row['metric']}" == metric]


def test_finished_run_writes_all_files(tmp_path):
    result = train_one(tmp_path)
    assert result.status == Status.FINISHED
    assert Result.read(tmp_path) == result
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    (events,) = [name for name in files if name.startswith("events.out.tfevents")]
    assert files == {
        events,
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        "curves.csv",
        "result.json",
        "train.log",
    }
    newest = max(tmp_path.rglob("*.*"), key=lambda path: path.stat().st_mtime_ns if path.is_file() else 0)
    assert newest.name == "result.json"


@pytest.mark.parametrize("replicate", ["data", "seed"])
def test_recorded_data_seed_reproduces_the_split(tmp_path, replicate):
    sizes = {"generated": False, "train": 106, "val": 36, "test": 36}
    overrides = ["data=wine", "data.standardize=false", f"replicate={replicate}"]
    runs = [run_of(tmp_path / str(seed), *overrides, f"seed={seed}") for seed in (3, 4)]
    train(runs)
    described = [Result.read(run.folder).data for run in runs]
    seeds = [data.pop("seed") for data in described]
    assert described == [sizes, sizes]
    assert (len(set(seeds)) == 2) == (replicate == "data")
    for run, seed in zip(runs, seeds, strict=True):
        again = run_of(tmp_path, "data=wine", "data.standardize=false", "replicate=seed", f"data.seed={seed}")
        assert torch.equal(make_data(run.config).parts[0].x, make_data(again.config).parts[0].x)


def test_objective_is_the_best_metric_value(tmp_path):
    result = train_one(tmp_path, "trainer.max_epochs=20")
    losses = curve(tmp_path, "val/loss")
    assert len(losses) == 20
    assert result.objective.value == min(losses)
    assert result.best is not None
    assert result.last is not None
    assert result.best.epoch == losses.index(min(losses)) + 1
    assert result.last.metrics["val/loss"] == losses[-1]
    assert curve(tmp_path, "best/val/loss") == [min(losses)]


def test_metric_is_maximized(tmp_path):
    result = train_one(tmp_path, "trainer.max_epochs=20", "optimized_metric=val/r2")
    assert result.objective.direction == "max"
    assert result.objective.value == max(curve(tmp_path, "val/r2"))


def test_test_metrics_use_the_best_checkpoint(tmp_path):
    run = run_of(tmp_path, "trainer.max_epochs=30", "data.standardize=true", "optimizer.lr=0.1")
    (result,) = train([run])
    assert result.best is not None
    assert result.best.epoch < 30
    checkpoint = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    assert checkpoint["epoch"] == result.best.epoch
    data = session.make_data(run.config)
    net = session.make_module([run.config], data).population.net
    net.load_state_dict(checkpoint["state_dict"])
    outputs = net.eval()(data.parts[2].x)
    loss = nn.functional.mse_loss(outputs, data.parts[2].y).item()
    assert result.test["test/loss"] == pytest.approx(loss, rel=1e-6)


def test_checkpoints_load_into_a_plain_net(tmp_path):
    run = run_of(tmp_path, "model=bn_torch")
    train([run])
    for name in ("best", "last"):
        checkpoint = torch.load(tmp_path / "checkpoints" / f"{name}.pt", weights_only=True)
        net = nn.Sequential(nn.Linear(3, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 1))
        net.load_state_dict(dict(zip(net.state_dict(), checkpoint["state_dict"].values(), strict=True)))
        assert checkpoint["metrics"].keys() >= {"train/loss", "val/loss"}


def test_seed_reproduces_the_curves(tmp_path):
    train_one(tmp_path / "one")
    train_one(tmp_path / "two")
    train_one(tmp_path / "other", "seed=1")
    one, two, other = ((tmp_path / name / "curves.csv").read_text() for name in ("one", "two", "other"))
    assert one == two
    assert one != other


def test_arms_with_one_seed_share_weights_and_batches(tmp_path):
    frozen = ["optimizer=sgd", "optimizer.lr=1e-30", "optimizer.momentum=0"]
    states = {}
    for model in ("bn", "nobn"):
        train_one(tmp_path / model, f"model={model}", *frozen)
        checkpoint = torch.load(tmp_path / model / "checkpoints" / "last.pt", weights_only=True)
        states[model] = checkpoint["state_dict"]
    for name, weight in states["nobn"].items():
        assert torch.equal(states["bn"][name], weight), name


def test_diverged_run_returns_the_worst_value(tmp_path):
    result = train_one(tmp_path, "model=nobn", "optimizer=sgd", "optimizer.lr=100", "trainer.max_epochs=50")
    assert result.status == Status.DIVERGED
    assert result.objective.value == math.inf
    assert result.test == {}
    assert result.epochs < 50
    assert not math.isfinite(curve(tmp_path, "train/loss")[-1])
    assert Result.read(tmp_path).objective.value == math.inf


def test_diverged_maximization_returns_minus_infinity(tmp_path):
    changes = ["model=nobn", "optimizer=sgd", "optimizer.lr=100", "optimized_metric=val/r2"]
    assert train_one(tmp_path, *changes, "trainer.max_epochs=50").objective.value == -math.inf


class Broken(nn.Module):
    """A normalizer that fails in the middle of the training."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if self.calls > 4:
            raise RuntimeError("the fifth batch was too much")
        return x


def test_failed_run_writes_error_and_checkpoint(tmp_path, monkeypatch):
    run = run_of(tmp_path)
    monkeypatch.setattr(session, "make_module", broken(session.make_module))
    with pytest.raises(RuntimeError, match="the fifth batch"):
        train([run])
    result = Result.read(tmp_path)
    assert result.status == Status.FAILED
    assert result.error == "the fifth batch was too much"
    assert "Traceback" in (tmp_path / "error.txt").read_text()
    assert (tmp_path / "checkpoints" / "last.pt").exists()


def broken(make_module):
    def make(configs, data):
        module = make_module(configs, data)
        module.population.net.hidden1.norm = Broken(64)
        return module

    return make


def test_failed_run_is_retrained_and_finished_is_not(tmp_path, monkeypatch):
    run = run_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(session, "make_module", broken(session.make_module))
        with pytest.raises(RuntimeError):
            train([run])
    (second,) = train([run])
    assert second.status == Status.FINISHED
    assert not (tmp_path / "error.txt").exists()
    assert len(list(tmp_path.glob("events*"))) == 1
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    (third,) = train([run])
    assert third == second
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


def test_folder_of_other_configuration_raises(tmp_path):
    train_one(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match=r"a run of another configuration \(it differs in optimizer\.lr"):
        train_one(tmp_path, "optimizer.lr=0.5")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


def test_early_stopping_after_patience_epochs(tmp_path):
    changes = ["data=random", "callbacks=early_stopping", "callbacks.early_stopping.patience=3"]
    result = train_one(tmp_path, *changes, "trainer.max_epochs=200", "optimizer.lr=0.05")
    assert result.status == Status.FINISHED
    assert result.epochs < 200
    assert result.best is not None
    assert result.epochs == result.best.epoch + 3


def test_training_loss_is_optimized_without_validation(tmp_path):
    changes = ["data.val=0", "data.test=0", "optimized_metric=train/loss"]
    result = train_one(tmp_path, *changes)
    assert result.status == Status.FINISHED
    assert result.objective.value == min(curve(tmp_path, "train/loss"))
    assert result.test == {}


def test_zero_epochs_finish_without_best(tmp_path):
    result = train_one(tmp_path, "trainer.max_epochs=0")
    assert (result.status, result.steps, result.best) == (Status.FINISHED, 0, None)
    assert result.objective.value == math.inf


def test_float64_precision(tmp_path):
    train_one(tmp_path, "trainer.precision=64-true")
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float64}


def test_leftover_sample_joins_last_batch_with_warning(tmp_path, caplog):
    with caplog.at_level("WARNING", logger="normlab"):
        result = train_one(tmp_path, "data.batch_size=599")
    assert "leave a single sample; it joins the last batch, which then has 600" in caplog.text
    assert result.steps == 3


def test_global_generator_does_not_affect_a_run(tmp_path):
    torch.manual_seed(1)
    train_one(tmp_path / "one")
    torch.manual_seed(2)
    torch.randn(5)
    train_one(tmp_path / "two")
    assert (tmp_path / "one" / "curves.csv").read_text() == (tmp_path / "two" / "curves.csv").read_text()


def test_foreign_normalizer_trains(tmp_path):
    foreign = ["model=bn_torch", "model.norm._target_=torch.nn.LayerNorm", "~model.norm.momentum"]
    assert train_one(tmp_path, *foreign).status == Status.FINISHED
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["state_dict"]
    assert "hidden1.norm.weight" in state
    assert "hidden1.norm.running_mean" not in state


def test_lightning_logger_and_checkpoint_can_be_added(tmp_path):
    changes = [
        "+logger.extra.csv._target_=pytorch_lightning.loggers.CSVLogger",
        f"+logger.extra.csv.save_dir={tmp_path}/lightning",
        "+callbacks.extra.checkpoint._target_=pytorch_lightning.callbacks.ModelCheckpoint",
        "+callbacks.extra.checkpoint.monitor=val/loss",
        f"+callbacks.extra.checkpoint.dirpath={tmp_path}/checkpoints",
    ]
    train_one(tmp_path / "run", *changes)
    assert "val/loss" in next((tmp_path / "lightning").rglob("metrics.csv")).read_text()
    assert list((tmp_path / "checkpoints").glob("*.ckpt"))


def test_folder_with_foreign_files_raises(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet.pt").write_text("precious")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        require_run_folder(tmp_path, run_of(tmp_path).config)
    assert (tmp_path / "checkpoints" / "resnet.pt").read_text() == "precious"


def test_retraining_removes_only_own_files(tmp_path):
    train_one(tmp_path)
    result = Result.read(tmp_path)
    result.status = Status.STOPPED
    result.write(tmp_path)
    strangers = [tmp_path / "events.out.tfevents.1.me", tmp_path / "checkpoints" / "mine.pt"]
    for path in strangers:
        path.write_text("precious")
    assert train_one(tmp_path).status == Status.FINISHED
    assert all(path.read_text() == "precious" for path in strangers)


def test_early_stopping_does_not_hide_divergence(tmp_path):
    changes = ["model=nobn", "optimizer=sgd", "optimizer.lr=100", "callbacks=early_stopping"]
    result = train_one(tmp_path, *changes, "callbacks.early_stopping.patience=1", "trainer.max_epochs=20")
    assert result.status == Status.DIVERGED


def test_early_stopping_follows_the_direction(tmp_path):
    changes = ["data=random", "direction=max", "callbacks=early_stopping", "callbacks.early_stopping.patience=2"]
    result = train_one(tmp_path, *changes, "trainer.max_epochs=30", "optimizer.lr=0.001")
    losses = curve(tmp_path, "val/loss")
    assert result.objective.value == max(losses)
    assert result.epochs == losses.index(max(losses)) + 3


def test_plateau_counts_validations(tmp_path):
    changes = ["data=random", "optimizer.lr=0.01", "scheduler=plateau", "scheduler.patience=0"]
    changes += ["scheduler.threshold=0", "trainer.check_val_every_n_epoch=3", "trainer.max_epochs=13"]
    train_one(tmp_path, *changes)
    rates, losses = curve(tmp_path, "train/lr"), curve(tmp_path, "val/loss")
    worse = [later >= min(losses[:number]) for number, later in enumerate(losses) if number]
    drops = sum(later < earlier for earlier, later in pairwise(rates))
    assert len(losses) == 4
    assert drops == sum(worse)


class FailsInTest(pl.Callback):
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise RuntimeError("no luck")


def test_failing_test_keeps_last_checkpoint(tmp_path, monkeypatch):
    module = ModuleType("user_module")
    module.FailsInTest = FailsInTest
    monkeypatch.setitem(sys.modules, "user_module", module)
    changes = ["trainer.max_epochs=30", "data.standardize=true", "optimizer.lr=0.1"]
    with pytest.raises(RuntimeError, match="no luck"):
        train_one(tmp_path / "broken", *changes, "+callbacks.extra.x._target_=user_module.FailsInTest")
    train_one(tmp_path / "whole", *changes)
    broken, whole = (
        torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True)["state_dict"]
        for name in ("broken", "whole")
    )
    assert all(torch.equal(broken[name], whole[name]) for name in whole)


def test_seeds_share_a_tensorboard_group(tmp_path):
    runs = [run_of(tmp_path, "data.seed=${seed}", f"seed={seed}") for seed in (0, 1)]
    one, two = (hparam_group(run.written, {}) for run in runs)
    assert one == two
