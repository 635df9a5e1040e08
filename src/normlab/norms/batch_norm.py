"""Batch normalization by its formula, optionally by torch's kernel: `BatchNorm` and its subclasses.

In formulas: x input, y output, γ (gamma) weight, β (beta) bias, μ mean, σ² variance, ε eps, n the number of
values per feature. In shapes: B samples, C features, then any number of further axes.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor

from normlab.norms.shared_batch import Share, current_share
from normlab.norms.statistics import features_last, mean_and_variance, normalize_affine, pooled, require_features

LARGEST_OFFSET = 1e3
"""Largest ``|μ|/√(σ² + ε)`` of a feature for which torch's kernel is used."""


class BatchNorm(nn.Module):
    r"""Normalizes each feature by its mean and variance over the batch and all axes after the second.

    .. math::
        \mu = \frac{1}{n} \sum_i x_i, \quad \sigma^2 = \frac{1}{n} \sum_i (x_i - \mu)^2, \quad
        \hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}}, \quad y_i = \gamma \hat x_i + \beta

    In training mode μ and σ² are those of the batch, and the running statistics are updated:
    ``running ← (1 − momentum) · running + momentum · batch``, with the unbiased estimate ``n / (n − 1) · σ²`` for
    the running variance. In evaluation mode μ and σ² are the running statistics. A layer without running
    statistics uses those of the batch in both modes.

    Names, arguments and state dicts match ``torch.nn.BatchNorm1d``.

    Shapes: x and y ``(B, C, ...)``; weight, bias, running_mean and running_var ``(C,)``;
    num_batches_tracked ``()``. y has the dtype of x; statistics of 16-bit input are computed in float32.

    Args:
        num_features: C, the length of axis 1.
        eps: ε, added to the variance; positive in training, where a feature may be constant.
        momentum: weight of the newest batch in the running statistics; None averages all batches equally.
        affine: whether γ and β exist; without them ``y = x̂``.
        track_running_stats: whether the running statistics exist.
        device: where parameters and buffers are created.
        dtype: floating-point type of parameters and running statistics.
        bias: whether β exists (with ``affine`` only).
        fused: use torch's kernel, which is faster than the formula. In float32 the kernel is inaccurate if the
            mean is much larger than the standard deviation. If ``|μ|/√(σ² + ε)`` exceeds ``LARGEST_OFFSET`` for a
            feature of the first training batch, the layer therefore keeps using the formula. This check is not
            possible under ``torch.func.vmap``, where the kernel is slower, or ``torch.compile``: a layer that
            has not been checked uses the formula there.
        sync: within `normlab.norms.shared_batch.shared_batch`, where each process has some samples of a minibatch,
            use the statistics of all of them, by the formula. Gradients and running statistics are then those of
            one process on the whole minibatch.

    Raises:
        ValueError: the input has a wrong number of axes, batch statistics are needed and a feature has a single
            value, or ε is negative, or zero where batch statistics are used; or sync is true for a subclass with
            other statistics.
        RuntimeError: axis 1 of the input does not have ``num_features`` entries.
        NotImplementedError: the input is not floating-point.

    Ioffe and Szegedy (2015), Batch normalization: accelerating deep network training by reducing internal
    covariate shift, arXiv:1502.03167.
    """

    ranks: tuple[int, ...] = ()
    """The numbers of axes that an input may have; empty for any number from 2."""

    # State dicts of version 1 have no num_batches_tracked.
    _version = 2

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        fused: bool = False,
        sync: bool = False,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.fused = fused
        self.sync = sync
        if sync and type(self).statistics is not BatchNorm.statistics:
            name = type(self).__name__
            raise ValueError(
                f"sync must be false for {name}, which has statistics of its own, got true; remove it"
            )
        # True if the kernel is too inaccurate for the first training batch; None before that batch.
        self.loses_digits: bool | None = None

        def per_feature() -> Tensor:
            return torch.empty(num_features, device=device, dtype=dtype)

        self.weight = nn.Parameter(per_feature()) if affine else None
        self.bias = nn.Parameter(per_feature()) if affine and bias else None
        self.register_buffer("running_mean", per_feature() if track_running_stats else None)
        self.register_buffer("running_var", per_feature() if track_running_stats else None)
        count = torch.tensor(0, device=device) if track_running_stats else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set γ to 1 and β to 0, reset the running statistics and decide again between kernel and formula."""
        self.reset_running_stats()
        self.loses_digits = None
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running variance to 1 and the count of batches to 0."""
        if self.running_mean is not None:
            self.running_mean.zero_()
        if self.running_var is not None:
            self.running_var.fill_(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x; in training mode also update the running statistics."""
        running_mean, running_var = self.running_mean, self.running_var
        self._check_input(x, by_batch=self.training or running_mean is None)
        count = self.num_batches_tracked if self.training and self.track_running_stats else None
        if count is not None:
            count.add_(1)
        if self.uses_kernel(x):
            return self._fused(x, count)
        rows = features_last(x)
        if not self.training and running_mean is not None and running_var is not None:
            centered, var = rows - running_mean.to(rows.dtype), running_var.to(rows.dtype)
        else:
            mean, centered, var = self.statistics(rows)
            if count is not None:
                self._track(mean.detach(), var.detach(), self.values_of(rows), count)
        return normalize_affine(centered, var, self.eps, self.weight, self.bias, x.dtype)

    def uses_kernel(self, x: Tensor) -> bool:
        """Return True if torch's kernel normalizes x; the first training batch decides for all later ones."""
        if not self.fused or self.share is not None:
            return False
        if self.loses_digits is None:
            # Here the statistics cannot become a Python bool: they differ between members, or are traced.
            if torch.compiler.is_compiling() or is_vmapped(x):
                return False
            if self.training and x.numel():
                self.loses_digits = has_large_offset(x, self.eps)
        return not self.loses_digits

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return μ ``(C,)``, x − μ ``(..., C)`` and σ² ``(C,)`` for x ``(..., C)``; subclasses override it."""
        share = self.share
        return mean_and_variance(x) if share is None else mean_and_variance(x, share.mean_over_samples)

    @property
    def share(self) -> Share | None:
        """The share of the minibatch that this process has, if the statistics are those of all processes."""
        return current_share() if self.sync and self.training else None

    def values_of(self, rows: Tensor) -> int:
        """Return n, the number of values per feature in ``rows``, ``(..., C)``, or in those of all processes."""
        own, share = rows.shape[:-1].numel(), self.share
        return own if share is None else share.count(own)

    def pooled(self, mean: Tensor, var: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and variance of T batches together; see :func:`normlab.norms.statistics.pooled`."""
        return pooled(mean, var, counts)

    def _track(self, mean: Tensor, var: Tensor, n: int, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or n == 0:
            return
        # 1 / count stays a tensor: under vmap each member has its own count.
        m = 1 / count.to(mean.dtype) if self.momentum is None else self.momentum
        self.running_mean.copy_((1 - m) * self.running_mean + m * mean)
        self.running_var.copy_((1 - m) * self.running_var + m * (n / (n - 1)) * var)

    def _fused(self, x: Tensor, count: Tensor | None) -> Tensor:
        by_batch = self.training or self.running_mean is None
        # In training mode the kernel would update any running statistics passed to it.
        tracks = count is not None or not self.training
        mean, var = (self.running_mean, self.running_var) if tracks else (None, None)
        m = self.momentum
        if m is None:
            m = 0.0 if count is None else 1 / float(count)
        return F.batch_norm(x, mean, var, self.weight, self.bias, by_batch, m, self.eps)

    def _check_input(self, x: Tensor, by_batch: bool) -> None:
        if x.dim() not in self.ranks if self.ranks else x.dim() < 2:
            expected = " or ".join(f"{rank}D" for rank in self.ranks) or "at least 2D"
            raise ValueError(f"expected {expected} input (got {x.dim()}D input)")
        if by_batch and x.numel() == x.shape[1] and self.share is None:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        if by_batch and self.eps <= 0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {self.eps}")
        if self.eps < 0:
            raise ValueError(f"batch_norm eps must be non-negative, but got {self.eps}")
        require_features(self, self.num_features, x)
        if not x.is_floating_point():
            name = type(self).__name__
            raise NotImplementedError(f"{name} expected floating-point input, got {x.dtype}; pass x.float()")

    def extra_repr(self) -> str:
        """Return the arguments, formatted like those of ``torch.nn.BatchNorm1d``."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        key = prefix + "num_batches_tracked"
        old = (local_metadata.get("version") or 1) < 2
        if old and self.track_running_stats and key not in state_dict:
            count = self.num_batches_tracked
            state_dict[key] = torch.tensor(0) if count is None or count.is_meta else count
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@torch.no_grad()
def has_large_offset(x: Tensor, eps: float) -> bool:
    """Return True if ``|μ| > LARGEST_OFFSET · √(σ² + ε)`` for any feature of x, ``(B, C, ...)``."""
    mean, _, var = mean_and_variance(features_last(x))
    return bool((mean.abs() > LARGEST_OFFSET * (var + eps).sqrt()).any())


def is_vmapped(x: Tensor) -> bool:
    """Return True if x is batched by ``torch.func.vmap``, at any level of functorch wrapping."""
    while is_functorch_wrapped_tensor(x):
        if is_batchedtensor(x):
            return True
        x = get_unwrapped(x)
    return False


class BatchNorm1d(BatchNorm):
    """Batch normalization of feature vectors ``(B, C)`` or sequences ``(B, C, L)``.

    Equation, arguments, errors and paper (arXiv:1502.03167): `BatchNorm`.

    >>> layer = BatchNorm1d(2, affine=False)
    >>> layer(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    tensor([[-1.0000, -1.0000],
            [ 1.0000,  1.0000]])
    >>> layer.running_mean
    tensor([0.2000, 2.0000])
    """

    ranks = (2, 3)


class BatchNorm2d(BatchNorm):
    """Batch normalization of images ``(B, C, H, W)``: each channel over the batch and all positions.

    Equation, arguments, errors and paper (arXiv:1502.03167): `BatchNorm`.
    """

    ranks = (4,)


class BatchNorm3d(BatchNorm):
    """Batch normalization of volumes ``(B, C, D, H, W)``: each channel over the batch and all positions.

    Equation, arguments, errors and paper (arXiv:1502.03167): `BatchNorm`.
    """

    ranks = (5,)
