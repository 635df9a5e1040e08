"""Means and variances over a batch, and what is made of them.

In the formulas and shapes as in `normlab.norms.batch_norm`: μ mean, σ² variance, C features, on the last axis.
"""

import torch
from torch import Tensor, nn

RUNNING = ("running_mean", "running_var")
"""The buffers that running statistics are in, in torch's layers as in ours."""


def kept_by(layer: nn.Module) -> list[str]:
    """Return which running statistics a layer has."""
    return [name for name in RUNNING if layer._buffers.get(name) is not None]


def features_last(x: Tensor) -> Tensor:
    """Return x, in float32 at least, with axis 1 last, so that whatever has shape ``(C,)`` broadcasts."""
    return x.movedim(1, -1).to(torch.promote_types(x.dtype, torch.float32))


def over_samples(x: Tensor) -> Tensor:
    """Return the mean over all axes but the last, 0 of nothing: ``(..., C)`` to ``(C,)``."""
    # A mean would divide its gradient by n at the size of x, this at the size of C.
    return x.sum(tuple(range(x.dim() - 1))) / max(x.shape[:-1].numel(), 1)


def centered_by_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return μ over all axes but the last, and x − μ: ``(C,)`` and ``(..., C)``.

    The mean is taken twice, the second time of the distances from the first: in float32 a sum of many numbers that
    are large beside their spread is rounded to more than that spread.
    """
    mean = over_samples(x)
    with torch.no_grad():
        rest = over_samples(x - mean)
    mean = mean + rest
    # Adding −μ spares the gradient a pass over x that turns its sign.
    return mean, x + -mean


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return μ, x − μ and σ², over all axes but the last.

    Shapes: x ``(..., C)``; returns ``(C,)``, ``(..., C)`` and ``(C,)``.
    """
    mean, centered = centered_by_mean(x)
    return mean, centered, over_samples(centered.square())


def pooled(mean: Tensor, var: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of all numbers, from those of T batches of n numbers each.

    ``μ = Σ n_t μ_t / N``, ``σ² = Σ n_t (σ_t² + (μ_t − μ)²) / (N − 1)``, σ_t² divided by n_t, ``N = Σ n_t``.

    Shapes: mean, var and counts ``(T, ...)``; returns twice ``(...)``.
    """
    total = counts.sum(0)
    overall = (counts * mean).sum(0) / total
    return overall, (counts * (var + (mean - overall).square())).sum(0) / (total - 1)


def normalize_affine(
    centered: Tensor, var: Tensor, eps: float, gamma: Tensor | None, beta: Tensor | None
) -> Tensor:
    """Return ``γ/√(σ² + ε) · (x − μ) + β``, in one pass over the samples.

    Shapes: centered ``(..., C)``; var, gamma and beta ``(C,)``; returns ``(..., C)``.
    """
    gain = torch.rsqrt(var + eps)
    if gamma is not None:
        gain = gamma * gain
    return centered * gain if beta is None else torch.addcmul(beta.to(gain.dtype), centered, gain)
