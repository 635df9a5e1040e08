"""A population computes what its nets compute alone, or is not made."""

import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.norms import BatchNorm1d
from normlab.population import stacking
from normlab.population.population import Population, copy_of
from normlab.population.stacking_check import Stacking
from normlab.probes.snapshot import side_effect_free_copy
from normlab.results.result import Result
from normlab.sweep.grouping import group_runs
from normlab.training import stackability
from normlab.training.build import make_data
from normlab.training.run import train
from normlab.training.run_folders import Run
from normlab.training.stackability import check_stacking_of

CONF = str(Path(__file__).parents[2] / "conf")
COMMON = ["data=random", "trainer.precision=64-true", "logger=csv", "trainer.max_epochs=3", "optimizer=sgd"]
NETS = ModuleType("proved_nets")


def net(build):
    """Let a function that makes the inner layers of a net be named as ``net._target_``."""

    def made(input_shape, out_features, *, norm=None):
        layers = build(lambda: (norm or nn.Identity)(8) if norm else nn.Identity())
        return nn.Sequential(nn.Linear(*input_shape, 8), *layers, nn.Linear(8, out_features))

    setattr(NETS, build.__name__, made)
    return build


@net
def own(norm):
    return [norm(), nn.Tanh(), nn.Linear(8, 8), norm(), nn.Tanh()]


@net
def shared_activation(norm):
    tanh = nn.Tanh()
    return [norm(), tanh, nn.Linear(8, 8), norm(), tanh]


@net
def shared_linear(norm):
    linear = nn.Linear(8, 8)
    return [linear, norm(), nn.Tanh(), linear, norm(), nn.Tanh()]


@net
def shared_norm(norm):
    both = norm()
    return [both, nn.Tanh(), nn.Linear(8, 8), both]


@net
def hook_of_a_container(norm):
    inner = nn.Sequential(nn.Linear(8, 8), norm())
    inner.register_forward_hook(lambda module, inputs, output: 3 * output)
    return [inner]


@net
def hook_before_a_container(norm):
    inner = nn.Sequential(nn.Linear(8, 8), norm())
    inner.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    return [nn.Tanh(), inner]


@net
def hook_of_a_layer(norm):
    linear = nn.Linear(8, 8)
    linear.register_forward_hook(lambda module, inputs, output: output.square())
    return [linear, norm()]


@net
def forward_of_an_object(norm):
    linear = nn.Linear(8, 8)
    linear.forward = lambda x: 2 * nn.Linear.forward(linear, x)
    return [linear, norm()]


@net
def backward_hook(norm):
    linear = nn.Linear(8, 8)
    linear.register_full_backward_hook(lambda module, grads, _: (2 * grads[0],))
    return [nn.Tanh(), linear, norm()]


class Called(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + 1


@net
def call_of_its_own(norm):
    return [Called(8, 8), norm()]


class Pair(nn.Module):
    """Two maps with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


@net
def tied_in_a_layer(norm):
    return [Pair(), norm()]


@net
def tied_across_layers(norm):
    a, b = nn.Linear(8, 8), nn.Linear(8, 8)
    b.weight = a.weight
    return [a, norm(), nn.Tanh(), b]


class Plain(nn.Module):
    """A layer that is made from a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@net
def drawing_by_numpy(norm):
    return [Plain(lambda layer, x: x + np.random.rand() if layer.training else x)]  # noqa: NPY002


@net
def drawing_by_python(norm):
    return [Plain(lambda layer, x: x + random.random() if layer.training else x)]


@net
def drawing_by_torch(norm):
    return [Plain(lambda layer, x: x + torch.randn_like(x) if layer.training else x)]


@net
def single_precision(norm):
    return [Plain(lambda layer, x: x.float()), nn.Linear(8, 8)]


ALIKE = [name for name in vars(NETS) if not name.startswith(("_", "drawing", "single", "backward"))]


@pytest.fixture(autouse=True)
def nets(monkeypatch):
    monkeypatch.setitem(sys.modules, "proved_nets", NETS)


def config_of(name: str, *overrides: str) -> DictConfig:
    """Return a configuration of one of the nets."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", overrides=[*COMMON, *overrides])
    config = OmegaConf.merge(config)
    OmegaConf.set_struct(config, False)
    config.net = {"_target_": f"proved_nets.{name}", "_partial_": True}
    return config


def proved(name: str, *overrides: str) -> Stacking:
    """Return how a net can be stacked."""
    config = config_of(name, *overrides)
    return check_stacking_of(config, make_data(config))


def runs_of(name: str, folder: Path, *overrides: str) -> list[Run]:
    """Return runs of two seeds."""
    configs = [OmegaConf.merge(config_of(name, *overrides), {"seed": seed}) for seed in (0, 1)]
    return [Run(config, folder / str(seed), f"seed={seed}", {}, []) for seed, config in enumerate(configs)]


def losses(results: list[Result]) -> list[float]:
    """Return the last losses of runs."""
    return [result.last.metrics[name] for result in results for name in ("train/loss", "val/loss")]


@pytest.mark.parametrize("model", ["bn", "nobn"])
@pytest.mark.parametrize("name", ALIKE)
def test_a_population_of_any_net_trains_as_its_runs_alone(tmp_path, name, model):
    assert proved(name, f"model={model}") == Stacking()
    together = losses(train(runs_of(name, tmp_path / "together", f"model={model}")))
    alone = [loss for run in runs_of(name, tmp_path / "alone", f"model={model}") for loss in losses(train([run]))]
    assert together == pytest.approx(alone, rel=1e-9)


def test_a_net_without_a_hook_trains_otherwise(tmp_path):
    hooked, plain = (losses(train(runs_of(name, tmp_path / name))) for name in ("hook_of_a_layer", "own"))
    assert hooked != pytest.approx(plain, rel=1e-3), "or the tests above would show nothing"


def test_a_backward_hook_that_vmap_cannot_follow_is_a_reason():
    assert proved("backward_hook").unstackable_reason


@pytest.mark.parametrize("name", ["drawing_by_numpy", "drawing_by_python"])
def test_generators_that_members_would_share_are_a_reason(name):
    assert proved(name).unstackable_reason == (
        "it draws from Python's or NumPy's generator: all members would get the same numbers"
    )


def test_torchs_generator_is_told():
    assert proved("drawing_by_torch") == Stacking(draws_globally=True)


def test_a_net_that_casts_to_32_bits_is_compared_in_32_bits():
    assert proved("single_precision", "trainer.precision=32-true") == Stacking()


def wrong_affine(layer, state, x):
    return stacking.affine(x, 1.0001 * state["weight"], state.get("bias"))


class WrongGradient(torch.autograd.Function):
    """The identity, with a gradient that is off by a thousandth."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 1.001 * grad


def wrong_gradient(layer, state, x):
    return stacking.affine(WrongGradient.apply(x), state["weight"], state.get("bias"))


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (wrong_affine, "stacking changes step 1: the loss is"),
        (wrong_gradient, "changes step 1: the gradient of"),
    ],
)
def test_a_net_with_a_wrong_stacked_form_is_vmapped_as_a_whole(monkeypatch, tmp_path, form, says):
    monkeypatch.setattr(stacking, "linear", form)
    found = proved("own")
    assert says in found.vmap_reason
    assert found.unstackable_reason is None
    monkeypatch.setattr(stackability, "_stackings", {})
    together = losses(train(runs_of("own", tmp_path / "together")))
    alone = [loss for run in runs_of("own", tmp_path / "alone") for loss in losses(train([run]))]
    assert together == pytest.approx(alone, rel=1e-9)


def test_a_wrong_running_statistic_is_found(monkeypatch):
    def forgetful(layer, state, x):
        return right(layer, {name: tensor.clone() for name, tensor in state.items()}, x)

    right = stacking.batch_norm
    monkeypatch.setattr(stacking, "batch_norm", forgetful)
    assert "is reassigned in training" in proved("own", "model=bn").vmap_reason


def test_a_shape_is_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(stackability, "_stackings", {})
    monkeypatch.setattr(stackability, "check_stacking_of", lambda config, data: tried.append(config) or Stacking())
    configs = [config_of("own", f"seed={seed}", f"optimizer.lr={lr}") for seed in (0, 1) for lr in (0.1, 0.2)]
    assert len(group_runs(configs, None)) == 1
    group_runs(configs, None)
    assert len(tried) == 1


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_lightnings_own_callbacks_and_loggers_are_for_one_run(group):
    extra = f"+{group}.extra.mine._target_=pytorch_lightning.callbacks.Callback"
    (one, other) = group_runs([config_of("own", extra, f"seed={seed}") for seed in (0, 1)], None)
    assert one.indices, other.indices == ([0], [1])
    reason = f"{group}.extra: a Lightning {group.rstrip('s')} handles a single run"
    assert one.stacking.unstackable_reason == reason


@pytest.mark.parametrize("after", ["shared", "own"])
def test_a_norm_after_a_shared_activation_is_folded_nowhere_else(after):
    tanh = nn.Tanh()
    pair = [tanh, tanh] if after == "shared" else [nn.Tanh(), nn.Tanh()]
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), pair[0], BatchNorm1d(4), nn.Linear(4, 4), pair[1], BatchNorm1d(4), nn.Linear(4, 1)]
    made = nn.Sequential(*layers)
    made(torch.randn(32, 3))
    x = torch.randn(8, 3)
    torch.testing.assert_close(side_effect_free_copy(made, "frozen")(x), made.eval()(x))


@net
def norm_after_shared_activation(norm):
    tanh = nn.Tanh()
    return [tanh, norm(), nn.Linear(8, 8), tanh, norm()]


@net
def norm_after_own_activation(norm):
    return [nn.Tanh(), norm(), nn.Linear(8, 8), nn.Tanh(), norm()]


def probed(name: str, folder: Path, *overrides: str) -> list[dict[str, float]]:
    """Train two runs with probes, and return what these found last."""
    return [result.probes for result in train(runs_of(name, folder, *overrides))]


def test_a_shared_activation_has_the_curvature_of_two_of_its_kind(tmp_path):
    given = ["probes=curvature", "model=bn", "probes.curvature.at_end=true"]
    shared, own = (
        probed(f"norm_after_{whose}_activation", tmp_path / whose, *given) for whose in ("shared", "own")
    )
    assert {"batch", "frozen"} <= {part for key in own[0] for part in key.split("/")}
    for one, other in zip(shared, own, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("members", [1, 2])
def test_a_net_with_tied_weights_is_probed(tmp_path, members):
    given = ["probes=smoothness", "model=bn", "probes.gradient_lipschitz.samples=5"]
    for result in train(runs_of("tied_in_a_layer", tmp_path, *given)[:members]):
        assert result.probes
        assert all(np.isfinite(value) for value in result.probes.values())


def test_tied_weights_are_one_parameter_of_the_landscape():
    tied = Population([NETS.tied_in_a_layer((3,), 1) for _ in range(2)])
    state = copy_of(tied)
    assert "1.b.weight" not in state
    assert tied.member(1)["1.b.weight"].equal(state["1.a.weight"][1])
    alone = tied.member_net(1)
    assert alone[1].a.weight is alone[1].b.weight
    x = torch.randn(5, 3)
    assert_close(alone(x), tied(x.expand(2, 5, 3))[1])
