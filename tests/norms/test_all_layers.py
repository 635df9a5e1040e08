"""Properties of all normalizers: derivatives, vmap, compilation, copies, memory layout, dtypes, invalid input."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.testing import assert_close

from normlab.norms import (
    ActNorm,
    BatchNorm1d,
    BatchNorm2d,
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
)

ROWS, SEQUENCES, IMAGES = (6, 4), (3, 4, 2), (5, 4, 3, 2)
ANY = (ROWS, SEQUENCES, IMAGES)


@dataclass(frozen=True)
class Case:
    """A layer factory and the input shapes to test it with."""

    make: Callable[..., nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ANY


CASES = {
    "bn": Case(BatchNorm1d, (ROWS, SEQUENCES)),
    "bn fused": Case(partial(BatchNorm1d, fused=True), (ROWS, SEQUENCES)),
    "bn images": Case(BatchNorm2d, (IMAGES,)),
    "ghost": Case(partial(GhostBatchNorm, ghost_size=2)),
    "ghost fused": Case(partial(GhostBatchNorm, ghost_size=2, fused=True)),
    "ghost with rest": Case(partial(GhostBatchNorm, ghost_size=4, fused=True), (ROWS, IMAGES)),
    "brn": Case(partial(BatchRenorm, total_steps=4)),
    "brn fused": Case(partial(BatchRenorm, fused=True)),
    "noisy": Case(NoisyBatchNorm),
    "noisy fused": Case(partial(NoisyBatchNorm, fused=True)),
    "l1": Case(L1BatchNorm),
    "l1 none": Case(partial(L1BatchNorm, constant="none")),
    "linf": Case(LInfBatchNorm),
    "linf none": Case(partial(LInfBatchNorm, constant="none")),
    "actnorm": Case(ActNorm),
    "dyt": Case(DynamicTanh),
    "derf": Case(Derf),
    "gn": Case(partial(GroupNorm, num_groups=2)),
    "ln images": Case(LayerNorm2d, (IMAGES,)),
    "rms images": Case(RMSNorm2d, (IMAGES,)),
}
EACH = pytest.mark.parametrize(
    ("make", "shape"),
    [
        pytest.param(case.make, shape, id=f"{name} {len(shape)}d")
        for name, case in CASES.items()
        for shape in case.shapes
    ],
)
EACH_LAYER = pytest.mark.parametrize(
    ("make", "shape"),
    [pytest.param(case.make, case.shapes[-1], id=name) for name, case in CASES.items()],
)
BATCH_NORMS = {
    name: case for name, case in CASES.items() if name.split()[0] in ("bn", "ghost", "brn", "noisy", "l1")
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_trained(make: Callable[..., nn.Module], seed: int = 0, **arguments) -> nn.Module:
    """Return a random float64 layer of 4 features after two forward passes in training mode."""
    layer = make(4, **arguments).double()
    for number, parameter in enumerate(layer.parameters()):
        parameter.data = 1 + 0.5 * normal(*parameter.shape, seed=seed + number + 1)
    if hasattr(layer, "seed"):
        layer.seed(seed + 7)
    trained_on = (8, 4, 2, 2) if isinstance(layer, BatchNorm2d | RMSNorm2d) else (8, 4)
    for step in range(2):
        layer(1 + normal(*trained_on, seed=seed + step))
    return layer


def freeze(layer: nn.Module) -> nn.Module:
    """Fix statistics and random numbers, so that a layer is a function of input and parameters."""
    if hasattr(layer, "updates_state"):
        layer.updates_state = False
    if hasattr(layer, "track_running_stats"):
        layer.track_running_stats = False
    return layer


def backward(layer: nn.Module, x: Tensor, grad_y: Tensor) -> dict[str, Tensor]:
    """Return the output and every gradient of one forward and backward pass."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(grad_y)
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


@EACH
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_derivatives_match_finite_differences(make, shape, training):
    layer = freeze(make_trained(make)).train(training)
    names = [name for name, _ in layer.named_parameters()]

    def output(x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    inputs = [normal(*shape, seed=3).requires_grad_()]
    inputs += [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    before = copy.deepcopy(layer.state_dict())
    assert gradcheck(output, inputs)
    assert gradgradcheck(output, inputs)
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


@EACH_LAYER
def test_vmapped_stack_equals_loop(make, shape):
    layers = [make_trained(make, seed=10 * k) for k in range(3)]
    parameters, buffers = stack_module_state(layers)
    x, grad_y = normal(3, *shape, seed=4), normal(3, *shape, seed=5)

    def loss(parameters, buffers, x, grad_y):
        y = functional_call(layers[0], (parameters, buffers), (x,))
        return (y * grad_y).sum(), y

    (of_parameters, of_x), y = vmap(grad(loss, argnums=(0, 2), has_aux=True))(parameters, buffers, x, grad_y)
    for k, layer in enumerate(layers):
        alone = backward(layer, x[k], grad_y[k])
        assert_close(y[k], alone["y"])
        assert_close(of_x[k], alone["x"])
        for name, value in of_parameters.items():
            assert_close(value[k], alone[name])
        for name, value in buffers.items():
            assert_close(value[k], layer.get_buffer(name))


@pytest.mark.slow
@EACH_LAYER
def test_compiled_graph_trains_the_same(make, shape):
    layer = make_trained(make)
    compiled = copy.deepcopy(layer)
    compiled.compile(fullgraph=True, backend="aot_eager")
    for seed in range(2):
        x, grad_y = normal(*shape, seed=seed), normal(*shape, seed=seed + 2)
        assert_close(backward(compiled, x, grad_y), backward(layer, x, grad_y))
        assert_close(compiled.state_dict(), layer.state_dict())


@EACH_LAYER
def test_copies_continue_independently(make, shape):
    layer, x = make_trained(make), normal(*shape, seed=3)
    fresh = make(4).double()
    fresh.load_state_dict(layer.state_dict())
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh]
    first, second = layer(x), layer(x)
    for twin in twins:
        assert torch.equal(twin(x), first)
        assert torch.equal(twin(x), second)
        assert_close(twin.state_dict(), layer.state_dict(), rtol=0, atol=0)
    state = copy.deepcopy(layer.state_dict())
    twins[0](10 * x)
    assert_close(layer.state_dict(), state, rtol=0, atol=0)


@EACH
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_memory_layout_does_not_matter(make, shape, training):
    x, grad_y = normal(*shape, seed=3), normal(*shape, seed=4)
    layouts = {
        "features first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "every second sample": torch.stack([x, x], dim=1)[:, 0],
    }
    if len(shape) == 4:
        layouts["channels_last"] = x.to(memory_format=torch.channels_last)
    for name, other in layouts.items():
        layer = make_trained(make).train(training)
        twin = copy.deepcopy(layer)
        assert not other.is_contiguous(), name
        assert_close(backward(layer, other, grad_y), backward(twin, x, grad_y))
        assert_close(layer.state_dict(), twin.state_dict())


@EACH_LAYER
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_input_does_not_overflow(make, shape, dtype):
    layer = make(4)
    x = (6e4 * torch.sign(normal(*shape, seed=3))).to(dtype)
    # torch's group norm accepts 16-bit input only in a 16-bit layer.
    result = backward(layer.to(dtype) if isinstance(layer, GroupNorm) else layer, x, normal(*shape).to(dtype))
    assert result["y"].dtype == dtype
    assert all(value.isfinite().all() for value in result.values())


@EACH_LAYER
def test_empty_batch_leaves_statistics_unchanged(make, shape):
    layer = make_trained(make)
    before = copy.deepcopy(layer.state_dict())
    x = torch.empty(0, *shape[1:], dtype=torch.float64)
    assert layer(x).shape == x.shape
    for name, value in layer.state_dict().items():
        assert name in ("num_batches_tracked", "step") or torch.equal(value, before[name]), name


@EACH_LAYER
def test_evaluation_is_per_sample_and_stateless(make, shape):
    layer, x = make_trained(make).eval(), normal(*shape, seed=3)
    before = copy.deepcopy(layer.state_dict())
    y = layer(x)
    assert_close(torch.cat([layer(sample) for sample in x.split(1)]), y)
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


@EACH_LAYER
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_wrong_feature_count_raises(make, shape, training):
    layer = make(4).train(training)
    with pytest.raises(RuntimeError, match=r"[Ee]xpected"):
        layer(torch.zeros(shape[0], 5, *shape[2:]))


@EACH_LAYER
def test_affine_false_equals_initial_affine(make, shape):
    plain, x = make(4, affine=False).double(), normal(*shape, seed=3)
    assert not [name for name, _ in plain.named_parameters() if name in ("weight", "bias")]
    assert_close(plain(x), make(4).double()(x))


FUSED = {
    "bn": BatchNorm1d,
    "ghost": partial(GhostBatchNorm, ghost_size=2),
    "brn": partial(BatchRenorm, total_steps=4),
    "noisy": NoisyBatchNorm,
}


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}, {"momentum": None}, {"eps": 0.1}])
def test_fused_path_equals_formula(make, options):
    formula, fused = make(4, **options).double(), make(4, fused=True, **options).double()
    for step, training in enumerate([True, True, True, False, True]):
        x, grad_y = 2 + normal(*ROWS, seed=step), normal(*ROWS, seed=step + 9)
        one, other = (backward(layer.train(training), x, grad_y) for layer in (formula, fused))
        assert_close(one, other)
        assert_close(formula.state_dict(), fused.state_dict())


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
def test_fused_second_derivatives_equal_formula(make):
    gradients = []
    for fused in (False, True):
        layer, x = freeze(make_trained(partial(make, fused=fused))), normal(*ROWS, seed=3).requires_grad_()
        first = torch.autograd.grad((layer(x) * normal(*ROWS, seed=4)).sum(), [x, layer.weight], create_graph=True)
        gradients.append(torch.autograd.grad(sum(g.square().sum() for g in first), [x, layer.weight]))
    assert_close(*gradients)


@pytest.mark.parametrize("case", BATCH_NORMS.values(), ids=BATCH_NORMS)
def test_momentum_none_averages_all_batches(case):
    if case.make is BatchNorm2d:
        pytest.skip("takes no rows")
    layer = case.make(4, momentum=None).double()
    batches = [1 + normal(8, 4, seed=seed) for seed in range(4)]
    for x in batches:
        layer(x)
    assert_close(layer.running_mean, torch.cat(batches).mean(0))


@pytest.mark.parametrize("case", BATCH_NORMS.values(), ids=BATCH_NORMS)
def test_state_dict_is_compatible_with_torch(case):
    torchs, ours = nn.BatchNorm1d(4).double(), case.make(4).double()
    torchs(3 + normal(6, 4))
    missing, unexpected = ours.load_state_dict(torchs.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) <= {"key", "step"}
    assert_close(ours.running_var, torchs.running_var)
    torchs.load_state_dict({name: ours.state_dict()[name] for name in torchs.state_dict()})


@pytest.mark.parametrize("case", BATCH_NORMS.values(), ids=BATCH_NORMS)
@pytest.mark.parametrize("eps", [0.0, -1e-5])
def test_single_value_or_nonpositive_eps_raises(case, eps):
    single = torch.zeros(1, 4, 1, 1) if case.make is BatchNorm2d else torch.zeros(1, 4)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        case.make(4)(single)
    with pytest.raises(ValueError, match="eps must be positive during training"):
        case.make(4, eps=eps)(single.expand(3, *single.shape[1:]))
