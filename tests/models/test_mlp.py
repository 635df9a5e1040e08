from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import MLP
from normlab.norms import BatchNorm1d
from normlab.norms.activation import ACTIVATIONS, make_activation


class Recording(nn.Module):
    """A normalizer from outside the package: it notes what comes in, and adds 10."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x + 10


class Doubled(nn.Module):
    """A weight wrapper from outside the package."""

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
@pytest.mark.parametrize("norm", [None, BatchNorm1d, nn.BatchNorm1d, nn.LayerNorm, Recording])
def test_any_depth_and_any_normalizer_maps_inputs_to_outputs(hidden, norm):
    assert net(hidden=hidden, norm=norm)(inputs(7, 3)).shape == (7, 2)


def test_without_hidden_layers_the_net_is_linear():
    model, x = net(hidden=[]), inputs(7, 3)

    assert_close(model(x), x @ model.output.weight.T + model.output.bias)


def test_several_input_axes_are_flattened():
    model, x = net((2, 4, 4)), inputs(6, 2, 4, 4)

    assert model.hidden1.linear.in_features == 32
    assert_close(model(x), net((32,))(x.reshape(6, 32)))


@pytest.mark.parametrize("position", ["before", "after"])
def test_the_normalizer_stands_on_the_asked_side_of_the_activation(position):
    model, x = net(hidden=[5], norm=Recording, norm_position=position, activation="tanh"), inputs(7, 3)

    y = model(x)

    preactivation = x @ model.hidden1.linear.weight.T + model.hidden1.linear.bias
    expected_input = {"before": preactivation, "after": preactivation.tanh()}[position]
    expected_hidden = {"before": (preactivation + 10).tanh(), "after": preactivation.tanh() + 10}[position]
    (seen,) = model.hidden1.norm.seen
    assert_close(seen, expected_input)
    assert_close(y, expected_hidden @ model.output.weight.T + model.output.bias)


def test_the_normalizer_stands_before_the_activation_unless_told_otherwise():
    x = inputs(7, 3)

    assert torch.equal(net(norm=Recording)(x), net(norm=Recording, norm_position="before")(x))


def test_each_hidden_layer_gets_a_normalizer_of_its_own_width_and_the_output_none():
    model = net(hidden=[5, 4], norm=Recording)
    found = [
        (name, module.num_features) for name, module in model.named_modules() if isinstance(module, Recording)
    ]

    assert found == [("hidden1.norm", 5), ("hidden2.norm", 4)]
    assert type(model.output) is nn.Linear


def test_a_normalizer_with_bound_arguments_keeps_them():
    model = net(norm=partial(BatchNorm1d, eps=0.5, fused=True))

    assert model.hidden2.norm.eps == 0.5
    assert model.hidden2.norm.fused


@pytest.mark.parametrize("position", ["before", "after"])
def test_the_slots_have_the_same_names_in_every_arm_and_the_identity_without_a_normalizer(position):
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
def test_arms_with_the_same_seed_start_from_the_same_linear_maps(arm):
    plain, other = net(seed=3, hidden=[6, 5, 4]), net(seed=3, hidden=[6, 5, 4], **arm)

    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Linear):
            assert_close(other.get_submodule(name).weight, layer.weight)
            assert torch.equal(other.get_submodule(name).bias, layer.bias)
    assert not torch.equal(net(seed=4, hidden=[6, 5, 4]).output.weight, plain.output.weight)


def test_a_weight_wrapper_is_put_around_each_hidden_linear_map_and_not_the_output():
    wrapped, plain, x = net(hidden=[5], weight=Doubled), net(hidden=[5]), inputs(7, 3)

    assert isinstance(wrapped.hidden1.linear, Doubled)
    assert type(wrapped.output) is nn.Linear
    assert_close(wrapped(x), plain.output((2 * plain.hidden1.linear(x)).relu()))


@pytest.mark.parametrize("name", ["relu", "ReLU", "SIGMOID", "gelu", "LeakyReLU", "silu"])
def test_an_activation_is_found_by_its_name_in_torch_in_any_case(name):
    assert type(make_activation(name)) is ACTIVATIONS[name.lower()]
    assert type(net(activation=name).hidden2.activation) is ACTIVATIONS[name.lower()]


def test_an_activation_may_be_any_callable_that_makes_a_module():
    made = net(activation=partial(nn.LeakyReLU, 0.3)).hidden1.activation

    assert made.negative_slope == 0.3
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
def test_an_impossible_net_is_refused_with_its_key(options, message):
    with pytest.raises(ValueError, match=message):
        net(**options)


def test_a_normalizer_that_draws_weights_of_its_own_does_not_shift_the_others():
    def noisy(num_features: int) -> nn.Module:
        torch.randn(num_features)
        return nn.Identity()

    nets = []
    for norm in (noisy, None):
        torch.manual_seed(0)
        nets.append(MLP((3,), 1, hidden=[4, 4], norm=norm))
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)
