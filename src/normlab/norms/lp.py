"""Batch normalization by the mean or the largest absolute deviation (the L1 and L∞ norms)."""

import math
from functools import lru_cache
from operator import index

import torch
from torch import Tensor

from normlab.norms.batch_norm import BatchNorm
from normlab.norms.statistics import centered_by_mean, mean_over_samples

CONSTANTS = ("none", "gaussian")


@lru_cache(maxsize=1024)
def expected_maximum(n: int) -> float:
    """Return the expectation of ``max |z_i|`` over n independent standard normal numbers.

    It is ``∫ 1 − erf(t/√2)^n dt`` over t ≥ 0. Its asymptote √(2 ln n) is a tenth too large at n = 100.

    >>> expected_maximum(1) == (2 / math.pi) ** 0.5, round(expected_maximum(100), 3)
    (True, 2.747)
    """
    if n == 1:
        return math.sqrt(2 / math.pi)
    width, steps = 1 / 256, 256 * 40
    values = (1 - math.erf(step * width / math.sqrt(2)) ** n for step in range(1, steps))
    return width * (0.5 + math.fsum(values))


class L1BatchNorm(BatchNorm):
    r"""Normalizes each feature by its mean absolute deviation over the batch.

    .. math::
        \sigma = c \cdot \frac{1}{n} \sum_i |x_i - \mu|, \quad
        y_i = \gamma \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    With ``constant="gaussian"`` ``c = √(π/2)`` (arXiv:1803.01814), and σ estimates the standard deviation of
    Gaussian input. With ``"none"`` ``c = 1`` (arXiv:1805.11604). As in `BatchNorm`, the running variance averages
    ``n / (n − 1) · σ²``, and evaluation uses it.

    Shapes: x and y ``(B, C, ...)``; weight, bias, running_mean and running_var ``(C,)``.

    Args:
        num_features: C, the length of axis 1.
        constant: ``gaussian`` or ``none``, the choice of c.
        eps, momentum, affine, track_running_stats, device, dtype, bias: as in `BatchNorm`.

    Raises:
        ValueError: constant is neither ``gaussian`` nor ``none``.
        ValueError, RuntimeError, NotImplementedError: as in `BatchNorm`.

    Hoffer, Banner, Golan and Soudry (2018), Norm matters, arXiv:1803.01814; Santurkar, Tsipras, Ilyas and Madry
    (2018), How does batch normalization help optimization?, arXiv:1805.11604.

    >>> L1BatchNorm(1, constant="none", affine=False)(torch.tensor([[0.0], [0.0], [4.0], [4.0]])).flatten()
    tensor([-1.0000, -1.0000,  1.0000,  1.0000])
    """

    def __init__(
        self,
        num_features: int,
        constant: str = "gaussian",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        if constant not in CONSTANTS:
            raise ValueError(f"constant must be one of {', '.join(CONSTANTS)}, got {constant}")
        self.constant = constant

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return μ, x − μ and σ², over all axes but the last."""
        mean, centered = centered_by_mean(x)
        return mean, centered, self.spread(centered).square()

    def pooled(self, mean: Tensor, var: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of T batches together, and the average of their ``n / (n − 1) · σ²``.

        Unlike a variance, σ² of all values together cannot be computed from the batches' statistics.
        """
        total = counts.sum(0)
        unbiased = var * counts / (counts - 1)
        return (counts * mean).sum(0) / total, (counts * unbiased).sum(0) / total

    def spread(self, centered: Tensor) -> Tensor:
        """Return σ ``(C,)`` for centered values ``(..., C)``."""
        c = math.sqrt(math.pi / 2) if self.constant == "gaussian" else 1.0
        return c * mean_over_samples(centered.abs())


class LInfBatchNorm(L1BatchNorm):
    r"""Normalizes each feature by its largest absolute deviation over the batch.

    .. math::
        \sigma = c \cdot \max_i |x_i - \mu|, \quad
        y_i = \gamma \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    With ``constant="gaussian"`` ``c = 1 / E max_i |z_i|`` over n standard normal numbers z, and σ estimates the
    standard deviation of Gaussian input for n of about 8 or more. With ``"none"`` ``c = 1``.

    Shapes, arguments, running statistics, errors and papers (arXiv:1803.01814, arXiv:1805.11604): `L1BatchNorm`.
    """

    def spread(self, centered: Tensor) -> Tensor:
        """Return σ ``(C,)`` for centered values ``(..., C)``."""
        rows = centered.flatten(0, -2)
        if len(rows) == 0:
            return rows.sum(0)
        # index() makes a symbolic size a constant: compiled code then specializes on the batch size.
        c = gaussian_constant(index(len(rows))) if self.constant == "gaussian" else 1.0
        # The gradient of gather writes one entry; that of a maximum would compare all entries with it.
        largest = rows.detach().abs().argmax(0, keepdim=True)
        return c * rows.gather(0, largest).squeeze(0).abs()


def gaussian_constant(n: int) -> float:
    """Return ``1 / E max |z_i|`` for n standard normal numbers; torch.compile treats it as a constant."""
    return 1 / expected_maximum(n)


# As torch.compiler.assume_constant_result does, which imports Dynamo for it: most of a second at every start.
gaussian_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]
