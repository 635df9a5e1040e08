"""Batch normalization by other statistics: of parts of a batch, or by L1 and L∞ norms of the deviations."""

import math
from functools import lru_cache
from operator import index

import torch
import torch.nn.functional as F
from torch import Tensor

from normlab.norms.batch_norm import BatchNorm
from normlab.norms.statistics import centered_by_mean, features_last, mean_over_samples, normalize_affine

CONSTANTS = ("none", "gaussian")


class GhostBatchNorm(BatchNorm):
    r"""Normalizes each ghost batch, a part of the batch, by its own mean and variance.

    .. math:: y_i = \gamma \frac{x_i - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} + \beta

    with μ_g and σ_g² the mean and variance of ghost batch g in training mode, as in `BatchNorm`. With G ghost
    batches of S samples, sample i belongs to ghost batch ``g = i mod G``. All ghost batches share γ and β.

    Each ghost batch updates the running statistics in turn; evaluation uses them. A batch of at most S samples is
    one ghost batch. If S does not divide the batch, the remaining samples form a smaller last ghost batch; a
    single remaining sample is added to the ghost batch before it.

    The paper groups adjacent samples. In a shuffled batch the grouping makes no difference, and taking every G-th
    sample needs only a reshape.

    Shapes: x and y ``(B, C, ...)``; weight, bias, running_mean and running_var ``(C,)``; num_batches_tracked
    ``()``, which counts ghost batches.

    Args:
        num_features: C, the length of axis 1.
        ghost_size: S, the number of samples in a ghost batch.
        eps, momentum, affine, track_running_stats, device, dtype, bias, fused: as in `BatchNorm`.

    Raises:
        ValueError: ghost_size is below 1, or a ghost batch has a single value per feature.
        ValueError, RuntimeError, NotImplementedError: as in `BatchNorm`.

    Hoffer, Hubara and Soudry (2017), Train longer, generalize better: closing the generalization gap in large
    batch training of neural networks, arXiv:1705.08741.

    >>> layer = GhostBatchNorm(1, ghost_size=2, affine=False)
    >>> layer(torch.tensor([[1.0], [10.0], [3.0], [30.0]])).flatten()
    tensor([-1.0000, -1.0000,  1.0000,  1.0000])
    """

    def __init__(
        self,
        num_features: int,
        ghost_size: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        fused: bool = False,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, fused=fused
        )
        if ghost_size < 1:
            raise ValueError(f"ghost_size must be at least 1 sample, got {ghost_size}")
        self.ghost_size = ghost_size

    def left_over(self, samples: int) -> int:
        """Return the size of the last ghost batch if it differs from the others, else 0."""
        rest = samples % self.ghost_size
        if samples <= self.ghost_size:
            return 0
        return rest + self.ghost_size if rest == 1 else rest

    def notices(self, samples: int) -> list[str]:
        """Return a warning if ``ghost_size`` does not divide batches of ``samples`` samples."""
        rest = self.left_over(samples)
        problem = f"model.norm.ghost_size={self.ghost_size} does not divide a minibatch of {samples}"
        return [f"{problem}: its last ghost batch has {rest} samples"] if rest else []

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x; in training mode also update the running statistics."""
        if not self.training:
            return super().forward(x)
        self._check_input(x, by_batch=True)
        cut = len(x) - self.left_over(len(x))
        parts = [part for part in (x[:cut], x[cut:]) if len(part)] or [x]
        outputs = [self._normalize_ghosts(part) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _normalize_ghosts(self, x: Tensor) -> Tensor:
        """Normalize ghost batches of equal size, as one batch of G·C features; update running statistics."""
        number = max(1, len(x) // self.ghost_size)
        ghosts = x.reshape(len(x) // number, number * self.num_features, *x.shape[2:])
        n = ghosts.numel() // ghosts.shape[1]
        if n == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got ghost batches of {self.ghost_size}; "
                "raise ghost_size"
            )
        gamma, beta = (None if p is None else p.repeat(number) for p in (self.weight, self.bias))
        if self.uses_kernel(x):
            # Two separate tensors: under vmap, values that the kernel writes into views of one tensor are lost.
            like = next((tensor for tensor in (self.running_mean, self.weight) if tensor is not None), x)
            mean, unbiased = (x.new_zeros(ghosts.shape[1], dtype=like.dtype) for _ in range(2))
            y = F.batch_norm(ghosts, mean, unbiased, gamma, beta, True, 1.0, self.eps)
        else:
            mean, centered, var = self.statistics(features_last(ghosts))
            y = normalize_affine(centered, var, self.eps, gamma, beta, x.dtype)
            unbiased = n / max(n - 1, 1) * var
        if self.num_batches_tracked is not None and self.track_running_stats:
            self.num_batches_tracked.add_(number)
            if n:
                mean, unbiased = (statistic.detach().view(number, -1) for statistic in (mean, unbiased))
                self._track_in_turn(mean, unbiased, self.num_batches_tracked)
        return y.reshape(x.shape)

    def _track_in_turn(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Update the running statistics with each ghost batch in turn; mean and var are ``(G, C)``."""
        number = len(mean)
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            assert running is not None
            if self.momentum is None:
                running.add_((batch - running).sum(0) / count.to(running.dtype))
            else:
                decay = 1 - self.momentum
                weights = [self.momentum * decay**age for age in reversed(range(number))]
                # A copy to a GPU that blocks would wait for all steps that were launched on it.
                shares = torch.tensor(weights, dtype=batch.dtype).to(batch.device, non_blocking=True)
                running.copy_(decay**number * running + shares @ batch)


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
        return c * rows.abs().max(0).values


def gaussian_constant(n: int) -> float:
    """Return ``1 / E max |z_i|`` for n standard normal numbers; torch.compile treats it as a constant."""
    return 1 / expected_maximum(n)


# As torch.compiler.assume_constant_result does, which imports Dynamo for it: most of a second at every start.
gaussian_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]
