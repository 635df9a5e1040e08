"""A multilayer perceptron that is handed its normalizer."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from normlab.models.dropout import Dropout
from normlab.norms.draws import Drawing

Norm = Callable[[int], nn.Module]
Weight = Callable[[nn.Module], nn.Module]
ACTIVATIONS = {name.lower(): getattr(nn, name) for name in nn.modules.activation.__all__}


def make_activation(activation: str | Callable[[], nn.Module]) -> nn.Module:
    """Return the activation: a name out of torch.nn in any case (``relu``, ``sigmoid``), or what is called.

    >>> make_activation("relu"), make_activation(nn.Tanh)
    (ReLU(), Tanh())

    Raises:
        ValueError: if torch.nn has no activation of this name.
    """
    if not isinstance(activation, str):
        return activation()
    if activation.lower() not in ACTIVATIONS:
        raise ValueError(f"net.activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {activation}")
    return ACTIVATIONS[activation.lower()]()


class HiddenLayer(nn.Sequential):
    """Linear, then normalizer and activation, in either order, then dropout if there is any.

    ``before``: ``φ(norm(W x + b))``; ``after``: ``norm(φ(W x + b))``. Without a normalizer its place, the slot
    named ``norm``, holds the identity, so that every arm is measured at the same point.

    Shapes:
        ``(B, in_features)`` to ``(B, out_features)``.
    """

    def __init__(
        self,
        linear: nn.Linear,
        activation: str | Callable[[], nn.Module],
        norm: Norm | None,
        weight: Weight | None,
        norm_position: str,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        slot = norm(linear.out_features) if norm else nn.Identity()
        self.linear = weight(linear) if weight else linear
        if norm_position == "before":
            self.norm, self.activation = slot, make_activation(activation)
        else:
            self.activation, self.norm = make_activation(activation), slot
        if dropout > 0:
            self.dropout = Dropout(dropout)


class MLP(nn.Sequential):
    """Hidden layers and a linear output.

    Shapes:
        ``(B, *input_shape)`` to ``(B, out_features)``.

    Args:
        input_shape: the shape of one input; several axes are flattened.
        hidden: the width of each hidden layer.
        norm: called with a layer's width, returns its normalizer.
        weight: takes a hidden layer's linear map, returns the one to use in its place.
        norm_position: ``before`` or ``after`` the activation.
        dropout: the probability that an output of a hidden layer is dropped.

    Raises:
        ValueError: for a width below 1, an unknown activation or position, a dropout outside [0, 1).

    >>> import torch
    >>> MLP((3,), 1, hidden=[4])(torch.zeros(2, 3)).shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        out_features: int,
        *,
        hidden: Sequence[int] = (64,),
        activation: str | Callable[[], nn.Module] = "relu",
        norm: Norm | None = None,
        weight: Weight | None = None,
        norm_position: str = "before",
        dropout: float = 0.0,
    ) -> None:
        if any(width < 1 for width in hidden):
            raise ValueError(f"net.hidden must be a list of sizes of at least 1, got {list(hidden)}")
        if norm_position not in ("before", "after"):
            raise ValueError(f"net.norm_position must be before or after, got {norm_position}")
        if not 0 <= dropout < 1:
            raise ValueError(f"net.dropout must be a number in [0, 1), got {dropout}")
        super().__init__()
        if len(input_shape) > 1:
            self.flatten = nn.Flatten()
        # All linear maps are drawn first: a normalizer that draws weights of its own must not shift the others'.
        linears = [nn.Linear(*sizes) for sizes in pairwise([math.prod(input_shape), *hidden, out_features])]
        for number, linear in enumerate(linears[:-1], start=1):
            layer = HiddenLayer(linear, activation, norm, weight, norm_position, dropout)
            self.add_module(f"hidden{number}", layer)
        self.output = linears[-1]
        # Layers of one key would draw the same numbers.
        for key, drawing in enumerate(layer for layer in self.modules() if isinstance(layer, Drawing)):
            drawing.seed(key)
