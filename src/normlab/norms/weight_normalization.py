"""Weight normalization: a length and a direction in the place of the weights."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


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
    r"""Let a layer learn the length and the direction of each output's weights apart: `LengthAndDirection`.

    It is ``torch.nn.utils.parametrizations.weight_norm`` with the same parameters under the same names, of
    elementary operations: torch's kernel cannot be vmapped over the members of a population.

    Args:
        layer: a linear map or a convolution; it is changed and returned, its weights are what they were.

    Salimans and Kingma (2016), Weight normalization: a simple reparameterization to accelerate training of deep
    neural networks, arXiv:1602.07868.
    """
    return parametrize.register_parametrization(layer, "weight", LengthAndDirection())
