"""The dry run raises for configurations that cannot be trained, and passes all others."""

import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from equality import IMAGES_ONLY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from normlab.config.frozen import FrozenConfig
from normlab.config.validation import validate
from normlab.data import InMemoryData, Table
from normlab.errors import ConfigError
from normlab.norms import BatchNorm1d
from normlab.population.population import initial_nets
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot
from normlab.results.result import Status
from normlab.training import dry_run
from normlab.training.build import make_data, make_module
from normlab.training.dry_run import dry_run_once
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = str(Path(__file__).parents[2] / "conf")


class Tokens(InMemoryData):
    """Sentences of five out of ten tokens; the target is the count of the first token."""

    def table(self) -> Table:
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randint(0, 10, (120, 5), generator=generator)
        return Table(x, (x == x[:, :1]).sum(1, keepdim=True).float())


class IntegerTargets(Tokens):
    """The same with integer targets, which a regression does not support."""

    def table(self) -> Table:
        table = super().table()
        return Table(table.x, table.y.long())


class EmbeddingNet(nn.Module):
    """A net with an embedding of tokens."""

    def __init__(self, input_shape, out_features, *, norm=None) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.norm = norm(20) if norm else nn.Identity()
        self.output = nn.Linear(20, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.norm(self.words(x).flatten(1)))


class SqueezedOutputs(nn.Module):
    """A net whose outputs lack their last axis."""

    def __init__(self, input_shape, out_features, *, norm=None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(*input_shape, 8), norm(8) if norm else nn.Identity(), nn.Linear(8, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


class CastsToFloat32(SqueezedOutputs):
    """A net that casts its inputs to float32."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.float())


class ByNumPy(nn.Module):
    """A net whose weights NumPy draws."""

    def __init__(self, input_shape, out_features, *, norm=None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(np.random.randn(out_features, *input_shape)).float())  # noqa: NPY002

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class NeedsRunningMean(nn.Module):
    """A normalizer that fails without its running mean."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.running_mean


class NormalizerProbe(Probe):
    """A probe that raises for nets without BatchNorm."""

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        if not any(isinstance(layer, BatchNorm1d) for layer in snapshot.net.modules()):
            raise ValueError("there is no normalizer to look at")
        yield Measurement("batch", {"x": torch.zeros(len(snapshot.lr))})


def is_close(outputs: Tensor, targets: Tensor) -> Tensor:
    """A boolean metric."""
    return (outputs - targets).abs().mean() < 50


def always_nan(outputs: Tensor, targets: Tensor) -> float:
    """A metric that is always NaN."""
    return math.nan


USER_MODULE = ModuleType("user_module")
for item in (
    Tokens,
    IntegerTargets,
    EmbeddingNet,
    SqueezedOutputs,
    CastsToFloat32,
    ByNumPy,
    NeedsRunningMean,
    NormalizerProbe,
    is_close,
    always_nan,
):
    setattr(USER_MODULE, item.__name__, item)
TOKENS = {"_target_": "user_module.Tokens", "train": 60, "val": 30, "test": 30, "batch_size": 16, "seed": 0}


@pytest.fixture(autouse=True)
def user_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "user_module", USER_MODULE)
    monkeypatch.setattr(dry_run, "_passed", {})


def config_of(*overrides: str, net: str = "", data: dict | None = None) -> FrozenConfig:
    """Return a configuration of a run."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = OmegaConf.merge(compose("train", overrides=["trainer.max_epochs=2", "logger=csv", *overrides]))
    OmegaConf.set_struct(config, False)
    if net:
        config.net = {"_target_": f"user_module.{net}", "_partial_": True}
    if data:
        config.data = data
    return validate(config)


def error_of(*overrides: str, **parts) -> str:
    """Return the message of the ConfigError that a dry run raises."""
    with pytest.raises(ConfigError) as caught:
        dry_run_once(config_of(*overrides, **parts))
    return str(caught.value)


def metric(name: str) -> list[str]:
    """Return the overrides that add a metric."""
    return [f"+metrics.mine._target_=user_module.{name}", "+metrics.mine._partial_=true"]


@pytest.mark.parametrize("model", ["bn", "nobn"])
def test_embedding_of_integer_tokens_trains(tmp_path, model):
    config = config_of(f"model={model}", net="EmbeddingNet", data=TOKENS)
    dry_run_once(config)
    (result,) = train([Run(config, tmp_path, "run", {}, [])])
    assert result.status == Status.FINISHED


def test_integer_inputs_to_linear_layer_raise():
    error = error_of(data=TOKENS, net="SqueezedOutputs")
    assert error.startswith("layers.0 (Linear) cannot take a batch of 12: ")


def test_integer_regression_targets_raise():
    error = error_of(data={**TOKENS, "_target_": "user_module.IntegerTargets"}, net="EmbeddingNet")
    assert error == "data: the targets must be class indices or floating-point numbers, got torch.int64"


def test_outputs_without_last_axis_raise():
    error = error_of(net="SqueezedOutputs")
    assert error == "net: the outputs must be of shape (88, 1) (add .unsqueeze(1)), got (88,)"


def test_float32_cast_in_net_raises_only_in_float64():
    dry_run_once(config_of(net="CastsToFloat32"))
    assert "layers.0 (Linear) cannot take a batch" in error_of("trainer.precision=64-true", net="CastsToFloat32")


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            "LBFGS",
            "optimizer._target_=torch.optim.LBFGS needs a closure, which a population lacks; use module=lightning",
        ),
        ("SparseAdam", "optimizer: SparseAdam does not support dense gradients"),
    ],
)
def test_unusable_optimizer_raises(optimizer, message):
    gone = ["~optimizer.betas", "~optimizer.eps", "~optimizer.weight_decay"]
    assert message in error_of(f"optimizer._target_=torch.optim.{optimizer}", *gone)


def test_optimizer_hyperparameters_are_checked():
    dry_run_once(config_of("optimizer=sgd", "optimizer.nesterov=true"))
    error = error_of("optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0")
    assert error == "optimizer: optimizer.nesterov needs optimizer.momentum > 0"


def test_layer_requiring_running_statistics_raises_without_them():
    layer = ["model.norm._target_=user_module.NeedsRunningMean", "~model.norm.eps", "~model.norm.momentum"]
    layer += ["~model.norm.fused"]
    dry_run_once(config_of(*layer))
    assert error_of(*layer, "statistics=reestimated").startswith("statistics=reestimated: unsupported operand")
    assert "NeedsRunningMean) cannot take a batch of 88: unsupported operand" in error_of(
        *layer, "statistics=batch"
    )


def test_boolean_metric_is_a_number(tmp_path):
    config = config_of(*metric("is_close"), "optimized_metric=val/mine", "direction=max")
    dry_run_once(config)
    (result,) = train([Run(config, tmp_path, "run", {}, [])])
    assert result.objective.value in (0.0, 1.0)


def test_nan_metric_warns():
    line = "val/mine is NaN after the first epoch of the dry run; a run with only NaN has no best epoch"
    assert (
        line
        in dry_run_once(config_of(*metric("always_nan"), "optimized_metric=val/mine", "direction=max")).warnings
    )


class TestBatchDependence:
    WITHOUT = ("model=bn_torch", "+model.norm.track_running_stats=false")

    @staticmethod
    def found(*overrides: str) -> bool:
        return any(
            "depends on the rest of its minibatch" in line for line in dry_run_once(config_of(*overrides)).warnings
        )

    def test_normalizer_without_running_statistics_warns(self):
        assert self.found(*self.WITHOUT)

    @pytest.mark.parametrize("model", sorted(path.stem for path in (Path(CONF) / "model").glob("*.yaml")))
    def test_others_do_not(self, model):
        images = ["net=cnn", "data=digits", "net.channels=[4,8]"] if model in IMAGES_ONLY else []
        assert not self.found(f"model={model}", *images)

    def test_batch_statistics_that_were_asked_for_do_not(self):
        assert not self.found(*self.WITHOUT, "statistics=batch")


@pytest.mark.parametrize("when", ["at_end", "at_start", "every_n_epochs=3"])
def test_failing_probe_raises_at_any_schedule(when):
    key, _, value = when.partition("=")
    probe = ["+probes.mine._target_=user_module.NormalizerProbe", f"+probes.mine.{key}={value or 'true'}"]
    assert error_of(*probe, "model=nobn") == "probes.mine: there is no normalizer to look at"
    dry_run_once(config_of(*probe, "model=bn"))


def test_batch_size_one_raises_with_its_key():
    assert error_of("data.batch_size=1").startswith(
        "data.batch_size=1: hidden1.norm (BatchNorm1d) cannot take a batch of 1: "
    )
    dry_run_once(config_of("model=nobn", "data.batch_size=1"))


def test_dry_run_has_no_side_effects(caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    before = torch.get_rng_state()
    dry_run_once(config_of("logger=tensorboard", "probes=full", "probes.curvature.trace_samples=0"))
    assert not caplog.records
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_and_learning_rates_share_a_dry_run(monkeypatch):
    runs = []
    monkeypatch.setattr(dry_run, "dry_run", lambda config: runs.append(config) or [])
    for seed in (0, 1):
        for lr in (0.1, 0.2):
            dry_run_once(config_of(f"seed={seed}", f"optimizer.lr={lr}"))
    dry_run_once(config_of("net.hidden=[10]"))
    assert len(runs) == 2


def test_weights_drawn_by_numpy_follow_the_seed(tmp_path):
    configs = [config_of(f"seed={seed}", net="ByNumPy") for seed in (0, 1, 0)]
    data = make_data(configs[0])
    weights = [make_module([config], data).population.net.weight for config in configs]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_making_nets_restores_numpy_generator():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    initial_nets(lambda: ByNumPy((3,), 1), [0, 1])
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_training_does_not_reuse_the_dry_run_net(tmp_path):
    config = config_of("seed=3")
    dry_run_once(config)
    run, again = (Run(config, tmp_path / name, name, {}, []) for name in ("a", "b"))
    (first,), (second,) = train([run]), train([again])
    assert first.last == second.last
    assert isinstance(make_module([config], make_data(config)).population.net.hidden1.norm, BatchNorm1d)
