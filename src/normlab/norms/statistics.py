"""Means and variances over a batch, running statistics, and the scale and shift of each feature.

Letters: μ mean, σ² variance, C features. Features are on the last axis, as in `normlab.norms.batch_norm`.
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


def require_features(layer: nn.Module, num_features: int, x: Tensor) -> None:
    """Refuse an input that has another number of features than a layer.

    Raises:
        RuntimeError: axis 1 of x has not ``num_features`` entries, or does not exist.
    """
    if x.dim() < 2 or x.shape[1] != num_features:
        raise RuntimeError(
            f"{type(layer).__name__} expected {num_features} features on axis 1, got input shape "
            f"{tuple(x.shape)}; set num_features to the length of that axis, or move the features to it"
        )


class FeatureAffine(nn.Module):
    """Holds γ and β of each feature, ``y = γ·x̂ + β``, for a layer that computes x̂.

    Shapes: x̂ and y ``(B, C, …)``; weight and bias ``(C,)``.

    Args:
        num_features: C, the length of axis 1.
        affine: whether γ and β exist; without them ``y = x̂``.
        bias: whether β exists (with ``affine`` only).

    Raises:
        RuntimeError: axis 1 of the input has not ``num_features`` entries.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, num_features: int, affine: bool, bias: bool) -> None:
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine and bias else None

    def check(self, x: Tensor) -> None:
        """Refuse an input that has another number of features."""
        require_features(self, self.num_features, x)

    def scaled(self, x_hat: Tensor) -> Tensor:
        """Return y for x̂, of its dtype."""
        self.check(x_hat)
        shape = (-1, *[1] * (x_hat.dim() - 2))
        if self.weight is None:
            return x_hat
        gamma = self.weight.view(shape)
        y = x_hat * gamma if self.bias is None else torch.addcmul(self.bias.view(shape), x_hat, gamma)
        return y.to(x_hat.dtype)

    def extra_repr(self) -> str:
        """Return the arguments that a layer shows."""
        return f"{self.num_features}, affine={self.weight is not None}, bias={self.bias is not None}"
