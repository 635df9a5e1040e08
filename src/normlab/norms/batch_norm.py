"""Batch normalization, written out.

In the formulas: x input, y output, γ (gamma) weight, β (beta) bias, μ mean, σ² variance, ε eps,
n the number of values per feature. In the shapes: B samples, C features, then any number of further axes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor

from normlab.norms.statistics import features_last, mean_and_variance, normalize_affine, pooled

LARGEST_OFFSET = 1e3
"""From how many standard deviations between a feature's mean and 0 on torch's kernel is not used."""


class BatchNorm(nn.Module):
    r"""Normalizes each feature by its mean and variance over the batch and every axis after the second.

    .. math::
        \mu = \frac{1}{n} \sum_i x_i, \quad \sigma^2 = \frac{1}{n} \sum_i (x_i - \mu)^2, \quad
        \hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}}, \quad y_i = \gamma \hat x_i + \beta

    In training mode μ and σ² are the batch's own, and the running statistics follow them:
    ``running ← (1 − momentum) · running + momentum · batch``, where the running variance takes the unbiased
    estimate ``n / (n − 1) · σ²``. In evaluation mode μ and σ² are the running statistics, which stay as they
    are; a layer that tracks none uses the batch's in both modes.

    Names, arguments and state dicts are those of ``torch.nn.BatchNorm1d``.

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
        fused: compute the same numbers with torch's kernel instead of the formula, which is faster. In float32
            the kernel loses digits where the mean is large beside the standard deviation: where ``|μ|/√(σ² + ε)``
            is above ``LARGEST_OFFSET`` in a feature of the first training batch, the layer stays with the
            formula. So it does under ``torch.func.vmap``, where the kernel is slower, and while it is compiled.

    Raises:
        ValueError: the input has too few or too many axes, a batch to normalize by has a single value per
            feature, or ε is not positive in training or is negative.
        RuntimeError: axis 1 of the input has not ``num_features`` entries.
        NotImplementedError: the input is not floating-point.

    Ioffe and Szegedy (2015), Batch Normalization, arXiv:1502.03167.
    """

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
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.fused = fused
        # Whether the kernel would lose digits, known from the first training batch on.
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
        """Set γ to 1, β to 0 and forget the running statistics, and which kernel fits."""
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
        """Return y for x; in training mode also move the running statistics."""
        running_mean, running_var = self.running_mean, self.running_var
        self._check_input(x, by_batch=self.training or running_mean is None)
        count = self.num_batches_tracked if self.training and self.track_running_stats else None
        if count is not None:
            count.add_(1)
        if self.takes_kernel(x):
            return self._fused(x, running_mean, running_var, count)

        y = self._formula(features_last(x), running_mean, running_var, count)
        return y.to(x.dtype).movedim(-1, 1)

    def takes_kernel(self, x: Tensor) -> bool:
        """Return whether x goes through torch's kernel, which the first training batch decides once for all."""
        if not self.fused:
            return False
        if self.loses_digits is None:
            # One answer for all members of a vmapped stack, or for a compiled graph, is not to be had.
            if torch.compiler.is_compiling() or is_vmapped(x):
                return False
            if self.training and x.numel():
                self.loses_digits = has_large_offset(x, self.eps)
        return not self.loses_digits

    def _formula(
        self, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, count: Tensor | None
    ) -> Tensor:
        if not self.training and running_mean is not None and running_var is not None:
            centered, var = x - running_mean.to(x.dtype), running_var.to(x.dtype)
        else:
            mean, centered, var = self.statistics(x)
            if count is not None:
                self._track(mean.detach(), var.detach(), x.shape[:-1].numel(), count)
        return normalize_affine(centered, var, self.eps, self.weight, self.bias)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean and variance that normalize x in training, by ``statistics.mean_and_variance``."""
        return mean_and_variance(x)

    def pooled(self, mean: Tensor, var: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the running statistics of all of several batches; see :func:`normlab.norms.statistics.pooled`."""
        return pooled(mean, var, counts)

    def _track(self, mean: Tensor, var: Tensor, n: int, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or n == 0:
            return
        # 1 / count stays a tensor: every member of a vmapped stack has a count of its own.
        m = 1 / count.to(mean.dtype) if self.momentum is None else self.momentum
        self.running_mean.copy_((1 - m) * self.running_mean + m * mean)
        self.running_var.copy_((1 - m) * self.running_var + m * (n / (n - 1)) * var)

    def _fused(
        self, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, count: Tensor | None
    ) -> Tensor:
        by_batch = self.training or running_mean is None
        if self.training and count is None:
            # In training the kernel moves whatever running statistics it is handed.
            running_mean = running_var = None
        m = self.momentum
        if m is None:
            m = 0.0 if count is None else 1 / float(count)
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(x, self.weight, self.bias, running_mean, running_var, by_batch, m, self.eps, cudnn)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {x.dim()}D input)")

    def _check_input(self, x: Tensor, by_batch: bool) -> None:
        self._check_input_dim(x)
        features = x.shape[1]
        if by_batch and x.numel() == features:
            size = x.shape
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
        if by_batch and self.eps <= 0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {self.eps}")
        if self.eps < 0:
            raise ValueError(f"batch_norm eps must be non-negative, but got {self.eps}")
        if features != self.num_features:
            raise RuntimeError(
                f"{type(self).__name__} expected {self.num_features} features on axis 1, got {features} "
                f"(input shape {tuple(x.shape)}); set num_features={features} or move the features to axis 1"
            )
        if not x.is_floating_point():
            name = type(self).__name__
            raise NotImplementedError(f"{name} expected floating-point input, got {x.dtype}; pass x.float()")

    def extra_repr(self) -> str:
        """Return the arguments as ``torch.nn.BatchNorm1d`` prints them."""
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
    """Return whether any feature's mean is more than ``LARGEST_OFFSET`` standard deviations away from 0."""
    mean, _, var = mean_and_variance(features_last(x))
    return bool((mean.abs() > LARGEST_OFFSET * (var + eps).sqrt()).any())


def is_vmapped(x: Tensor) -> bool:
    """Return whether x has other values for each member of a ``torch.func.vmap``."""
    while is_functorch_wrapped_tensor(x):
        if is_batchedtensor(x):
            return True
        x = get_unwrapped(x)
    return False


class BatchNorm1d(BatchNorm):
    """Batch normalization of feature vectors ``(B, C)`` or of sequences ``(B, C, L)``.

    Arguments, equation and errors are those of `BatchNorm`; any other number of axes raises ValueError.

    >>> layer = BatchNorm1d(2, affine=False)
    >>> layer(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    tensor([[-1.0000, -1.0000],
            [ 1.0000,  1.0000]])
    >>> layer.running_mean
    tensor([0.2000, 2.0000])
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() not in (2, 3):
            raise ValueError(f"expected 2D or 3D input (got {x.dim()}D input)")


class BatchNorm2d(BatchNorm):
    """Batch normalization of images ``(B, C, H, W)``: each channel over the batch and all positions.

    Arguments, equation and errors are those of `BatchNorm`; any other number of axes raises ValueError.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() != 4:
            raise ValueError(f"expected 4D input (got {x.dim()}D input)")


class BatchNorm3d(BatchNorm):
    """Batch normalization of volumes ``(B, C, D, H, W)``: each channel over the batch and all positions.

    Arguments, equation and errors are those of `BatchNorm`; any other number of axes raises ValueError.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() != 5:
            raise ValueError(f"expected 5D input (got {x.dim()}D input)")
