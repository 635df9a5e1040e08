"""Noisy batch norm: the distribution of its noise, and its relation to batch norm."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from normlab.norms import BatchNorm1d, BatchNorm2d, NoisyBatchNorm


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 2 + torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noises(layer: NoisyBatchNorm, samples: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return m and s of several steps, ``(steps, B, C)`` each."""
    steps_noise = []
    for _ in range(steps):
        steps_noise.append(layer.noise(samples, torch.float64))
        layer.advance()
    m, s = zip(*steps_noise, strict=True)
    return torch.stack(m), torch.stack(s)


def test_noise_has_distribution_of_paper():
    layer = NoisyBatchNorm(50)
    m, s = noises(layer, samples=200, steps=40)
    # For each feature, m is uniform with width 0.2 around μ, and s normal with standard deviation 0.1 around σ.
    mu, sigma = m.mean(1), s.mean(1)
    within = m - mu.unsqueeze(1)
    assert within.abs().max() < 0.1 + 0.02
    assert within.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.01)
    assert (s - sigma.unsqueeze(1)).std().item() == pytest.approx(0.1, rel=0.02)
    assert mu.abs().max() < 0.5 + 0.02
    assert mu.std().item() == pytest.approx(1 / 12**0.5, rel=0.05)
    assert mu.mean().item() == pytest.approx(0, abs=0.02)
    assert sigma.min() > 1 - 0.03
    assert sigma.max() < 1.25 + 0.03
    assert sigma.mean().item() == pytest.approx(1.125, abs=0.01)
    assert sigma.std().item() == pytest.approx(0.25 / 12**0.5, rel=0.05)
    both = torch.stack([mu.flatten(), sigma.flatten(), within[:, 0].flatten(), (s[:, 0] - sigma).flatten()])
    assert (torch.corrcoef(both) - torch.eye(4)).abs().max() < 0.1


def test_arguments_bound_the_noise():
    layer = NoisyBatchNorm(50, n_mean=2.0, n_std=3.0, r_mean=0.0, r_std=0.0)
    m, s = noises(layer, samples=3, steps=40)
    assert torch.equal(m, m[:, :1].expand_as(m))
    assert torch.equal(s, s[:, :1].expand_as(s))
    assert 1.8 < m.abs().max() <= 2.0
    assert 1.0 <= s.min() < 1.1
    assert 2.9 < s.max() <= 3.0


@pytest.mark.parametrize("fused", [False, True])
def test_output_is_scaled_and_shifted_batch_norm(fused):
    layer, plain, x = NoisyBatchNorm(3, fused=fused).double(), BatchNorm1d(3).double(), normal(6, 3)
    layer.seed(5)
    for norm in (layer, plain):
        norm.weight.data, norm.bias.data = normal(3, seed=1), normal(3, seed=2)
    for _ in range(3):
        m, s = layer.noise(6, torch.float64)
        assert_close(layer(x), s * plain(x) + m)
    assert_close(layer.running_mean, plain.running_mean)
    assert_close(layer.running_var, plain.running_var)
    assert_close(layer.eval()(x), plain.eval()(x))
    assert layer.step == 3


def test_noise_is_a_function_of_key_and_step():
    layers, x = [NoisyBatchNorm(3).double() for _ in range(3)], normal(6, 3)
    for layer, key in zip(layers, (1, 1, 2), strict=True):
        layer.seed(key)
    first, same, other = (layer(x) for layer in layers)
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, layers[0](x))
    layers[1].updates_state = False
    assert torch.equal(layers[1](x), layers[1](x))


def test_image_noise_is_equal_at_all_positions():
    layer, plain, x = NoisyBatchNorm(3).double(), BatchNorm2d(3).double(), normal(6, 3, 4, 5)
    m, s = layer.noise(6, torch.float64)
    assert_close(layer(x), s[..., None, None] * plain(x) + m[..., None, None])


@pytest.mark.parametrize("option", [{"n_mean": -1}, {"n_std": 0.5}, {"r_mean": -1}, {"r_std": -1}])
def test_invalid_widths_raise(option):
    with pytest.raises(ValueError, match="n_mean, r_mean and r_std must be 0 or more and n_std 1 or more, got"):
        NoisyBatchNorm(3, **option)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 2)], ids=len)
def test_zero_noise_equals_batch_norm(fused, shape):
    layer = NoisyBatchNorm(3, n_mean=0, n_std=1, r_mean=0, r_std=0, fused=fused).double()
    plain = (BatchNorm1d if len(shape) == 2 else BatchNorm2d)(3).double()
    for step in range(3):
        x = normal(*shape, seed=step)
        assert_close(layer(x), plain(x))
    assert_close(layer.running_var, plain.running_var)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_exclude_noise(momentum):
    layer, plain = (kind(3, momentum=momentum).double() for kind in (NoisyBatchNorm, BatchNorm1d))
    for step in range(4):
        for norm in (layer, plain):
            norm(normal(6, 3, seed=step))
    for name, value in plain.named_buffers():
        assert_close(layer.get_buffer(name), value)


def test_noise_is_independent_across_features():
    m, s = NoisyBatchNorm(50).noise(200, torch.float64)
    for drawn in (m, s):
        centered = drawn - drawn.mean(0)
        assert torch.corrcoef(centered.T).fill_diagonal_(0).abs().max() < 0.35
        assert len(drawn.unique()) == drawn.numel()
