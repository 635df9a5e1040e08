"""Ghost batch normalization: statistics of small parts of a large batch."""

import torch
from torch import Tensor

from normlab.norms.batch_norm import BatchNorm
from normlab.norms.statistics import features_last, normalize_affine


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
            cudnn = torch.backends.cudnn.enabled
            y = torch.batch_norm(ghosts, gamma, beta, mean, unbiased, True, 1.0, self.eps, cudnn)
        else:
            mean, centered, var = self.statistics(features_last(ghosts))
            y = normalize_affine(centered, var, self.eps, gamma, beta).to(x.dtype).movedim(-1, 1)
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
                running.copy_(decay**number * running + batch.new_tensor(weights) @ batch)
