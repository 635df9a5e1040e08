import gc
import weakref
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import chain

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.testing import assert_close

from normlab.models import MLP, ResMLP
from normlab.models.layer_lookup import activation_slots
from normlab.models.layers import Dropout
from normlab.norms import ActNorm, BatchNorm1d, BatchRenorm, weight_normalization
from normlab.probes.snapshot import TrainingSnapshot, flatten_positions, forward_backward, weights_by_layer

K = 3


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square().flatten(1).mean(1)


def mlp(norm=None, **options) -> nn.Module:
    return MLP((3,), 2, hidden=[6, 5], norm=norm, **options)


def make_snapshot(make: Callable[[], nn.Module], members: int = K, shape=(3,), outputs=(2,)) -> TrainingSnapshot:
    """Return a snapshot of untrained nets whose normalizers have seen another batch."""
    nets = []
    for seed in range(members):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets.append(make().double())
            nets[-1](3 * draws(9, *shape, seed=seed))
    # As in a population, shared tensors appear under all of their names.
    named = [net.state_dict() | dict(net.named_buffers()) for net in nets]
    before = {name: torch.stack([own[name].detach().clone() for own in named]) for name in named[0]}
    x, y = draws(members, 8, *shape, seed=4), draws(members, 8, *outputs, seed=5)
    trained = [name for name, _ in nets[0].named_parameters()]
    lr = torch.ones(members, dtype=torch.float64)
    return TrainingSnapshot(
        nets[0], squared, trained, before, before, before, (x, y), (x[0], y[0]), lr, None, [], 1, 0
    )


def gradients(snapshot: TrainingSnapshot, k: int, names: Sequence[str], mode: str = "batch") -> dict[str, Tensor]:
    """Compute the gradients of one member by a plain backward pass."""
    net = deepcopy(snapshot.net).train(mode == "batch")
    for name, tensor in chain(net.named_parameters(), net.named_buffers()):
        tensor.detach().copy_(snapshot.before[name][k])
    with torch.random.fork_rng(devices=[]):
        squared(net(snapshot.minibatch[0][k])[None], snapshot.minibatch[1][k][None]).sum().backward()
    return {name: net.get_parameter(name).grad for name in names}


def names(layers) -> list[str]:
    return [name for name, _ in layers]


class Own(nn.Module):
    """A custom net with layer names that normlab does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3, 3))
        self.first = nn.Linear(3, 4)
        self.activation = nn.Sequential(nn.Tanh(), nn.ReLU())
        self.norm = nn.Sequential(nn.LayerNorm(4), nn.Tanh())
        self.body = nn.ModuleDict({"act": nn.GELU(), "bn": nn.BatchNorm1d(4), "never": nn.ReLU()})
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.activation(self.first(x @ self.factor)))
        h = self.body["act"](self.body["bn"](h))
        return self.last(self.activation(h))


def test_weights_are_grouped_by_layer():
    def measure(make, **options):
        snapshot = make_snapshot(make, **options)
        return weights_by_layer(snapshot, names(activation_slots(snapshot.net)))

    assert measure(partial(mlp, nn.LayerNorm)) == {
        "hidden1": ["hidden1.linear.weight"],
        "hidden2": ["hidden2.linear.weight"],
        "output": ["output.weight"],
    }
    assert measure(lambda: ResMLP((3,), 2, width=4, blocks=1)) == {
        "stem": ["stem.weight"],
        "block1": ["block1.linear1.weight", "block1.linear2.weight"],
        "output": ["output.weight"],
    }
    assert measure(Own) == {"net": ["factor"], "first": ["first.weight"], "last": ["last.weight"]}

    def images():
        layers = (nn.Conv2d(1, 2, 2), nn.LayerNorm([2, 3, 3]), nn.PReLU(2), nn.Flatten(), nn.Bilinear(18, 18, 2))
        net = nn.Sequential(*layers)
        net[4].forward = lambda h: nn.functional.bilinear(h, h, net[4].weight)
        return net

    weights = weights_by_layer(replace(make_snapshot(mlp), net=images(), **named(images())), ["2"])
    assert weights == {"0": ["0.weight"], "4": ["4.weight"]}


def named(net: nn.Module) -> dict:
    before = {name: parameter.detach()[None] for name, parameter in net.named_parameters()}
    return {"trained": list(before), "before": before}


def test_untrained_weights_are_excluded():
    snapshot = make_snapshot(mlp)
    snapshot = replace(snapshot, trained=["hidden2.linear.bias", "output.weight", "hidden1.linear.weight"])
    layers = ["hidden1", "hidden2"]
    assert weights_by_layer(snapshot, layers) == {
        "output": ["output.weight"],
        "hidden1": ["hidden1.linear.weight"],
    }


@pytest.mark.parametrize("weight", [weight_normalization, parametrizations.weight_norm])
def test_weight_norm_lengths_are_no_weights(weight):
    snapshot = replace(make_snapshot(mlp), **named(mlp(weight=weight)))
    assert weights_by_layer(snapshot, ["hidden1", "hidden2"]) == {
        "hidden1": ["hidden1.linear.parametrizations.weight.original1"],
        "hidden2": ["hidden2.linear.parametrizations.weight.original1"],
        "output": ["output.weight"],
    }


class LowRank(nn.Module):
    """A parametrization: the product of two factors."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight[:, :2].clone(), torch.eye(2, weight.shape[1], dtype=weight.dtype)


def test_low_rank_factors_are_weights():
    def make():
        linear = parametrize.register_parametrization(nn.Linear(3, 4), "weight", LowRank(), unsafe=True)
        return nn.Sequential(linear, nn.Tanh(), nn.Linear(4, 2))

    snapshot = make_snapshot(make)
    factors = [f"0.parametrizations.weight.original{number}" for number in (0, 1)]
    assert weights_by_layer(snapshot, ["1"]) == {"0": factors, "2": ["2.weight"]}
    assert_close(
        forward_backward(snapshot, "batch", factors).gradients[factors[0]][1],
        gradients(snapshot, 1, factors)[factors[0]],
    )


@pytest.mark.parametrize("members", [1, K])
def test_repeated_activation_calls_are_numbered_in_order(members):
    snapshot = make_snapshot(Own, members)
    seen = forward_backward(snapshot, "frozen", [])
    assert list(seen.outputs) == ["activation", "norm.1", "body.act", "activation.2"]
    assert list(seen.normalized) == ["norm", "body.bn"]
    assert {name: type(layer) for name, layer in seen.activations.items()} == {
        **{"activation": nn.Sequential, "norm.1": nn.Tanh, "body.act": nn.GELU, "activation.2": nn.Sequential}
    }
    assert_close(seen.outputs["activation.2"], seen.outputs["body.act"].tanh().relu())
    assert seen.gradients == {}


@pytest.mark.parametrize("members", [1, K])
def test_outputs_are_recorded_before_inplace_changes(members):
    def make():
        return nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LeakyReLU(), nn.ReLU(inplace=True), nn.Linear(4, 2)
        )

    snapshot = make_snapshot(make, members)
    seen = forward_backward(snapshot, "batch", ["0.weight"])
    assert bool((seen.outputs["2"] < 0).any())
    assert_close(seen.outputs["3"], seen.outputs["2"].relu())
    assert_close(seen.normalized["1"][:, 0], torch.zeros(members, dtype=torch.float64), rtol=0, atol=1e-12)


class Joined(nn.Module):
    """A net with two layers that share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).tanh()).tanh())


def recurrent() -> nn.Module:
    linear, norm = nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)
    return nn.Sequential(linear, norm, nn.Tanh(), linear, norm, nn.Tanh(), nn.Linear(3, 2))


@pytest.mark.parametrize("members", [1, K])
@pytest.mark.parametrize(
    ("make", "weights"),
    [(recurrent, ["0.weight", "6.weight"]), (Joined, ["first.weight", "last.weight"])],
)
def test_shared_weights_have_gradient_of_all_uses(make, weights, members):
    snapshot = make_snapshot(make, members)
    # The numbers in the net itself are not used.
    for parameter in snapshot.net.parameters():
        parameter.detach().fill_(9)
    result = forward_backward(snapshot, "batch", weights)
    for k in range(members):
        for name, gradient in gradients(snapshot, k, weights).items():
            assert_close(result.gradients[name][k], gradient)
    assert list(result.normalized) == (["1", "1.2"] if make is recurrent else [])


@pytest.mark.parametrize("members", [1, K])
@pytest.mark.parametrize("fused", [False, True])
def test_batch_renorm_corrections_are_of_current_step(members, fused):
    snapshot = make_snapshot(partial(mlp, partial(BatchRenorm, r_max=99, d_max=99, fused=fused)), members)
    weights = ["hidden1.linear.weight", "hidden2.linear.weight"]
    result = forward_backward(snapshot, "batch", weights)
    for k in range(members):
        for name, gradient in gradients(snapshot, k, weights).items():
            assert_close(result.gradients[name][k], gradient)
    # Without clipping it normalizes by the running statistics before the step.
    frozen = forward_backward(snapshot, "frozen", weights)
    assert_close(result.normalized["hidden1"], frozen.normalized["hidden1"])
    assert_close(result.outputs["hidden1"], frozen.outputs["hidden1"])


@pytest.mark.parametrize("members", [1, K])
def test_activation_with_one_axis_is_one_unit(members):
    snapshot = make_snapshot(
        lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0), nn.Sigmoid()), members, outputs=()
    )
    seen = forward_backward(snapshot, "batch", ["0.weight"])
    assert seen.outputs["2"].shape == (members, 8, 1)
    for k in range(members):
        assert_close(seen.gradients["0.weight"][k], gradients(snapshot, k, ["0.weight"])["0.weight"])


def test_image_positions_are_rows_and_channels_units():
    h = torch.arange(2 * 3 * 4 * 5 * 6.0).view(2, 3, 4, 5, 6)
    flat = flatten_positions(h)
    assert flat.shape == (2, 3 * 5 * 6, 4)
    assert torch.equal(flat[1, 2 * 30 + 3 * 6 + 4], h[1, 2, :, 3, 4])
    assert torch.equal(flatten_positions(h[..., 0, 0]), h[..., 0, 0])


@pytest.mark.parametrize("members", [1, K])
@pytest.mark.parametrize("make", [lambda: nn.Dropout(0.5), lambda: Dropout(0.5)], ids=["torch", "normlab"])
def test_dropout_mask_is_fixed_within_snapshot(make, members):
    snapshot = make_snapshot(
        lambda: nn.Sequential(nn.Linear(3, 50), nn.Identity(), make(), nn.ReLU(), nn.Linear(50, 2)), members
    )
    generator = torch.get_rng_state()
    first, second = (forward_backward(snapshot, "batch", ["0.weight"]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(first.outputs["3"], second.outputs["3"])
    assert torch.equal(first.gradients["0.weight"], second.gradients["0.weight"])
    for k in range(members):
        assert_close(first.gradients["0.weight"][k], gradients(snapshot, k, ["0.weight"])["0.weight"])
    assert not torch.equal(first.outputs["3"], forward_backward(snapshot, "frozen", []).outputs["3"])


@pytest.mark.parametrize("members", [1, K])
def test_unused_weights_have_zero_gradient(members):
    class Idle(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(3, 2))
            self.register_parameter("idle", nn.Parameter(torch.ones(2, 2)))

    result = forward_backward(make_snapshot(Idle, members), "batch", ["idle", "0.weight"])
    assert torch.equal(result.gradients["idle"], torch.zeros(members, 2, 2, dtype=torch.float64))
    assert bool((result.gradients["0.weight"] != 0).all())


@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_fused_kernels_equal_formula(mode):
    weights = ["hidden1.linear.weight"]
    fused, formula = (
        forward_backward(make_snapshot(partial(mlp, partial(BatchNorm1d, fused=own)), 1), mode, weights)
        for own in (True, False)
    )
    assert_close(fused.outputs, formula.outputs)
    assert_close(fused.normalized, formula.normalized)
    assert_close(fused.gradients, formula.gradients)


@pytest.mark.parametrize("members", [1, K])
def test_uninitialized_layer_stays_uninitialized(members):
    snapshot = make_snapshot(mlp, members)
    waiting = mlp(ActNorm).double()
    before = {name: torch.stack([t.detach()] * members) for name, t in waiting.state_dict().items()}
    snapshot = replace(snapshot, net=waiting, before=before, after=before)
    result = forward_backward(snapshot, "batch", ["hidden1.linear.weight"])
    assert_close(result.normalized["hidden1"][:, 0], torch.zeros(members, dtype=torch.float64), rtol=0, atol=1e-12)
    assert waiting.hidden1.norm.needs_init
    assert not before["hidden1.norm.initialized"].any()
    assert not before["hidden1.norm.initial_mean"].any()


def test_unknown_mode_raises():
    with pytest.raises(ValueError, match="mode must be one of batch, frozen, got train"):
        forward_backward(make_snapshot(mlp), "train", [])


def test_pass_does_not_keep_net_alive():
    snapshot = make_snapshot(lambda: mlp(BatchNorm1d), 1)
    forward_backward(snapshot, "batch", ["hidden1.linear.weight"])
    net = weakref.ref(snapshot.net)
    del snapshot
    gc.collect()
    assert net() is None
