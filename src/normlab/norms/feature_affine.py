"""What layers without running statistics share: the scale and the shift of each feature."""

import torch
from torch import Tensor, nn


def require_features(layer: nn.Module, num_features: int, x: Tensor) -> None:
    """Refuse an input that has another number of features than a layer.

    Raises:
        RuntimeError: axis 1 of x has not ``num_features`` entries, or does not exist.
    """
    if x.dim() < 2 or x.shape[1] != num_features:
        raise RuntimeError(
            f"{type(layer).__name__} expected {num_features} features on axis 1, got input shape "
            f"{tuple(x.shape)}; set num_features to the length of that axis, or move the features to it"
        )


class FeatureAffine(nn.Module):
    """Holds γ and β of each feature, ``y = γ·x̂ + β``, for a layer that computes x̂.

    Shapes: x̂ and y ``(B, C, …)``; weight and bias ``(C,)``.

    Args:
        num_features: C, the length of axis 1.
        affine: whether γ and β exist; without them ``y = x̂``.
        bias: whether β exists (with ``affine`` only).

    Raises:
        RuntimeError: axis 1 of the input has not ``num_features`` entries.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, num_features: int, affine: bool, bias: bool) -> None:
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine and bias else None

    def check(self, x: Tensor) -> None:
        """Refuse an input that has another number of features."""
        require_features(self, self.num_features, x)

    def scaled(self, x_hat: Tensor) -> Tensor:
        """Return y for x̂, of its dtype."""
        self.check(x_hat)
        shape = (-1, *[1] * (x_hat.dim() - 2))
        if self.weight is None:
            return x_hat
        gamma = self.weight.view(shape)
        y = x_hat * gamma if self.bias is None else torch.addcmul(self.bias.view(shape), x_hat, gamma)
        return y.to(x_hat.dtype)

    def extra_repr(self) -> str:
        """Return the arguments that a layer shows."""
        return f"{self.num_features}, affine={self.weight is not None}, bias={self.bias is not None}"
