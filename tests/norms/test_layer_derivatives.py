"""Derivatives, memory layouts, fused kernels, vmap and compilation of all layers."""

import copy
from functools import partial

import pytest
import torch
from layer_catalogue import (
    ALL_LAYERS,
    ALL_LAYERS_ALL_SHAPES,
    BATCH_LAYERS,
    BOTH_MODES,
    CONVOLUTIONS,
    FORMULAS,
    FUSED,
    IMAGES,
    LINEARS,
    NORMALIZERS,
    ONE_RANK,
    RENORMS,
    VECTORS,
    WEIGHTS,
    backward,
    buffers_of,
    close,
    exclude,
    freeze,
    layers,
    layers_and_shapes,
    make_trained,
    normal,
    same,
)
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from normlab.norms import ActNorm


@pytest.mark.sampled(48)
@ALL_LAYERS_ALL_SHAPES
@BOTH_MODES
def test_derivatives_match_finite_differences(make, shape, training):
    layer = freeze(make_trained(make)).train(training)
    before = copy.deepcopy(layer.state_dict())
    names = [name for name, _ in layer.named_parameters()]

    def output(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    inputs = [t.detach().clone().requires_grad_() for t in (normal(3, *shape), *layer.parameters())]
    assert gradcheck(output, inputs)
    assert gradgradcheck(output, inputs)
    same(layer.state_dict(), before)


@ALL_LAYERS
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_and_reverse_mode_hvp_agree(make, shape):
    layer, x, v = freeze(make_trained(make)), normal(1, *shape).requires_grad_(), normal(2, *shape)

    def loss(x: Tensor) -> Tensor:
        return layer(x).pow(3).sum()

    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (by_reverse,) = torch.autograd.grad((gradient * v).sum(), x)
    close(jvp(grad(loss), (x.detach(),), (v,))[1], by_reverse)


@ALL_LAYERS
def test_two_forward_passes_before_backward(make, shape):
    together, apart = make_trained(make), make_trained(make)
    first, second = normal(1, *shape), normal(2, *shape)
    (together(first).square().sum() + together(second).square().sum()).backward()
    apart(first).square().sum().backward()
    apart(second).square().sum().backward()
    close([p.grad for p in together.parameters()], [p.grad for p in apart.parameters()])


@ALL_LAYERS_ALL_SHAPES
@BOTH_MODES
def test_memory_layout_does_not_matter(make, shape, training):
    x = normal(3, *shape)
    layouts = {
        "features first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "every second sample": torch.stack([x, x], dim=1)[:, 0],
    }
    if len(shape) == 4:
        layouts["channels_last"] = x.to(memory_format=torch.channels_last)
    for name, other in layouts.items():
        layer, twin = (make_trained(make).train(training) for _ in range(2))
        assert not other.is_contiguous(), name
        close(backward(layer, other), backward(twin, x))
        close(layer.state_dict(), twin.state_dict())


@layers(FORMULAS)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}, {"momentum": None}, {"eps": 0.1}])
def test_fused_path_equals_formula(make, options):
    formula, fused = make(**options).double(), make(fused=True, **options).double()
    for step, training in enumerate([True, True, True, False, True]):
        x = 2 + normal(step, *VECTORS)
        close(backward(fused.train(training), x), backward(formula.train(training), x))
        close(fused.state_dict(), formula.state_dict())


@layers(FORMULAS)
def test_fused_second_derivatives_equal_formula(make):
    gradients = []
    for fused in (False, True):
        layer, x = freeze(make_trained(make, fused=fused)), normal(3, *VECTORS).requires_grad_()
        first = torch.autograd.grad((layer(x) * normal(4, *VECTORS)).sum(), [x, layer.weight], create_graph=True)
        gradients.append(torch.autograd.grad(sum(g.square().sum() for g in first), [x, layer.weight]))
    close(*gradients)


CANNOT_AVERAGE = ("batch_norm_fused", "noisy_fused")
AVERAGING = {name: partial(make, momentum=None) for name, make in exclude(BATCH_LAYERS, *CANNOT_AVERAGE).items()}
NOT_TRACKING = {
    name: partial(make, track_running_stats=False) for name, make in exclude(BATCH_LAYERS, *RENORMS).items()
}


@layers_and_shapes(
    ONE_RANK,
    vectors=({**NORMALIZERS, **LINEARS}, VECTORS),
    images=({**NORMALIZERS, **CONVOLUTIONS}, IMAGES),
    averaging=(AVERAGING, VECTORS),
    not_tracking=(NOT_TRACKING, VECTORS),
)
def test_vmapped_members_equal_single_layers(make, shape):
    # In a Sequential: each parametrized layer has its own class, which stacking would reject.
    members = [nn.Sequential(make_trained(make, seed)) for seed in range(3)]
    base = copy.deepcopy(members[0])
    parameters, buffers = stack_module_state(members)
    grad_y = normal(7, *base(normal(0, *shape)).shape)

    def loss(parameters, buffers, x):
        y = functional_call(base, (parameters, buffers), (x,))
        return (y * grad_y).sum(), y

    for seed, training in enumerate([True, True, False]):
        base.train(training)
        x = normal(seed, 3, *shape)
        (of_parameters, of_x), y = vmap(grad(loss, argnums=(0, 2), has_aux=True))(parameters, buffers, x)
        for k, member in enumerate(members):
            alone = backward(member.train(training), x[k])
            close({"y": y[k], "x": of_x[k], **{name: g[k] for name, g in of_parameters.items()}}, alone)
            close({name: buffer[k] for name, buffer in buffers.items()}, buffers_of(member))


@layers({name: FUSED[name] for name in CANNOT_AVERAGE})
def test_fused_vmap_with_momentum_none_raises(make):
    members = [make(momentum=None) for _ in range(2)]
    with pytest.raises(RuntimeError, match="item"):
        vmap(lambda state: functional_call(members[0], state, (torch.ones(3, 4),)))(stack_module_state(members))


def check_compiled(layer: nn.Module, shape: tuple[int, ...], sizes: list[int]) -> None:
    """Check that a layer compiled to one graph equals the eager layer in training and then in evaluation."""
    torch.compiler.reset()
    compiled = copy.deepcopy(layer)
    # This backend traces forward, backward and buffer updates without a C++ compiler.
    compiled.compile(fullgraph=True, backend="aot_eager")
    for seed, size in enumerate(sizes):
        x = normal(seed, size, *shape[1:])
        close(backward(compiled, x), backward(layer, x))
    close(buffers_of(compiled), buffers_of(layer))
    close(compiled.eval()(x), layer.eval()(x))


@pytest.mark.slow
@ALL_LAYERS
def test_layer_compiles_to_one_graph(make, shape):
    check_compiled(make_trained(make), shape, [shape[0], shape[0]])


@WEIGHTS
def test_parametrized_weights_compile_to_one_graph(make, shape):
    check_compiled(make_trained(make), shape, [5, 5])


@pytest.mark.parametrize("fused", [False, True])
def test_ghost_batches_compile_to_one_graph(fused):
    check_compiled(make_trained(BATCH_LAYERS["ghost"], fused=fused), VECTORS, [5, 5])


@pytest.mark.parametrize("constant", ["gaussian", "none"])
def test_linf_compiles_for_every_batch_size(constant):
    check_compiled(make_trained(BATCH_LAYERS["linf"], constant=constant), VECTORS, [6, 5, 9])


def test_uninitialized_actnorm_compiles_to_one_graph():
    check_compiled(ActNorm(4).double(), VECTORS, [5, 5])
