"""How weights begin, and what every net is made of."""

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


def maps(net: nn.Module) -> list[nn.Module]:
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def wide(kind: type[nn.Module]) -> nn.Module:
    return nn.Linear(300, 400) if kind is nn.Linear else nn.Conv2d(30, 100, 3)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_each_initialization_has_the_law_of_its_name(kind):
    torch.manual_seed(0)
    layer = wide(kind)
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
def test_a_net_s_maps_all_begin_as_named(net):
    torch.manual_seed(0)
    model = NETS[net](init="gaussian")
    assert all(layer.weight.abs().max() < 0.06 and not layer.bias.any() for layer in maps(model))
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
def test_a_choice_that_a_net_does_not_have_is_refused(net, options, message):
    with pytest.raises(ValueError, match=message):
        NETS[net](**options)


@pytest.mark.parametrize("net", NETS)
def test_layers_that_draw_have_keys_of_their_own(net):
    model = NETS[net](dropout=0.5)
    keys = [layer.key.item() for layer in model.modules() if hasattr(layer, "seed")]
    assert keys == list(range(2))


@pytest.mark.parametrize("position", ["before", "after"])
def test_a_convolution_s_hidden_layer_by_hand(position):
    torch.manual_seed(0)
    layer = HiddenLayer(nn.Conv2d(2, 3, 3), "tanh", BatchNorm2d, None, position)
    x = torch.randn(4, 2, 5, 5)
    h = nn.functional.conv2d(x, layer.conv.weight, layer.conv.bias)
    norm = nn.BatchNorm2d(3)
    expected = norm(h).tanh() if position == "before" else norm(h.tanh())
    assert_close(layer(x), expected)
