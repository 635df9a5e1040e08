"""``hydra/launcher=population``, the default, writes the same files as training one by one."""

import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from tests.warm_python import WarmProcess, WarmPython
from torch import Tensor, nn

from normlab.data import Random, Table
from normlab.norms import BatchNorm1d
from normlab.results.result import Result, Status

SWEEP = ["-m", "model=bn,nobn", "seed=0,1", "optimizer.lr=0.01,0.02", "trainer.max_epochs=3"]
STACKED = "hydra/launcher=population"


def files_of(folder: Path) -> set[str]:
    """Return the relative paths of a sweep's files but its state, with event files by a common name."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    paths = (path for path in paths if ".normlab" not in path.parts)
    return {str(path.parent / "events" if path.name.startswith("events") else path) for path in paths}


def yaml_of(path: Path) -> object:
    """Load a YAML file without the keys that differ between sweeps."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    if path.name == "hydra.yaml":
        for key in ("launcher", "overrides", "run", "sweep", "runtime"):
            content["hydra"].pop(key)
    return content


@pytest.mark.thorough
@pytest.mark.parametrize("chunk", ["null", "1"])
def test_population_writes_same_files_as_single_runs(run_train, chunk):
    chunked = [STACKED, f"hydra.launcher.chunk={chunk}", "hydra.sweep.dir=together"]
    assert run_train(*SWEEP, *chunked).code == 0
    assert run_train(*SWEEP, "hydra/launcher=basic", "hydra.sweep.dir=alone").code == 0
    assert files_of(Path("together")) == files_of(Path("alone"))
    for path in Path("alone").rglob("*.yaml"):
        if path.name != "multirun.yaml":
            assert yaml_of(Path("together") / path.relative_to("alone")) == yaml_of(path), path
    tables = [pd.read_csv(f"{root}/summary.csv").drop(columns=["seconds"]) for root in ("together", "alone")]
    numbers = [table.select_dtypes("number") for table in tables]
    pd.testing.assert_frame_equal(*numbers, rtol=0.05)


def test_plan_is_logged_before_training(run_train):
    outcome = run_train(*SWEEP)
    assert "8 runs in 2 populations" in outcome.out.splitlines()[:2]
    outcome = run_train("-m", "model=bn,nobn", "trainer.max_epochs=1", STACKED)
    assert outcome.out.splitlines()[:2] == [
        "1 seed: no verdict possible; 'seed=range(12)' would allow a verdict",
        "2 runs, one by one",
    ]


def test_chunk_limits_population_size(run_train):
    outcome = run_train(*SWEEP, STACKED, "hydra.launcher.chunk=3")
    assert "8 runs in 4 populations" in outcome.out.splitlines()[:2]
    assert outcome.code == 0


@pytest.mark.parametrize("mistake", ["hydra.launcher.chunk=0", "hydra.launcher.n_jobs=0"])
def test_invalid_launcher_setting_raises(run_train, mistake):
    outcome = run_train(*SWEEP, STACKED, mistake)
    assert outcome.code == 1
    assert f"{mistake.removesuffix('=0')} must be" in outcome.err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("optimizer", "plan"),
    [
        ("RMSprop", "2 runs in 1 population"),
        (
            "Adafactor",
            "one by one: torch.optim.Adafactor: its step of a parameter depends on the other parameters",
        ),
    ],
)
def test_foreign_optimizer_is_stacked_if_it_trains_members_independently(run_train, optimizer, plan):
    foreign = f"optimizer._target_=torch.optim.{optimizer}"
    outcome = run_train("-m", "seed=0,1", "trainer.max_epochs=1", foreign, STACKED)
    assert outcome.code == 0, outcome.err
    assert plan in outcome.out


STOPPING = [
    *("-m", "model=bn", "seed=range(3)", "data=wine", "trainer.max_epochs=60", "hydra.sweep.dir=sweep"),
    "+callbacks.extra.stop._target_=pytorch_lightning.callbacks.EarlyStopping",
    *("+callbacks.extra.stop.monitor=val/loss", "+callbacks.extra.stop.patience=3"),
    "+callbacks.extra.keep._target_=pytorch_lightning.callbacks.ModelCheckpoint",
    "+callbacks.extra.keep.monitor=val/loss",
]


def test_lightning_early_stopping_acts_on_each_run(run_train):
    outcome = run_train(*STOPPING)
    assert outcome.code == 0, outcome.err
    assert "3 runs in 1 population" in outcome.out
    together = pd.read_csv("sweep/summary.csv")["epochs"].tolist()
    assert len(set(together)) > 1
    for seed, epochs in enumerate(together):
        curve = pd.read_csv(f"sweep/seed={seed}/curves.csv").query("split == 'val' and metric == 'loss'")["value"]
        assert len(curve) == epochs
        assert epochs == 60 or curve.tolist().index(curve.min()) == epochs - 1 - 3
        assert len(list(Path(f"sweep/seed={seed}/checkpoints").glob("*.ckpt"))) == 1


class Branching(nn.Module):
    """A normalizer with data-dependent control flow, which vmap does not support."""

    def __init__(self, num_features: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Assigning(nn.Module):
    """A normalizer that assigns a new tensor to its buffer at each step."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean = 0.9 * self.running_mean + 0.1 * x.detach().mean(0)
        return x - self.running_mean


class Noise(nn.Module):
    """A normalizer that uses torch's global generator."""

    def __init__(self, num_features: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class Bomb(pl.Callback):
    """Raises in the second epoch of nets with BatchNorm."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1 and any(isinstance(layer, BatchNorm1d) for layer in pl_module.modules()):
            raise RuntimeError("out of luck")


@pytest.fixture(autouse=True)
def usercode(monkeypatch):
    module = ModuleType("usercode")
    module.Branching, module.Bomb, module.Noise, module.Assigning = Branching, Bomb, Noise, Assigning
    monkeypatch.setitem(sys.modules, "usercode", module)


def test_unstackable_layer_trains_one_by_one(run_train):
    layer = [
        "model.norm._target_=usercode.Branching",
        "~model.norm.eps",
        "~model.norm.momentum",
        "~model.norm.fused",
    ]
    outcome = run_train("-m", "seed=0,1", "trainer.max_epochs=1", *layer, STACKED)
    assert outcome.code == 0, outcome.err
    assert "are trained one by one: vmap:" in outcome.out


def test_layer_assigning_buffers_trains_one_by_one(run_train):
    layer = [
        "model.norm._target_=usercode.Assigning",
        *("~model.norm.eps", "~model.norm.momentum", "~model.norm.fused"),
    ]
    outcome = run_train("-m", "seed=0,1", "trainer.max_epochs=1", *layer, STACKED)
    assert outcome.code == 0, outcome.err
    reason = "hidden1.norm.running_mean is reassigned in training; update it in place, for example with copy_()"
    assert f"are trained one by one: {reason}" in outcome.out


def test_data_warning_is_logged_once_per_sweep(run_train):
    outcome = run_train("-m", "model=bn,nobn", "data.target=clipped", "trainer.max_epochs=1", STACKED)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("only a constant can be learned") == 1


def test_global_generator_layers_log_equality_in_law(run_train):
    common = [
        "-m",
        "model=bn_torch",
        "seed=0,1",
        "trainer.max_epochs=1",
        "net.dropout=0.1",
        "hydra.sweep.dir=sweep",
    ]
    layer = ["model.norm._target_=usercode.Noise", "~model.norm.eps", "~model.norm.momentum"]
    outcome = run_train(*common, *layer)
    assert outcome.code == 0, outcome.err
    plan, law, *_ = outcome.out.splitlines()
    assert plan == "2 runs in 1 population"
    assert "draw from torch's global generator, and so draw different numbers from runs trained alone" in law
    outcome = run_train(*common[:-1])
    assert "global generator" not in outcome.out, "our own dropout has a generator for each member"


def test_failed_group_does_not_stop_others(run_train):
    outcome = run_train(*SWEEP, STACKED, "+callbacks.extra.x._target_=usercode.Bomb", "hydra.sweep.dir=sweep")
    assert outcome.code == 1
    runs = pd.read_csv("sweep/summary.csv")
    assert runs.groupby("model")["status"].agg(set).to_dict() == {"bn": {"failed"}, "nobn": {"finished"}}
    assert all("out of luck" in path.read_text() for path in Path("sweep").glob("model=bn*/error.txt"))


def test_diverged_member_does_not_change_others(run_train):
    common = ["-m", "model=nobn", "optimizer=sgd", "data=random", "trainer.max_epochs=20", "logger=csv", STACKED]
    assert run_train(*common, "optimizer.lr=0.001,0.002,10000000", "hydra.sweep.dir=with").code == 0
    assert run_train(*common, "optimizer.lr=0.001,0.002,0.003", "hydra.sweep.dir=without").code == 0
    diverged = Result.read(Path("with/optimizer.lr=10000000"))
    assert diverged.status == Status.DIVERGED
    assert diverged.epochs < 20
    for lr in ("0.001", "0.002"):
        one, other = (Path(root) / f"optimizer.lr={lr}" for root in ("with", "without"))
        assert (one / "curves.csv").read_text() == (other / "curves.csv").read_text()
        states = [torch.load(r / "checkpoints/last.pt", weights_only=True)["state_dict"] for r in (one, other)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_only_unfinished_runs_are_retrained(run_train):
    assert run_train(*SWEEP, STACKED, "hydra.sweep.dir=sweep").code == 0
    again = Path("sweep/model=bn,seed=1,optimizer.lr=0.01")
    (again / "result.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/curves.csv")}
    assert run_train(*SWEEP, STACKED, "hydra.sweep.dir=sweep").code == 0
    assert {path.parent for path, at in before.items() if path.stat().st_mtime_ns != at} == {again}


TRAIN = Path(__file__).parents[2] / "train.py"
PARALLEL = [STACKED, "hydra.launcher.n_jobs=2"]


def start(python: WarmPython, folder: Path, *arguments: str) -> WarmProcess:
    """Start a sweep in a new process group, so that Ctrl-C reaches its worker processes."""
    words = [TRAIN, *arguments, "hydra.sweep.dir=sweep"]
    return python.start(words, folder, {**os.environ, "PYTHONPATH": str(folder)})


@pytest.mark.slow
def test_populations_train_in_parallel_processes(warm_python, tmp_path):
    process = start(warm_python, tmp_path, *SWEEP, *PARALLEL)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert pd.read_csv(tmp_path / "sweep/summary.csv")["status"].tolist() == ["finished"] * 8
    for model in ("bn", "nobn"):
        assert f"4 runs of model={model}: 4 finished" in out, "log lines of worker processes are missing"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[STACKED], [*PARALLEL, "hydra.launcher.chunk=2"]], ids=["one", "two"])
def test_ctrl_c_marks_all_runs_stopped(warm_python, tmp_path, launcher):
    endless = [
        *SWEEP[:-1],
        "trainer.max_epochs=100000",
        "trainer.compile=false",
        "logger.flush_seconds=0",
        *launcher,
    ]
    process = start(warm_python, tmp_path, *endless)
    deadline = time.monotonic() + 180
    while len(list(tmp_path.glob("sweep/*/curves.csv"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    runs = pd.read_csv(tmp_path / "sweep/summary.csv")
    assert runs["status"].tolist() == ["stopped"] * 8
    assert sorted(runs["epochs"] > 0) == [False] * 4 + [True] * 4


ENDINGS = """
import os, signal
import pytorch_lightning as pl
from normlab.norms import BatchNorm1d


class Odd(Exception):
    # Unpickling fails, because __init__ takes two arguments and args has one.
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def is_normalized(module):
    return any(isinstance(layer, BatchNorm1d) for layer in module.modules())


class Killer(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if is_normalized(pl_module):
            os.kill(os.getpid(), signal.SIGKILL)


class Raiser(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if is_normalized(pl_module):
            raise Odd("out of", "luck")
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("ending", "words"), [("Killer", "the worker process was killed"), ("Raiser", "out of luck")]
)
def test_worker_crash_does_not_stop_other_groups(warm_python, tmp_path, ending, words):
    (tmp_path / "endings.py").write_text(ENDINGS)
    process = start(warm_python, tmp_path, *SWEEP, *PARALLEL, f"+callbacks.extra.x._target_=endings.{ending}")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith(f"error: {words}")
    runs = pd.read_csv(tmp_path / "sweep/summary.csv")
    assert runs.groupby("model")["status"].agg(set).to_dict() == {"bn": {"failed"}, "nobn": {"finished"}}
    assert runs.query("model == 'bn'")["error"].str.startswith(words).all()


class Doubles(Random):
    """A dataset in float64, the default of numpy and pandas."""

    def table(self) -> Table:
        table = super().table()
        return Table(table.x.double(), table.y.double())


def test_float64_data_are_stacked(run_train, monkeypatch):
    monkeypatch.setattr(sys.modules["usercode"], "Doubles", Doubles, raising=False)
    doubles = ["data=random", "data._target_=usercode.Doubles", "trainer.max_epochs=1"]
    outcome = run_train("-m", "seed=0,1", *doubles, STACKED)
    assert outcome.code == 0, outcome.err
    assert "2 runs in 1 population" in outcome.out.splitlines()[:2]


def test_splits_lacking_a_category_train_separately(run_train, tmp_path):
    words = ["red"] * 58 + ["blue"] + ["green"]
    Path("words.csv").write_text("word,a,y\n" + "".join(f"{w},{k % 7},{k / 3}\n" for k, w in enumerate(words)))
    given = [
        "data=csv",
        "data.path=words.csv",
        "data.target_column=y",
        "data.train=30",
        "data.val=10",
        "data.test=10",
    ]
    given += [
        "data.batch_size=10",
        "replicate=data",
        "seed=range(6)",
        "trainer.max_epochs=1",
        "data.task=regression",
    ]
    outcome = run_train("-m", "model=nobn", *given)
    assert outcome.code == 0, outcome.err
    assert pd.read_csv(next(Path("outputs").glob("*/*/summary.csv")))["status"].tolist() == ["finished"] * 6
    assert "6 runs in 1 population" not in outcome.out
