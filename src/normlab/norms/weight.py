"""Weight normalization and weight standardization, as parametrizations of a layer's ``weight``."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlab.norms.activation import gain


class LengthAndDirection(nn.Module):
    r"""Parametrizes the weights of each output i by a length g and a direction v.

    .. math:: W_i = g_i \frac{v_i}{\lVert v_i \rVert}

    Shapes: g ``(outputs, 1, ...)``; v and W ``(outputs, inputs, ...)``.

    Salimans and Kingma (2016), arXiv:1602.07868.
    """

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """Return W for g and v."""
        return v * (g / self.length(v))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the initial g and v for a weight: its lengths and the weight itself."""
        return self.length(weight), weight

    @staticmethod
    def length(v: Tensor) -> Tensor:
        """Return the Euclidean norm of each output's weights, ``(outputs, 1, ...)``."""
        return torch.linalg.vector_norm(v, dim=tuple(range(1, v.dim())), keepdim=True)


def weight_normalization(layer: nn.Module) -> nn.Module:
    r"""Parametrize the weights of each output by their length and direction, with `LengthAndDirection`.

    .. math:: W_i = g_i \frac{v_i}{\lVert v_i \rVert}

    Parameters and their names are those of ``torch.nn.utils.parametrizations.weight_norm``. It uses elementary
    operations, because torch's kernel does not support vmap over the members of a population.

    Args:
        layer: a linear map or a convolution, with weights ``(outputs, inputs, ...)``. It is modified and returned;
            the values of its weights do not change.

    Salimans and Kingma (2016), Weight normalization: a simple reparameterization to accelerate training of deep
    neural networks, arXiv:1602.07868.
    """
    return parametrize.register_parametrization(layer, "weight", LengthAndDirection())


class Standardized(nn.Module):
    r"""Parametrizes the weights of each output i as standardized weights times a gain and a constant.

    .. math:: \hat W_{ij} = g_i\, s\, \frac{W_{ij} - \mu_i}{\sqrt{\max(\sigma_i^2, \epsilon)}}

    with μ_i and σ_i² the mean and variance of the weights of output i over its fan-in.

    Shapes: W and Ŵ ``(outputs, inputs, ...)``; gain g ``(outputs,)``.

    Args:
        outputs: number of outputs.
        scale: s.
        eps: ε, the lower bound on the variance.
        learned: whether g exists; without it ``g = 1``.

    Raises:
        ValueError: ε is not positive.
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
        # In float16, ε would underflow to 0.
        promoted = weight.to(torch.promote_types(weight.dtype, torch.float32))
        var, mean = torch.var_mean(promoted, tuple(range(1, weight.dim())), correction=0, keepdim=True)
        rate = self.scale * torch.rsqrt(var.clamp(min=self.eps))
        if self.gain is not None:
            rate = rate * self.gain.view(rate.shape)
        return ((promoted - mean) * rate).to(weight.dtype)


def weight_shape(layer: nn.Module) -> tuple[int, int]:
    """Return the number of outputs of a linear map or convolution, and its fan-in.

    Raises:
        TypeError: the layer is neither a linear map nor a convolution.
        ValueError: the fan-in is 1; the only weight minus its mean would be 0.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        raise TypeError(f"weight standardization takes a linear map or a convolution, got {type(layer).__name__}")
    if weight[0].numel() < 2:
        raise ValueError("weight standardization needs at least 2 inputs, got 1; its only weight would be 0")
    return len(weight), weight[0].numel()


def scaled_weight_standardization(
    layer: nn.Module, activation: str | Callable[[], nn.Module] = "relu", affine: bool = True, eps: float = 1e-10
) -> nn.Module:
    r"""Standardize the weights of a layer and scale them to preserve the variance of the signal.

    .. math::
        \hat W_{ij} = g_i\, \frac{\gamma_\varphi}{\sqrt N}\,
        \frac{W_{ij} - \mu_i}{\sqrt{\max(\sigma_i^2, \epsilon)}}, \quad
        \gamma_\varphi = \frac{1}{\sqrt{\mathrm{Var}\, \varphi(z)}}, \quad z \sim N(0, 1)

    with N the fan-in and φ the activation before the layer; see `Standardized`. The factor γ_φ compensates for the
    variance lost in φ, so a signal of unit variance keeps it without a normalizer.

    Args:
        layer: a linear map or a convolution, with weights ``(outputs, inputs, ...)``. It is modified and returned.
        activation: φ, a name in torch.nn or a factory.
        affine: whether each output has a learned gain g.
        eps: ε, the lower bound on the variance of an output's weights.

    Raises:
        TypeError: the layer is neither a linear map nor a convolution.
        ValueError: the fan-in is 1, ε is not positive, or φ is unknown or not elementwise.

    Brock, De and Smith (2021), Characterizing signal propagation to close the performance gap in unnormalized
    ResNets, arXiv:2101.08692.
    """
    outputs, fan_in = weight_shape(layer)
    standardized = Standardized(outputs, gain(activation) / math.sqrt(fan_in), eps, affine)
    return parametrize.register_parametrization(layer, "weight", standardized)


def weight_standardization(layer: nn.Module, eps: float = 1e-10) -> nn.Module:
    r"""Standardize the weights of each output to mean 0 and variance 1.

    .. math:: \hat W_{ij} = \frac{W_{ij} - \mu_i}{\sqrt{\max(\sigma_i^2, \epsilon)}}

    with μ_i and σ_i² over the fan-in N of output i; see `Standardized`. The signal then grows by a factor of about
    √N per layer, so it needs a normalizer as well, such as group normalization in the paper.

    Args:
        layer: a linear map or a convolution, with weights ``(outputs, inputs, ...)``. It is modified and returned.
        eps: ε, the lower bound on the variance of an output's weights.

    Raises:
        TypeError: the layer is neither a linear map nor a convolution.
        ValueError: the fan-in is 1, or ε is not positive.

    Qiao, Wang, Liu, Shen and Yuille (2019), Micro-batch training with batch-channel normalization and weight
    standardization, arXiv:1903.10520.
    """
    standardized = Standardized(weight_shape(layer)[0], 1.0, eps, learned=False)
    return parametrize.register_parametrization(layer, "weight", standardized)
