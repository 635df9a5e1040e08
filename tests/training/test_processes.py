"""Runs on several devices: two processes on the CPU give what one process gives."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from normlab.config.validation import validate
from normlab.errors import ConfigError
from normlab.results.result import Result
from normlab.training.build import make_trainer
from normlab.training.dry_run import dry_run_once
from normlab.training.norm_module import NormModule
from normlab.training.run import train
from normlab.training.run_folders import Run
from normlab.training.strategy import SharedBatchStrategy

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
# 130 samples in batches of 33 end with one of 31.
COMMON = [
    *("module=lightning", "data=random", "data.train=130", "data.val=20", "data.test=21", "data.batch_size=33"),
    *("trainer.precision=64-true", "trainer.max_epochs=3", "logger=csv"),
]
# An odd number has no whole half, to which Lightning would round the number of samples.
IMAGES = ["data=digits", "data.train=131", "data.val=20", "data.test=21", "net=cnn", "net.channels=[4,4]"]
# Otherwise Adam scales the rounding errors of biases before a normalizer to steps.
ADAM = ["optimizer.eps=1e-6"]
SYNC = ["+model.norm.sync=true"]
SYNC2D = ["+model.norm2d.sync=true"]
TWO = ["trainer.devices=2"]


@cache
def composed(*words: str) -> DictConfig:
    """Return a configuration; cached, since composing is slow."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[*COMMON, *words])


def configured(*words: str, module: type | None = None):
    """Return the checked configuration of a run, with a module of this file."""
    node = {"module": {"_target_": f"{module.__module__}.{module.__name__}"}} if module else {}
    return validate(OmegaConf.merge(composed(*words), OmegaConf.create(node)))


def trained(folder: Path, *words: str, module: type | None = None) -> Result:
    """Train a run, and return its result; its files are in ``folder``."""
    (result,) = train([Run(configured(*words, module=module), folder, "run", {"model": "x"}, [])])
    return result


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(folder / f"checkpoints/{name}.pt", weights_only=True)["state_dict"]


def largest_difference(folder: Path, other: Path) -> float:
    """Return the largest difference between the numbers of two runs: weights of both checkpoints, and curves."""
    curves = [pd.read_csv(path / "curves.csv") for path in (folder, other)]
    names = ["epoch", "step", "split", "metric"]
    pd.testing.assert_frame_equal(curves[0][names], curves[1][names])
    differences = [float((curves[0]["value"] - curves[1]["value"]).abs().max())]
    for checkpoint in ("best", "last"):
        one, two = (weights(path, checkpoint) for path in (folder, other))
        assert one.keys() == two.keys()
        differences += [(one[name].double() - two[name].double()).abs().max().item() for name in one]
    return max(differences)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["model=bn", *SYNC, *ADAM],
        ["model=bn", *SYNC2D, *IMAGES, *ADAM],
        ["model=nobn", "net.dropout=0.3", "optimizer=sgd", "optimizer.lr=0.01"],
        ["model=noisy", *SYNC, *ADAM, "net.dropout=0.3"],
        ["model=brn", *SYNC, *ADAM, "statistics=reestimated", "stats_warmup_epochs=1"],
        [
            *("model=nobn", "optimizer=sgd", "optimizer.lr=0.03", "callbacks=early_stopping"),
            *("callbacks.early_stopping.patience=1", "trainer.max_epochs=30"),
        ],
        ["model=actnorm", "optimizer=sgd", "optimizer.lr=0.01", "+trainer.accumulate_grad_batches=2"],
    ],
    ids=["mlp", "cnn", "dropout", "noisy", "brn", "early stopping", "actnorm, accumulated"],
)
def test_two_processes_equal_one(tmp_path, words):
    one, two = trained(tmp_path / "one", *words), trained(tmp_path / "two", *words, *TWO)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-10
    assert (two.status, two.steps, two.epochs) == (one.status, one.steps, one.epochs)
    assert two.test == pytest.approx(one.test, rel=1e-10)
    assert two.final == pytest.approx(one.final, rel=1e-10)


@pytest.mark.thorough
def test_probes_see_whole_minibatches(tmp_path):
    probes = []
    for name, words in (("one", []), ("two", TWO)):
        trained(tmp_path / name, "model=bn", *SYNC, *ADAM, "probes=[gradient_lipschitz,along_gradient]", *words)
        probes.append(pd.read_csv(tmp_path / name / "probes.csv"))
    assert len(probes[0])
    pd.testing.assert_frame_equal(*probes, rtol=1e-7)


@pytest.mark.thorough
def test_without_sync_each_process_normalizes_its_share(tmp_path):
    trained(tmp_path / "one", "model=bn")
    trained(tmp_path / "two", "model=bn", *TWO, "+trainer.strategy=ddp_spawn")
    assert largest_difference(tmp_path / "one", tmp_path / "two") > 1e-3


class Manual(NormModule):
    """Takes the optimizer steps itself."""

    def __init__(self, *parts, **named) -> None:
        super().__init__(*parts, **named)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


@pytest.mark.thorough
def test_manual_optimization_in_two_processes_equals_one(tmp_path):
    for name, words in (("one", []), ("two", TWO)):
        trained(tmp_path / name, "model=bn", *SYNC, *ADAM, *words, module=Manual)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-10


class FailsInOther(NormModule):
    """Raises an exception in the second process."""

    def training_step(self, batch, batch_idx):
        if self.global_rank == 1 and batch_idx == 2:
            raise LookupError("no such sample")
        return super().training_step(batch, batch_idx)


class KilledOther(NormModule):
    """Ends the second process without an exception."""

    def training_step(self, batch, batch_idx):
        if self.global_rank == 1 and batch_idx == 2:
            os._exit(9)
        return super().training_step(batch, batch_idx)


class FailsInFirst(NormModule):
    """Raises an exception in the first process, while the other waits for it."""

    def training_step(self, batch, batch_idx):
        if self.global_rank == 0 and self.trainer.world_size == 2 and batch_idx == 2:
            raise LookupError("no such sample")
        return super().training_step(batch, batch_idx)


class FailsInBoth(NormModule):
    """Raises an exception in each process."""

    def training_step(self, batch, batch_idx):
        if self.trainer.world_size == 2 and batch_idx == 2:
            raise LookupError("no such sample")
        return super().training_step(batch, batch_idx)


class CannotBeBuilt(NormModule):
    """Cannot be made in the second process."""

    def __init__(self, *parts, **named) -> None:
        if multiprocessing.parent_process() is not None:
            raise ValueError("no memory for a net")
        super().__init__(*parts, **named)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (FailsInOther, RuntimeError, "process 1 of this run failed: LookupError: no such sample"),
        (
            KilledOther,
            RuntimeError,
            "process 1 of this run failed: it was killed, possibly because memory ran out",
        ),
        (FailsInFirst, LookupError, "no such sample"),
        (FailsInBoth, LookupError, "no such sample"),
        (CannotBeBuilt, RuntimeError, "process 1 of this run failed: .*ConfigError: .*no memory for a net"),
    ],
)
def test_failure_in_a_process_ends_all(tmp_path, module, error, message):
    with pytest.raises(error) as raised:
        trained(tmp_path, "model=nobn", *TWO, module=module)
    assert re.fullmatch(message, str(raised.value))
    assert multiprocessing.active_children() == []
    assert not torch.distributed.is_initialized()
    result = Result.read(tmp_path)
    assert result.status == "failed"
    assert re.fullmatch(message, result.error)
    # The next run of a sweep is not affected.
    assert trained(tmp_path / "next", "model=nobn").status == "finished"


class Interrupted(NormModule):
    """Acts as Ctrl-C in the first process."""

    def training_step(self, batch, batch_idx):
        if self.global_rank == 0 and self.trainer.world_size == 2 and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return super().training_step(batch, batch_idx)


@pytest.fixture
def ctrl_c():
    """Install Python's handler of Ctrl-C; a process that was started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_ctrl_c_stops_all(tmp_path, ctrl_c):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, "model=nobn", *TWO, module=Interrupted)
    assert multiprocessing.active_children() == []
    assert Result.read(tmp_path).status == "stopped"


def results(folder: Path) -> list[Result]:
    return [Result.read(path.parent) for path in sorted(folder.rglob("result.json"))]


@pytest.mark.thorough
@pytest.mark.parametrize("words", [[], ["hydra.launcher.n_jobs=2"]], ids=["one after another", "at once"])
def test_sweep_trains_each_run_once(run_train, tmp_path, words):
    outcome = run_train("-m", *COMMON, "model=bn,nobn", *TWO, "+trainer.strategy=ddp", *words)
    assert outcome.code == 0, outcome.err
    found = results(tmp_path)
    assert [result.name for result in found] == ["model=bn", "model=nobn"]
    assert {result.status for result in found} == {"finished"}
    for result in found:
        (folder,) = (path.parent for path in tmp_path.rglob("result.json") if Result.read(path.parent) == result)
        curves = pd.read_csv(folder / "curves.csv")
        assert len(curves[(curves["split"] == "train") & (curves["metric"] == "loss")]) == 3
    # The files of the sweep itself, such as table.csv, are those of any sweep.
    assert (tmp_path.rglob("summary.csv").__next__().parent / "table.csv").exists()
    assert "model=bn" in outcome.out


@pytest.mark.thorough
def test_killed_first_process_leaves_no_other(tmp_path):
    words = [*(word for word in COMMON if "epochs" not in word), *TWO, "trainer.max_epochs=100000"]
    train_py = subprocess.Popen(
        [sys.executable, ROOT / "train.py", "model=nobn", *words], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        assert wait_for(lambda: any(path.stat().st_size for path in tmp_path.rglob("curves.csv")))
        others = descendants(train_py.pid)
        assert others
    finally:
        train_py.kill()
        train_py.wait()
    assert wait_for(lambda: not any(Path(f"/proc/{pid}/status").exists() for pid in others))


def descendants(pid: int) -> set[int]:
    """Return the ids of the processes that a process has started, and those that they have."""
    children = {
        int(pid) for path in Path(f"/proc/{pid}/task").glob("*/children") for pid in path.read_text().split()
    }
    return children.union(*map(descendants, children))


def wait_for(condition) -> bool:
    """Return True once a condition holds, False after a minute."""
    ends = time.monotonic() + 60
    while not condition() and time.monotonic() < ends:
        time.sleep(0.2)
    return condition()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["trainer.devices=40"],
            "data.batch_size must be enough for at least one sample per process with trainer.devices=40, "
            "got a minibatch of 31",
        ),
        (
            ["trainer.devices=2", "data.batch_size=128"],
            "trainer.devices=2: hidden1.norm (BatchNorm1d) cannot take a batch of 1: Expected more than 1 value "
            "per channel when training, got input size torch.Size([1, 64])",
        ),
        (
            ["trainer.devices=2", "+trainer.num_nodes=2"],
            "trainer.num_nodes must be 1, as the processes of a run start on one machine, got 2",
        ),
        (
            ["trainer.devices=2", "+trainer.use_distributed_sampler=true"],
            "trainer.use_distributed_sampler must be false, as each minibatch is shared out already; remove it",
        ),
        (
            ["trainer.devices=2", "+trainer.sync_batchnorm=true"],
            "trainer.sync_batchnorm has no effect: it replaces torch's layers, as in model=bn_torch; "
            "write +model.norm.sync=true, and +model.norm2d.sync=true for images",
        ),
        (
            [*IMAGES, "+model.norm.sync=true"],
            "model.norm.sync has no effect: normlab.models.CNN takes model.norm2d; write +model.norm2d.sync=true",
        ),
        (
            ["trainer.devices=2", "module=population"],
            "trainer.devices must be 1, as a run in a population trains on one device (module=lightning takes "
            "others), got 2",
        ),
    ],
)
def test_settings_are_checked_before_training(words, message):
    with pytest.raises(ConfigError) as raised:
        dry_run_once(with_words(words))
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "words",
    [
        ["model=bn", "data.batch_size=43"],  # 130 = 43 + 43 + 44
        # The last minibatch has two samples.
        ["model=nobn", "data.batch_size=128"],
        ["model=bn", "data.batch_size=128", "+model.norm.sync=true"],
    ],
)
def test_a_process_may_have_one_sample(words):
    dry_run_once(with_words(["trainer.devices=2", *words]))


def with_words(words: list[str]):
    """Return a configuration in which some words replace those that all runs here have."""
    keys = {word.split("=")[0] for word in words}
    given = [word for word in (*COMMON, "trainer.devices=1") if word.split("=")[0] not in keys]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validate(compose("train", overrides=[*given, *words]))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["+trainer.strategy=auto"], {}),
        (["+trainer.strategy=ddp"], {}),
        (["+trainer.strategy=ddp_spawn_find_unused_parameters_true"], {"find_unused_parameters": True}),
        (
            [
                "+trainer.strategy._target_=pytorch_lightning.strategies.DDPStrategy",
                "+trainer.strategy.start_method=fork",
                "+trainer.strategy.gradient_as_bucket_view=true",
            ],
            {"gradient_as_bucket_view": True},
        ),
    ],
)
def test_strategy_has_the_options_that_were_typed(words, options):
    trainer = make_trainer(configured(*TWO, *words), [])
    assert isinstance(trainer.strategy, SharedBatchStrategy)
    assert (trainer.world_size, trainer.strategy.launcher, trainer.strategy._ddp_kwargs) == (2, None, options)


def test_one_device_has_the_strategy_of_lightning():
    assert not isinstance(make_trainer(configured("model=bn"), []).strategy, SharedBatchStrategy)


def test_a_process_that_normlab_did_not_start_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # restores the number that Lightning sets for the whole process
    message = "LOCAL_RANK must be unset or 0, got 1; start train.py once, without it"
    with pytest.raises(ConfigError, match=message):
        trained(tmp_path, "model=nobn", *TWO)
