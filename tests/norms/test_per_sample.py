"""Group, layer and RMS normalization: comparison with torch and with their formulas, and their invariances."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.norms import GroupNorm, LayerNorm2d, RMSNorm2d


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 2 + torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomize_affine(layer: nn.Module) -> nn.Module:
    layer = layer.double()
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = normal(*parameter.shape, seed=seed + 5)
    return layer


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 2), (3, 6, 2, 5)])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_group_norm_equals_torch_and_formula(shape, groups):
    if groups == 6 and len(shape) == 2:
        pytest.skip("a group would be a single number")
    layer, x = randomize_affine(GroupNorm(6, groups, eps=0.1)), normal(*shape)
    torchs = randomize_affine(nn.GroupNorm(groups, 6, eps=0.1))
    assert_close(layer(x), torchs(x))
    parts = x.view(3, groups, -1)
    x_hat = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, correction=0, keepdim=True) + 0.1).sqrt()
    each = (1, 6, *[1] * (len(shape) - 2))
    assert_close(layer(x), layer.weight.view(each) * x_hat.view(shape) + layer.bias.view(each))


@pytest.mark.parametrize("groups", [0, -1, 4])
def test_indivisible_group_count_raises(groups):
    with pytest.raises(ValueError, match=f"num_groups must divide the 6 features of every .* layer, got {groups}"):
        GroupNorm(6, groups)


def test_layer_norm_of_images():
    layer, x = randomize_affine(LayerNorm2d(3)), normal(4, 3, 5, 2)
    x_hat = nn.functional.layer_norm(x, (3, 5, 2))
    assert_close(layer(x), layer.weight.view(3, 1, 1) * x_hat + layer.bias.view(3, 1, 1))


def test_rms_norm_of_images():
    layer, x = randomize_affine(RMSNorm2d(3, eps=0.1)), normal(4, 3, 5, 2)
    x_hat = x / (x.square().mean((1, 2, 3), keepdim=True) + 0.1).sqrt()
    assert_close(layer(x), layer.weight.view(3, 1, 1) * x_hat)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    with pytest.raises(RuntimeError, match="RMSNorm2d expected 3 features on axis 1"):
        layer(normal(4, 2, 5, 5))


INVARIANT_LAYERS = {
    "ln": (lambda eps: nn.LayerNorm(6, eps=eps), (4, 6), True),
    "ln images": (lambda eps: LayerNorm2d(6, eps=eps), (4, 6, 2, 3), True),
    "gn": (lambda eps: GroupNorm(6, 2, eps=eps), (4, 6, 2, 3), True),
    "in": (lambda eps: nn.InstanceNorm2d(6, eps=eps), (4, 6, 2, 3), True),
    "rms": (lambda eps: nn.RMSNorm(6, eps=eps), (4, 6), False),
    "rms images": (lambda eps: RMSNorm2d(6, eps=eps), (4, 6, 2, 3), False),
}


@pytest.mark.parametrize(("make", "shape", "centers"), INVARIANT_LAYERS.values(), ids=INVARIANT_LAYERS)
@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.1, 10), shift=st.floats(-10, 10), eps=st.floats(1e-4, 1))
def test_scale_and_shift_invariance(make, shape, centers, scale, shift, eps):
    x = normal(*shape)
    y = make(eps).double()(scale * x + (shift if centers else 0))
    assert_close(y, make(eps / scale**2).double()(x), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("make", "shape", "centers"), INVARIANT_LAYERS.values(), ids=INVARIANT_LAYERS)
def test_samples_are_independent(make, shape, centers):
    x = normal(*shape)
    layer = make(1e-5).double()
    assert_close(layer(x)[:2], layer(x[:2]))


def formula(x: Tensor, groups: int, centers: bool) -> Tensor:
    """Return x̂ with statistics over each group of a sample, for ε = 0.1."""
    parts = x.view(len(x), groups, -1)
    if centers:
        parts = parts - parts.mean(2, keepdim=True)
    return (parts / (parts.square().mean(2, keepdim=True) + 0.1).sqrt()).view(x.shape)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 2), (4, 6, 2, 3)], ids=len)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("make", "groups", "centers"),
    [
        (lambda **options: GroupNorm(6, 2, **options), 2, True),
        (lambda **options: LayerNorm2d(6, **options), 1, True),
        (lambda **options: RMSNorm2d(6, **options), 1, False),
    ],
    ids=["gn", "ln", "rms"],
)
def test_gradients_match_formula(make, groups, centers, shape, affine):
    layer, x = randomize_affine(make(eps=0.1, affine=affine)), normal(*shape).requires_grad_()
    expected = formula(x, groups, centers)
    each = (6, *[1] * (len(shape) - 2))
    if affine:
        expected = expected * layer.weight.view(each)
    if affine and centers:
        expected = expected + layer.bias.view(each)
    inputs, grad_y = [x, *layer.parameters()], normal(*shape, seed=9)
    assert len(inputs) == 1 + affine * (1 + centers)
    assert_close(layer(x), expected)
    assert_close(torch.autograd.grad(layer(x), inputs, grad_y), torch.autograd.grad(expected, inputs, grad_y))


@pytest.mark.parametrize(
    ("make", "torchs"),
    [
        (lambda: GroupNorm(6, 1), lambda: nn.LayerNorm(6)),
        (lambda: LayerNorm2d(6), lambda: nn.LayerNorm(6)),
        (lambda: RMSNorm2d(6), lambda: nn.RMSNorm(6, eps=1e-5)),
    ],
    ids=["gn", "ln", "rms"],
)
def test_rows_and_state_dict_equal_torch(make, torchs):
    ours, other, x = randomize_affine(make()), torchs().double(), normal(5, 6)
    other.load_state_dict(ours.state_dict())
    assert_close(ours(x), other(x))
    fresh = make().double()
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(fresh(x), ours(x))


@settings(max_examples=30, deadline=None)
@given(
    scales=st.lists(st.floats(0.1, 10), min_size=8, max_size=8),
    shifts=st.lists(st.floats(-10, 10), min_size=8, max_size=8),
    eps=st.floats(1e-4, 1),
)
def test_groups_are_scale_and_shift_invariant(scales, shifts, eps):
    x = normal(4, 2, 3, 2, 2)
    y = GroupNorm(6, 2, eps).double()(
        (torch.tensor(scales).double().view(4, 2, 1, 1, 1) * x + torch.tensor(shifts).view(4, 2, 1, 1, 1)).flatten(
            1, 2
        )
    )
    for number, (part, scale) in enumerate(zip(x.flatten(0, 1), scales, strict=True)):
        alone = GroupNorm(3, 1, eps / scale**2).double()(part.unsqueeze(0))
        assert_close(y.view(8, 1, 3, 2, 2)[number], alone, rtol=1e-7, atol=1e-7)
