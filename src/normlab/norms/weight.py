"""Normalization of the weights: weight normalization and weight standardization."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlab.norms.activation import gain


class LengthAndDirection(nn.Module):
    r"""Gives the weights of each output a length g of their own: a parametrization of ``weight``.

    .. math:: W_i = g_i \frac{v_i}{\lVert v_i \rVert}

    Shapes: g ``(outputs, 1, ...)``; v and W ``(outputs, inputs, ...)``.
    """

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """Return W."""
        return v * (g / self.length(v))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the g and v that a weight begins as."""
        return self.length(weight), weight

    @staticmethod
    def length(v: Tensor) -> Tensor:
        """Return the length of each output's weights."""
        return torch.linalg.vector_norm(v, dim=tuple(range(1, v.dim())), keepdim=True)


def weight_normalization(layer: nn.Module) -> nn.Module:
    r"""Parametrize each output's weights by their length and their direction, with `LengthAndDirection`.

    It is ``torch.nn.utils.parametrizations.weight_norm`` with the same parameters under the same names, of
    elementary operations: torch's kernel cannot be vmapped over the members of a population.

    Args:
        layer: a linear map or a convolution; it is changed and returned, its weights are what they were.

    Salimans and Kingma (2016), Weight normalization: a simple reparameterization to accelerate training of deep
    neural networks, arXiv:1602.07868.
    """
    return parametrize.register_parametrization(layer, "weight", LengthAndDirection())


class Standardized(nn.Module):
    r"""Gives the weights of each output mean 0 and a variance of its own: a parametrization of ``weight``.

    .. math:: \hat W_{ij} = g_i\, s\, \frac{W_{ij} - \mu_i}{\sqrt{\max(\sigma_i^2, \epsilon)}}

    with μ and σ² over the N inputs of output i, its fan-in.

    Shapes: W and Ŵ ``(outputs, inputs, ...)``; gain g ``(outputs,)``, if it is learned.
    """

    gain: nn.Parameter | None

    def __init__(self, outputs: int, scale: float, eps: float, learned: bool) -> None:
        super().__init__()
        if eps <= 0:
            raise ValueError(f"eps of weight standardization must be a number > 0, got {eps}")
        self.scale, self.eps = scale, eps
        self.gain = nn.Parameter(torch.ones(outputs)) if learned else None

    def forward(self, weight: Tensor) -> Tensor:
        """Return Ŵ for W."""
        # In float16 ε would be 0.
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        var, mean = torch.var_mean(wide, tuple(range(1, weight.dim())), correction=0, keepdim=True)
        rate = self.scale * torch.rsqrt(var.clamp(min=self.eps))
        if self.gain is not None:
            rate = rate * self.gain.view(rate.shape)
        return ((wide - mean) * rate).to(weight.dtype)


def weight_shape(layer: nn.Module) -> tuple[int, int]:
    """Return how many outputs a linear map or a convolution has, and N, how many weights each of them has.

    Raises:
        TypeError: if it has no weights of this kind.
        ValueError: if N is 1: the only weight, less its mean, would be 0.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        raise TypeError(f"weight standardization takes a linear map or a convolution, got {type(layer).__name__}")
    if weight[0].numel() < 2:
        raise ValueError("weight standardization needs at least 2 inputs, the layer has 1; its weight would be 0")
    return len(weight), weight[0].numel()


def scaled_weight_standardization(
    layer: nn.Module, activation: str | Callable[[], nn.Module] = "relu", affine: bool = True, eps: float = 1e-10
) -> nn.Module:
    r"""Standardize a layer's weights, scaled so that a signal keeps its spread: `Standardized`, ``s = γ_φ/√N``.

    N is the fan-in, and ``γ_φ = 1/√Var φ(z)``, z standard normal, makes up for the activation that the layer's
    input went through. Then a unit variance stays one without any normalization of the signal.

    Args:
        layer: a linear map or a convolution; it is changed and returned.
        activation: φ, a name out of torch.nn or what makes one.
        affine: whether each output has a gain g that is learned.
        eps: ε, the least variance of an output's weights.

    Raises:
        TypeError, ValueError: as :func:`shape_of`, and ValueError if ε is not positive.

    Brock, De and Smith (2021), Characterizing signal propagation to close the performance gap in unnormalized
    ResNets, arXiv:2101.08692.
    """
    outputs, fan_in = weight_shape(layer)
    standardized = Standardized(outputs, gain(activation) / math.sqrt(fan_in), eps, affine)
    return parametrize.register_parametrization(layer, "weight", standardized)


def weight_standardization(layer: nn.Module, eps: float = 1e-10) -> nn.Module:
    r"""Standardize a layer's weights to mean 0 and variance 1: `Standardized`, ``s = 1`` and no gain.

    The signal then grows by a factor of about √N at every layer, so that it needs a normalization of its own, such
    as group normalization in the paper.

    Args:
        layer: a linear map or a convolution; it is changed and returned.
        eps: ε, the least variance of an output's weights.

    Raises:
        TypeError, ValueError: as :func:`shape_of`, and ValueError if ε is not positive.

    Qiao, Wang, Liu, Shen and Yuille (2019), Micro-batch training with batch-channel normalization and weight
    standardization, arXiv:1903.10520.
    """
    standardized = Standardized(weight_shape(layer)[0], 1.0, eps, learned=False)
    return parametrize.register_parametrization(layer, "weight", standardized)
