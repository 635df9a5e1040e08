import copy

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.testing import assert_close

from normlab.norms import ActNorm, BatchNorm1d


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 2 + 3 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_statistics_of_first_batch_stay_fixed():
    layer, x = ActNorm(3).double(), normal(6, 3)
    assert_close(layer(x), BatchNorm1d(3).double()(x))
    for seed in (1, 2):
        other = 5 * normal(6, 3, seed=seed)
        assert_close(layer(other), (other - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())
    assert_close(layer(other), layer.eval()(other))
    assert layer.initialized


def test_gradients_equal_those_of_affine_map():
    layer = ActNorm(3).double()
    layer(normal(6, 3))
    layer.weight.data, layer.bias.data = normal(3, seed=1), normal(3, seed=2)
    x, grad_y = normal(6, 3, seed=3).requires_grad_(), normal(6, 3, seed=4)
    slope = layer.weight / (layer.initial_var + 1e-5).sqrt()
    layer(x).backward(grad_y)
    assert_close(x.grad, grad_y * slope)
    assert_close(layer.bias.grad, grad_y.sum(0))
    x_hat = (x - layer.initial_mean) / (layer.initial_var + 1e-5).sqrt()
    assert_close(layer.weight.grad, (grad_y * x_hat).sum(0))


def test_first_batch_statistics_have_no_gradient():
    layer, x = ActNorm(3, affine=False).double(), normal(6, 3).requires_grad_()
    layer(x).sum().backward()
    assert_close(x.grad, (1 / (layer.initial_var + 1e-5).sqrt()).expand(6, 3))


def test_evaluation_before_first_batch_is_identity():
    layer, x = ActNorm(3).double().eval(), normal(6, 3)
    assert_close(layer(x), x / (1 + 1e-5) ** 0.5)
    assert not layer.initialized
    assert_close(layer.train()(x).mean(0), torch.zeros(3).double())


def test_loaded_state_keeps_initialization():
    layer, fresh, later = ActNorm(3).double(), ActNorm(3).double(), ActNorm(3).double()
    layer(normal(6, 3))
    fresh.load_state_dict(layer.state_dict())
    x = normal(6, 3, seed=1)
    assert torch.equal(fresh(x), layer(x))
    later(x)
    later.load_state_dict(ActNorm(3).double().state_dict())
    assert_close(later(normal(6, 3)), layer.train()(normal(6, 3)))


def test_vmapped_images_equal_single_layers():
    layer, x = ActNorm(3).double(), normal(2, 5, 3, 4, 4)
    layers = [copy.deepcopy(layer) for _ in range(2)]
    parameters, buffers = stack_module_state(layers)
    for _ in range(2):
        y = vmap(lambda p, b, x: functional_call(layer, (p, b), (x,)))(parameters, buffers, x)
        for k, alone in enumerate(layers):
            assert_close(y[k], alone(x[k]))
            assert_close(buffers["initial_mean"][k], x[k].mean((0, 2, 3)))


def test_single_value_or_nonpositive_eps_raises():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training, got 1"):
        ActNorm(3)(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="eps of ActNorm must be a number > 0, got 0"):
        ActNorm(3, eps=0)


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5), (2, 3, 4, 5)], ids=len)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"affine": False}], ids=str)
def test_later_batches_use_first_statistics_in_both_modes(shape, options):
    layer, first = ActNorm(3, eps=0.1, **options).double(), normal(*shape)
    axes, each = [axis for axis in range(len(shape)) if axis != 1], (3, *[1] * (len(shape) - 2))
    for number, parameter in enumerate(layer.parameters()):
        parameter.data = normal(3, seed=number + 7)
    for seed, training in enumerate([True, True, False, True]):
        x = normal(*shape, seed=seed)
        expected = (x - first.mean(axes, keepdim=True)) / (
            first.var(axes, correction=0, keepdim=True) + 0.1
        ).sqrt()
        if layer.weight is not None:
            expected = expected * layer.weight.view(each)
        if layer.bias is not None:
            expected = expected + layer.bias.view(each)
        assert_close(layer.train(training)(x), expected)


def test_first_output_has_mean_0_and_variance_1():
    y = ActNorm(3, eps=1e-12).double()(normal(4, 3, 5))
    assert_close(y.mean((0, 2)), torch.zeros(3).double())
    assert_close(y.var((0, 2), correction=0), torch.ones(3).double())


def test_evaluation_does_not_initialize():
    layer, x = ActNorm(3).double().eval(), normal(4, 3, 5)
    layer.weight.data, layer.bias.data = normal(3, seed=1), normal(3, seed=2)
    before = copy.deepcopy(layer.state_dict())
    assert_close(layer(x), layer.weight.view(3, 1) * x / (1 + 1e-5) ** 0.5 + layer.bias.view(3, 1))
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("initialized_before", [False, True])
def test_copy_keeps_initialization_state(initialized_before):
    layer = ActNorm(3).double()
    if initialized_before:
        layer(normal(6, 3))
    other, x = copy.deepcopy(layer), normal(6, 3, seed=1)
    assert torch.equal(other(x), layer(x))
    assert_close(other.state_dict(), layer.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (0, 3)])
def test_single_value_raises_only_in_first_batch(shape):
    layer, x = ActNorm(3).double(), torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"Expected more than 1 value per channel when training, got {len(x)}"):
        layer(x)
    assert not layer.initialized
    layer(normal(6, 3))
    assert layer(x).shape == shape


def test_constant_feature_becomes_beta():
    layer = ActNorm(3).double()
    layer.bias.data = normal(3)
    assert_close(layer(torch.full((4, 3), 7.0, dtype=torch.float64)), layer.bias.expand(4, 3))
