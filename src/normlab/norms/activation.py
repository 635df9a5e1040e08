"""Activations by name, and how much of a standard normal number's spread each leaves."""

from collections.abc import Callable
from functools import cache

import torch
from torch import nn

WITH_ARGUMENTS = ("MultiheadAttention", "Threshold")
ACTIVATION_NAMES = sorted({*nn.modules.activation.__all__, "Identity"} - {*WITH_ARGUMENTS})
ACTIVATIONS = {name.lower(): getattr(nn, name) for name in ACTIVATION_NAMES}


def make_activation(activation: str | Callable[[], nn.Module]) -> nn.Module:
    """Return the activation: a name out of torch.nn in any case (``relu``, ``sigmoid``), or what is called.

    >>> make_activation("relu"), make_activation("identity"), make_activation(nn.Tanh)
    (ReLU(), Identity(), Tanh())

    Raises:
        ValueError: if torch.nn has no activation of this name.
    """
    if not isinstance(activation, str):
        return activation()
    if activation.lower() not in ACTIVATIONS:
        raise ValueError(f"net.activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {activation}")
    return ACTIVATIONS[activation.lower()]()


@cache
def gain(activation: str | Callable[[], nn.Module]) -> float:
    """Return ``1/√Var φ(z)`` for ``z ~ N(0, 1)``: what makes up for the spread that an activation takes away.

    For ReLU it is ``√(2/(1 − 1/π))``. Brock, De and Smith (2021), arXiv:2101.08692.

    Raises:
        ValueError: for an activation that does not treat every number alone, such as a softmax.

    >>> round(gain("relu"), 4), round(gain("identity"), 4)
    (1.7129, 1.0)
    """
    # An even count, so that a gated unit, which halves it, is told by the shape of its output.
    z = torch.linspace(-12, 12, 24 * 4096 + 1, dtype=torch.float64)[1:]
    density = torch.exp(-z.square() / 2)
    density /= density.sum()
    with torch.no_grad():
        layer = make_activation(activation).double().eval()
        y, some = layer(z), layer(z[::2])
        # Where a number stands may change its last bits.
        if y.shape != z.shape or not torch.allclose(some, y[::2], rtol=1e-9, atol=1e-12):
            raise ValueError(f"{activation} has no gain, as it does not treat every number alone")
    mean = density @ y
    return float((density @ (y - mean).square()).rsqrt())
