import re

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import ResMLP
from normlab.norms import BatchNorm1d


def net(**options) -> ResMLP:
    torch.manual_seed(0)
    return ResMLP((3,), 2, **({"width": 5, "blocks": 2, "activation": "tanh"} | options)).double()


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def expected_output(model: ResMLP, x: Tensor, position: str, scale: float) -> Tensor:
    h = model.stem(x)
    for block in (model.block1, model.block2):
        if position == "before":
            h = h + scale * block.linear2(block.linear1(block.norm(h)).tanh())
        else:
            h = block.norm(h + scale * block.linear2(block.linear1(h).tanh()))
    return model.output(model.last.norm(h) if position == "before" else h)


@pytest.mark.parametrize(
    ("options", "scale"), [({}, 2**-0.5), ({"branch_scale": None}, 1), ({"branch_scale": 0.3}, 0.3)]
)
@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("norm", [None, BatchNorm1d, nn.LayerNorm])
def test_resmlp_equals_formula(norm, position, options, scale):
    model, reference = (net(norm=norm, norm_position=position, **options) for _ in range(2))
    x = inputs(7, 3)
    assert_close(model(x), expected_output(reference, x, position, scale))
    assert hasattr(model, "last") == (position == "before")


@pytest.mark.parametrize("position", ["before", "after"])
def test_skipinit_learns_a_scale_from_zero(position):
    model, x = net(branch_scale="skipinit", norm_position=position), inputs(7, 3)
    plain = net(norm_position=position)
    assert_close(model(x), plain.output(plain.stem(x)))  # branches start at 0, but draw the same weights
    assert set(dict(model.named_parameters())) - set(dict(plain.named_parameters())) == {
        "block1.branch_scale",
        "block2.branch_scale",
    }
    with torch.no_grad():
        for block in (model.block1, model.block2):
            block.branch_scale.fill_(0.3)
    assert_close(model(x), expected_output(plain, x, position, 0.3))


def test_skipinit_gradient():
    model, x = net(branch_scale="skipinit", blocks=1), inputs(7, 3)
    model(x).sum().backward()
    # d(sum of outputs)/ds is the sum over samples of u·branch, with u the column sums of the output weights.
    with torch.no_grad():
        branch = model.block1.branch(model.stem(x))
        expected = (branch @ model.output.weight.sum(0)).sum()
    assert_close(model.block1.branch_scale.grad, expected)
    assert not bool(model.block1.linear1.weight.grad.any())


def test_default_scale_keeps_variance_without_norm():
    def growth(**options) -> float:
        torch.manual_seed(0)
        model = ResMLP((64,), 64, width=64, blocks=40, init="kaiming", **options).double()
        h = inputs(100, 64)
        for block in (getattr(model, f"block{number}") for number in range(1, 41)):
            h = block(h)
        return (h.std() / inputs(100, 64).std()).item()

    assert growth() < 3
    assert growth(branch_scale=None) > 1e4


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), True, "width"])
def test_invalid_branch_scale_raises(value):
    message = f"net.branch_scale must be null, depth, skipinit or a finite number > 0, got {value}"
    with pytest.raises(ValueError, match=re.escape(message)):
        net(branch_scale=value)


def test_net_without_blocks_is_linear():
    model, x = net(blocks=0), inputs(7, 3)
    assert_close(model(x), model.output(model.stem(x)))


def test_images_are_flattened():
    torch.manual_seed(0)
    assert ResMLP((1, 8, 8), 10)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_weight_wrapper_applies_to_all_but_output():
    wrapped = []

    def wrapper(layer: nn.Module) -> nn.Module:
        wrapped.append(layer)
        return nn.Sequential(layer)

    model = net(weight=wrapper)
    assert len(wrapped) == 1 + 2 * 2
    assert type(model.output) is nn.Linear


def test_dropout_is_only_in_branch():
    model = net(dropout=0.5)
    with torch.no_grad():
        for block in (model.block1, model.block2):
            block.linear2.weight.zero_()
            block.linear2.bias.zero_()
    x = inputs(7, 3)
    assert_close(model(x), model.output(model.stem(x)))


@pytest.mark.parametrize("options", [{"width": 0}, {"blocks": -1}])
def test_invalid_sizes_raise(options):
    with pytest.raises(ValueError, match=r"net\.width must be at least 1 and net\.blocks 0 or more"):
        net(**options)
