"""Batch normalization equals torch and the NumPy reference; its statistics, derivatives, vmap, compilation."""

import copy
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from layer_catalogue import BOTH_PATHS, pair
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.testing import assert_close

from normlab.norms import BatchNorm1d, reference

GOLDEN_X = [
    [0.13443642, 0.38237412, 0.43459833, 0.5555555, 0.46544354],
    [0.73888243, 0.76263731, 0.2219813, 0.65330424, 0.2280716],
    [0.16306301, 0.62442583, 0.54017516, 0.64500589, 0.29199674],
    [0.9398204, 0.87478007, 0.10693309, 0.75469117, 0.82808138],
]
GOLDEN_Y = [
    [-1.0196, -1.5167, 0.6368, -1.3680, 0.0517],
    [0.6942, 0.5529, -0.6090, 0.0165, -0.9665],
    [-0.9385, -0.1993, 1.2554, -0.1010, -0.6923],
    [1.2639, 1.1632, -1.2831, 1.4526, 1.6072],
]

SHAPES = st.one_of(
    st.tuples(st.integers(2, 6), st.integers(1, 4)),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 4)),
    st.tuples(st.integers(2, 4), st.integers(1, 4), st.integers(1, 4)),
)
OPTIONS = st.fixed_dictionaries(
    {
        "eps": st.floats(1e-6, 1.0),
        "momentum": st.none() | st.floats(0.0, 1.0),
        "affine": st.booleans(),
        "bias": st.booleans(),
        "track_running_stats": st.booleans(),
    }
)
SEEDS = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int, mean: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(*shape, generator=generator, dtype=dtype)


def rows(x: Tensor) -> np.ndarray:
    """Return x as the two-dimensional input of the NumPy reference, one column per feature."""
    return x.detach().movedim(1, -1).reshape(-1, x.shape[1]).numpy()


def backward(layer: nn.Module, x: Tensor, grad_y: Tensor) -> dict[str, Tensor]:
    """Return the output and every gradient of one forward and backward pass."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(grad_y)
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


def close(actual, expected) -> None:
    assert_close(actual, expected, rtol=1e-8, atol=1e-8)


@BOTH_PATHS
@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, options=OPTIONS, seed=SEEDS)
def test_equals_torch_in_training_and_evaluation(fused, shape, options, seed):
    ours, torchs = pair(shape[1], fused, seed, **options)
    for step, training in enumerate([True, True, False, True, False]):
        ours.train(training)
        torchs.train(training)
        x, grad_y = normal(seed + step, *shape, mean=3.0), normal(seed - step, *shape)
        close(backward(ours, x, grad_y), backward(torchs, x, grad_y))
        close(ours.state_dict(), torchs.state_dict())


@BOTH_PATHS
@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, options=OPTIONS, seed=SEEDS)
def test_equals_numpy_reference(fused, shape, options, seed):
    layer, _ = pair(shape[1], fused, seed, **options)
    ones, zeros = torch.ones(shape[1], dtype=torch.float64), torch.zeros(shape[1], dtype=torch.float64)
    gamma = (ones if layer.weight is None else layer.weight.detach()).numpy()
    beta = (zeros if layer.bias is None else layer.bias.detach()).numpy()

    for step in range(1, 4):
        x, grad_y = normal(seed + step, *shape, mean=3.0), normal(seed - step, *shape)
        if layer.track_running_stats:
            momentum = 1 / step if layer.momentum is None else layer.momentum
            running = layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()
            running = reference.update_running_statistics(*running, rows(x), momentum)
        result = backward(layer, x, grad_y)

        close(rows(result["y"]), reference.batch_norm_arrays(rows(x), gamma, beta, layer.eps))
        grads = reference.batch_norm_backward(rows(grad_y), rows(x), gamma, layer.eps)
        close(rows(result["x"]), grads[0])
        if layer.weight is not None:
            close(result["weight"].numpy(), grads[1])
        if layer.bias is not None:
            close(result["bias"].numpy(), grads[2])
        if layer.track_running_stats:
            close(layer.running_mean.numpy(), running[0])
            close(layer.running_var.numpy(), running[1])
            assert layer.num_batches_tracked == step


@BOTH_PATHS
def test_golden_case(fused):
    y = BatchNorm1d(5, fused=fused)(torch.tensor(GOLDEN_X))
    assert_close(y.detach(), torch.tensor(GOLDEN_Y), rtol=0, atol=5.1e-5)


@BOTH_PATHS
def test_running_statistics_by_hand(fused):
    layer = BatchNorm1d(1, momentum=0.25, fused=fused)
    layer(torch.tensor([[1.0], [3.0]]))
    # Batch mean 2; variance 1 biased, 2 unbiased.
    assert layer.running_mean.item() == 0.25 * 2
    assert layer.running_var.item() == 0.75 * 1 + 0.25 * 2


@BOTH_PATHS
def test_momentum_none_averages_all_batches(fused):
    layer = BatchNorm1d(3, momentum=None, fused=fused, dtype=torch.float64)
    batches = [normal(seed, 4, 3) for seed in range(7)]
    for x in batches:
        layer(x)
    close(layer.running_mean, torch.stack([x.mean(0) for x in batches]).mean(0))
    close(layer.running_var, torch.stack([x.var(0) for x in batches]).mean(0))


@BOTH_PATHS
@pytest.mark.parametrize("track", [False, True])
def test_derivatives_match_finite_differences(fused, track):
    layer, _ = pair(3, fused, track_running_stats=track)
    for x in (normal(1, 4, 3), normal(2, 3, 3, 2)):

        def output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return functional_call(layer, {"weight": weight, "bias": bias}, x)

        for training in (True, False):
            layer.train(training)
            inputs = [t.detach().clone().requires_grad_() for t in (x, layer.weight, layer.bias)]
            assert gradcheck(output, inputs)
            assert gradgradcheck(output, inputs)


@BOTH_PATHS
@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, affinity=st.tuples(st.floats(0.1, 10), st.floats(-10, 10)), eps=st.floats(1e-4, 1))
def test_scaling_input_equals_scaling_eps(fused, shape, affinity, eps):
    scale, shift = affinity
    x = normal(1, *shape)
    y = pair(shape[1], fused, eps=eps)[0](scale * x + shift)
    close(y, pair(shape[1], fused, eps=eps / scale**2)[0](x))


@BOTH_PATHS
@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, eps=st.floats(1e-6, 1), seed=SEEDS)
def test_output_mean_and_variance(fused, shape, eps, seed):
    layer, _ = pair(shape[1], fused, seed, eps=eps)
    x = normal(seed, *shape, mean=3.0)
    y, var = rows(layer(x)), rows(x).var(axis=0)
    gamma, beta = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    close(y.mean(axis=0), beta)
    close(y.var(axis=0), gamma**2 * var / (var + eps))


@BOTH_PATHS
def test_constant_feature_becomes_beta(fused):
    layer, _ = pair(2, fused)
    y = layer(torch.full((4, 2), 7.0, dtype=torch.float64))
    close(y, layer.bias.expand(4, 2))


@BOTH_PATHS
def test_evaluation_is_per_sample_and_stateless(fused):
    layer, _ = pair(3, fused)
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    x = normal(1, 4, 3)
    y = layer(x)
    assert_close(layer.state_dict(), before, rtol=0, atol=0)
    close(torch.cat([layer(sample) for sample in x.split(1)]), y)
    std = torch.sqrt(layer.running_var + layer.eps)
    close(y, layer.weight * (x - layer.running_mean) / std + layer.bias)


@BOTH_PATHS
def test_training_output_ignores_running_statistics(fused):
    x, layer = normal(1, 4, 3), BatchNorm1d(3, fused=fused, dtype=torch.float64)
    first = layer(x)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer.eval()(x), first)
    assert torch.equal(layer.train()(x), first)


@BOTH_PATHS
def test_untracked_evaluation_uses_batch_statistics(fused):
    x, layer = normal(1, 4, 3), BatchNorm1d(3, track_running_stats=False, fused=fused, dtype=torch.float64)
    assert torch.equal(layer(x), layer.eval()(x))


@BOTH_PATHS
@pytest.mark.parametrize("momentum", [0.1, None])
def test_disabling_tracking_freezes_statistics(fused, momentum):
    ours, torchs = pair(3, fused, momentum=momentum)
    before = copy.deepcopy(ours.state_dict())
    for training in (True, False):
        for layer in (ours, torchs):
            layer.track_running_stats = False
            layer.train(training)
        close(ours(normal(1, 4, 3)), torchs(normal(1, 4, 3)))
    assert_close(ours.state_dict(), before, rtol=0, atol=0)


@BOTH_PATHS
@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0)])
def test_empty_batch_counts_without_update(fused, shape):
    ours, torchs = pair(3, fused)
    close(
        backward(ours, torch.empty(shape).double(), torch.empty(shape).double())["y"],
        torch.empty(shape).double(),
    )
    torchs(torch.empty(shape).double())
    assert_close(ours.state_dict(), torchs.state_dict(), rtol=0, atol=0)


@BOTH_PATHS
def test_reset_restores_initial_state(fused):
    layer, _ = pair(3, fused)
    layer(normal(1, 4, 3))
    layer.reset_parameters()
    assert_close(layer.state_dict(), BatchNorm1d(3, dtype=torch.float64).state_dict(), rtol=0, atol=0)


@BOTH_PATHS
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copy_is_equal_and_independent(fused, duplicate):
    layer, _ = pair(3, fused, momentum=None)
    other, x = duplicate(layer), normal(1, 4, 3)
    assert torch.equal(other(x), layer(x))
    assert_close(other.state_dict(), layer.state_dict(), rtol=0, atol=0)
    other(x + 1)
    assert not torch.equal(other.running_mean, layer.running_mean)


@BOTH_PATHS
@pytest.mark.parametrize("training", [True, False])
def test_memory_layout_does_not_matter(fused, training):
    strided = {
        "transposed": normal(1, 3, 8).t(),
        "every second sample": normal(2, 16, 3)[::2],
        "features last": normal(3, 4, 5, 3).movedim(-1, 1),
        "expanded": normal(4, 8, 3, 1).expand(8, 3, 4),
    }
    for name, x in strided.items():
        layer = pair(3, fused)[0].train(training)
        twin = copy.deepcopy(layer)
        assert not x.is_contiguous(), name
        close(layer(x), twin(x.contiguous()))
        close(layer.state_dict(), twin.state_dict())


@BOTH_PATHS
def test_large_mean_keeps_variance(fused):
    # E[x²] − E[x]² would lose all digits here.
    layer = BatchNorm1d(2, fused=fused, dtype=torch.float64)
    x = normal(1, 64, 2)
    assert_close(layer(x + 1e8), layer(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("shape", [(3, 4, 2), (3, 4, 2, 5)])
def test_vmapped_stack_equals_loop(momentum, shape):
    layers = [pair(2, seed=seed, momentum=momentum)[0] for seed in range(3)]
    for k, layer in enumerate(layers):
        layer.num_batches_tracked.fill_(3 * k)
    parameters, buffers = stack_module_state(layers)
    x, grad_y = normal(1, *shape), normal(2, *shape)

    def loss(parameters, buffers, x, grad_y):
        y = functional_call(layers[0], (parameters, buffers), x)
        return (y * grad_y).sum(), y

    gradients = grad(loss, argnums=(0, 2), has_aux=True)
    (grad_parameters, grad_x), y = vmap(gradients)(parameters, buffers, x, grad_y)
    for k, layer in enumerate(layers):
        alone = backward(layer, x[k], grad_y[k])
        close(y[k], alone["y"])
        close(grad_x[k], alone["x"])
        for name, value in grad_parameters.items():
            close(value[k], alone[name])
        for name, value in buffers.items():
            close(value[k], getattr(layer, name))


def test_vmap_in_evaluation_shares_statistics():
    layer = pair(2)[0].eval()
    x = normal(1, 3, 4, 2)
    close(vmap(layer)(x), torch.stack([layer(member) for member in x]))


def test_compiles_to_one_graph():
    # This backend traces forward, backward and buffer updates without a C++ compiler.
    layer, _ = pair(3, momentum=None)
    compiled = copy.deepcopy(layer)
    compiled.compile(fullgraph=True, backend="aot_eager")
    for seed in range(2):
        x, grad_y = normal(seed, 4, 3), normal(seed + 2, 4, 3)
        close(backward(compiled, x, grad_y), backward(layer, x, grad_y))
        close(compiled.state_dict(), layer.state_dict())
