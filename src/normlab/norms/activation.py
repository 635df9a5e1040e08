"""Activations by name, and how much of a standard normal number's spread each leaves."""

from collections.abc import Callable
from functools import cache

import torch
from torch import nn

ACTIVATIONS = {name.lower(): getattr(nn, name) for name in (*nn.modules.activation.__all__, "Identity")}


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
    z = torch.linspace(-12, 12, 24 * 4096 + 1, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    density /= density.sum()
    with torch.no_grad():
        layer = make_activation(activation).double().eval()
        y = layer(z)
        if not torch.equal(layer(z[::2]), y[::2]):
            raise ValueError(f"{activation} has no gain, as it does not treat every number alone")
    mean = density @ y
    return float((density @ (y - mean).square()).rsqrt())
