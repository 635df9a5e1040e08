"""Lightning's callbacks in a population act on each member as on a run alone."""

import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    StochasticWeightAveraging,
    Timer,
)

from normlab.config.validation import validate
from normlab.results.result import Result
from normlab.training.extra import BATCH_HOOKS, batch_reason
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = str(Path(__file__).parents[2] / "conf")
SHORT = ["data.train=60", "data.val=20", "data.test=20", "data.batch_size=20", "trainer.precision=64-true"]
PL = "pytorch_lightning.callbacks"
HOOKS = [hook for hook in dir(pl.Callback) if hook.startswith("on_") and hook not in BATCH_HOOKS]


def runs_of(folder: Path, *words: str, seeds: int = 3, module: str = "population") -> list[Run]:
    with initialize_config_dir(CONF, version_base="1.3"):
        common = [*SHORT, f"module={module}", *words]
        configs = [validate(compose("train", overrides=[*common, f"seed={seed}"])) for seed in range(seeds)]
    return [Run(config, folder / str(k), f"seed={k}", {"model": "bn"}, []) for k, config in enumerate(configs)]


def trained(folder: Path, *words: str, seeds: int = 3, module: str = "population") -> list[Result]:
    """Train runs as one population, or one by one with another module."""
    runs = runs_of(folder, *words, seeds=seeds, module=module)
    if module == "population":
        return train(runs)
    return [result for run in runs for result in train([run])]


def extra(name: str, target: str, **arguments: object) -> list[str]:
    key = f"+callbacks.extra.{name}"
    return [f"{key}._target_={target}", *(f"{key}.{argument}={value}" for argument, value in arguments.items())]


def curve(folder: Path, name: str) -> pd.Series:
    frame = pd.read_csv(folder / "curves.csv", keep_default_na=False, dtype={"split": str})
    split, _, metric = name.rpartition("/")
    rows = frame[(frame["split"] == split) & (frame["metric"] == metric)]
    return rows.drop_duplicates("epoch").set_index("epoch")["value"].astype(float)


class Reader(pl.Callback):
    """Keeps the metrics, epoch and step that it sees at the ends of validations and epochs."""

    seen: list[tuple] = []  # noqa: RUF012 - a fixture replaces the list for each test

    def __init__(self, hooks: tuple[str, ...] = ("on_validation_end", "on_train_epoch_end")) -> None:
        for hook in hooks:
            setattr(self, hook, lambda trainer, module, hook=hook: self.keep(hook, trainer, module))

    def keep(self, hook: str, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.seen.append((trainer.default_root_dir, hook, trainer.current_epoch, trainer.global_step, numbers))


class Clamp(pl.Callback):
    """Clamps the weights after each epoch, and logs the largest."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with torch.no_grad():
            for parameter in pl_module.net.parameters():
                parameter.clamp_(-0.2, 0.2)
        pl_module.log("clamp/largest", max(parameter.max() for parameter in pl_module.net.parameters()))


class BatchCounter(pl.Callback):
    """Logs the number of batches so far."""

    batches = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: object) -> None:
        self.batches += 1
        pl_module.log("batches", float(self.batches), on_step=False, on_epoch=True, reduce_fx="max")


class Order(pl.Callback):
    """Keeps the names of the hooks that are called, except for batches."""

    seen: list[str] = []  # noqa: RUF012

    def __init__(self) -> None:
        for hook in (*HOOKS, "setup", "teardown"):
            setattr(self, hook, lambda *arguments, hook=hook, **keywords: self.seen.append(hook))


@pytest.fixture(autouse=True)
def user_module(monkeypatch):
    module = ModuleType("mylab")
    for own in (Reader, Clamp, BatchCounter, Order):
        setattr(module, own.__name__, own)
    monkeypatch.setitem(sys.modules, "mylab", module)
    monkeypatch.setattr(Reader, "seen", [])
    monkeypatch.setattr(Order, "seen", [])


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("module", ["population", "lightning"])
def test_callbacks_see_the_metrics_of_their_epoch(tmp_path, module, every):
    words = ["trainer.max_epochs=4", f"trainer.check_val_every_n_epoch={every}"]
    trained(tmp_path, *words, *extra("read", "mylab.Reader"), module=module, seeds=2)
    fitting = [seen for seen in Reader.seen if seen[2] < 4]
    assert len(fitting) == 2 * (4 // every + 4)
    for folder, hook, epoch, step, numbers in fitting:
        assert step == 3 * (epoch + 1)
        if (epoch + 1) % every == 0:
            assert numbers["val/loss"] == pytest.approx(curve(Path(folder), "val/loss")[epoch + 1], rel=1e-12)
        if hook == "on_train_epoch_end":
            assert numbers["train/loss"] == pytest.approx(curve(Path(folder), "train/loss")[epoch + 1], rel=1e-12)


@pytest.mark.parametrize("every", [1, 2])
def test_early_stopping_and_checkpoints_equal_those_of_runs_alone(tmp_path, every):
    stop = extra("stop", f"{PL}.EarlyStopping", monitor="val/loss", patience=1)
    keep = extra("keep", f"{PL}.ModelCheckpoint", monitor="val/loss", save_top_k=2, filename="'{epoch}-{step}'")
    words = [
        "trainer.max_epochs=20",
        f"trainer.check_val_every_n_epoch={every}",
        "optimizer.lr=0.03",
        "model=nobn",
        *stop,
        *keep,
    ]
    together = trained(tmp_path / "together", *words)
    alone = trained(tmp_path / "alone", *words, module="lightning")
    epochs = [result.epochs for result in together]
    assert epochs == [result.epochs for result in alone]
    assert len(set(epochs)) > 1
    assert max(epochs) < 20
    for k in range(3):
        files = [
            sorted((tmp_path / name / str(k) / "checkpoints").glob("*.ckpt")) for name in ("together", "alone")
        ]
        assert [path.name for path in files[0]] == [path.name for path in files[1]]
        assert len(files[0]) == 2
        for one, other in zip(*files, strict=True):
            mine, theirs = (torch.load(path, weights_only=False) for path in (one, other))
            assert (mine["epoch"], mine["global_step"]) == (theirs["epoch"], theirs["global_step"])
            nets = [{name: value for name, value in file["state_dict"].items() if name.startswith("net.")}
                    for file in (mine, theirs)]  # fmt: skip
            assert nets[0].keys() == nets[1].keys()
            for name, value in nets[0].items():
                torch.testing.assert_close(value, nets[1][name], rtol=1e-9, atol=1e-9)


def test_changes_and_logged_numbers_of_callback_equal_those_of_runs_alone(tmp_path):
    words = ["trainer.max_epochs=3", *extra("clamp", "mylab.Clamp"), "model=nobn"]
    trained(tmp_path / "together", *words)
    trained(tmp_path / "alone", *words, module="lightning")
    for k in range(3):
        for name in ("clamp/largest", "train/loss", "val/loss"):
            one, other = (curve(tmp_path / folder / str(k), name) for folder in ("together", "alone"))
            assert one.index.tolist() == [1, 2, 3]
            assert one.tolist() == pytest.approx(other.tolist(), rel=1e-9), name
    assert curve(tmp_path / "together/0", "clamp/largest").max() <= 0.2


def test_learning_rates_of_members_are_recorded(tmp_path):
    words = ["trainer.max_epochs=4", "scheduler=cosine", *extra("lr", f"{PL}.LearningRateMonitor")]
    runs = [runs_of(tmp_path, *words, f"optimizer.lr={lr}", seeds=1)[0] for lr in (0.1, 0.01)]
    runs[1] = Run(runs[1].config, tmp_path / "1", "seed=1", {"model": "bn"}, [])
    train(runs)
    for k, lr in enumerate((0.1, 0.01)):
        rates = curve(tmp_path / str(k), "lr-Adam").tolist()
        assert rates == pytest.approx(curve(tmp_path / str(k), "train/lr").tolist())
        assert rates[0] == lr
        assert rates[3] < 0.2 * lr


def test_hooks_are_called_in_documented_order(tmp_path):
    trained(tmp_path, "trainer.max_epochs=2", *extra("order", "mylab.Order"), seeds=1)
    validation = [f"on_validation_{name}" for name in ("start", "epoch_start", "epoch_end", "end")]
    epoch = ["on_train_epoch_start", *validation, "on_train_epoch_end"]
    fit = ["setup", "on_fit_start", "on_train_start", *epoch, *epoch, "on_train_end", "on_fit_end", "teardown"]
    test = ["setup", *(f"on_test_{name}" for name in ("start", "epoch_start", "epoch_end", "end")), "teardown"]
    assert [hook for hook in Order.seen if "checkpoint" not in hook] == fit + test


def test_summary_is_printed_once_and_device_stats_are_recorded(tmp_path, caplog):
    words = ["trainer.max_epochs=1", *extra("summary", f"{PL}.ModelSummary")]
    trained(tmp_path, *words, *extra("stats", f"{PL}.DeviceStatsMonitor", cpu_stats="true"))
    summaries = [record for record in caplog.records if "Trainable params" in record.getMessage()]
    assert len(summaries) == 1
    numbers = pd.read_csv(tmp_path / "1/curves.csv")
    assert numbers["split"].str.startswith("DeviceStatsMonitor").any()


def test_numbers_logged_at_the_end_are_recorded(tmp_path):
    late = ModuleType("late")
    late.Late = type("Late", (pl.Callback,), {"on_train_end": lambda self, trainer, m: m.log("late", trainer.k)})
    sys.modules["late"] = late
    try:
        trained(tmp_path, "trainer.max_epochs=1", *extra("late", "late.Late"))
    finally:
        del sys.modules["late"]
    assert [curve(tmp_path / str(k), "late").tolist() for k in range(3)] == [[0.0], [1.0], [2.0]]


def test_callback_by_batch_trains_runs_one_by_one_under_lightning(run_train):
    words = ["-m", "seed=0,1", "trainer.max_epochs=2", *extra("count", "mylab.BatchCounter"), *SHORT]
    outcome = run_train(*words, "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    reason = "callbacks.extra.count: BatchCounter overrides on_train_batch_end; by module=lightning"
    assert f"runs such as seed=0 are trained one by one: {reason}" in outcome.out
    assert curve(Path("sweep/seed=1"), "batches").tolist() == [3.0, 6.0]
    assert run_train(*words, "module=lightning", "hydra.sweep.dir=lightning").code == 0
    for name in ("train/loss", "val/loss"):
        assert curve(Path("sweep/seed=1"), name).equals(curve(Path("lightning/seed=1"), name))


@pytest.mark.parametrize(
    ("callback", "reason"),
    [
        (EarlyStopping("val/loss"), ""),
        (ModelCheckpoint(), ""),
        (ModelCheckpoint(every_n_train_steps=2), "saves within an epoch"),
        (LearningRateMonitor(), ""),
        (ModelSummary(), ""),
        (DeviceStatsMonitor(cpu_stats=False), ""),
        (LambdaCallback(on_train_epoch_end=print), ""),
        (LambdaCallback(on_before_backward=print), "overrides on_before_backward"),
        (Timer(), "works on the loops and optimizers of a single run"),
        (StochasticWeightAveraging(0.1), "works on the loops and optimizers of a single run"),
        (Clamp(), ""),
        (BatchCounter(), "overrides on_train_batch_end"),
    ],
)
def test_callbacks_that_need_single_runs_are_recognized(callback, reason):
    assert batch_reason(callback) == reason
