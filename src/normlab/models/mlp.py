"""A multilayer perceptron with a configurable normalizer, :class:`MLP`."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from normlab.models.layers import (
    Activation,
    HiddenLayer,
    Norm,
    Weight,
    assign_random_keys,
    check_arguments,
    initialize,
)


class MLP(nn.Sequential):
    """Multilayer perceptron: hidden layers with normalizer and activation, and a linear output layer.

    Shapes:
        ``(B, *input_shape)`` to ``(B, out_features)``.

    Args:
        input_shape: the shape of one input; several axes are flattened.
        hidden: the width of each hidden layer.
        activation: the name of a torch.nn activation in any case, or a callable that returns a module.
        norm: called with a layer's width, returns the normalizer; None for no normalizer.
        weight: takes a hidden layer's linear map, returns its replacement, such as a weight-normalized one.
        norm_position: ``before`` or ``after`` the activation.
        dropout: the dropout probability of the hidden layers.
        init: the weight initialization, a name in `normlab.models.layers.INITS`.

    Raises:
        ValueError: for a width below 1, an unknown activation, position or initialization, or a dropout outside
            [0, 1).

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
        activation: Activation = "relu",
        norm: Norm | None = None,
        weight: Weight | None = None,
        norm_position: str = "before",
        dropout: float = 0.0,
        init: str = "default",
    ) -> None:
        check_arguments({"hidden": hidden}, norm_position, dropout)
        super().__init__()
        if len(input_shape) > 1:
            self.flatten = nn.Flatten()
        # All linear maps are initialized before the normalizers, whose random weights would otherwise change them.
        linears = [nn.Linear(*sizes) for sizes in pairwise([math.prod(input_shape), *hidden, out_features])]
        initialize(linears, init)
        for number, linear in enumerate(linears[:-1], start=1):
            layer = HiddenLayer(linear, activation, norm, weight, norm_position, dropout)
            self.add_module(f"hidden{number}", layer)
        self.output = linears[-1]
        assign_random_keys(self)
