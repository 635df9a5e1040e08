"""Activations by name, their gains, and the bounded functions that replace a normalizer: Dynamic Tanh and Derf."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from normlab.norms.statistics import FeatureAffine

WITH_ARGUMENTS = ("MultiheadAttention", "Threshold")
ACTIVATION_NAMES = sorted({*nn.modules.activation.__all__, "Identity"} - {*WITH_ARGUMENTS})
ACTIVATIONS = {name.lower(): getattr(nn, name) for name in ACTIVATION_NAMES}


def make_activation(activation: str | Callable[[], nn.Module]) -> nn.Module:
    """Create an activation from its torch.nn name in any case (``relu``, ``sigmoid``) or from a factory.

    >>> make_activation("relu"), make_activation("identity"), make_activation(nn.Tanh)
    (ReLU(), Identity(), Tanh())

    Raises:
        ValueError: torch.nn has no activation of this name, or it needs arguments.
    """
    if not isinstance(activation, str):
        return activation()
    if activation.lower() not in ACTIVATIONS:
        raise ValueError(f"net.activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {activation}")
    return ACTIVATIONS[activation.lower()]()


@cache
def gain(activation: str | Callable[[], nn.Module]) -> float:
    """Return the gain ``1/√Var φ(z)`` of an activation φ, with ``z ~ N(0, 1)``.

    Multiplied by it, the output of φ for standard normal input has variance 1. The integral is a sum over a grid
    from −12 to 12. For ReLU the gain is ``√(2/(1 − 1/π))``.

    Raises:
        ValueError: the activation is not elementwise, such as a softmax.

    Brock, De and Smith (2021), Characterizing signal propagation to close the performance gap in unnormalized
    ResNets, arXiv:2101.08692.

    >>> round(gain("relu"), 4), round(gain("identity"), 4)
    (1.7129, 1.0)
    """
    # An even number of points: a gated unit such as GLU then runs, and its halved output fails the shape check.
    z = torch.linspace(-12, 12, 24 * 4096 + 1, dtype=torch.float64)[1:]
    density = torch.exp(-z.square() / 2)
    density /= density.sum()
    with torch.no_grad():
        layer = make_activation(activation).double().eval()
        y, y_of_half = layer(z), layer(z[::2])
        # Not exact: vectorized kernels may round an element differently at another position.
        if y.shape != z.shape or not torch.allclose(y_of_half, y[::2], rtol=1e-9, atol=1e-12):
            raise ValueError(
                f"net.activation must be elementwise to have a gain, got {activation}; choose one such as relu"
            )
    mean = density @ y
    return float((density @ (y - mean).square()).rsqrt())


class DynamicTanh(FeatureAffine):
    r"""Applies tanh elementwise, with one learned slope α per layer.

    .. math:: y = \gamma \tanh(\alpha x) + \beta

    It uses no statistics, so training and evaluation are the same.

    Shapes: x and y ``(B, C, …)``; weight γ and bias β ``(C,)``; alpha ``()``.

    Args:
        num_features: C, the length of axis 1.
        alpha: the initial value of α.
        affine: whether γ and β exist.
        bias: whether β exists (with ``affine`` only).

    Raises:
        RuntimeError: axis 1 of the input does not have ``num_features`` entries.

    Zhu, Chen, He, LeCun and Liu (2025), Transformers without Normalization, arXiv:2503.10622.

    >>> DynamicTanh(2)(torch.tensor([[0.0, 2.0]]))
    tensor([[0.0000, 0.7616]], grad_fn=<AddcmulBackward0>)
    """

    def __init__(self, num_features: int, alpha: float = 0.5, affine: bool = True, *, bias: bool = True) -> None:
        super().__init__(num_features, affine, bias)
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x."""
        return self.apply_affine(torch.tanh(self.alpha * x))


class Derf(FeatureAffine):
    r"""Applies the error function elementwise, with one learned slope α and one learned shift s per layer.

    .. math:: y = \gamma\, \mathrm{erf}(\alpha x + s) + \beta

    It uses no statistics, so training and evaluation are the same.

    Shapes: x and y ``(B, C, …)``; weight γ and bias β ``(C,)``; alpha and shift ``()``.

    Args:
        num_features: C, the length of axis 1.
        alpha: the initial value of α.
        shift: the initial value of s.
        affine: whether γ and β exist.
        bias: whether β exists (with ``affine`` only).

    Raises:
        RuntimeError: axis 1 of the input does not have ``num_features`` entries.

    Chen, Lu, Zhu, Sun and Liu (2025), Stronger Normalization-Free Transformers, arXiv:2512.10938.

    >>> Derf(2)(torch.tensor([[0.0, 2.0]]))
    tensor([[0.0000, 0.8427]], grad_fn=<AddcmulBackward0>)
    """

    def __init__(
        self,
        num_features: int,
        alpha: float = 0.5,
        shift: float = 0.0,
        affine: bool = True,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, affine, bias)
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.shift = nn.Parameter(torch.tensor(float(shift)))

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x."""
        return self.apply_affine(torch.erf(self.alpha * x + self.shift))
