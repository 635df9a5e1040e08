"""A training that is interrupted between any two steps goes on from its state, and ends as an undisturbed one."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from run_files import require_same_files
from torch import nn

from normlab.config.validation import validate
from normlab.errors import ConfigError
from normlab.interrupts import Preempted, interrupts
from normlab.results.result import Result
from normlab.training.population_state import PopulationSaver
from normlab.training.run import train
from normlab.training.run_folders import Run
from normlab.training.saving import StateFile
from normlab.training.single_run_state import RunSaver
from normlab.training.stackability import population_key

CONF = str(Path(__file__).parents[2] / "conf")
SMALL = ("trainer.max_epochs=4", "data=random", "data.train=50", "data.batch_size=10")


class Dropped(nn.Module):
    """A net with torch's dropout, which draws from the global generator."""

    def __init__(self, input_shape, out_features, norm=None) -> None:
        super().__init__()
        self.hidden = nn.Linear(*input_shape, 8)
        self.dropout, self.out = nn.Dropout(0.3), nn.Linear(8, out_features)
        self.norm = norm(8) if norm else nn.Identity()

    def forward(self, x):
        return self.out(self.dropout(self.norm(self.hidden(x)).relu()))


class Logging(pl.LightningModule):
    """Logs a mean, a maximum, a sum and a number per step."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.save_hyperparameters(ignore="net")

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        self.log("train/largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("train/total", loss, on_step=True, on_epoch=True, reduce_fx="sum")
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


@pytest.fixture(autouse=True)
def mylab(monkeypatch) -> None:
    """Make the net importable as ``mylab``."""
    module = ModuleType("mylab")
    vars(module).update(Dropped=Dropped, Logging=Logging)
    monkeypatch.setitem(sys.modules, "mylab", module)


@pytest.fixture
def preempt(monkeypatch) -> Callable[..., None]:
    """Return a function that ends the next training after a number of steps, as a signal would."""
    left: list[int] = [0]
    attributes: list[str] = []

    def count(between_steps: Callable) -> Callable:
        def counted(*arguments, **keywords):
            left[0] -= 1
            if left[0] == 0:
                setattr(interrupts, attributes.pop(), 15)
            between_steps(*arguments, **keywords)

        return counted

    def set_steps(steps: int, attribute: str = "preempted") -> None:
        left[0] = steps
        attributes.append(attribute)

    monkeypatch.setattr(PopulationSaver, "between_steps", count(PopulationSaver.between_steps))
    monkeypatch.setattr(RunSaver, "on_train_batch_end", count(RunSaver.on_train_batch_end))
    return set_steps


def runs_of(folder: Path, *overrides: str, members: int = 2, seeds: tuple[str, ...] = ()) -> list[Run]:
    """Return the runs of a population; ``seeds`` has the overrides of each member."""
    runs = []
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(members):
        own = [f"seed={k}", *(seeds[k].split() if seeds else ())]
        with initialize_config_dir(CONF, version_base="1.3"):
            size = (
                []
                if any("hidden" in word or word.startswith("net=") for word in overrides)
                else ["net.hidden=[8]"]
            )
            words = [*SMALL, *size, *overrides, *own]
            config = compose("train", overrides=words)
        written = OmegaConf.to_container(config)
        sweep = folder if members > 1 else None
        place = folder / f"seed={k}" if members > 1 else folder
        runs.append(Run(validate(config), place, f"seed={k}", {"model": "bn"}, own, written, sweep))
    return runs


def require_same_runs(one: list[Run], other: list[Run]) -> None:
    """Assert that two populations left the same files, and no state."""
    for ours, theirs in zip(one, other, strict=True):
        require_same_files(ours.folder, theirs.folder)
        assert not (theirs.sweep / ".normlab").exists()


CASES = {
    "adam": [],
    "sgd": ["optimizer=sgd", "optimizer.momentum=0.9"],
    "adamw float64": ["optimizer=adamw", "trainer.precision=64-true", "+optimizer.no_decay=[norm,bias]"],
    "rmsprop": ["optimizer._target_=torch.optim.RMSprop", "~optimizer.betas"],
    "muon": ["optimizer=muon", "net.hidden=[8,8]"],
    "step": ["scheduler=step", "scheduler.step_size=1"],
    "cosine by steps": ["scheduler=cosine", "+scheduler.interval=step", "scheduler.T_max=20"],
    "one cycle": ["scheduler=onecycle", "scheduler.interval=step"],
    "plateau": ["scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.3"],
    "early stopping": ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=0.5"],
    "noise and dropout": ["model=noisy", "net.dropout=0.2"],
    "actnorm": ["model=actnorm"],
    "weight normalization": ["model=wn"],
    "renormalization": ["model=brn"],
    "resmlp": ["net=resmlp", "net.width=8", "net.blocks=2"],
    "cnn": ["net=cnn", "data=digits", "net.channels=[4,4]", "data.train=50", "data.batch_size=10"],
    "probes": ["probes=light"],
    "global generator": [
        "net._target_=mylab.Dropped",
        *(f"~net.{key}" for key in ("hidden", "activation", "norm_position", "dropout", "init")),
    ],
    "clipping": ["trainer.gradient_clip_val=0.1"],
    "every other epoch": ["trainer.check_val_every_n_epoch=2", "train_eval_every=3"],
    "reestimated": ["statistics=reestimated", "stats_warmup_epochs=1"],
    "part": ["trainable=norm"],
}


KEEP = "+callbacks.extra.keep"
LIGHTNING = {
    "adam": [],
    "global generator": CASES["global generator"],
    "probes": ["probes=light"],
    "one cycle": CASES["one cycle"],
    "plateau": CASES["plateau"],
    "early stopping": CASES["early stopping"],
    "closure": [
        "optimizer._target_=torch.optim.LBFGS",
        "~optimizer.betas",
        "~optimizer.eps",
        "~optimizer.weight_decay",
    ],
    "accumulated": ["+trainer.accumulate_grad_batches=2"],
    "validation within an epoch": ["+trainer.val_check_interval=2"],
    "module from scratch": ["module._target_=mylab.Logging"],
    "checkpoints": [
        f"{KEEP}._target_=pytorch_lightning.callbacks.ModelCheckpoint",
        f"{KEEP}.every_n_train_steps=1",
        f"{KEEP}.save_top_k=-1",
    ],
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("words", LIGHTNING.values(), ids=LIGHTNING)
def test_resumed_single_run_equals_an_undisturbed_one(tmp_path, preempt, words):
    module = [] if any(word.startswith("module") for word in words) else ["module=lightning"]
    whole = runs_of(tmp_path / "whole", *module, *words, members=1)
    train(whole)
    broken = runs_of(tmp_path / "broken", *module, *words, members=1)
    for steps in (3, 5, 2):  # within the first epoch, within the second one, after its last step
        preempt(steps)
        with pytest.raises(Preempted):
            train(broken)
        assert Result.read(broken[0].folder) is None
    train(broken)
    require_same_runs(whole, broken)
    files = [sorted(path.name for path in run.folder.glob("checkpoints/*")) for run in (*whole, *broken)]
    assert files[0] == files[1]


@pytest.mark.sampled(12)
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_resumed_population_equals_an_undisturbed_one(tmp_path, preempt, words, members):
    whole = runs_of(tmp_path / "whole", *words, members=members)
    train(whole)
    broken = runs_of(tmp_path / "broken", *words, members=members)
    for steps in (3, 5, 2):  # within the first epoch, within the second one, after its last step
        preempt(steps)
        with pytest.raises(Preempted):
            train(broken)
        assert Result.read(broken[0].folder) is None
    train(broken)
    require_same_runs(whole, broken)


DIVERGING = ("optimizer.lr=1e30 optimizer.momentum=0", "optimizer.lr=0.01 optimizer.momentum=0.9")


def test_members_with_other_numbers_and_a_diverged_one(tmp_path, preempt):
    words = ["optimizer=sgd", "scheduler=cosine"]
    whole = runs_of(tmp_path / "whole", *words, seeds=DIVERGING)
    statuses = [result.status for result in train(whole)]
    assert statuses == ["diverged", "finished"]
    broken = runs_of(tmp_path / "broken", *words, seeds=DIVERGING)
    preempt(13)
    with pytest.raises(Preempted):
        train(broken)
    train(broken)
    require_same_runs(whole, broken)


@pytest.mark.parametrize("module", ["population", "lightning"])
def test_ctrl_c_leaves_results_and_a_state(tmp_path, preempt, module):
    members = 2 if module == "population" else 1
    words = [f"module={module}", "optimizer=sgd"]
    seeds = DIVERGING if members == 2 else ("optimizer.lr=0.01",)
    whole = runs_of(tmp_path / "whole", *words, members=members, seeds=seeds)
    train(whole)
    broken = runs_of(tmp_path / "broken", *words, members=members, seeds=seeds)
    preempt(13, "pressed")
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    stopped = [Result.read(run.folder) for run in broken]
    assert [result.status for result in stopped if result] == ["diverged", "stopped"][-members:]
    assert stopped[-1].epochs == 2
    train(broken)
    require_same_runs(whole[-1:], broken[-1:])
    assert Result.read(broken[0].folder).status == Result.read(whole[0].folder).status


def saved_states(folder: Path) -> list[Path]:
    return [*folder.glob(".normlab/*")]


@pytest.mark.parametrize("module", ["population", "lightning"])
@pytest.mark.parametrize(("every", "saves"), [("2", 2), ("1000s", 0), ("0.0001s", 20), ("false", 0)])
def test_interval(tmp_path, monkeypatch, module, every, saves):
    written = []
    write = StateFile.write
    monkeypatch.setattr(StateFile, "write", lambda self, save: written.append(write(self, save)))
    run = runs_of(tmp_path, f"module={module}", f"trainer.save_every={every}", members=1)
    train(run)
    assert len(written) == saves
    assert not saved_states(tmp_path)


def test_state_is_not_saved_on_a_signal_if_it_is_switched_off(tmp_path, preempt):
    run = runs_of(tmp_path, "trainer.save_every=false", members=1)
    preempt(7)
    with pytest.raises(Preempted):
        train(run)
    assert not saved_states(tmp_path)


def interrupted(folder: Path, preempt: Callable, *words: str, members: int = 2) -> list[Run]:
    """Return runs whose training was interrupted in its second epoch."""
    runs = runs_of(folder, *words, members=members)
    preempt(7)
    with pytest.raises(Preempted):
        train(runs)
    assert len(saved_states(folder)) == 1
    return runs


def lose_rows(folder: Path) -> None:
    path = folder / "seed=1" / "curves.csv"
    path.write_bytes(path.read_bytes()[:-10])


def damage(folder: Path) -> None:
    (path,) = saved_states(folder)
    path.write_bytes(path.read_bytes()[:3000])


def empty(folder: Path) -> None:
    (path,) = saved_states(folder)
    path.write_bytes(b"")


def write_foreign(folder: Path) -> None:
    (path,) = saved_states(folder)
    torch.save({"state": 1}, path)


DAMAGES = {
    lose_rows: "is of a run whose curves.csv has lost rows since",
    damage: "is damaged: ",
    empty: "is damaged: ",
    write_foreign: "is damaged: ",
}


@pytest.mark.parametrize(("harm", "reason"), DAMAGES.items(), ids=[harm.__name__ for harm in DAMAGES])
def test_unusable_state_gives_one_line_and_a_training_from_the_start(tmp_path, preempt, caplog, harm, reason):
    whole = runs_of(tmp_path / "whole")
    train(whole)
    broken = interrupted(tmp_path / "broken", preempt)
    harm(tmp_path / "broken")
    with caplog.at_level("INFO", logger="normlab"):
        train(broken)
    (line,) = [message for message in caplog.messages if "the state in" in message]
    assert line.startswith("2 runs of model=bn: training starts from the first epoch, as the state in ")
    assert reason in line
    require_same_runs(whole, broken)


def test_state_of_another_configuration_is_not_used(tmp_path, preempt, caplog):
    broken = interrupted(tmp_path, preempt)
    others = runs_of(tmp_path, "optimizer.lr=0.02")
    with caplog.at_level("INFO", logger="normlab"):
        train(others)
    assert "of another training (it differs in optimizer.lr)" in caplog.text
    assert Result.read(broken[0].folder).config["optimizer"]["lr"] == 0.02


def test_line_tells_the_epoch(tmp_path, preempt, caplog):
    broken = interrupted(tmp_path, preempt)
    with caplog.at_level("INFO", logger="normlab"):
        train(broken)
    line = r"2 runs of model=bn: training goes on from epoch 2 of 4 \(saved \d+ s ago\)"
    assert re.search(line, caplog.text)


def test_interval_makes_no_other_configuration(tmp_path, preempt):
    interrupted(tmp_path, preempt, "trainer.save_every=10s")
    train(runs_of(tmp_path, "trainer.save_every=3"))
    results = train(runs_of(tmp_path, "trainer.save_every=false"))
    assert "save_every" not in results[0].config["trainer"]
    keys = {population_key(runs_of(tmp_path, f"trainer.save_every={every}")[0].config) for every in ("1h", "2")}
    assert len(keys) == 1


CHECKPOINTS = [
    f"{KEEP}._target_=pytorch_lightning.callbacks.ModelCheckpoint",
    f"{KEEP}.monitor=val/loss",
    f"{KEEP}.save_top_k=2",
    "+callbacks.extra.rate._target_=pytorch_lightning.callbacks.LearningRateMonitor",
    "+callbacks.extra.stop._target_=pytorch_lightning.callbacks.EarlyStopping",
    "+callbacks.extra.stop.monitor=val/loss",
    "+callbacks.extra.stop.patience=1",
    "optimizer.lr=0.3",
    "scheduler=exponential",
]


def test_callbacks_of_members_go_on(tmp_path, preempt):
    whole = runs_of(tmp_path / "whole", *CHECKPOINTS)
    train(whole)
    broken = runs_of(tmp_path / "broken", *CHECKPOINTS)
    for steps in (7, 5):
        preempt(steps)
        with pytest.raises(Preempted):
            train(broken)
        (broken[0].folder / "checkpoints").mkdir(exist_ok=True)
        (broken[0].folder / "checkpoints" / "epoch=3-step=20.ckpt").touch()  # as if it had been killed later
    train(broken)
    require_same_runs(whole, broken)
    for ours, theirs in zip(whole, broken, strict=True):
        files = [sorted(path.name for path in run.folder.glob("checkpoints/*")) for run in (ours, theirs)]
        assert files[0] == files[1]


@pytest.mark.parametrize("value", ["true", "0", "-1", "soon", "10m", "1.5"])
def test_wrong_intervals(tmp_path, value):
    with pytest.raises(ConfigError, match=r"trainer.save_every must be a time such as 30s, 10min or 2h, a number"):
        runs_of(tmp_path, f"trainer.save_every={value}", members=1)
