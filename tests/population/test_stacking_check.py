"""A population equals its nets trained alone, or the stacking check gives a reason."""

import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from normlab.config.frozen import FrozenConfig
from normlab.config.validation import validate
from normlab.execution.grouping import Group, group_runs
from normlab.norms import BatchNorm1d
from normlab.population import kernels
from normlab.population.resources import Footprint
from normlab.population.stacking_check import Stacking
from normlab.probes.landscape import side_effect_free_copy
from normlab.results.result import Result
from normlab.training import dry_run as dry_run_module
from normlab.training import stackability
from normlab.training.build import make_data
from normlab.training.run import train
from normlab.training.run_folders import Run
from normlab.training.stackability import check_stacking_of

CONF = str(Path(__file__).parents[2] / "conf")
COMMON = ["data=random", "trainer.precision=64-true", "logger=csv", "trainer.max_epochs=3", "optimizer=sgd"]
NETS = ModuleType("checked_nets")


def net(build):
    """Register a function that makes the inner layers of a net for use as ``net._target_``."""

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


class OverridesCall(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + 1


@net
def call_of_its_own(norm):
    return [OverridesCall(8, 8), norm()]


class TiedPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


@net
def tied_in_a_layer(norm):
    return [TiedPair(), norm()]


@net
def tied_across_layers(norm):
    a, b = nn.Linear(8, 8), nn.Linear(8, 8)
    b.weight = a.weight
    return [a, norm(), nn.Tanh(), b]


class FunctionLayer(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@net
def drawing_by_numpy(norm):
    return [FunctionLayer(lambda layer, x: x + np.random.rand() if layer.training else x)]  # noqa: NPY002


@net
def drawing_by_python(norm):
    return [FunctionLayer(lambda layer, x: x + random.random() if layer.training else x)]


@net
def drawing_by_torch(norm):
    return [FunctionLayer(lambda layer, x: x + torch.randn_like(x) if layer.training else x)]


@net
def single_precision(norm):
    return [FunctionLayer(lambda layer, x: x.float()), nn.Linear(8, 8)]


STACKABLE = [name for name in vars(NETS) if not name.startswith(("_", "drawing", "single", "backward"))]


@pytest.fixture(autouse=True)
def nets_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "checked_nets", NETS)


def config_of(name: str, *overrides: str) -> FrozenConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", overrides=[*COMMON, *overrides])
    config = OmegaConf.merge(config)
    OmegaConf.set_struct(config, False)
    config.net = {"_target_": f"checked_nets.{name}", "_partial_": True}
    return validate(config)


def stacking_of_net(name: str, *overrides: str) -> Stacking:
    config = config_of(name, *overrides)
    return check_stacking_of(config, make_data(config), Footprint(0, 0, 0, 0, 4))


def runs_of(name: str, folder: Path, *overrides: str) -> list[Run]:
    configs = [config_of(name, *overrides, f"seed={seed}") for seed in (0, 1)]
    return [Run(config, folder / str(seed), f"seed={seed}", {}, []) for seed, config in enumerate(configs)]


def losses(results: list[Result]) -> list[float]:
    return [result.last.metrics[name] for result in results for name in ("train/loss", "val/loss")]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bn", "nobn"])
@pytest.mark.parametrize("name", STACKABLE)
def test_stacked_nets_equal_single_runs(tmp_path, name, model):
    assert stacking_of_net(name, f"model={model}") == Stacking()
    together = losses(train(runs_of(name, tmp_path / "together", f"model={model}")))
    alone = [loss for run in runs_of(name, tmp_path / "alone", f"model={model}") for loss in losses(train([run]))]
    assert together == pytest.approx(alone, rel=1e-9)


def test_hook_changes_the_training(tmp_path):
    hooked, plain = (losses(train(runs_of(name, tmp_path / name))) for name in ("hook_of_a_layer", "own"))
    assert hooked != pytest.approx(plain, rel=1e-3), "otherwise the tests above would prove nothing"


def test_backward_hook_is_unstackable():
    assert stacking_of_net("backward_hook").unstackable_reason


@pytest.mark.parametrize("name", ["drawing_by_numpy", "drawing_by_python"])
def test_python_and_numpy_generators_are_unstackable(name):
    assert stacking_of_net(name).unstackable_reason == (
        "it draws from Python's or NumPy's generator: all members would get the same numbers"
    )


def test_torch_generator_is_reported():
    assert stacking_of_net("drawing_by_torch") == Stacking(draws_globally=True)


def test_float32_net_is_compared_in_float32():
    assert stacking_of_net("single_precision", "trainer.precision=32-true") == Stacking()


def wrong_affine(layer, state, x):
    return kernels.affine(x, 1.0001 * state["weight"], state.get("bias"))


class WrongGradient(torch.autograd.Function):
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
    return kernels.affine(WrongGradient.apply(x), state["weight"], state.get("bias"))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (wrong_affine, "stacking changes step 1: the loss is"),
        (wrong_gradient, "changes step 1: the gradient of"),
    ],
)
def test_wrong_stacked_form_is_vmapped_instead(monkeypatch, tmp_path, form, message):
    monkeypatch.setattr(kernels, "linear", form)
    result = stacking_of_net("own")
    assert message in result.vmap_reason
    assert result.unstackable_reason is None
    monkeypatch.setattr(dry_run_module, "_passed", {})
    together = losses(train(runs_of("own", tmp_path / "together")))
    alone = [loss for run in runs_of("own", tmp_path / "alone") for loss in losses(train([run]))]
    assert together == pytest.approx(alone, rel=1e-9)


def test_lost_running_statistic_is_found(monkeypatch):
    def without_updates(layer, state, x):
        return original(layer, {name: tensor.clone() for name, tensor in state.items()}, x)

    original = kernels.batch_norm
    monkeypatch.setattr(kernels, "batch_norm", without_updates)
    assert "is reassigned in training" in stacking_of_net("own", "model=bn").vmap_reason


def test_population_key_is_checked_once(monkeypatch):
    checked = []
    monkeypatch.setattr(dry_run_module, "_passed", {})
    monkeypatch.setattr(stackability, "check_stacking_of", lambda config, *_: checked.append(config) or Stacking())
    configs = [config_of("own", f"seed={seed}", f"optimizer.lr={lr}") for seed in (0, 1) for lr in (0.1, 0.2)]
    runs = [Run(config, Path(), "", {}, []) for config in configs]
    assert len(group_runs(runs, None)) == 1
    group_runs(runs, None)
    assert len(checked) == 1


def groups_with(extra: str) -> list[Group]:
    configs = [config_of("own", extra, f"seed={seed}") for seed in (0, 1)]
    return group_runs([Run(config, Path(), "", {}, []) for config in configs], None)


def test_lightning_callbacks_by_epoch_and_loggers_are_stackable():
    for extra in ("callbacks.extra.mine._target_=pytorch_lightning.callbacks.LearningRateMonitor",
                  "logger.extra.mine._target_=pytorch_lightning.loggers.CSVLogger"):  # fmt: skip
        (group,) = groups_with(f"+{extra}")
        assert group.indices == [0, 1]


def test_lightning_callback_by_batch_is_unstackable():
    (one, other) = groups_with("+callbacks.extra.mine._target_=pytorch_lightning.callbacks.Timer")
    assert (one.indices, other.indices) == ([0], [1])
    reason = "callbacks.extra.mine: Timer works on the loops and optimizers of a single run; by module=lightning"
    assert one.stacking.unstackable_reason == reason


@pytest.mark.parametrize("after", ["shared", "own"])
def test_norm_after_shared_activation_folds_correctly(after):
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


def probe_results(name: str, folder: Path, *overrides: str) -> list[dict[str, float]]:
    """Train two runs with probes, and return their latest measurements."""
    return [result.probes for result in train(runs_of(name, folder, *overrides))]


def test_shared_activation_has_equal_curvature(tmp_path):
    overrides = ["probes=curvature", "model=bn", "probes.curvature.at_end=true"]
    shared, own = (
        probe_results(f"norm_after_{kind}_activation", tmp_path / kind, *overrides) for kind in ("shared", "own")
    )
    assert {"batch", "frozen"} <= {part for key in own[0] for part in key.split("/")}
    for one, other in zip(shared, own, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("members", [1, 2])
def test_net_with_tied_weights_is_probed(tmp_path, members):
    overrides = ["probes=smoothness", "model=bn", "probes.gradient_lipschitz.samples=5"]
    for result in train(runs_of("tied_in_a_layer", tmp_path, *overrides)[:members]):
        assert result.probes
        assert all(np.isfinite(value) for value in result.probes.values())
