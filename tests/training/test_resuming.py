"""A run of a LightningModule that is resumed from a checkpoint ends as one that was not interrupted."""

import shutil
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from run_files import require_same_files
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torchmetrics import MetricCollection

from normlab.models import MLP
from normlab.training.norm_module import NormModule

KEEP = "+callbacks.extra.keep"
COMMON = [
    "trainer.max_epochs=4",
    f"{KEEP}._target_=pytorch_lightning.callbacks.ModelCheckpoint",
    f"{KEEP}.save_top_k=-1",
]
EVERY_STEP, AFTER_VALIDATION = f"{KEEP}.every_n_train_steps=1", f"{KEEP}.save_on_train_epoch_end=false"
EPOCH_END = f"{KEEP}.save_on_train_epoch_end=true"
NET_KEYS = ("activation", "norm_position", "dropout", "init")
# Lightning warns that the checkpoints of the interrupted run are in another folder, or in the same.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory")


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

    def on_train_epoch_end(self):
        self.log("train/late", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


@pytest.fixture(autouse=True)
def mylab(monkeypatch) -> None:
    """Make the classes importable as ``mylab``."""
    module = ModuleType("mylab")
    vars(module).update(Dropped=Dropped, Logging=Logging)
    monkeypatch.setitem(sys.modules, "mylab", module)


def checkpoint(epoch: int, step: int, folder: str = "whole") -> str:
    return f'ckpt_path="{folder}/checkpoints/epoch={epoch}-step={step}.ckpt"'


def train(run_train, folder: str, *words: str):
    outcome = run_train(*words, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    return outcome


DROPPED = ["net._target_=mylab.Dropped", *(f"~net.{key}" for key in ("hidden", *NET_KEYS))]
# The checkpoints are saved in the middle of an epoch of 5 steps, after its last step, and at its end.
CASES = {
    "batch norm": ([], [EVERY_STEP], [(1, 8), (1, 10), (3, 20)]),
    "all epochs done": ([], [EPOCH_END], [(3, 20)]),
    "noise": (["model=noisy", "net.dropout=0.2"], [EVERY_STEP], [(1, 8)]),
    "weight parametrization": (["model=wn"], [EVERY_STEP], [(2, 12)]),
    "global generator": (DROPPED, [EVERY_STEP], [(1, 8), (1, 10)]),
    "probes": (["probes=light"], [EVERY_STEP], [(1, 8), (1, 10)]),
    "float64": (["trainer.precision=64-true"], [EPOCH_END], [(1, 10)]),
    "plateau": (
        ["scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.3"],
        [EVERY_STEP],
        [(1, 8), (1, 10)],
    ),
    "plateau at the end": (
        ["scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.3"],
        [EPOCH_END],
        [(1, 10)],
    ),
    "one cycle": (["scheduler=onecycle", "scheduler.interval=step"], [EVERY_STEP], [(1, 8)]),
    "every other epoch": (["trainer.check_val_every_n_epoch=2"], [EVERY_STEP], [(0, 5), (1, 8), (1, 10)]),
    "after validation": (["trainer.check_val_every_n_epoch=2"], [AFTER_VALIDATION], [(1, 10)]),
    "early stopping": (
        ["callbacks=early_stopping", "callbacks.early_stopping.patience=2", "optimizer.lr=0.5"],
        [EPOCH_END],
        [(0, 5), (2, 15)],
    ),
    "limited batches": (["+trainer.limit_train_batches=4"], [EVERY_STEP], [(1, 6), (1, 8)]),
    "limited steps": (["+trainer.max_steps=17"], [EPOCH_END], [(1, 10)]),
    "steps done": (["+trainer.max_steps=7"], [EVERY_STEP], [(1, 7)]),
    "validation within an epoch": (["+trainer.val_check_interval=2"], [EVERY_STEP], [(1, 8), (1, 9)]),
    "closure": (["optimizer._target_=torch.optim.LBFGS"], [EVERY_STEP], [(1, 7), (1, 8)]),
    "accumulated": (["+trainer.accumulate_grad_batches=2"], [EVERY_STEP], [(1, 4), (1, 5)]),
    "module from scratch": (["module._target_=mylab.Logging"], [EVERY_STEP], [(1, 8), (1, 10)]),
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize(("words", "saving", "places"), CASES.values(), ids=CASES)
def test_resumed_run_equals_an_undisturbed_one(run_train, words, saving, places):
    size = [] if "~net.hidden" in words else ["net.hidden=[8]"]
    module = [] if any(word.startswith("module") for word in words) else ["module=lightning"]
    command = [*COMMON, *size, *module, *words, *saving]
    train(run_train, "whole", *command)
    for epoch, step in places:
        shutil.rmtree("resumed", ignore_errors=True)
        train(run_train, "resumed", *command, checkpoint(epoch, step))
        require_same_files(Path("whole"), Path("resumed"), events=False)


def test_plateau_case_lowers_the_learning_rate(run_train):
    words, _, _ = CASES["plateau"]
    train(run_train, "whole", *COMMON, "module=lightning", "net.hidden=[8]", *words)
    curves = pd.read_csv("whole/curves.csv")
    assert curves[curves["metric"] == "lr"]["value"].nunique() > 1


def test_more_epochs_and_a_killed_run_in_its_folder(run_train):
    command = ["module=lightning", "net.hidden=[8]", *COMMON[1:]]
    train(run_train, "whole", *command, "trainer.max_epochs=4")
    train(run_train, "short", *command, "trainer.max_epochs=2")
    train(run_train, "longer", *command, "trainer.max_epochs=4", checkpoint(1, 10, "short"))
    require_same_files(Path("whole"), Path("longer"), events=False)
    Path("longer/result.json").unlink()  # as if it had been killed
    train(run_train, "longer", *command, "trainer.max_epochs=4", checkpoint(2, 15, "longer"))
    require_same_files(Path("whole"), Path("longer"), events=False)


def scalars(folder: str) -> dict[str, list[int]]:
    """Return the steps of each scalar tag that is not of a probe."""
    events = EventAccumulator(folder)
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_event_file_of_a_resumed_run_has_all_epochs(run_train):
    command = [*COMMON, "module=lightning", "net.hidden=[8]", EVERY_STEP]
    train(run_train, "whole", *command)
    train(run_train, "resumed", *command, checkpoint(1, 10))
    assert scalars("resumed")["train/lr"] == [5, 10, 15, 20]
    # Lightning logs an epoch under its last step, counted from 0; normlab writes the epochs before the checkpoint.
    assert scalars("whole")["train/loss"] == [4, 9, 14, 19]
    assert scalars("resumed")["train/loss"] == [5, 9, 14, 19]
    assert scalars("resumed")["val/loss"] == [5, 9, 14, 19]


@pytest.mark.parametrize(("epoch", "step"), [(1, 8), (1, 10)])
def test_steps_of_logged_numbers_continue(run_train, epoch, step):
    command = [*COMMON, "module._target_=mylab.Logging", "net.hidden=[8]", EVERY_STEP]
    train(run_train, "whole", *command)
    train(run_train, "resumed", *command, checkpoint(epoch, step))
    assert scalars("whole")["train/total_step"] == [*range(20)]
    # normlab writes the latest value of the epochs before the checkpoint.
    assert {*scalars("resumed")["train/total_step"]} == {5, *range(step, 20)}


def make_files(run_train) -> None:
    """Train a run, and write files that a run cannot be resumed from."""
    train(
        run_train, "whole", *COMMON[1:], "trainer.max_epochs=2", "module=lightning", "net.hidden=[8]", "logger=csv"
    )
    source = Path("whole/checkpoints/epoch=1-step=10.ckpt")
    shutil.copy(source, "good.ckpt")
    Path("damaged.ckpt").write_bytes(source.read_bytes()[:3000])
    Path("text.ckpt").write_text("hello")
    Path("empty.ckpt").touch()
    whole = torch.load(source, weights_only=True)
    torch.save({k: v for k, v in whole.items() if k not in ("callbacks", "optimizer_states")}, "weights.ckpt")
    torch.save({**whole, "callbacks": {}}, "foreign.ckpt")
    torch.save([1, 2], "list.ckpt")
    torch.save({**whole, "hyper_parameters": {"net": nn.Linear(1, 1)}}, "objects.ckpt")


FOREIGN = "must be a checkpoint of Lightning's ModelCheckpoint (best.pt and last.pt hold weights alone), got"
MISTAKES = {
    "module=population ckpt_path=good.ckpt": "null with module=population, got good.ckpt; use module=lightning",
    "ckpt_path=no.ckpt": "ckpt_path must be null or the path of a checkpoint, got no.ckpt, which is no file",
    "ckpt_path=damaged.ckpt": "ckpt_path: damaged.ckpt cannot be read: it is damaged or no checkpoint (Pytorch",
    "ckpt_path=text.ckpt": "ckpt_path: text.ckpt cannot be read: it is damaged or no checkpoint (",
    "ckpt_path=empty.ckpt": "ckpt_path: empty.ckpt cannot be read: it is damaged or no checkpoint (",
    "ckpt_path=list.ckpt": f"ckpt_path {FOREIGN} list.ckpt",
    "ckpt_path=whole/checkpoints/best.pt": f"ckpt_path {FOREIGN} whole/checkpoints/best.pt",
    "ckpt_path=weights.ckpt": "ckpt_path must be a checkpoint with the state of the training, got weights.ckpt",
    "ckpt_path=foreign.ckpt": "ckpt_path must be a checkpoint of a run of normlab, got foreign.ckpt",
    "ckpt_path=objects.ckpt": "objects.ckpt cannot be read: it holds other objects than tensors; leave them out",
    "ckpt_path=good.ckpt net.hidden=[16]": "of another net: its net.hidden1.linear.weight is (8, 3), that of this "
    "run (16, 3)",
    "ckpt_path=good.ckpt model=nobn": "another net: its net.hidden1.norm.weight is (8,), that of this run missing",
    "ckpt_path=good.ckpt optimizer.lr=0.5 seed=3": "is of a run with optimizer.lr=0.01, seed=0, which a resumed",
    "ckpt_path=good.ckpt scheduler=step": "is of a run with no scheduler._partial_, no scheduler._target_",
    "ckpt_path=good.ckpt trainer.max_epochs=1": "trainer.max_epochs must be at least 2, the epochs begun in good",
}


def test_mistakes_give_one_line_and_write_nothing(run_train):
    make_files(run_train)
    before = {path: path.stat().st_mtime_ns for path in Path("whole").rglob("*")}
    for mistake, answer in MISTAKES.items():
        words = mistake.split(" ")
        rest = [] if "module" in mistake else ["module=lightning"]
        rest += [] if "net.hidden" in mistake else ["net.hidden=[8]"]
        rest += [] if "max_epochs" in mistake else ["trainer.max_epochs=2"]
        outcome = run_train(*rest, *words, "hydra.run.dir=run")
        assert outcome.code == 1, mistake
        (line,) = outcome.err.strip().splitlines()
        assert line.startswith("error: ")
        assert answer in line
        assert not Path("run").exists()
    assert before == {path: path.stat().st_mtime_ns for path in Path("whole").rglob("*")}


def test_length_of_a_one_cycle_schedule_is_kept(run_train):
    command = [*COMMON[1:], "module=lightning", "net.hidden=[8]", "scheduler=onecycle", "logger=csv"]
    train(run_train, "whole", *command, "trainer.max_epochs=2")
    outcome = run_train(*command, "trainer.max_epochs=4", "hydra.run.dir=run", checkpoint(1, 10))
    assert "trainer.max_epochs must be 2, as the schedule in whole/checkpoints/epoch=1-step=10.ckpt" in outcome.err
    assert outcome.code == 1


def test_checkpoint_is_loadable_as_lightning_documents(run_train):
    command = ["module=lightning", "model=nobn", "net.hidden=[8]", "logger=csv", *COMMON[1:]]
    train(run_train, "whole", *command, "trainer.max_epochs=1")
    path = "whole/checkpoints/epoch=0-step=5.ckpt"
    last = torch.load("whole/checkpoints/last.pt", weights_only=True)["state_dict"]
    nets = [MLP((3,), 1, hidden=[8]) for _ in range(3)]
    nets[0].load_state_dict(last)
    loaded = NormModule.load_from_checkpoint(
        path, net=nets[1], loss=nn.MSELoss(), metrics=MetricCollection([]), optimizer=torch.optim.Adam
    )
    state = torch.load(path, weights_only=True)["state_dict"]
    nets[2].load_state_dict({name.removeprefix("net."): tensor for name, tensor in state.items()})
    x = torch.randn(5, 3)
    assert torch.equal(loaded(x), nets[0](x))
    assert torch.equal(nets[2](x), nets[0](x))
