"""Batch renormalization against its formula."""

import copy
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.testing import assert_close

from normlab.norms import BatchNorm1d, BatchRenorm

CONF = Path(__file__).parents[2] / "conf"
BOTH_PATHS = pytest.mark.parametrize("fused", [False, True], ids=["formula", "fused"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 2 + 3 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer_of(fused: bool = False, **options) -> BatchRenorm:
    layer = BatchRenorm(3, fused=fused, **options).double()
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = normal(3, seed=seed)
    return layer


@BOTH_PATHS
def test_outputs_gradients_and_statistics_by_the_formula(fused):
    layer = layer_of(fused, total_steps=8, warmup=0.0, r_end=1.0, d_end=0.5, momentum=0.2)
    mean, var = torch.zeros(3).double(), torch.ones(3).double()
    for step in range(8):
        x, grad_y = normal(6, 3, seed=step).requires_grad_(), normal(6, 3, seed=step + 20)
        r_max, d_max = 1 + 2 * step / 8, 5 * min(1, step / 4)
        of_batch = x.mean(0), (x.var(0, correction=0) + 1e-5).sqrt()
        sigma = (var + 1e-5).sqrt()
        r = (of_batch[1] / sigma).detach().clamp(1 / r_max, r_max)
        d = ((of_batch[0] - mean) / sigma).detach().clamp(-d_max, d_max)
        expected = layer.weight * ((x - of_batch[0]) / of_batch[1] * r + d) + layer.bias
        inputs = [x, layer.weight, layer.bias]
        y = layer(x)
        assert_close(y, expected)
        assert_close(torch.autograd.grad(y, inputs, grad_y), torch.autograd.grad(expected, inputs, grad_y))
        mean = 0.8 * mean + 0.2 * x.detach().mean(0)
        var = 0.8 * var + 0.2 * x.detach().var(0)
        assert_close(layer.running_mean, mean)
        assert_close(layer.running_var, var)
        assert_close([layer.r, layer.d], [r, d])


@BOTH_PATHS
def test_running_statistics_average_with_the_papers_weight(fused):
    layer, mean = BatchRenorm(3, fused=fused).double(), torch.zeros(3).double()
    for step in range(5):
        x = normal(6, 3, seed=step)
        layer(x)
        mean = 0.99 * mean + 0.01 * x.mean(0)
    assert_close(layer.running_mean, mean)


def test_the_model_has_the_papers_weight():
    assert OmegaConf.load(CONF / "model" / "brn.yaml").norm.momentum == 0.01


@BOTH_PATHS
def test_as_long_as_it_warms_up_it_is_batch_norm(fused):
    layer = BatchRenorm(3, total_steps=100, momentum=0.1, fused=fused).double()
    plain = BatchNorm1d(3, fused=fused).double()
    for step in range(5):
        x = normal(6, 3, seed=step)
        assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)
    assert_close(layer.state_dict(), plain.state_dict())
    assert (layer(normal(6, 3)) - plain(normal(6, 3))).abs().max() > 0.01


@BOTH_PATHS
def test_within_the_limits_training_puts_out_what_evaluation_would(fused):
    layer = layer_of(fused, r_max=1e6, d_max=1e6)
    for step in range(3):
        x = normal(6, 3, seed=step)
        before = copy.deepcopy(layer).eval()
        assert_close(layer(x), before(x))


@pytest.mark.parametrize(
    ("step", "r_max", "d_max"),
    [(1, 1, 0), (5, 1, 0), (8, 1.2, 1.0), (20, 2.0, 5.0), (35, 3.0, 5.0), (100, 3.0, 5.0)],
)
def test_the_limits_open_from_the_warmup_on_until_their_ends(step, r_max, d_max):
    # With shares of 100 steps: 0.05 to 0.35 for r, 0.05 to 0.15 for d; step s begins when s − 1 are done.
    layer = BatchRenorm(3, warmup=0.05, r_end=0.35, d_end=0.15, total_steps=100).double()
    limits = [limit.item() for limit in layer.limits(torch.tensor(step))]
    done = min(max((step - 1 - 5) / 30, 0), 1), min(max((step - 1 - 5) / 10, 0), 1)
    assert limits == pytest.approx([1 + 2 * done[0], 5 * done[1]])
    if step in (1, 5, 100):
        assert limits == pytest.approx([r_max, d_max])


def test_the_limits_in_the_middle_by_hand():
    layer = BatchRenorm(3, warmup=0.1, r_end=0.5, d_end=0.3, total_steps=10).double()
    found = [[limit.item() for limit in layer.limits(torch.tensor(step))] for step in range(1, 8)]
    expected = [[1, 0], [1, 0], [1.5, 2.5], [2, 5], [2.5, 5], [3, 5], [3, 5]]
    assert torch.tensor(found) == pytest.approx(torch.tensor(expected).double())


def test_without_a_number_of_steps_the_limits_are_open_at_once():
    assert [limit.item() for limit in BatchRenorm(3).limits(torch.tensor(1))] == [3.0, 5.0]


@BOTH_PATHS
def test_while_held_r_d_and_the_statistics_stay(fused):
    layer = layer_of(fused)
    layer(normal(6, 3))
    layer.held = True
    before, r, d = copy.deepcopy(layer.state_dict()), layer.r.clone(), layer.d.clone()
    x = 5 * normal(6, 3, seed=4)
    y = layer(x)
    assert_close(y, layer.weight * ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() * r + d) + layer.bias)
    assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(layer.r, r)
    assert torch.equal(layer.d, d)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_max": 0.5}, "r_max must be finite and at least 1, d_max at least 0, got 0.5 and 5.0"),
        ({"d_max": float("inf")}, "r_max must be finite and at least 1, d_max at least 0"),
        ({"warmup": -0.1}, "warmup must be a share from 0 to below"),
        ({"warmup": 0.2}, "warmup must be a share from 0 to below r_end=0.31 and d_end=0.19, got 0.2"),
    ],
)
def test_limits_and_shares_out_of_order_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchRenorm(3, **options)


def test_r_and_d_by_hand_and_what_of_them_is_clipped():
    layer = BatchRenorm(2, r_max=2.0, d_max=1.5, eps=1e-12, momentum=1.0).double()
    layer(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).double())
    # Running means 0 and variances 2. The batch has means 1 and 10, deviations 1 and 10.
    y = layer(torch.tensor([[0.0, 0.0], [2.0, 20.0]]).double())
    assert_close(layer.r, torch.tensor([0.5**0.5, 2.0]).double())
    assert_close(layer.d, torch.tensor([0.5**0.5, 1.5]).double())
    assert_close(y, torch.tensor([[0.0, -2 + 1.5], [2 * 0.5**0.5, 2 + 1.5]]).double())


@BOTH_PATHS
@pytest.mark.parametrize("momentum", [0.3, None])
def test_the_running_statistics_are_those_of_batch_norm(fused, momentum):
    layer, plain = layer_of(fused, momentum=momentum), BatchNorm1d(3, momentum=momentum).double()
    for step in range(4):
        for norm in (layer, plain):
            norm(normal(6, 3, 2, seed=step))
    for name, value in plain.named_buffers():
        assert_close(layer.get_buffer(name), value)


def test_in_16_bits_running_statistics_do_not_swallow_eps_nor_are_steps_counted_to_65504_only():
    layer = BatchRenorm(1, eps=1e-8, total_steps=1_000_000).half()
    r_max, d_max = (limit.item() for limit in layer.limits(torch.tensor(100_001)))
    assert r_max == pytest.approx(1 + 2 * 6 / 27, rel=1e-3)
    assert d_max == pytest.approx(5 * 6 / 15, rel=1e-3)
    layer.total_steps = None
    # The smallest positive float16 is 6e-8; a mean that is the running one has then d = 0, and not 0 · ∞.
    layer.running_var.zero_()
    assert layer(torch.tensor([[-1.0], [1.0]]).half()).isfinite().all()
    assert layer.d.item() == 0
