"""Dynamic Tanh and Derf: formulas, gradients and symmetries."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.testing import assert_close

from normlab.norms import Derf, DynamicTanh

LAYERS = [DynamicTanh, Derf]
EACH_LAYER = pytest.mark.parametrize("layer_class", LAYERS)
SHAPES = [(4, 3), (4, 3, 5), (2, 3, 4, 5), (0, 3), (1, 3)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_random(layer_class: type[nn.Module], features: int = 3, **arguments) -> nn.Module:
    """Return a float64 layer with random parameters."""
    layer = layer_class(features, **arguments).double()
    for number, parameter in enumerate(layer.parameters()):
        parameter.data = normal(*parameter.shape, seed=number + 1)
    return layer


def expected_values(layer: nn.Module, x: Tensor) -> list[float]:
    """Compute y element by element with Python's math functions."""
    one = [1.0] * layer.num_features
    gamma = one if layer.weight is None else layer.weight.tolist()
    beta = [0.0] * layer.num_features if layer.bias is None else layer.bias.tolist()
    alpha, shift = layer.alpha.item(), layer.shift.item() if isinstance(layer, Derf) else 0.0
    squash = math.erf if isinstance(layer, Derf) else math.tanh
    features = torch.arange(layer.num_features).view(-1, *[1] * (x.dim() - 2)).expand(x.shape).flatten().tolist()
    numbers = zip(features, x.flatten().tolist(), strict=True)
    return [gamma[c] * squash(alpha * value + shift) + beta[c] for c, value in numbers]


@EACH_LAYER
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("arguments", [{}, {"bias": False}, {"affine": False}])
def test_output_matches_formula(layer_class, shape, arguments):
    layer, x = make_random(layer_class, **arguments), normal(*shape)
    assert_close(layer(x).flatten().tolist(), expected_values(layer, x), rtol=1e-12, atol=1e-14)
    assert layer(x).shape == x.shape


@EACH_LAYER
def test_derivatives_match_finite_differences(layer_class):
    layer, x = make_random(layer_class), normal(4, 3, 2).requires_grad_()
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in layer.named_parameters()}

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters.values()))
    assert torch.autograd.gradgradcheck(call, (x, *parameters.values()))


@EACH_LAYER
def test_initial_values_match_paper(layer_class):
    layer = layer_class(3)
    assert layer.alpha.item() == 0.5
    assert torch.equal(layer.weight, torch.ones(3))
    assert torch.equal(layer.bias, torch.zeros(3))
    if isinstance(layer, Derf):
        assert layer.shift.item() == 0


def test_dynamic_tanh_without_bias_is_odd():
    layer, x = make_random(DynamicTanh, bias=False), normal(5, 3)
    assert_close(layer(-x), -layer(x))


def test_derf_is_odd_about_its_shift():
    layer, x = make_random(Derf, bias=False), normal(5, 3)
    center = -2 * layer.shift / layer.alpha
    assert_close(layer(center - x), -layer(x))


@EACH_LAYER
def test_output_is_bounded_and_per_sample(layer_class):
    layer, x = layer_class(3, affine=False).double(), normal(6, 3) * 1e4
    assert layer(x).abs().max() <= 1
    assert torch.equal(layer(x)[:2], layer(x[:2]))


@EACH_LAYER
def test_training_equals_evaluation_without_buffers(layer_class):
    layer, x = make_random(layer_class), normal(4, 3)
    assert torch.equal(layer.train()(x), layer.eval()(x))
    assert not list(layer.buffers())


@EACH_LAYER
def test_memory_layouts_and_half_precision(layer_class):
    layer, x = make_random(layer_class), normal(2, 3, 4, 4)
    assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))
    assert_close(layer(x.transpose(2, 3)), layer(x).transpose(2, 3))
    half = layer.half()(torch.full((2, 3), 6e4, dtype=torch.float16))
    assert half.dtype is torch.float16
    assert half.isfinite().all()


@EACH_LAYER
def test_copies_and_state_dicts(layer_class):
    layer, x = make_random(layer_class), normal(4, 3)
    other = layer_class(3).double()
    other.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        assert torch.equal(twin(x), layer(x))


@EACH_LAYER
def test_vmap_and_compile_equal_single_layers(layer_class):
    layers = [make_random(layer_class) for _ in range(2)]
    layers[1].alpha.data += 1
    params, buffers = stack_module_state(layers)
    x = normal(2, 4, 3)
    together = vmap(lambda state, x: functional_call(layers[0], state, (x,)))({**params, **buffers}, x)
    assert_close(together, torch.stack([layer(member) for layer, member in zip(layers, x, strict=True)]))
    compiled = copy.deepcopy(layers[0])
    compiled.compile(fullgraph=True, backend="aot_eager")
    assert_close(compiled(x[0]), layers[0](x[0]))


@EACH_LAYER
@pytest.mark.parametrize("shape", [(4, 2), (3,), (4, 2, 3)])
def test_wrong_input_shape_raises(layer_class, shape):
    with pytest.raises(
        RuntimeError, match=rf"{layer_class.__name__} expected 3 features on axis 1, got input shape"
    ):
        layer_class(3)(torch.zeros(shape))
