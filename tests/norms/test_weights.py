"""Weight standardization and weight normalization, compared with their formulas and with torch."""

import copy
import math
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close

from normlab.norms import scaled_weight_standardization, weight_normalization, weight_standardization
from normlab.norms.activation import ACTIVATIONS, gain, make_activation

MAPS = {
    "linear": lambda: nn.Linear(6, 5).double(),
    "conv": lambda: nn.Conv2d(3, 5, 2).double(),
    "grouped": lambda: nn.Conv2d(4, 6, 2, groups=2).double(),
}
EACH_MAP = pytest.mark.parametrize("kind", MAPS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_map(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MAPS[kind]()


def inputs(layer: nn.Module) -> Tensor:
    return normal(7, 6) if isinstance(layer, nn.Linear) else normal(7, layer.in_channels, 3, 3)


def rows(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1)


@EACH_MAP
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_scaled_standardization_matches_formula(kind, activation):
    plain = make_map(kind)
    layer = scaled_weight_standardization(copy.deepcopy(plain), activation)
    w, n = rows(plain.weight), plain.weight[0].numel()
    expected = gain(activation) * (w - w.mean(1, keepdim=True)) / (w.std(1, correction=0, keepdim=True) * n**0.5)
    assert_close(rows(layer.weight), expected)
    layer.parametrizations.weight[0].gain.data = normal(len(w), seed=1)
    assert_close(rows(layer.weight), normal(len(w), seed=1).unsqueeze(1) * expected)
    fixed = scaled_weight_standardization(make_map(kind), activation, affine=False)
    assert_close(rows(fixed.weight), expected)
    assert [name for name, _ in fixed.named_parameters()] == ["bias", "parametrizations.weight.original"]


@EACH_MAP
def test_standardized_weights_have_mean_0_and_variance_1(kind):
    layer = weight_standardization(make_map(kind))
    assert_close(rows(layer.weight).mean(1), torch.zeros(len(layer.weight)).double(), atol=1e-12, rtol=0)
    assert_close(rows(layer.weight).var(1, correction=0), torch.ones(len(layer.weight)).double())
    assert [name for name, _ in layer.named_parameters()] == ["bias", "parametrizations.weight.original"]


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.1, 10), shift=st.floats(-3, 3))
def test_standardization_is_scale_and_shift_invariant(scale, shift):
    for standardize in (weight_standardization, scaled_weight_standardization):
        plain, other = make_map("linear"), make_map("linear")
        other.weight.data = scale * other.weight.data + shift
        assert_close(standardize(plain).weight, standardize(other).weight)


def test_signal_survives_only_scaled_standardization():
    def spread(standardize) -> float:
        torch.manual_seed(0)
        x = torch.randn(256, 400)
        with torch.no_grad():
            for _ in range(10):
                x = standardize(nn.Linear(400, 400, bias=False))(x).relu()
        return x.std().item()

    after_relu = math.sqrt((1 - 1 / math.pi) / 2)
    assert spread(scaled_weight_standardization) == pytest.approx(after_relu * gain("relu"), rel=0.15)
    assert spread(weight_standardization) > 1e6


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("relu", math.sqrt(2 / (1 - 1 / math.pi))),
        ("identity", 1.0),
        ("hardtanh", 1 / math.sqrt(1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi))),
        (nn.ReLU, math.sqrt(2 / (1 - 1 / math.pi))),
    ],
)
def test_gain_in_closed_form(activation, expected):
    assert gain(activation) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "activation", sorted(ACTIVATIONS.keys() - {"glu", "softmax", "softmax2d", "softmin", "logsoftmax"})
)
def test_gain_matches_simulation(activation):
    with torch.no_grad():
        y = make_activation(activation).double().eval()(normal(1_000_000))
    assert gain(activation) == pytest.approx(1 / y.std().item(), rel=0.01)


@pytest.mark.parametrize("name", ["threshold", "multiheadattention", "rel"])
def test_unknown_activation_raises(name):
    with pytest.raises(ValueError, match=f"net.activation must be one of .*, got {name}"):
        gain(name)


@pytest.mark.parametrize("activation", ["glu", partial(nn.Softmax, dim=0)])
def test_gain_of_non_elementwise_activation_raises(activation):
    with pytest.raises(ValueError, match=r"net\.activation must be elementwise to have a gain, got"):
        gain(activation)


@EACH_MAP
def test_weight_normalization_equals_torch(kind):
    ours, torchs = weight_normalization(make_map(kind)), weight_norm(make_map(kind))
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert_close(ours.weight, make_map(kind).weight)
    for layer in (ours, torchs):
        layer.parametrizations.weight.original0.data *= 1.7
    x = inputs(ours)
    y = [layer(x) for layer in (ours, torchs)]
    assert_close(y[0], y[1])
    grad_y = normal(*y[0].shape, seed=2)
    for output in y:
        output.backward(grad_y)
    for name, parameter in torchs.named_parameters():
        assert_close(ours.get_parameter(name).grad, parameter.grad)
    other = weight_norm(make_map(kind, seed=1))
    other.load_state_dict(ours.state_dict())
    assert_close(other(x), ours(x))
    fresh = weight_normalization(make_map(kind, seed=1))
    fresh.load_state_dict(torchs.state_dict())
    assert_close(fresh(x), ours(x))


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.01, 100))
def test_weight_normalization_ignores_length_of_v(scale):
    layer = weight_normalization(make_map("linear"))
    before, x = layer.weight.detach().clone(), normal(7, 6)
    y = layer(x)
    layer.parametrizations.weight.original1.data *= scale
    assert_close(layer.weight, before)
    assert_close(layer(x), y)
    assert_close(torch.linalg.vector_norm(layer.weight, dim=1), layer.parametrizations.weight.original0.flatten())


@pytest.mark.parametrize("change", [scaled_weight_standardization, weight_standardization, weight_normalization])
def test_copies_and_state_dicts_keep_weights(change):
    layer, x = change(make_map("linear")), normal(7, 6)
    for parameter in layer.parameters():
        parameter.data += 0.1
    fresh = change(make_map("linear", seed=1))
    fresh.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), fresh):
        assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("change", [scaled_weight_standardization, weight_standardization])
def test_standardizing_unsupported_layer_raises(change):
    with pytest.raises(ValueError, match="needs at least 2 inputs, got 1"):
        change(nn.Linear(1, 4))
    with pytest.raises(TypeError, match="takes a linear map or a convolution, got PReLU"):
        change(nn.PReLU())


@pytest.mark.parametrize("change", [scaled_weight_standardization, weight_standardization, weight_normalization])
def test_second_derivatives_match_finite_differences(change):
    layer = change(make_map("linear")).double()
    names = [name for name, _ in layer.named_parameters()]
    inputs = [normal(3, 6).requires_grad_(), *(p.detach().clone().requires_grad_() for p in layer.parameters())]

    def output(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, inputs)
    assert torch.autograd.gradgradcheck(output, inputs)


BOTH_STANDARDIZATIONS = pytest.mark.parametrize(
    "standardize", [weight_standardization, scaled_weight_standardization]
)


@BOTH_STANDARDIZATIONS
@pytest.mark.parametrize("kind", MAPS)
def test_small_variance_is_replaced_by_eps(standardize, kind):
    layer = make_map(kind)
    w = rows(layer.weight)
    eps = w.var(1, correction=0).max().item() * 4
    centered = (w - w.mean(1, keepdim=True)) / eps**0.5
    scale = gain("relu") / w.shape[1] ** 0.5 if standardize is scaled_weight_standardization else 1
    assert_close(rows(standardize(layer, eps=eps).weight), scale * centered)


@BOTH_STANDARDIZATIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_constant_weights_become_zero(standardize, dtype):
    layer = nn.Linear(4, 2).to(dtype)
    nn.init.constant_(layer.weight, 0.25)
    standardize(layer)
    assert layer.weight.dtype is dtype
    assert layer.weight.eq(0).all()
    layer(torch.ones(1, 4, dtype=dtype)).sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_are_standardized_in_32(dtype):
    layer = nn.Linear(64, 8).to(dtype)
    nn.init.normal_(layer.weight, 100.0, generator=torch.Generator().manual_seed(1))
    double = copy.deepcopy(layer).double()
    # With a mean of 100, 16-bit weights have few significant digits left after centering.
    near = {"rtol": 1e-2, "atol": 1e-2, "check_dtype": False}
    assert_close(weight_standardization(layer).weight, weight_standardization(double).weight, **near)


def test_signal_growth_per_layer():
    def variances(standardize) -> Tensor:
        torch.manual_seed(0)
        z, by_layer = torch.randn(256, 1000), []
        with torch.no_grad():
            for _ in range(10):
                z = standardize(nn.Linear(1000, 1000, bias=False))(z.relu())
                by_layer.append(z.var(0).mean())
        return torch.stack(by_layer)

    scaled, plain = variances(scaled_weight_standardization), variances(weight_standardization)
    assert (scaled - 1).abs().max() < 0.05
    assert_close(plain[1:] / plain[:-1], torch.full((9,), 1000 / gain("relu") ** 2), rtol=0.05, atol=0)


@BOTH_STANDARDIZATIONS
@pytest.mark.parametrize("layer", [nn.Conv2d(1, 3, 1), nn.Conv2d(4, 4, 1, groups=4)], ids=str)
def test_convolution_with_fan_in_1_raises(standardize, layer):
    with pytest.raises(ValueError, match="needs at least 2 inputs, got 1"):
        standardize(layer)


def test_weight_normalization_by_hand():
    layer = weight_normalization(nn.Linear(2, 2, bias=False))
    layer.load_state_dict(
        {
            "parametrizations.weight.original0": torch.tensor([[10.0], [-1.0]]),
            "parametrizations.weight.original1": torch.tensor([[3.0, 4.0], [0.0, 2.0]]),
        }
    )
    assert_close(layer.weight.detach(), torch.tensor([[6.0, 8.0], [0.0, -1.0]]))


@EACH_MAP
def test_weight_normalization_gradient_is_orthogonal_to_v(kind):
    layer = weight_normalization(make_map(kind))
    v, y = layer.parametrizations.weight.original1, layer(inputs(layer))
    (gradient,) = torch.autograd.grad(y, v, normal(*y.shape, seed=2))
    assert_close((gradient * v).flatten(1).sum(1), torch.zeros(len(v)).double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_length_does_not_overflow(dtype):
    layer = nn.Linear(4, 1).to(dtype)
    nn.init.constant_(layer.weight, 1000.0)
    assert_close(weight_normalization(layer).weight, torch.full((1, 4), 1000.0).to(dtype), rtol=1e-2, atol=0)
