"""L1 and L∞ batch norm compared with NumPy, and their Gaussian constants."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import erf
from torch import Tensor
from torch.testing import assert_close

from normlab.norms import L1BatchNorm, LInfBatchNorm
from normlab.norms.batch_statistics import expected_maximum

BOTH = pytest.mark.parametrize("layer_class", [L1BatchNorm, LInfBatchNorm])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 2 + 3 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spread(x: np.ndarray, layer: L1BatchNorm) -> np.ndarray:
    """Return σ of each column by NumPy."""
    deviations = np.abs(x - x.mean(0))
    if isinstance(layer, LInfBatchNorm):
        return deviations.max(0) / (expected_maximum(len(x)) if layer.constant == "gaussian" else 1)
    return deviations.mean(0) * (np.sqrt(np.pi / 2) if layer.constant == "gaussian" else 1)


@BOTH
@pytest.mark.parametrize("constant", ["gaussian", "none"])
@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 2), (2, 3, 2, 5)])
def test_outputs_and_statistics_match_formula(layer_class, constant, shape):
    layer = layer_class(3, constant, eps=0.01, momentum=0.25).double()
    layer.weight.data, layer.bias.data = normal(3, seed=1), normal(3, seed=2)
    gamma, beta = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    mean, var = np.zeros(3), np.ones(3)
    for step in range(3):
        x = normal(*shape, seed=step)
        rows = x.movedim(1, -1).reshape(-1, 3).numpy()
        sigma, n = spread(rows, layer), len(rows)
        y = layer(x).detach().movedim(1, -1).reshape(-1, 3).numpy()
        np.testing.assert_allclose(y, gamma * (rows - rows.mean(0)) / np.sqrt(sigma**2 + 0.01) + beta)
        mean, var = 0.75 * mean + 0.25 * rows.mean(0), 0.75 * var + 0.25 * sigma**2 * n / (n - 1)
        np.testing.assert_allclose(layer.running_mean.numpy(), mean)
        np.testing.assert_allclose(layer.running_var.numpy(), var)
    y = layer.eval()(x).detach().movedim(1, -1).reshape(-1, 3).numpy()
    np.testing.assert_allclose(y, gamma * (rows - mean) / np.sqrt(var + 0.01) + beta)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100, 10_000])
def test_expected_maximum_matches_scipy_and_simulation(n):
    by_scipy, _ = quad(lambda t: 1 - erf(t / np.sqrt(2)) ** n, 0, 12, limit=200)
    assert expected_maximum(n) == pytest.approx(by_scipy, rel=1e-8)
    draws = np.random.default_rng(0).standard_normal((max(200, 200_000 // n), n))
    assert expected_maximum(n) == pytest.approx(np.abs(draws).max(1).mean(), rel=0.02)


# With fewer samples the deviations from the sample mean are too correlated for the maximum of independent ones.
@pytest.mark.parametrize(("layer_class", "n"), [(L1BatchNorm, 2), *product([L1BatchNorm, LInfBatchNorm], [8, 64])])
def test_gaussian_constant_estimates_standard_deviation(layer_class, n):
    layer = layer_class(400, momentum=1.0).double()
    estimates = []
    for seed in range(50):
        layer(normal(n, 400, seed=seed))
        estimates.append(layer.running_var.sqrt())
    assert torch.stack(estimates).mean().item() == pytest.approx(3, rel=0.02)


def test_l1_output_of_gaussian_has_unit_deviation():
    layer = L1BatchNorm(2, affine=False).double()
    assert_close(layer(normal(100_000, 2)).std(0), torch.ones(2).double(), rtol=0.01, atol=0)


@BOTH
def test_constant_feature_becomes_beta_with_finite_gradient(layer_class):
    layer, x = layer_class(2).double(), torch.full((4, 2), 7.0, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert_close(y, layer.bias.expand(4, 2))
    assert x.grad.isfinite().all()


@BOTH
def test_unknown_constant_raises(layer_class):
    with pytest.raises(ValueError, match="constant must be one of none, gaussian, got two"):
        layer_class(3, "two")


def test_outputs_and_running_statistics_by_hand():
    x = torch.tensor([[0.0], [0.0], [0.0], [4.0]])
    # Mean 1, deviations 1, 1, 1 and 3: on average 1.5, at most 3.
    for layer_class, sigma in ((L1BatchNorm, 1.5), (LInfBatchNorm, 3.0)):
        layer = layer_class(1, "none", momentum=0.5, eps=1e-12)
        assert_close(layer(x).flatten(), torch.tensor([-1.0, -1.0, -1.0, 3.0]) / sigma)
        assert layer.running_mean.item() == 0.5
        assert layer.running_var.item() == 0.5 + 0.5 * sigma**2 * 4 / 3


@BOTH
@pytest.mark.parametrize("constant", ["gaussian", "none"])
def test_spread_gradients_by_hand(layer_class, constant):
    x = normal(7, 3).requires_grad_()
    layer = layer_class(3, constant).double()
    sigma = layer.statistics(x)[2].sqrt()
    (gradient,) = torch.autograd.grad(sigma.sum(), x)
    deviations = x.detach() - x.detach().mean(0)
    # ∂σ/∂x_i = c (w_i s_i − Σ w_j s_j / n), s the signs, w 1/n of each or 1 of the largest.
    weights = torch.full((7, 3), 1 / 7).double()
    if layer_class is LInfBatchNorm:
        weights = (deviations.abs() == deviations.abs().max(0).values).double()
    weights = weights * deviations.sign()
    c = sigma.detach() / (weights * deviations).sum(0)
    assert_close(gradient, c * (weights - weights.mean(0)))


@BOTH
def test_constant_only_scales_output(layer_class):
    x, c = normal(8, 3), {L1BatchNorm: np.sqrt(np.pi / 2), LInfBatchNorm: 1 / expected_maximum(8)}[layer_class]
    gaussian, none = (layer_class(3, constant, eps=1e-12).double()(x) for constant in ("gaussian", "none"))
    assert_close(gaussian * c, none)
