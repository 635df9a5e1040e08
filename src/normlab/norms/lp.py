"""Batch normalization by other measures of spread than the standard deviation."""

import math
from functools import lru_cache
from operator import index

import torch
from torch import Tensor

from normlab.norms.batch_norm import BatchNorm
from normlab.norms.statistics import centered_by_mean, over_samples

CONSTANTS = ("none", "gaussian")


@lru_cache(maxsize=1024)
def expected_maximum(n: int) -> float:
    """Return the mean of ``max |z_i|`` over n independent standard normal numbers, ``∫ 1 − erf(t/√2)^n dt``.

    For large n it comes near √(2 ln n), which is a tenth too much at n = 100.

    >>> expected_maximum(1) == (2 / math.pi) ** 0.5, round(expected_maximum(100), 3)
    (True, 2.747)
    """
    if n == 1:
        return math.sqrt(2 / math.pi)
    width, steps = 1 / 256, 256 * 40
    values = (1 - math.erf(step * width / math.sqrt(2)) ** n for step in range(1, steps))
    return width * (0.5 + math.fsum(values))


class L1BatchNorm(BatchNorm):
    r"""Batch normalization by the mean absolute deviation.

    .. math::
        \sigma = c \cdot \frac{1}{n} \sum_i |x_i - \mu|, \quad
        y_i = \gamma \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    with ``c = √(π/2)``, which makes σ the standard deviation of a Gaussian (``constant="gaussian"``,
    arXiv:1803.01814), or ``c = 1`` (``"none"``, arXiv:1805.11604). running_var follows σ² as it does in
    `BatchNorm`; evaluation goes by it.

    Shapes: x and y ``(B, C, ...)``; weight, bias, running_mean and running_var ``(C,)``.

    Args:
        num_features: C, the length of axis 1.
        constant: which c, ``gaussian`` or ``none``.
        eps, momentum, affine, track_running_stats, device, dtype, bias: as in `BatchNorm`.

    Raises:
        ValueError: for another constant, and what else `BatchNorm` raises.

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
        """Return the running statistics of all of several batches: σ² is the mean of the batches'.

        Unlike a variance, that of all numbers does not follow from those of the batches.
        """
        total = counts.sum(0)
        unbiased = var * counts / (counts - 1)
        return (counts * mean).sum(0) / total, (counts * unbiased).sum(0) / total

    def spread(self, centered: Tensor) -> Tensor:
        """Return σ of what has been centered."""
        c = math.sqrt(math.pi / 2) if self.constant == "gaussian" else 1.0
        return c * over_samples(centered.abs())


class LInfBatchNorm(L1BatchNorm):
    r"""Batch normalization by the largest deviation, ``σ = c · max_i |x_i − μ|``, else as `L1BatchNorm`.

    ``constant="gaussian"`` is one over the expected maximum of n standard normal numbers' sizes, which makes σ the
    standard deviation of a Gaussian whatever the size of the batch, from about 8 samples on; ``"none"`` is 1.
    """

    def spread(self, centered: Tensor) -> Tensor:
        """Return σ of what has been centered."""
        rows = centered.flatten(0, -2)
        if len(rows) == 0:
            return rows.sum(0)
        # index: code compiled for batches of any size has to know this one's.
        c = gaussian_constant(index(len(rows))) if self.constant == "gaussian" else 1.0
        # The gradient of what is picked is written to one place; that of a maximum compares everything with it.
        place = rows.detach().abs().argmax(0, keepdim=True)
        return c * rows.gather(0, place).squeeze(0).abs()


def gaussian_constant(n: int) -> float:
    """Return one over :func:`expected_maximum`; compiled code takes it for a constant."""
    return 1 / expected_maximum(n)


torch.compiler.assume_constant_result(gaussian_constant)
