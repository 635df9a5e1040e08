"""Ghost batch normalization: the statistics of small batches inside of large ones."""

import torch
from torch import Tensor

from normlab.norms.batch_norm import BatchNorm
from normlab.norms.statistics import features_last, normalize_affine


class GhostBatchNorm(BatchNorm):
    r"""Normalizes parts of a batch, the ghost batches, each by its own mean and variance.

    With G ghost batches of S samples, sample i belongs to ghost batch ``g = i mod G``; in training mode y is, for
    each of them, that of `BatchNorm`, with one γ and β for all:

    .. math:: y_i = \gamma \frac{x_i - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} + \beta

    The running statistics follow the ghost batches one after another, and evaluation goes by them. A batch of up
    to S samples is one ghost batch. Samples left over make a smaller one, the last; a single one joins the one
    before.

    The paper takes adjacent samples. In a batch of random order it makes no difference which they are, and every
    G-th can be had without moving any.

    Shapes: x and y ``(B, C, ...)``; weight, bias, running_mean and running_var ``(C,)``; num_batches_tracked
    ``()``, the number of ghost batches.

    Args:
        num_features: C, the length of axis 1.
        ghost_size: S, the number of samples in a ghost batch.
        eps, momentum, affine, track_running_stats, device, dtype, bias, fused: as in `BatchNorm`.

    Raises:
        ValueError: ghost_size is below 1, a ghost batch has a single value per feature, and what else `BatchNorm`
            raises.

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
        """Return how many samples of a batch make a last ghost batch, of another size than the others."""
        rest = samples % self.ghost_size
        if samples <= self.ghost_size:
            return 0
        return rest + self.ghost_size if rest == 1 else rest

    def notices(self, samples: int) -> list[str]:
        """Return warnings about training on batches of these sizes."""
        rest = self.left_over(samples)
        does_not = f"model.norm.ghost_size={self.ghost_size} does not divide a minibatch of {samples}"
        return [f"{does_not}: its last ghost batch has {rest} samples"] if rest else []

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x; in training mode also move the running statistics."""
        if not self.training:
            return super().forward(x)
        self._check_input(x, by_batch=True)
        cut = len(x) - self.left_over(len(x))
        parts = [part for part in (x[:cut], x[cut:]) if len(part)] or [x]
        outputs = [self._ghosts(part) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _ghosts(self, x: Tensor) -> Tensor:
        """Normalize ghost batches of one size: as if each had features of its own."""
        number = max(1, len(x) // self.ghost_size)
        ghosts = x.reshape(len(x) // number, number * self.num_features, *x.shape[2:])
        n = ghosts.numel() // ghosts.shape[1]
        if n == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got ghost batches of {self.ghost_size}; "
                "raise ghost_size"
            )
        gamma, beta = (None if p is None else p.repeat(number) for p in (self.weight, self.bias))
        if self.takes_kernel(x):
            # Two tensors: under vmap what a kernel writes into parts of one is lost.
            like = next((own for own in (self.running_mean, self.weight) if own is not None), x)
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
                self._follow(mean, unbiased, self.num_batches_tracked)
        return y.reshape(x.shape)

    def _follow(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Move the running statistics by the ghost batches in order: statistics ``(G, C)``."""
        number = len(mean)
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            assert running is not None
            if self.momentum is None:
                running.add_((batch - running).sum(0) / count.to(running.dtype))
            else:
                kept = 1 - self.momentum
                weights = [self.momentum * kept**age for age in reversed(range(number))]
                running.copy_(kept**number * running + batch.new_tensor(weights) @ batch)
