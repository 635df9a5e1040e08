"""torch's normalizations of each sample by itself, as a net calls them: with the number of features."""

import torch.nn.functional as F
from torch import Tensor, nn

from normlab.norms.statistics import FeatureAffine, require_features


def require_positive(layer: nn.Module, eps: float) -> None:
    """Refuse an ε by which a constant sample could not be divided."""
    if eps <= 0:
        raise ValueError(f"eps of {type(layer).__name__} must be a number > 0, got {eps}")


class GroupNorm(nn.GroupNorm):
    r"""torch's group normalization: each sample's features in groups, by the group's mean and variance.

    .. math:: y = \gamma \frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} + \beta

    with μ and σ² over the features of a group and all positions.

    Shapes: x and y ``(B, C, ...)``; weight and bias ``(C,)``.

    Args:
        num_features: C, the length of axis 1.
        num_groups: how many groups of ``C / num_groups`` features there are.
        eps: ε, added to the variance.
        affine: whether γ and β exist.

    Raises:
        RuntimeError: axis 1 of the input has not ``num_features`` entries.
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
    """Layer normalization of images ``(B, C, H, W)``: each over all channels and positions, γ and β by channel.

    It is group normalization with one group; ``torch.nn.LayerNorm`` would take the last axis for the features.

    Ba, Kiros and Hinton (2016), Layer normalization, arXiv:1607.06450.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features, 1, eps, affine)


class RMSNorm2d(FeatureAffine):
    r"""Root mean square normalization of images: each over all channels and positions, γ by channel.

    .. math:: y = \gamma \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}}

    Shapes: x and y ``(B, C, H, W)``; weight ``(C,)``.

    Raises:
        RuntimeError: axis 1 of the input has not ``num_features`` entries.
        ValueError: ε is not positive.

    Zhang and Sennrich (2019), Root mean square layer normalization, arXiv:1910.07467.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features, affine, bias=False)
        require_positive(self, eps)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x."""
        self.check(x)
        return self.scaled(F.rms_norm(x, x.shape[1:], None, self.eps))
