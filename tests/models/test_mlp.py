from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import MLP
from normlab.norms import BatchNorm1d
from normlab.norms.activation import ACTIVATIONS, make_activation


class RecordingNorm(nn.Module):
    """A user-defined normalizer that records its inputs and adds 10."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x)
        return x + 10


class Doubled(nn.Module):
    """A user-defined weight wrapper."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.inner = linear

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


def net(input_shape: tuple[int, ...] = (3,), out_features: int = 2, seed: int = 0, **options) -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MLP(input_shape, out_features, **({"hidden": [5, 4]} | options))


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("hidden", [[], [4], [5, 4, 3]])
@pytest.mark.parametrize("norm", [None, BatchNorm1d, nn.BatchNorm1d, nn.LayerNorm, RecordingNorm])
def test_output_shape_for_any_depth_and_normalizer(hidden, norm):
    assert net(hidden=hidden, norm=norm)(inputs(7, 3)).shape == (7, 2)


def test_net_without_hidden_layers_is_linear():
    model, x = net(hidden=[]), inputs(7, 3)

    assert_close(model(x), x @ model.output.weight.T + model.output.bias)


def test_input_axes_are_flattened():
    model, x = net((2, 4, 4)), inputs(6, 2, 4, 4)

    assert model.hidden1.linear.in_features == 32
    assert_close(model(x), net((32,))(x.reshape(6, 32)))


@pytest.mark.parametrize("position", ["before", "after"])
def test_norm_position_orders_normalizer_and_activation(position):
    model, x = net(hidden=[5], norm=RecordingNorm, norm_position=position, activation="tanh"), inputs(7, 3)

    y = model(x)

    preactivation = x @ model.hidden1.linear.weight.T + model.hidden1.linear.bias
    expected_input = {"before": preactivation, "after": preactivation.tanh()}[position]
    expected_hidden = {"before": (preactivation + 10).tanh(), "after": preactivation.tanh() + 10}[position]
    (norm_input,) = model.hidden1.norm.inputs
    assert_close(norm_input, expected_input)
    assert_close(y, expected_hidden @ model.output.weight.T + model.output.bias)


def test_default_norm_position_is_before():
    x = inputs(7, 3)

    assert torch.equal(net(norm=RecordingNorm)(x), net(norm=RecordingNorm, norm_position="before")(x))


def test_hidden_layers_have_normalizer_of_their_width():
    model = net(hidden=[5, 4], norm=RecordingNorm)
    normalizers = [
        (name, module.num_features) for name, module in model.named_modules() if isinstance(module, RecordingNorm)
    ]

    assert normalizers == [("hidden1.norm", 5), ("hidden2.norm", 4)]
    assert type(model.output) is nn.Linear


def test_partial_normalizer_keeps_arguments():
    model = net(norm=partial(BatchNorm1d, eps=0.5, fused=True))

    assert model.hidden2.norm.eps == 0.5
    assert model.hidden2.norm.fused


@pytest.mark.parametrize("position", ["before", "after"])
def test_module_names_are_equal_in_every_arm(position):
    plain, normed = (net(norm=norm, norm_position=position) for norm in (None, BatchNorm1d))

    assert [name for name, _ in plain.named_children()] == ["hidden1", "hidden2", "output"]
    for model in (plain, normed):
        assert {name for name, _ in model.hidden1.named_children()} == {"linear", "norm", "activation"}
    assert type(plain.hidden1.norm) is nn.Identity
    assert [name for name, _ in plain.named_parameters()] == [
        f"{layer}.{leaf}"
        for layer in ("hidden1.linear", "hidden2.linear", "output")
        for leaf in ("weight", "bias")
    ]


@pytest.mark.parametrize(
    "arm",
    [
        {"norm": BatchNorm1d},
        {"norm": nn.BatchNorm1d, "norm_position": "after"},
        {"weight": nn.utils.parametrizations.weight_norm},
    ],
)
def test_arms_share_initial_linear_maps(arm):
    plain, other = net(seed=3, hidden=[6, 5, 4]), net(seed=3, hidden=[6, 5, 4], **arm)

    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Linear):
            assert_close(other.get_submodule(name).weight, layer.weight)
            assert torch.equal(other.get_submodule(name).bias, layer.bias)
    assert not torch.equal(net(seed=4, hidden=[6, 5, 4]).output.weight, plain.output.weight)


def test_weight_wrapper_applies_to_hidden_layers():
    wrapped, plain, x = net(hidden=[5], weight=Doubled), net(hidden=[5]), inputs(7, 3)

    assert isinstance(wrapped.hidden1.linear, Doubled)
    assert type(wrapped.output) is nn.Linear
    assert_close(wrapped(x), plain.output((2 * plain.hidden1.linear(x)).relu()))


@pytest.mark.parametrize("name", ["relu", "ReLU", "SIGMOID", "gelu", "LeakyReLU", "silu"])
def test_activation_name_is_case_insensitive(name):
    assert type(make_activation(name)) is ACTIVATIONS[name.lower()]
    assert type(net(activation=name).hidden2.activation) is ACTIVATIONS[name.lower()]


def test_activation_may_be_callable():
    layer = net(activation=partial(nn.LeakyReLU, 0.3)).hidden1.activation

    assert layer.negative_slope == 0.3
    assert net(activation=nn.Tanh).hidden1.activation is not net(activation=nn.Tanh).hidden2.activation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": [5, 0]}, r"net\.hidden must be a list of sizes of at least 1, got \[5, 0\]"),
        ({"hidden": [-3]}, r"net\.hidden must be a list of sizes of at least 1, got \[-3\]"),
        ({"activation": "rellu"}, r"net\.activation must be one of .*relu.*, got rellu"),
        ({"norm_position": "between"}, r"net\.norm_position must be before or after, got between"),
    ],
)
def test_invalid_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        net(**options)


def test_random_normalizer_does_not_change_linear_maps():
    def noisy(num_features: int) -> nn.Module:
        torch.randn(num_features)
        return nn.Identity()

    nets = []
    for norm in (noisy, None):
        torch.manual_seed(0)
        nets.append(MLP((3,), 1, hidden=[4, 4], norm=norm))
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)
