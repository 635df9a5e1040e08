"""All layers in use: alternating training and evaluation, 16-bit dtypes, vmap, compilation and invalid input.

test_all_layers.py tests derivatives, copies and memory layouts of the same layers.
"""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.testing import assert_close

from normlab.norms import (
    ActNorm,
    BatchRenorm,
    Derf,
    DynamicTanh,
    GhostBatchNorm,
    GroupNorm,
    L1BatchNorm,
    LayerNorm2d,
    LInfBatchNorm,
    NoisyBatchNorm,
    RMSNorm2d,
    scaled_weight_standardization,
    weight_normalization,
    weight_standardization,
)
from normlab.norms.batch_norm import BatchNorm

Make = Callable[..., nn.Module]

# All accept vectors of 4 features and images of 4 channels. A batch of 5 has ghost batches of 2 and 3 samples.
FORMULAS: dict[str, Make] = {
    "batch_norm": partial(BatchNorm, 4),
    "ghost": partial(GhostBatchNorm, 4, ghost_size=2),
    "renorm": partial(BatchRenorm, 4, r_max=1.5, d_max=0.5),
    "noisy": partial(NoisyBatchNorm, 4),
}
FUSED: dict[str, Make] = {f"{name}_fused": partial(make, fused=True) for name, make in FORMULAS.items()}
BATCH_LAYERS: dict[str, Make] = {
    **FORMULAS,
    **FUSED,
    "l1": partial(L1BatchNorm, 4),
    "linf": partial(LInfBatchNorm, 4),
}
SAMPLE_LAYERS: dict[str, Make] = {
    "group": partial(GroupNorm, 4, 2),
    "layer": partial(LayerNorm2d, 4),
    "rms": partial(RMSNorm2d, 4),
}
NORMALIZERS: dict[str, Make] = {
    **BATCH_LAYERS,
    **SAMPLE_LAYERS,
    "actnorm": partial(ActNorm, 4),
    "dynamic_tanh": partial(DynamicTanh, 4),
    "derf": partial(Derf, 4),
}
LINEARS: dict[str, Make] = {
    "standardized": lambda: weight_standardization(nn.Linear(4, 3)),
    "standardized_scaled": lambda: scaled_weight_standardization(nn.Linear(4, 3)),
    "weight_normalized": lambda: weight_normalization(nn.Linear(4, 3)),
}
CONVOLUTIONS: dict[str, Make] = {
    "standardized_conv": lambda: weight_standardization(nn.Conv2d(4, 3, 2)),
    "standardized_scaled_conv": lambda: scaled_weight_standardization(nn.Conv2d(4, 3, 2)),
    "weight_normalized_conv": lambda: weight_normalization(nn.Conv2d(4, 3, 2)),
}
VECTORS, IMAGES = (5, 4), (5, 4, 2, 3)


def exclude(group: dict[str, Make], *names: str) -> dict[str, Make]:
    return {name: make for name, make in group.items() if name not in names}


def layers(group: dict[str, Make]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", list(group.values()), ids=list(group))


def layers_and_shapes(**groups: tuple[dict[str, Make], tuple[int, ...]]) -> pytest.MarkDecorator:
    cases = {f"{name}-{kind}": (make, shape) for kind, (g, shape) in groups.items() for name, make in g.items()}
    return pytest.mark.parametrize(("make", "shape"), list(cases.values()), ids=list(cases))


WEIGHTS = layers_and_shapes(vectors=(LINEARS, VECTORS), images=(CONVOLUTIONS, IMAGES))
ALL_LAYERS = layers_and_shapes(
    vectors=({**NORMALIZERS, **LINEARS}, VECTORS), images=({**NORMALIZERS, **CONVOLUTIONS}, IMAGES)
)
BOTH_SHAPES = pytest.mark.parametrize("shape", [VECTORS, IMAGES], ids=["vectors", "images"])
BOTH_MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
BOTH_16_BITS = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def normal(seed: int, *shape: int) -> Tensor:
    return 0.5 + torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_trained(make: Make, seed: int = 0, **options) -> nn.Module:
    """Return a float64 layer with random parameters; layers with statistics after one training batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = make(**options).double()
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, 0.5, 2.0)
    if hasattr(layer, "seed"):
        layer.seed(seed)
    if isinstance(layer, ActNorm | BatchNorm):
        layer(normal(seed + 100, 6, 4))
    return layer


def buffers_of(layer: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def backward(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the output and all gradients of one forward and backward pass."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(normal(7, *y.shape).to(y.dtype))
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


def close(actual, expected) -> None:
    assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def same(actual, expected) -> None:
    assert_close(actual, expected, rtol=0, atol=0)


@WEIGHTS
def test_weight_derivatives_match_finite_differences(make, shape):
    layer = make_trained(make)
    names = [name for name, _ in layer.named_parameters()]

    def output(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    inputs = [t.detach().clone().requires_grad_() for t in (normal(1, *shape), *layer.parameters())]
    assert gradcheck(output, inputs)
    assert gradgradcheck(output, inputs)


@ALL_LAYERS
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_and_reverse_mode_hvp_agree(make, shape):
    layer, x, v = make_trained(make), normal(1, *shape).requires_grad_(), normal(2, *shape)
    layer.updates_state = layer.track_running_stats = False

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


@ALL_LAYERS
def test_interleaved_evaluation_does_not_change_training(make, shape):
    layer, undisturbed = make_trained(make), make_trained(make)
    for seed in range(3):
        layer.eval()(normal(seed + 10, *shape))
        same(backward(layer.train(), normal(seed, *shape)), backward(undisturbed, normal(seed, *shape)))
    same(buffers_of(layer), buffers_of(undisturbed))


@layers(BATCH_LAYERS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_update_only_while_tracking(make, momentum):
    layer = make_trained(make, momentum=momentum)
    before = copy.deepcopy(layer.state_dict())
    layer.track_running_stats = False
    layer(normal(1, *VECTORS))
    moved = {name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == ({"step"} if isinstance(layer, NoisyBatchNorm) else set())

    layer.track_running_stats = True
    layer(normal(1, *VECTORS))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert (layer.get_buffer(name) != before[name]).all()


@WEIGHTS
def test_copies_of_parametrized_weights(make, shape):
    layer, fresh, x = make_trained(make), make().double(), normal(1, *shape)
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()))
    other = copy.deepcopy(layer)
    same(backward(fresh, x), backward(layer, x))
    same(backward(other, x), backward(layer, x))
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    same(backward(fresh, x), backward(layer, x))


@layers({**LINEARS, **CONVOLUTIONS})
def test_parametrized_weights_pickle_by_state_dict(make):
    layer = make()
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(layer)
    same(pickle.loads(pickle.dumps(layer.state_dict())), layer.state_dict())


@layers(BATCH_LAYERS)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}], ids=str)
def test_state_dict_is_compatible_with_torch(make, options):
    layer, torchs = make_trained(make, **options), nn.BatchNorm1d(4, **options, dtype=torch.float64)
    own = ["key", "step"] if isinstance(layer, NoisyBatchNorm) else []
    x = normal(1, *VECTORS)

    keys = torchs.load_state_dict(layer.state_dict(), strict=False)
    assert (keys.missing_keys, sorted(keys.unexpected_keys)) == ([], own)
    close(torchs.eval()(x), layer.eval()(x))

    torchs.train()(x)
    keys = layer.load_state_dict(torchs.state_dict(), strict=False)
    assert (sorted(keys.missing_keys), keys.unexpected_keys) == (own, [])
    close(layer(x), torchs.eval()(x))


@layers(NORMALIZERS)
@BOTH_16_BITS
@pytest.mark.parametrize("shape", [(64, 4), (16, 4, 2, 2)], ids=["vectors", "images"])
@pytest.mark.parametrize("affine", [True, False])
def test_16_bit_input_is_normalized_in_32(make, dtype, shape, affine):
    # The largest float16 is 65504, so squares and sums of 6e4 overflow.
    x = (6e4 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) * torch.sign(normal(2, *shape))).to(
        dtype
    )
    layer, double = make(affine=affine), make(affine=affine).double()
    result = backward(layer, x)
    assert {name: value.dtype for name, value in result.items() if name in "xy"} == {"y": dtype, "x": dtype}
    assert all(value.isfinite().all() for value in result.values())
    near = {"rtol": 1e-2, "atol": 1e-2, "check_dtype": False}
    assert_close(result["y"], double(x.double()).detach(), **near)
    assert_close(buffers_of(layer), buffers_of(double), **near)
    assert layer.eval()(x).dtype is dtype


@layers(exclude(BATCH_LAYERS, "renorm", "renorm_fused"))
@BOTH_16_BITS
@pytest.mark.parametrize("affine", [True, False])
def test_16_bit_input_without_tracking(make, dtype, affine):
    options = {"affine": affine, "track_running_stats": False}
    x = normal(1, 64, 4).to(dtype)
    for layer in (make(**options), make(**options).to(dtype)):
        y = layer(x)
        assert y.dtype is dtype
        assert y.isfinite().all()


@layers(exclude(NORMALIZERS, *FUSED))
@BOTH_16_BITS
def test_16_bit_layer_computes_in_32(make, dtype):
    # Fused layers are excluded: torch's kernel rounds the statistics of a 16-bit layer to 16 bits.
    layer, double = make().to(dtype), make().double()
    near = {"rtol": 2e-2, "atol": 2e-2, "check_dtype": False}
    for seed in range(3):
        x = normal(seed, 64, 4).to(dtype)
        y = layer(x)
        assert y.dtype is dtype
        assert_close(y, double(x.double()), **near)
    assert_close(buffers_of(layer), buffers_of(double), **near)


@layers(exclude(NORMALIZERS, *FUSED, "group", "layer"))
def test_output_has_dtype_of_input(make):
    assert make()(normal(1, *VECTORS)).dtype is torch.float64
    assert make().double()(normal(1, *VECTORS).float()).dtype is torch.float32


@layers(BATCH_LAYERS)
@pytest.mark.parametrize("shape", [(0, 4), (5, 4, 0)])
def test_empty_batch_has_zero_gradients_and_counts(make, shape):
    layer = make_trained(make)
    before = buffers_of(layer)
    result = backward(layer, normal(1, *shape))
    assert result.pop("y").shape == shape
    assert all(gradient.eq(0).all() for gradient in result.values())
    moved = {name for name, buffer in layer.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == {"num_batches_tracked"} | ({"step"} if isinstance(layer, NoisyBatchNorm) else set())
    assert layer.eval()(normal(1, *shape)).shape == shape


@layers(exclude(NORMALIZERS, *BATCH_LAYERS))
def test_empty_batch_has_zero_gradients(make):
    result = backward(make_trained(make), normal(1, 0, 4))
    assert result.pop("y").shape == (0, 4)
    assert all(gradient.eq(0).all() for gradient in result.values())


@layers(BATCH_LAYERS)
@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1), (1, 4, 1, 1)])
def test_single_value_raises_only_in_training(make, shape):
    layer = make_trained(make)
    before = buffers_of(layer)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training, got input size"):
        layer(normal(1, *shape))
    same(buffers_of(layer), before)
    assert layer.eval()(normal(1, *shape)).isfinite().all()


@layers(NORMALIZERS)
@BOTH_MODES
@pytest.mark.parametrize("shape", [(6, 5), (4, 6), (6, 8), (6, 5, 4), (6, 5, 2, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_wrong_feature_count_raises(make, training, shape, affine):
    layer = make(affine=affine).double().train(training)
    before, name = buffers_of(layer), type(layer).__name__
    with pytest.raises(RuntimeError, match=rf"^{name} expected 4 features on axis 1, got .*\({shape[0]}, .*\)"):
        layer(normal(1, *shape))
    same(buffers_of(layer), before)


@layers(NORMALIZERS)
def test_input_without_feature_axis_raises(make):
    with pytest.raises((ValueError, RuntimeError), match=r"expected .*got .*"):
        make()(torch.ones(4))


@layers(BATCH_LAYERS)
def test_zero_eps_raises_in_training_negative_always(make):
    x = normal(1, *VECTORS)
    for eps in (0.0, -1e-5):
        with pytest.raises(ValueError, match=f"eps must be positive during training, but got {eps}"):
            make(eps=eps).double()(x)
    assert make(eps=0.0).double().eval()(x).isfinite().all()
    with pytest.raises(ValueError, match="eps must be non-negative, but got -1e-05"):
        make(eps=-1e-5).double().eval()(x)


STANDARDIZED: dict[str, Make] = {
    "standardized": lambda eps: weight_standardization(nn.Linear(4, 3), eps),
    "standardized_scaled": lambda eps: scaled_weight_standardization(nn.Linear(4, 3), eps=eps),
}


@layers({"actnorm": NORMALIZERS["actnorm"], **SAMPLE_LAYERS, **STANDARDIZED})
@pytest.mark.parametrize("eps", [0.0, -1e-5])
def test_nonpositive_eps_raises_in_constructor(make, eps):
    with pytest.raises(ValueError, match=rf"^eps of .* must be a number > 0, got {eps}$"):
        make(eps=eps)


@layers(exclude(NORMALIZERS, *SAMPLE_LAYERS))
@BOTH_SHAPES
@BOTH_MODES
def test_bias_false_equals_zero_bias(make, shape, training):
    one, full = make_trained(make, bias=False).train(training), make_trained(make).train(training)
    assert one.bias is None
    with torch.no_grad():
        full.bias.zero_()
        for name, parameter in one.named_parameters():
            parameter.copy_(full.get_parameter(name))
    close(one(normal(1, *shape)), full(normal(1, *shape)))


@layers(exclude(BATCH_LAYERS, "renorm", "renorm_fused"))
def test_untracked_evaluation_uses_whole_batch(make):
    layer, tracking = make(track_running_stats=False).double(), make().double()
    x = normal(1, *VECTORS)
    assert not {"running_mean", "running_var", "num_batches_tracked"} & set(buffers_of(layer))
    close(layer(x), tracking(x))
    same_spread = type(layer) if isinstance(layer, L1BatchNorm) else BatchNorm
    close(layer.eval()(x), same_spread(4, track_running_stats=False, dtype=torch.float64)(x))


@layers(BATCH_LAYERS)
def test_reset_restores_initial_state(make):
    layer, fresh = make_trained(make), make().double()
    layer.reset_parameters()
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        same(layer.state_dict()[name], fresh.state_dict()[name])


CANNOT_AVERAGE = ("batch_norm_fused", "noisy_fused")
AVERAGING = {name: partial(make, momentum=None) for name, make in exclude(BATCH_LAYERS, *CANNOT_AVERAGE).items()}
NOT_TRACKING = {
    name: partial(make, track_running_stats=False)
    for name, make in exclude(BATCH_LAYERS, "renorm", "renorm_fused").items()
}


@layers_and_shapes(
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
        (of_parameters, of_x), y = vmap(grad(loss, argnums=(0, 2), has_aux=True), (0, 0, 0))(
            parameters, buffers, x
        )
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


@layers(BATCH_LAYERS)
@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from([VECTORS, (5, 4, 3), IMAGES]),
    scale=st.floats(0.1, 10),
    shift=st.floats(-10, 10),
    eps=st.floats(1e-4, 1),
)
def test_scaling_batch_equals_scaling_eps(make, shape, scale, shift, eps):
    layer, other = make(eps=eps).double(), make(eps=eps / scale**2).double()
    for one in (layer, other):
        # Batch renormalization depends on the running statistics unless its state is fixed.
        one.updates_state = not isinstance(one, BatchRenorm)
    x = normal(1, *shape)
    assert_close(layer(scale * x + shift), other(x), rtol=1e-7, atol=1e-7)
