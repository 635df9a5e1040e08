"""Group, layer and RMS normalization of single samples, with ``num_features`` as first argument."""

import torch.nn.functional as F
from torch import Tensor, nn

from normlab.norms.statistics import FeatureAffine, require_features


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
        self.check_features(x)
        return self.apply_affine(F.rms_norm(x, x.shape[1:], None, self.eps))
