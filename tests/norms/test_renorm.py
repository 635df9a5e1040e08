"""Batch renormalization compared with its formula."""

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


def make_layer(fused: bool = False, **options) -> BatchRenorm:
    layer = BatchRenorm(3, fused=fused, **options).double()
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = normal(3, seed=seed)
    return layer


@BOTH_PATHS
def test_outputs_gradients_and_statistics_match_formula(fused):
    layer = make_layer(fused, total_steps=8, warmup=0.0, r_end=1.0, d_end=0.5, momentum=0.2)
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
def test_default_momentum_is_that_of_the_paper(fused):
    layer, mean = BatchRenorm(3, fused=fused).double(), torch.zeros(3).double()
    for step in range(5):
        x = normal(6, 3, seed=step)
        layer(x)
        mean = 0.99 * mean + 0.01 * x.mean(0)
    assert_close(layer.running_mean, mean)


def test_config_momentum_is_that_of_the_paper():
    assert OmegaConf.load(CONF / "model" / "brn.yaml").norm.momentum == 0.01


@BOTH_PATHS
def test_warmup_equals_batch_norm(fused):
    layer = BatchRenorm(3, total_steps=100, momentum=0.1, fused=fused).double()
    plain = BatchNorm1d(3, fused=fused).double()
    for step in range(5):
        x = normal(6, 3, seed=step)
        assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)
    assert_close(layer.state_dict(), plain.state_dict())
    assert (layer(normal(6, 3)) - plain(normal(6, 3))).abs().max() > 0.01


@BOTH_PATHS
def test_unclipped_training_equals_evaluation(fused):
    layer = make_layer(fused, r_max=1e6, d_max=1e6)
    for step in range(3):
        x = normal(6, 3, seed=step)
        before = copy.deepcopy(layer).eval()
        assert_close(layer(x), before(x))


@pytest.mark.parametrize(
    ("step", "r_max", "d_max"),
    [(1, 1, 0), (5, 1, 0), (8, 1.2, 1.0), (20, 2.0, 5.0), (35, 3.0, 5.0), (100, 3.0, 5.0)],
)
def test_limits_widen_after_warmup(step, r_max, d_max):
    # Of 100 steps, r_max widens from 5 to 35 and d_max from 5 to 15; at step s, s − 1 steps are done.
    layer = BatchRenorm(3, warmup=0.05, r_end=0.35, d_end=0.15, total_steps=100).double()
    limits = [limit.item() for limit in layer.limits(torch.tensor(step))]
    done = min(max((step - 1 - 5) / 30, 0), 1), min(max((step - 1 - 5) / 10, 0), 1)
    assert limits == pytest.approx([1 + 2 * done[0], 5 * done[1]])
    if step in (1, 5, 100):
        assert limits == pytest.approx([r_max, d_max])


def test_limits_by_hand():
    layer = BatchRenorm(3, warmup=0.1, r_end=0.5, d_end=0.3, total_steps=10).double()
    limits = [[limit.item() for limit in layer.limits(torch.tensor(step))] for step in range(1, 8)]
    expected = [[1, 0], [1, 0], [1.5, 2.5], [2, 5], [2.5, 5], [3, 5], [3, 5]]
    assert torch.tensor(limits) == pytest.approx(torch.tensor(expected).double())


def test_limits_are_full_without_total_steps():
    assert [limit.item() for limit in BatchRenorm(3).limits(torch.tensor(1))] == [3.0, 5.0]


@BOTH_PATHS
def test_held_layer_keeps_r_d_and_statistics(fused):
    layer = make_layer(fused)
    layer(normal(6, 3))
    layer.updates_state = False
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
def test_invalid_limits_and_fractions_raise(options, message):
    with pytest.raises(ValueError, match=message):
        BatchRenorm(3, **options)


def test_r_and_d_with_clipping_by_hand():
    layer = BatchRenorm(2, r_max=2.0, d_max=1.5, eps=1e-12, momentum=1.0).double()
    layer(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).double())
    # Running means 0 and variances 2; batch means 1 and 10, standard deviations 1 and 10.
    y = layer(torch.tensor([[0.0, 0.0], [2.0, 20.0]]).double())
    assert_close(layer.r, torch.tensor([0.5**0.5, 2.0]).double())
    assert_close(layer.d, torch.tensor([0.5**0.5, 1.5]).double())
    assert_close(y, torch.tensor([[0.0, -2 + 1.5], [2 * 0.5**0.5, 2 + 1.5]]).double())


@BOTH_PATHS
@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_equal_batch_norm(fused, momentum):
    layer, plain = make_layer(fused, momentum=momentum), BatchNorm1d(3, momentum=momentum).double()
    for step in range(4):
        for norm in (layer, plain):
            norm(normal(6, 3, 2, seed=step))
    for name, value in plain.named_buffers():
        assert_close(layer.get_buffer(name), value)


def test_16_bit_layer_keeps_eps_and_counts_steps():
    layer = BatchRenorm(1, eps=1e-8, total_steps=1_000_000).half()
    r_max, d_max = (limit.item() for limit in layer.limits(torch.tensor(100_001)))
    assert r_max == pytest.approx(1 + 2 * 6 / 27, rel=1e-3)
    assert d_max == pytest.approx(5 * 6 / 15, rel=1e-3)
    layer.total_steps = None
    # ε is below the smallest positive float16, 6e-8: in float16, d would be 0 · ∞ here.
    layer.running_var.zero_()
    assert layer(torch.tensor([[-1.0], [1.0]]).half()).isfinite().all()
    assert layer.d.item() == 0
