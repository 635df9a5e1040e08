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


def by_hand(model: ResMLP, x: Tensor, position: str, scale: float) -> Tensor:
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
def test_the_stream_by_hand(norm, position, options, scale):
    model, again = (net(norm=norm, norm_position=position, **options) for _ in range(2))
    x = inputs(7, 3)
    assert_close(model(x), by_hand(again, x, position, scale))
    assert hasattr(model, "last") == (position == "before")


def test_without_a_normalizer_the_default_keeps_the_signal_at_any_depth():
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
def test_another_branch_scale_is_refused(value):
    message = f"net.branch_scale must be null, depth or a finite number > 0, got {value}"
    with pytest.raises(ValueError, match=re.escape(message)):
        net(branch_scale=value)


def test_without_blocks_the_net_is_linear():
    model, x = net(blocks=0), inputs(7, 3)
    assert_close(model(x), model.output(model.stem(x)))


def test_images_are_flattened():
    torch.manual_seed(0)
    assert ResMLP((1, 8, 8), 10)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_weight_wrapper_is_put_around_all_maps_but_the_output():
    seen = []

    def wrapper(layer: nn.Module) -> nn.Module:
        seen.append(layer)
        return nn.Sequential(layer)

    model = net(weight=wrapper)
    assert len(seen) == 1 + 2 * 2
    assert type(model.output) is nn.Linear


def test_dropout_is_in_the_branch_alone():
    model = net(dropout=0.5)
    with torch.no_grad():
        for block in (model.block1, model.block2):
            block.linear2.weight.zero_()
            block.linear2.bias.zero_()
    x = inputs(7, 3)
    assert_close(model(x), model.output(model.stem(x)))


@pytest.mark.parametrize("options", [{"width": 0}, {"blocks": -1}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match=r"net\.width must be at least 1 and net\.blocks 0 or more"):
        net(**options)
