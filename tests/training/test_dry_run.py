"""What cannot be trained is refused by a dry run, and what can be trained is not."""

import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

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
    """Sentences of five words out of ten; the target is how often the first word stands in it."""

    def table(self) -> Table:
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randint(0, 10, (120, 5), generator=generator)
        return Table(x, (x == x[:, :1]).sum(1, keepdim=True).float())


class Counts(Tokens):
    """The same with targets of whole numbers, which a regression is not for."""

    def table(self) -> Table:
        table = super().table()
        return Table(table.x, table.y.long())


class Embedded(nn.Module):
    """A net for words."""

    def __init__(self, input_shape, out_features, *, norm=None) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.norm = norm(20) if norm else nn.Identity()
        self.output = nn.Linear(20, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.norm(self.words(x).flatten(1)))


class Flat(nn.Module):
    """A net whose outputs lack their last axis."""

    def __init__(self, input_shape, out_features, *, norm=None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(*input_shape, 8), norm(8) if norm else nn.Identity(), nn.Linear(8, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


class Single(Flat):
    """A net that casts its inputs to 32 bits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.float())


class ByNumPy(nn.Module):
    """A net whose weights NumPy draws."""

    def __init__(self, input_shape, out_features, *, norm=None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(np.random.randn(out_features, *input_shape)).float())  # noqa: NPY002

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class NeedsRunning(nn.Module):
    """A normalizer that cannot do without its running statistics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.running_mean


class Picky(Probe):
    """A probe of normalizers."""

    def __call__(self, scene: TrainingSnapshot) -> Iterator[Measurement]:
        if not any(isinstance(layer, BatchNorm1d) for layer in scene.net.modules()):
            raise ValueError("there is no normalizer to look at")
        yield Measurement(self.name, "batch", {"x": torch.zeros(len(scene.lr))})


def is_close(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric that is true or false."""
    return (outputs - targets).abs().mean() < 50


def never(outputs: Tensor, targets: Tensor) -> float:
    """A metric that is not known."""
    return math.nan


SOMEBODY = ModuleType("rehearsed")
for thing in (Tokens, Counts, Embedded, Flat, Single, ByNumPy, NeedsRunning, Picky, is_close, never):
    setattr(SOMEBODY, thing.__name__, thing)
WORDS = {"_target_": "rehearsed.Tokens", "train": 60, "val": 30, "test": 30, "batch_size": 16, "seed": 0}


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    monkeypatch.setitem(sys.modules, "rehearsed", SOMEBODY)
    monkeypatch.setattr(dry_run, "_warnings", {})


def config_of(*overrides: str, net: str = "", data: dict | None = None) -> DictConfig:
    """Return a configuration of a run."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = OmegaConf.merge(compose("train", overrides=["trainer.max_epochs=2", "logger=csv", *overrides]))
    OmegaConf.set_struct(config, False)
    if net:
        config.net = {"_target_": f"rehearsed.{net}", "_partial_": True}
    if data:
        config.data = data
    return config


def refusal(*overrides: str, **parts) -> str:
    """Return why a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        dry_run_once(config_of(*overrides, **parts))
    return str(caught.value)


def metric(name: str) -> list[str]:
    """Return the words that add a metric."""
    return [f"+metrics.mine._target_=rehearsed.{name}", "+metrics.mine._partial_=true"]


@pytest.mark.parametrize("model", ["bn", "nobn"])
def test_tokens_of_an_embedding_pass_and_train(tmp_path, model):
    config = config_of(f"model={model}", net="Embedded", data=WORDS)
    dry_run_once(config)
    (result,) = train([Run(config, tmp_path, "run", {}, [])])
    assert result.status == Status.FINISHED


def test_whole_numbers_into_linear_layers_are_refused():
    said = refusal(data=WORDS, net="Flat")
    assert said.startswith("layers.0 (Linear) cannot take a batch of 12: ")


def test_targets_of_whole_numbers_are_refused():
    said = refusal(data={**WORDS, "_target_": "rehearsed.Counts"}, net="Embedded")
    assert said == "data: the targets must be class indices or floating-point numbers, got torch.int64"


def test_outputs_without_their_last_axis_are_named():
    assert refusal(net="Flat") == ("net: the outputs must be of shape (88, 1) (add .unsqueeze(1)), got (88,)")


def test_a_cast_in_the_net_is_refused_in_64_bits_alone():
    dry_run_once(config_of(net="Single"))
    assert "layers.0 (Linear) cannot take a batch" in refusal("trainer.precision=64-true", net="Single")


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        ("LBFGS", "optimizer._target_ must be an optimizer whose step needs no closure, got torch.optim.LBFGS"),
        ("SparseAdam", "optimizer: SparseAdam does not support dense gradients"),
    ],
)
def test_an_optimizer_that_cannot_take_a_step_is_refused(optimizer, says):
    gone = ["~optimizer.betas", "~optimizer.eps", "~optimizer.weight_decay"]
    assert says in refusal(f"optimizer._target_=torch.optim.{optimizer}", *gone)


def test_the_numbers_of_each_optimizer_are_tried():
    dry_run_once(config_of("optimizer=sgd", "optimizer.nesterov=true"))
    said = refusal("optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0")
    assert said == "optimizer or scheduler: optimizer.nesterov needs optimizer.momentum > 0"


def test_a_normalizer_that_needs_its_running_statistics_is_refused_where_they_are_taken_away():
    layer = ["model.norm._target_=rehearsed.NeedsRunning", "~model.norm.eps", "~model.norm.momentum"]
    layer += ["~model.norm.fused"]
    dry_run_once(config_of(*layer))
    assert refusal(*layer, "statistics=reestimated").startswith("statistics=reestimated: unsupported operand")
    assert "hidden1.norm (NeedsRunning) cannot take a batch" in refusal(*layer, "statistics=batch")


def test_a_metric_that_is_true_or_false_trains_as_a_number(tmp_path):
    config = config_of(*metric("is_close"), "optimized_metric=val/mine", "direction=max")
    dry_run_once(config)
    (result,) = train([Run(config, tmp_path, "run", {}, [])])
    assert result.objective.value in (0.0, 1.0)


def test_a_metric_that_is_no_number_is_told_before_the_training():
    line = "val/mine is NaN after the first epoch of the dry run; a run with only NaN has no best epoch"
    assert line in dry_run_once(config_of(*metric("never"), "optimized_metric=val/mine", "direction=max"))


@pytest.mark.parametrize("when", ["at_end", "at_start", "every_n_epochs=3"])
def test_a_probe_that_cannot_look_is_refused_whenever_it_would_look(when):
    key, _, value = when.partition("=")
    probe = ["+probes.mine._target_=rehearsed.Picky", f"+probes.mine.{key}={value or 'true'}"]
    assert refusal(*probe, "model=nobn") == "probes.mine: there is no normalizer to look at"
    dry_run_once(config_of(*probe, "model=bn"))


def test_a_batch_of_one_is_refused_by_the_key():
    assert refusal("data.batch_size=1").startswith(
        "data.batch_size=1: hidden1.norm (BatchNorm1d) cannot take a batch of 1: "
    )
    dry_run_once(config_of("model=nobn", "data.batch_size=1"))


def test_it_leaves_no_line_no_file_and_no_trace_in_the_generators(caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    before = torch.get_rng_state()
    dry_run_once(config_of("logger=tensorboard", "probes=full", "probes.curvature.trace_samples=0"))
    assert not caplog.records
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_and_rates_share_a_dry_run(monkeypatch):
    runs = []
    monkeypatch.setattr(dry_run, "dry_run", lambda config: runs.append(config) or [])
    for seed in (0, 1):
        for lr in (0.1, 0.2):
            dry_run_once(config_of(f"seed={seed}", f"optimizer.lr={lr}"))
    dry_run_once(config_of("net.hidden=[10]"))
    assert len(runs) == 2


def test_weights_drawn_by_numpy_are_those_of_the_seed(tmp_path):
    configs = [config_of(f"seed={seed}", net="ByNumPy") for seed in (0, 1, 0)]
    data = make_data(configs[0])
    weights = [make_module([config], data).population.net.weight for config in configs]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_the_generators_of_others_are_as_they_were_after_nets_were_made():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    initial_nets(lambda: ByNumPy((3,), 1), [0, 1])
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_the_net_that_trains_is_not_the_one_that_was_tried(tmp_path):
    config = config_of("seed=3")
    dry_run_once(config)
    run, again = (Run(config, tmp_path / name, name, {}, []) for name in ("a", "b"))
    (first,), (second,) = train([run]), train([again])
    assert first.last == second.last
    assert isinstance(make_module([config], make_data(config)).population.net.hidden1.norm, BatchNorm1d)
