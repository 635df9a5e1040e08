"""A multilayer perceptron of residual blocks that is handed its normalizer."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normlab.models.layers import Activation, Dropout, Norm, Weight, draw_apart, initialize, require_choices
from normlab.norms.activation import make_activation


class ResidualBlock(nn.Module):
    """A stream that goes through, and a branch that adds to it.

    ``before``: ``h + s·W₂ φ(W₁ norm(h))`` (pre-norm); ``after``: ``norm(h + s·W₂ φ(W₁ h))`` (post-norm), with the
    branch scale s.

    Shapes:
        ``(B, width)`` to ``(B, width)``.
    """

    def __init__(
        self,
        linears: Sequence[nn.Linear],
        activation: Activation,
        norm: Norm | None,
        weight: Weight | None,
        norm_position: str,
        dropout: float,
        branch_scale: float,
    ) -> None:
        super().__init__()
        self.norm_position = norm_position
        self.branch_scale = branch_scale
        self.norm = norm(linears[0].in_features) if norm else nn.Identity()
        self.linear1, self.linear2 = (weight(linear) if weight else linear for linear in linears)
        self.activation = make_activation(activation)
        self.dropout = Dropout(dropout) if dropout > 0 else nn.Identity()

    def branch(self, h: Tensor) -> Tensor:
        """Return the branch, before it is scaled and added to the stream."""
        return self.dropout(self.linear2(self.activation(self.linear1(h))))

    def forward(self, h: Tensor) -> Tensor:
        """Return the stream after this block."""
        if self.norm_position == "before":
            return torch.add(h, self.branch(self.norm(h)), alpha=self.branch_scale)
        return self.norm(torch.add(h, self.branch(h), alpha=self.branch_scale))


def scale_of(branch_scale: float | str | None, blocks: int) -> float:
    """Return the number that a branch is multiplied by in a net of so many blocks.

    Raises:
        ValueError: for anything but None, ``depth`` and a finite number > 0.
    """
    if branch_scale is None:
        return 1.0
    if branch_scale == "depth":
        return 1 / math.sqrt(max(blocks, 1))
    number = isinstance(branch_scale, int | float) and not isinstance(branch_scale, bool)
    if not number or not 0 < float(branch_scale) < math.inf:
        raise ValueError(f"net.branch_scale must be null, depth or a finite number > 0, got {branch_scale}")
    return float(branch_scale)


class Last(nn.Sequential):
    """The last normalizer of a stream that was normalized in its branches alone."""

    def __init__(self, width: int, norm: Norm | None) -> None:
        super().__init__()
        self.norm = norm(width) if norm else nn.Identity()


class ResMLP(nn.Sequential):
    """A linear map to the width of the stream, residual blocks, and a linear output.

    Pre-norm nets (``norm_position="before"``) have one more normalizer before the output, as nothing else would
    keep the size of the stream.

    Shapes:
        ``(B, *input_shape)`` to ``(B, out_features)``.

    Args:
        input_shape: the shape of one input; several axes are flattened.
        width: the width of the stream and of the branches.
        blocks: the number of residual blocks.
        activation, norm, weight, init: as in `MLP`.
        norm_position: ``before`` the branch, in it, or ``after`` its sum with the stream.
        dropout: the probability that an output of a branch is dropped.
        branch_scale: s, what each branch is multiplied by: a number, None for 1, or ``depth`` for ``1/√blocks``,
            with which the variance of the stream does not grow with the number of blocks. With 1 it doubles in a
            block whose branch keeps the variance; batch normalization in the branch prevents that (De and Smith
            2020, arXiv:2002.10444).

    Raises:
        ValueError: for a width below 1, a negative number of blocks, another branch_scale, and what `MLP` raises.

    He, Zhang, Ren and Sun (2016), Identity mappings in deep residual networks, arXiv:1603.05027; Hayou et al.
    (2021), Stable ResNet, arXiv:2010.12859.

    >>> ResMLP((3,), 1, width=4, blocks=2)(torch.zeros(2, 3)).shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        out_features: int,
        *,
        width: int = 64,
        blocks: int = 4,
        activation: Activation = "relu",
        norm: Norm | None = None,
        weight: Weight | None = None,
        norm_position: str = "before",
        dropout: float = 0.0,
        init: str = "default",
        branch_scale: float | str | None = "depth",
    ) -> None:
        require_choices({}, norm_position, dropout)
        if width < 1 or blocks < 0:
            raise ValueError(f"net.width must be at least 1 and net.blocks 0 or more, got {width} and {blocks}")
        scale = scale_of(branch_scale, blocks)
        super().__init__()
        if len(input_shape) > 1:
            self.flatten = nn.Flatten()
        # All linear maps are drawn first: a normalizer that draws weights of its own must not shift the others'.
        stem, output = nn.Linear(math.prod(input_shape), width), nn.Linear(width, out_features)
        branches = [[nn.Linear(width, width), nn.Linear(width, width)] for _ in range(blocks)]
        initialize([stem, *(linear for pair in branches for linear in pair), output], init)
        self.stem = weight(stem) if weight else stem
        for number, linears in enumerate(branches, start=1):
            block = ResidualBlock(linears, activation, norm, weight, norm_position, dropout, scale)
            self.add_module(f"block{number}", block)
        if norm_position == "before":
            self.last = Last(width, norm)
        self.output = output
        draw_apart(self)
