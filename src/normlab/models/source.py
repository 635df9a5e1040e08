"""The multilayer perceptron of the second source experiment, with the weights that its program drew."""

from collections.abc import Sequence

import torch

from normlab.models.layers import Norm, Weight
from normlab.models.mlp import MLP


class SourceMLP(MLP):
    """An `MLP` whose weights are drawn after the fitness data, from the same generator.

    The program makes its data, then a net with BatchNorm, then one without, after one ``torch.manual_seed(42)``:
    with that seed these are its weights. Two arms of one seed therefore start from different ones, as they do not
    with `MLP`.

    Shapes: as of `MLP`.

    Args:
        input_shape, out_features, hidden, norm, weight: as in `MLP`.
        samples: how many people the data are of.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        out_features: int,
        *,
        hidden: Sequence[int] = (64,),
        norm: Norm | None = None,
        weight: Weight | None = None,
        samples: int = 1000,
    ) -> None:
        for _ in range(3):
            torch.rand(samples, 1)
        torch.randn(samples, 1)
        if norm is None:
            MLP(input_shape, out_features, hidden=hidden)
        super().__init__(input_shape, out_features, hidden=hidden, norm=norm, weight=weight)
