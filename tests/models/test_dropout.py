"""Tests of Dropout alone and in nets."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlab.models import MLP
from normlab.models.layers import Dropout
from normlab.norms.counter_rng import uniform
from normlab.population.population import Population, initial_nets


def test_output_and_gradient_equal_formula():
    layer, x = Dropout(0.3), torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    mask = (uniform(layer.key, layer.step, (8, 5), torch.float64) >= 0.3).double()
    y = layer(x)
    y.sum().backward()
    assert_close(y, x * mask / 0.7)
    assert_close(x.grad, mask / 0.7)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_drop_rate_is_p_and_mean_is_kept(p):
    y = Dropout(p)(torch.ones(400, 500))
    deviation = (p * (1 - p) / y.numel()) ** 0.5
    assert abs((y == 0).double().mean() - p) <= 4 * deviation
    assert abs(y.double().mean() - 1) <= 4 * deviation / (1 - p) + 1e-7


def test_evaluation_is_identity():
    layer, x = Dropout(0.5).eval(), torch.randn(4, 3)
    assert layer(x) is x
    assert layer.step == 0


def test_mask_differs_by_step():
    layer = Dropout(0.5)
    assert not torch.equal(layer(torch.ones(100)), layer(torch.ones(100)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_mask_is_independent_of_dtype(dtype):
    y = Dropout(0.5)(torch.ones(1000, dtype=dtype))
    assert y.dtype is dtype
    assert torch.equal(y != 0, Dropout(0.5)(torch.ones(1000)) != 0)


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, float("nan")])
def test_invalid_probability_raises(p):
    with pytest.raises(ValueError, match=r"p of Dropout must be a number in \[0, 1\), got"):
        Dropout(p)
    with pytest.raises(ValueError, match=r"net.dropout must be a number in \[0, 1\), got"):
        MLP((3,), 1, hidden=[4], dropout=p)


def test_each_hidden_layer_has_own_dropout():
    net = MLP((3,), 1, hidden=[4, 4], dropout=0.5)
    layers = [layer for layer in net.modules() if isinstance(layer, Dropout)]
    assert [list(layer._modules)[-1] for layer in (net.hidden1, net.hidden2)] == ["dropout"] * 2
    assert not torch.equal(layers[0](torch.ones(50)), layers[1](torch.ones(50)))
    assert not any(isinstance(layer, Dropout) for layer in MLP((3,), 1, hidden=[4]).modules())


def test_initial_weights_are_independent_of_dropout():
    nets = []
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        nets.append(MLP((3,), 1, hidden=[4], dropout=dropout))
    assert all(torch.equal(*pair) for pair in zip(*(net.parameters() for net in nets), strict=True))


@pytest.mark.parametrize("seeds", [[3], [3, 5], [8, 3, 5]])
def test_stacked_members_equal_single_net(seeds):
    def make() -> nn.Module:
        return MLP((3,), 1, hidden=[40], dropout=0.5)

    population, (single,) = Population(initial_nets(make, seeds)), initial_nets(make, [3])
    x = torch.randn(1, 16, 3).expand(len(seeds), -1, -1)
    for _ in range(3):
        torch.rand(1)
        assert_close(population(x)[seeds.index(3)], single(x[0]))
