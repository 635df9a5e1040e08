"""Features with means much larger than their standard deviations, in float32 compared with float64."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.testing import assert_close

from normlab.norms import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm,
    GhostBatchNorm,
    L1BatchNorm,
    NoisyBatchNorm,
)

C = 3
SHAPES = {1: (20_000, C), 2: (500, C, 6, 6), 3: (100, C, 6, 6, 6)}
LAYERS = {
    "1d": (BatchNorm1d, SHAPES[1]),
    "2d": (BatchNorm2d, SHAPES[2]),
    "3d": (BatchNorm3d, SHAPES[3]),
    "ghost": (partial(GhostBatchNorm, ghost_size=10_000), SHAPES[1]),
    "ghost_images": (partial(GhostBatchNorm, ghost_size=250), SHAPES[2]),
    "brn": (partial(BatchRenorm, total_steps=100), SHAPES[1]),
    "brn_images": (partial(BatchRenorm, total_steps=100), SHAPES[2]),
    "noisy": (NoisyBatchNorm, SHAPES[1]),
}
EACH_LAYER = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=list(LAYERS))
FUSED = pytest.mark.parametrize("fused", [False, True], ids=["formula", "fused"])


def large(*shape: int, mean: float = 1e6, seed: int = 0) -> Tensor:
    """Return normal numbers with standard deviation 1 and a large mean, rounded to float32."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x + mean).float()


@FUSED
@EACH_LAYER
def test_mean_of_a_million_deviations_is_removed(make, shape, fused):
    layer, reference = make(C, fused=fused), make(C).double()
    for _ in range(2):
        x = large(*shape)
        assert (layer(x) - reference(x.double())).abs().max() < 0.05
    assert_close(layer.running_var.double(), reference.running_var, rtol=0.02, atol=0)
    assert_close(layer.running_mean.double(), reference.running_mean, rtol=1e-6, atol=0)


@FUSED
@EACH_LAYER
def test_constant_feature_of_a_million_becomes_0(make, shape, fused):
    if make is NoisyBatchNorm:
        make = partial(NoisyBatchNorm, n_mean=0, n_std=1, r_mean=0, r_std=0)
    y = make(C, fused=fused)(torch.full(shape, 1e6))
    assert y.abs().max() == 0


def test_l1_equals_float64():
    layer, reference, x = L1BatchNorm(C), L1BatchNorm(C).double(), large(*SHAPES[2])
    assert (layer(x) - reference(x.double())).abs().max() < 0.05


@EACH_LAYER
def test_gradients_equal_float64(make, shape):
    layer, reference, g = make(C, fused=True), make(C).double(), large(*shape, mean=0, seed=1)
    x = large(*shape).requires_grad_()
    double = x.detach().double().requires_grad_()
    got = torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], g)
    expected = torch.autograd.grad(reference(double), [double, *reference.parameters()], g.double())
    for own, exact in zip(got, expected, strict=True):
        assert (own - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(
    ("mean", "constant", "loses"), [(0, 0.3, False), (500, 0.3, False), (3000, 0.3, True), (0, 1e4, True)]
)
def test_first_training_batch_selects_kernel(mean, constant, loses):
    layer = BatchNorm1d(C, fused=True)
    x = large(100, C, mean=mean)
    x[:, 0] = constant
    assert layer.eval().uses_kernel(x)
    assert layer.loses_digits is None
    layer.train()(x)
    assert layer.loses_digits is loses
    # The decision is final: later batches are not checked.
    layer(large(100, C, mean=0 if loses else 1e6))
    assert layer.loses_digits is loses
    assert copy.deepcopy(layer).uses_kernel(x) is not loses
    layer.reset_parameters()
    assert layer.loses_digits is None


@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_vmap_uses_formula_without_decision(mean):
    layers = [BatchNorm1d(C, fused=True) for _ in range(2)]
    state = [dict(part) for part in stack_module_state(layers)]
    x = torch.stack([large(2000, C, mean=mean, seed=seed) for seed in range(2)])
    g = large(2, 2000, C, mean=0, seed=5)

    def loss(x: Tensor, params: dict[str, Tensor], buffers: dict[str, Tensor], g: Tensor) -> Tensor:
        return (functional_call(layers[0], (params, buffers), (x,)) * g).sum()

    gradients = vmap(grad(loss))(x, *state, g)
    assert layers[0].loses_digits is None
    for k in range(2):
        double = x[k].double().requires_grad_()
        (expected,) = torch.autograd.grad(BatchNorm1d(C).double()(double), double, g[k].double())
        assert (gradients[k] - expected).norm() < 0.02 * expected.norm()


def test_compiled_layer_uses_formula():
    # Other tests may have reached the recompilation limit.
    torch.compiler.reset()
    layer, x = BatchNorm1d(C, fused=True), large(2000, C)
    y = torch.compile(layer, backend="eager", fullgraph=True)(x)
    assert (y - BatchNorm1d(C).double()(x.double())).abs().max() < 0.05


def test_torch_kernel_is_inaccurate():
    """If this fails, torch has fixed its kernel, and the check of the first batch can go."""
    x = large(*SHAPES[1])
    assert (nn.BatchNorm1d(C)(x) - nn.BatchNorm1d(C).double()(x.double())).abs().max() > 1
