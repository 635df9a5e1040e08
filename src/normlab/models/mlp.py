"""A multilayer perceptron that is handed its normalizer."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from normlab.models.layers import (
    Activation,
    HiddenLayer,
    Norm,
    Weight,
    draw_apart,
    initialize,
    require_choices,
)


class MLP(nn.Sequential):
    """Hidden layers and a linear output.

    Shapes:
        ``(B, *input_shape)`` to ``(B, out_features)``.

    Args:
        input_shape: the shape of one input; several axes are flattened.
        hidden: the width of each hidden layer.
        activation: a name out of torch.nn, in any case, or what makes one.
        norm: called with a layer's width, returns its normalizer.
        weight: takes a hidden layer's linear map, returns the one to use in its place.
        norm_position: ``before`` or ``after`` the activation.
        dropout: the probability that an output of a hidden layer is dropped.
        init: how the weights begin, a name out of `normlab.models.layers.INITS`.

    Raises:
        ValueError: for a width below 1, an unknown activation, position or initialization, a dropout outside [0,
        1).

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
        require_choices({"hidden": hidden}, norm_position, dropout)
        super().__init__()
        if len(input_shape) > 1:
            self.flatten = nn.Flatten()
        # All linear maps are drawn first: a normalizer that draws weights of its own must not shift the others'.
        linears = [nn.Linear(*sizes) for sizes in pairwise([math.prod(input_shape), *hidden, out_features])]
        initialize(linears, init)
        for number, linear in enumerate(linears[:-1], start=1):
            layer = HiddenLayer(linear, activation, norm, weight, norm_position, dropout)
            self.add_module(f"hidden{number}", layer)
        self.output = linears[-1]
        draw_apart(self)
