"""Normalization of single samples: group, layer and RMS normalization, and the affine map ActNorm."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlab.norms.statistics import (
    FeatureAffine,
    features_last,
    mean_and_variance,
    normalize_affine,
    require_features,
)


def require_positive(layer: nn.Module, eps: float) -> None:
    """Raise ValueError unless ε is positive; with 0, a constant sample would give 0/0."""
    if eps <= 0:
        raise ValueError(f"eps of {type(layer).__name__} must be a number > 0, got {eps}")


class GroupNorm(nn.GroupNorm):
    r"""Normalizes each group of features of a sample by its mean and variance; it is torch's GroupNorm.

    .. math:: y = \gamma \frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} + \beta

    with μ_g and σ_g² over the features of group g and all positions of the sample.

    Shapes: x and y ``(B, C, ...)``; weight and bias ``(C,)``.

    Args:
        num_features: C, the length of axis 1.
        num_groups: number of groups; each has ``C / num_groups`` adjacent features.
        eps: ε, added to the variance.
        affine: whether γ and β exist.

    Raises:
        RuntimeError: axis 1 of the input does not have ``num_features`` entries.
        ValueError: num_groups does not divide C, or ε is not positive.

    Wu and He (2018), Group normalization, arXiv:1803.08494.
    """

    def __init__(self, num_features: int, num_groups: int, eps: float = 1e-5, affine: bool = True) -> None:
        if num_groups < 1 or num_features % num_groups:
            raise ValueError(
                f"model.norm.num_groups must divide the {num_features} features of every normalized layer, "
                f"got {num_groups}"
            )
        require_positive(self, eps)
        super().__init__(num_groups, num_features, eps, affine)

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x."""
        require_features(self, self.num_channels, x)
        return super().forward(x)


class LayerNorm2d(GroupNorm):
    r"""Normalizes each image by its mean and variance over all channels and positions.

    .. math:: y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    It is group normalization with one group, so γ and β are per channel; ``torch.nn.LayerNorm`` expects the
    features on the last axis.

    Shapes: x and y ``(B, C, H, W)``; weight and bias ``(C,)``.

    Args:
        num_features, eps, affine: as in `GroupNorm`.

    Raises:
        RuntimeError, ValueError: as in `GroupNorm`.

    Ba, Kiros and Hinton (2016), Layer normalization, arXiv:1607.06450.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features, 1, eps, affine)


class RMSNorm2d(FeatureAffine):
    r"""Divides each image by its root mean square over all channels and positions.

    .. math:: y = \gamma \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}}

    Shapes: x and y ``(B, C, H, W)``; weight γ ``(C,)``.

    Args:
        num_features: C, the length of axis 1.
        eps: ε, added to the mean square.
        affine: whether γ exists.

    Raises:
        RuntimeError: axis 1 of the input does not have ``num_features`` entries.
        ValueError: ε is not positive.

    Zhang and Sennrich (2019), Root mean square layer normalization, arXiv:1910.07467.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features, affine, bias=False)
        require_positive(self, eps)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x."""
        require_features(self, self.num_features, x)
        return self.apply_affine(F.rms_norm(x, x.shape[1:], None, self.eps))


class ActNorm(FeatureAffine):
    r"""Normalizes each feature by the fixed mean and variance of the first batch.

    .. math:: y = \gamma \frac{x - \mu_0}{\sqrt{\sigma_0^2 + \epsilon}} + \beta

    with μ₀ and σ₀² the mean and variance of each feature over the first batch in training mode. They stay fixed
    from then on, so the layer is a plain affine map: it shares the initialization of batch normalization, but not
    its dependence on the batch. Before the first batch, μ₀ is 0 and σ₀² is 1.

    Shapes: x and y ``(B, C, ...)``; weight, bias, initial_mean and initial_var ``(C,)``; initialized ``()``.

    Args:
        num_features: C, the length of axis 1.
        eps: ε, added to the variance.
        affine: whether γ and β exist.
        bias: whether β exists (with ``affine`` only).

    Attributes:
        needs_init: True until the first training batch has set μ₀ and σ₀².

    Raises:
        RuntimeError: axis 1 of the input does not have ``num_features`` entries.
        ValueError: ε is not positive, or the first batch has a single value per feature.

    Kingma and Dhariwal (2018), Glow: generative flow with invertible 1×1 convolutions, arXiv:1807.03039.

    >>> layer = ActNorm(1, affine=False)
    >>> layer(torch.tensor([[1.0], [3.0]])).flatten(), layer(torch.tensor([[5.0], [5.0]])).flatten()
    (tensor([-1.0000,  1.0000]), tensor([3.0000, 3.0000]))
    """

    initial_mean: Tensor
    initial_var: Tensor
    initialized: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True, *, bias: bool = True) -> None:
        super().__init__(num_features, affine, bias)
        require_positive(self, eps)
        self.eps = eps
        self.register_buffer("initial_mean", torch.zeros(num_features))
        self.register_buffer("initial_var", torch.ones(num_features))
        self.register_buffer("initialized", torch.tensor(False))
        # A Python bool beside the buffer: under vmap and torch.compile, control flow cannot depend on a tensor.
        self.needs_init = True

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x; the first call in training mode also sets μ₀ and σ₀²."""
        require_features(self, self.num_features, x)
        rows = features_last(x)
        if self.training and self.needs_init:
            self.initialize(rows.detach())
        centered = rows - self.initial_mean.to(rows.dtype)
        return normalize_affine(
            centered, self.initial_var.to(rows.dtype), self.eps, self.weight, self.bias, x.dtype
        )

    def initialize(self, rows: Tensor) -> None:
        """Set μ₀ and σ₀² from the first batch, ``(..., C)``."""
        n = rows.shape[:-1].numel()
        if n < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got {n} in the first batch")
        mean, _, var = mean_and_variance(rows)
        self.initial_mean.copy_(mean)
        self.initial_var.copy_(var)
        self.initialized.fill_(True)
        self.needs_init = False

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        self.needs_init = not bool(self.initialized)
