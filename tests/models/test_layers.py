"""Tests of weight initialization and of the hidden layer."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlab.models import CNN, MLP, ResMLP
from normlab.models.layers import INITS, HiddenLayer, initialize
from normlab.norms import BatchNorm2d

NETS = {
    "mlp": lambda **options: MLP((3,), 2, hidden=[5, 4], **options),
    "resmlp": lambda **options: ResMLP((3,), 2, width=5, blocks=2, **options),
    "cnn": lambda **options: CNN((1, 8, 8), 2, channels=[5, 4], **options),
}


def weight_layers(net: nn.Module) -> list[nn.Module]:
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def large_layer(kind: type[nn.Module]) -> nn.Module:
    return nn.Linear(300, 400) if kind is nn.Linear else nn.Conv2d(30, 100, 3)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_initialization_has_named_distribution(kind):
    torch.manual_seed(0)
    layer = large_layer(kind)
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
    before = layer.weight.clone()
    initialize([layer], "default")
    assert torch.equal(layer.weight, before)
    assert layer.bias.abs().max() > 0
    stds = {"kaiming": math.sqrt(2 / fan_in), "xavier": math.sqrt(2 / (fan_in + fan_out)), "gaussian": 0.01}
    assert set(stds) == set(INITS) - {"default"}
    for name, std in stds.items():
        initialize([layer], name)
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert layer.weight.mean().abs() < 0.02 * std
        assert not layer.bias.any()
        largest = layer.weight.abs().max().item()
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert (largest <= bound) if name == "xavier" else (largest > 3 * std)


@pytest.mark.parametrize("net", NETS)
def test_init_applies_to_all_layers(net):
    torch.manual_seed(0)
    model = NETS[net](init="gaussian")
    assert all(layer.weight.abs().max() < 0.06 and not layer.bias.any() for layer in weight_layers(model))
    with pytest.raises(ValueError, match=r"net\.init must be one of default, kaiming, xavier, gaussian, got he"):
        NETS[net](init="he")


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_position": "under"}, "net.norm_position must be before or after, got under"),
        ({"dropout": 1.0}, r"net.dropout must be a number in \[0, 1\), got 1.0"),
        ({"activation": "rel"}, "net.activation must be one of"),
    ],
)
def test_invalid_arguments_raise(net, options, message):
    with pytest.raises(ValueError, match=message):
        NETS[net](**options)


@pytest.mark.parametrize("net", NETS)
def test_stochastic_layers_have_distinct_keys(net):
    model = NETS[net](dropout=0.5)
    keys = [layer.key.item() for layer in model.modules() if hasattr(layer, "seed")]
    assert keys == list(range(2))


@pytest.mark.parametrize("position", ["before", "after"])
def test_convolutional_hidden_layer_equals_formula(position):
    torch.manual_seed(0)
    layer = HiddenLayer(nn.Conv2d(2, 3, 3), "tanh", BatchNorm2d, None, position)
    x = torch.randn(4, 2, 5, 5)
    h = nn.functional.conv2d(x, layer.conv.weight, layer.conv.bias)
    norm = nn.BatchNorm2d(3)
    expected = norm(h).tanh() if position == "before" else norm(h.tanh())
    assert_close(layer(x), expected)
