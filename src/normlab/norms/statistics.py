"""Mean, variance and pooled statistics of batches, and the affine map ``y = γ·x̂ + β``.

Letters: μ mean, σ² variance, C features. The functions expect the features on the last axis.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

RUNNING = ("running_mean", "running_var")
"""Names of the running-statistics buffers, the same in torch's layers."""


def running_stat_names(layer: nn.Module) -> list[str]:
    """Return the names of the running-statistics buffers that a layer has; empty without any."""
    return [name for name in RUNNING if layer._buffers.get(name) is not None]


def features_last(x: Tensor) -> Tensor:
    """Move axis 1 last, so that ``(C,)`` broadcasts, and promote to at least float32: ``(B, ..., C)``."""
    return x.movedim(1, -1).to(torch.promote_types(x.dtype, torch.float32))


def mean_over_samples(x: Tensor) -> Tensor:
    """Return the mean over all axes but the last: ``(..., C)`` to ``(C,)``; 0 if there are no samples."""
    return x.sum(tuple(range(x.dim() - 1))) / max(x.shape[:-1].numel(), 1)


Mean = Callable[[Tensor], Tensor]
"""Returns the mean over all axes but the last."""


def centered_by_mean(x: Tensor, mean_of: Mean = mean_over_samples) -> tuple[Tensor, Tensor]:
    """Return μ over all axes but the last, and x − μ.

    In float32, summing many values that are large relative to their spread has a rounding error larger than the
    spread. The mean of x − μ therefore corrects a first estimate of μ.

    Shapes: x ``(..., C)``; returns ``(C,)`` and ``(..., C)``.
    """
    mean = mean_of(x)
    with torch.no_grad():
        correction = mean_of(x - mean)
    mean = mean + correction
    return mean, x - mean


def mean_and_variance(x: Tensor, mean_of: Mean = mean_over_samples) -> tuple[Tensor, Tensor, Tensor]:
    """Return μ, x − μ and the biased variance σ², over all axes but the last.

    Shapes: x ``(..., C)``; returns ``(C,)``, ``(..., C)`` and ``(C,)``.
    """
    mean, centered = centered_by_mean(x, mean_of)
    return mean, centered, mean_of(centered.square())


def pooled(mean: Tensor, var: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the unbiased variance of T batches together, from the statistics of each.

    ``μ = Σ n_t μ_t / N`` and ``σ² = Σ n_t (σ_t² + (μ_t − μ)²) / (N − 1)``, with batch t of n_t values, biased
    variances σ_t² and ``N = Σ n_t``.

    Shapes: mean, var and counts ``(T, ...)``; returns ``(...)`` and ``(...)``.
    """
    total = counts.sum(0)
    overall = (counts * mean).sum(0) / total
    return overall, (counts * (var + (mean - overall).square())).sum(0) / (total - 1)


def normalize_affine(
    centered: Tensor, var: Tensor, eps: float, gamma: Tensor | None, beta: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return ``γ/√(σ² + ε) · (x − μ) + β`` in a dtype, with the features on axis 1; γ or β may be None.

    Shapes: centered ``(B, ..., C)``; var, gamma and beta ``(C,)``; returns ``(B, C, ...)``.
    """
    gain = torch.rsqrt(var + eps)
    if gamma is not None:
        gain = gamma * gain
    # addcmul computes β + centered · gain.
    y = centered * gain if beta is None else torch.addcmul(beta.to(gain.dtype), centered, gain)
    return y.to(dtype).movedim(-1, 1)


def require_features(layer: nn.Module, num_features: int, x: Tensor) -> None:
    """Check that axis 1 of x has ``num_features`` entries.

    Raises:
        RuntimeError: axis 1 has another length, or does not exist.
    """
    if x.dim() < 2 or x.shape[1] != num_features:
        raise RuntimeError(
            f"{type(layer).__name__} expected {num_features} features on axis 1, got input shape "
            f"{tuple(x.shape)}; set num_features to the length of that axis, or move the features to it"
        )


class FeatureAffine(nn.Module):
    """Base class of layers with a learned scale and shift per feature: ``y = γ·x̂ + β``.

    Subclasses compute x̂ and call :meth:`apply_affine`.

    Shapes: x̂ and y ``(B, C, ...)``; weight γ and bias β ``(C,)``.

    Args:
        num_features: C, the length of axis 1.
        affine: whether γ and β exist; without them ``y = x̂``.
        bias: whether β exists (with ``affine`` only).

    Raises:
        RuntimeError: axis 1 of the input does not have ``num_features`` entries.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, num_features: int, affine: bool, bias: bool) -> None:
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine and bias else None

    def apply_affine(self, x_hat: Tensor) -> Tensor:
        """Return ``γ·x̂ + β`` in the dtype of x̂."""
        require_features(self, self.num_features, x_hat)
        shape = (-1, *[1] * (x_hat.dim() - 2))
        if self.weight is None:
            return x_hat
        gamma = self.weight.view(shape)
        y = x_hat * gamma if self.bias is None else torch.addcmul(self.bias.view(shape), x_hat, gamma)
        return y.to(x_hat.dtype)

    def extra_repr(self) -> str:
        """Return the constructor arguments for ``repr``."""
        return f"{self.num_features}, affine={self.weight is not None}, bias={self.bias is not None}"
