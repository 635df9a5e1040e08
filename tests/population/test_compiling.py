"""Compiled steps equal uncompiled ones, and training continues if compilation fails."""

import logging
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from normlab.config.validation import validate
from normlab.population import compiling
from normlab.population.compiling import Compiled
from normlab.results.result import Result, Status
from normlab.training import session
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = Path(__file__).parents[2] / "conf"
# tests/norms compile each layer by itself; these models cover the kinds of step.
MODELS = ["actnorm", "bn", "brn", "ghost", "in", "ln", "noisy", "wn", "ws_gn"]
# Of 300 samples the last minibatch of an epoch is smaller.
COMMON = ["data=random", "data.train=300", "data.batch_size=128", "trainer.precision=64-true", "logger=csv"]
IMAGES = [
    *("net=cnn", "net.channels=[4,8]", "data=digits"),
    *("data.train=60", "data.val=20", "data.test=20", "data.batch_size=40"),
]
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
# Warnings of torch itself: of Inductor at its first import, and of Dynamo at an autograd.Function.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def runs_of(folder: Path, members: int, *overrides: str) -> list[Run]:
    """Return short runs that differ in their seeds."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        common = compose("train", overrides=[*COMMON, "trainer.max_epochs=4", *overrides])
    configs = [validate(OmegaConf.merge(common, {"seed": seed})) for seed in range(members)]
    return [Run(config, folder / str(k), str(k), {"model": "x"}, []) for k, config in enumerate(configs)]


def losses(folder: Path, members: int, *overrides: str) -> list[list[float]]:
    """Train, and return each run's validation losses, first and last."""
    runs = runs_of(folder, members, *overrides)
    return [[r.best.metrics["val/loss"], r.last.metrics["train/loss"]] for r in train(runs)]


@pytest.fixture
def without_code_generation(monkeypatch):
    """Compile without generating code, which checks that the step is one graph and computes the same."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def check_equal(folder: Path, caplog: pytest.LogCaptureFixture, members: int, *overrides: str) -> None:
    """Check that compilation succeeds, and that losses equal those of uncompiled steps."""
    compiled = losses(folder / "compiled", members, "trainer.compile=true", *overrides)
    assert not [record for record in caplog.records if "uncompiled" in record.message]
    for one, other in zip(
        compiled, losses(folder / "plain", members, "trainer.compile=false", *overrides), strict=True
    ):
        assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.usefixtures("without_code_generation")
@pytest.mark.parametrize("model", MODELS)
def test_models_compile_and_train_equally(tmp_path, caplog, model):
    check_equal(tmp_path, caplog, 3, f"model={model}", *(IMAGES if model == "in" else []))


@pytest.mark.usefixtures("without_code_generation")
@pytest.mark.parametrize("model", ["bn", "nobn"])
def test_single_run_compiles(tmp_path, caplog, model):
    check_equal(tmp_path, caplog, 1, f"model={model}")


@pytest.mark.thorough
@pytest.mark.usefixtures("without_code_generation")
@pytest.mark.parametrize(("net", "model"), [("cnn", "ghost"), ("resmlp", "ws_gn")])
def test_nets_compile_and_train_equally(tmp_path, caplog, net, model):
    other = IMAGES if net == "cnn" else ["net=resmlp", "net.width=8", "net.blocks=1"]
    check_equal(tmp_path, caplog, 3, f"model={model}", *other)


OTHERS = {
    "sgd": ["optimizer=sgd", "optimizer.nesterov=true", "net.dropout=0.3"],
    "adamw": ["optimizer=adamw", "trainer.gradient_clip_val=0.1", "scheduler=step", "scheduler.step_size=1"],
}


@pytest.mark.usefixtures("without_code_generation")
@pytest.mark.parametrize("other", OTHERS)
def test_optimizers_clipping_and_dropout_compile(tmp_path, caplog, other):
    check_equal(tmp_path, caplog, 3, "model=bn", *OTHERS[other])


@pytest.mark.usefixtures("without_code_generation")
def test_training_seconds_exclude_compiling(tmp_path):
    runs = runs_of(tmp_path, 2, "trainer.compile=true")
    started = time.perf_counter()
    seconds = sum(result.seconds for result in train(runs))
    assert seconds < 0.2 * (time.perf_counter() - started)


@pytest.mark.thorough
@NEEDS_COMPILER
def test_inductor_code_trains_equally(tmp_path, caplog):
    check_equal(tmp_path, caplog, 3, "model=bn", "net.dropout=0.3", "data.batch_size=150")


def test_missing_compiler_warns_and_continues(tmp_path, caplog, monkeypatch):
    def compile_nothing(step, **_):
        def compiled_step(x: Tensor, y: Tensor) -> Tensor:
            raise RuntimeError("No working C++ compiler found\nsee the manual")

        return compiled_step

    monkeypatch.setattr(torch, "compile", compile_nothing)
    with caplog.at_level(logging.WARNING, logger="normlab"):
        compiled = losses(tmp_path / "one", 2, "trainer.compile=true")
    assert [record.getMessage() for record in caplog.records] == [
        "trainer.compile: No working C++ compiler found; training continues uncompiled"
    ]
    assert compiled == losses(tmp_path / "other", 2, "trainer.compile=false")


class DataDependent(nn.Module):
    """A layer with data-dependent control flow, which neither vmap nor the compiler supports."""

    def __init__(self, num_features: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_uncompilable_net_trains_uncompiled(tmp_path, caplog, monkeypatch):
    module = ModuleType("user_module")
    module.DataDependent = DataDependent
    monkeypatch.setitem(sys.modules, "user_module", module)
    layer = [
        "model=bn_torch",
        "model.norm._target_=user_module.DataDependent",
        "~model.norm.eps",
        "~model.norm.momentum",
    ]
    compiled = losses(tmp_path / "one", 1, "trainer.compile=true", *layer)
    assert "training continues uncompiled" in caplog.text
    assert compiled == losses(tmp_path / "other", 1, "trainer.compile=false", *layer)


def test_foreign_optimizer_warns_that_it_is_not_compiled(tmp_path, caplog):
    foreign = ["optimizer._target_=torch.optim.RMSprop", "~optimizer.betas"]
    (run,) = runs_of(tmp_path, 1, "trainer.compile=true", *foreign)
    train([run])
    assert "RMSprop is not compiled; only normlab's optimizers can be" in caplog.text
    assert Result.read(run.folder).status == Status.FINISHED


@pytest.mark.usefixtures("without_code_generation")
def test_compiling_is_automatic_if_worthwhile(tmp_path, caplog, monkeypatch):
    instances = []

    class RecordedCompiled(Compiled):
        def __init__(self, *arguments):
            instances.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr("normlab.training.population_module.Compiled", RecordedCompiled)
    with caplog.at_level(logging.INFO, logger="normlab"):
        losses(tmp_path / "short", 2)
        assert not instances
        monkeypatch.setattr(session, "should_compile", lambda config, members, populations: True)
        losses(tmp_path / "long", 2)
        assert len(instances) == 1
        losses(tmp_path / "refused", 2, "trainer.compile=false")
        assert len(instances) == 1
    assert "compiling the step of 2 runs of model=x: this should save more time than it takes" in caplog.text


class StatelessStep:
    """A step without state."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(dim=(1, 2))

    def agrees_with(self, other: "StatelessStep") -> bool:
        return True


class Counter(nn.Module):
    """A layer with a Python counter that changes at every step."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.t = 0

    def forward(self, x: Tensor) -> Tensor:
        self.t += self.training
        return x * min(1.0, self.t / 20)


class InitializedByFirstBatch(nn.Module):
    """A layer with a Python flag that the first minibatch sets."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(num_features))
        self.known = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.known:
            with torch.no_grad():
                self.scale.copy_(1 / x.std(0))
            self.known = True
        return x * self.scale


class WrongWhenCompiled(nn.Module):
    """A layer that computes a different result in compiled code."""

    def __init__(self, num_features: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if torch.compiler.is_compiling() else x


WITH_STATE = {
    Counter: compiling.RECOMPILED,
    InitializedByFirstBatch: None,
    WrongWhenCompiled: "the compiled step differs from the uncompiled one",
}


@pytest.mark.usefixtures("without_code_generation")
@pytest.mark.parametrize("layer", WITH_STATE)
@pytest.mark.parametrize("members", [1, 3])
def test_layer_with_python_state_trains_as_uncompiled(tmp_path, caplog, monkeypatch, layer, members):
    user_module = ModuleType("user_module")
    setattr(user_module, layer.__name__, layer)
    monkeypatch.setitem(sys.modules, "user_module", user_module)
    custom = [
        "model=nobn",
        f"++model.norm._target_=user_module.{layer.__name__}",
        "++model.norm._partial_=true",
    ]
    compiled = losses(tmp_path / "compiled", members, "trainer.compile=true", *custom)
    warnings = [record.message for record in caplog.records if "uncompiled" in record.message]
    reason = WITH_STATE[layer]
    assert warnings == ([f"trainer.compile: {reason}; training continues uncompiled"] if reason else [])
    plain = losses(tmp_path / "plain", members, "trainer.compile=false", *custom)
    for one, other in zip(compiled, plain, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.usefixtures("without_code_generation")
def test_other_batch_size_uses_uncompiled_step():
    called = []

    step = StatelessStep()

    def uncompiled(x: Tensor, y: Tensor) -> Tensor:
        called.append(x.shape[1])
        return step(x, y)

    compiled = compiling.Compiled(step, uncompiled, [4])
    for size in (4, 3, 4):
        x = torch.ones(2, size, 1)
        assert compiled(x, x).tolist() == [size, size]
    assert called == [3]
