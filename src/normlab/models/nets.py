"""The nets: multilayer perceptron, residual multilayer perceptron and convolutional net, each with any normalizer.

All linear maps and convolutions of a net are initialized before its first normalizer is made, whose random weights
would otherwise change theirs: arms with the same seed start from the same weights.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from normlab.models.layers import (
    Activation,
    Dropout,
    HiddenLayer,
    Norm,
    Weight,
    assign_random_keys,
    check_arguments,
    initialize,
)
from normlab.norms.activation import make_activation


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
        linears = [nn.Linear(*sizes) for sizes in pairwise([math.prod(input_shape), *hidden, out_features])]
        initialize(linears, init)
        for number, linear in enumerate(linears[:-1], start=1):
            layer = HiddenLayer(linear, activation, norm, weight, norm_position, dropout)
            self.add_module(f"hidden{number}", layer)
        self.output = linears[-1]
        assign_random_keys(self)


class ResidualBlock(nn.Module):
    """Residual block: adds the output of a two-layer branch to the residual stream.

    ``before``: ``h + s·W₂ φ(W₁ norm(h))`` (pre-norm); ``after``: ``norm(h + s·W₂ φ(W₁ h))`` (post-norm), with the
    branch scale s; s = None is a parameter that starts at 0 (SkipInit; De and Smith 2020, arXiv:2002.10444).

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
        branch_scale: float | None,
    ) -> None:
        super().__init__()
        self.norm_position = norm_position
        self.branch_scale = nn.Parameter(torch.zeros(())) if branch_scale is None else branch_scale
        self.norm = norm(linears[0].in_features) if norm else nn.Identity()
        self.linear1, self.linear2 = (weight(linear) if weight else linear for linear in linears)
        self.activation = make_activation(activation)
        self.dropout = Dropout(dropout) if dropout > 0 else nn.Identity()

    def branch(self, h: Tensor) -> Tensor:
        """Return the output of the branch before scaling, ``W₂ φ(W₁ h)`` with dropout."""
        return self.dropout(self.linear2(self.activation(self.linear1(h))))

    def forward(self, h: Tensor) -> Tensor:
        """Return the residual stream after this block, ``(B, width)``."""
        if self.norm_position == "before":
            return self.add_scaled(h, self.branch(self.norm(h)))
        return self.norm(self.add_scaled(h, self.branch(h)))

    def add_scaled(self, h: Tensor, branch: Tensor) -> Tensor:
        """Return ``h + s·branch``."""
        if isinstance(self.branch_scale, Tensor):
            return h + self.branch_scale * branch
        return torch.add(h, branch, alpha=self.branch_scale)


def resolve_branch_scale(branch_scale: float | str | None, blocks: int) -> float | None:
    """Return the branch scale as a number: 1 for None, ``1/√blocks`` for ``depth``; None for ``skipinit``.

    Raises:
        ValueError: unless the scale is None, ``depth``, ``skipinit`` or a finite number > 0.
    """
    if branch_scale == "skipinit":
        return None
    if branch_scale is None:
        return 1.0
    if branch_scale == "depth":
        return 1 / math.sqrt(max(blocks, 1))
    number = isinstance(branch_scale, int | float) and not isinstance(branch_scale, bool)
    if not number or not 0 < float(branch_scale) < math.inf:
        expected = "null, depth, skipinit or a finite number > 0"
        raise ValueError(f"net.branch_scale must be {expected}, got {branch_scale}")
    return float(branch_scale)


class FinalNorm(nn.Sequential):
    """The normalizer before the output layer of a pre-norm net."""

    def __init__(self, width: int, norm: Norm | None) -> None:
        super().__init__()
        self.norm = norm(width) if norm else nn.Identity()


class ResMLP(nn.Sequential):
    """Residual multilayer perceptron: linear stem, residual blocks and a linear output layer.

    Pre-norm nets (``norm_position="before"``) have another normalizer before the output layer, because their
    residual stream is not normalized elsewhere.

    Shapes:
        ``(B, *input_shape)`` to ``(B, out_features)``.

    Args:
        input_shape: the shape of one input; several axes are flattened.
        width: the width of the residual stream and of the branches.
        blocks: the number of residual blocks.
        activation, norm, weight, init: as in `MLP`.
        norm_position: ``before`` the branch, in it, or ``after`` its sum with the stream.
        dropout: the dropout probability of the branch outputs.
        branch_scale: the factor s of each branch: a number, None for 1, or ``depth`` for ``1/√blocks``, which
            keeps the variance of the stream independent of the number of blocks. With s = 1, a block whose branch
            keeps the variance doubles that of the stream; batch normalization in the branch prevents that.
            ``skipinit`` is a parameter of each block that starts at 0, with which every block starts as the
            identity (De and Smith 2020, arXiv:2002.10444).

    Raises:
        ValueError: for a width below 1, a negative number of blocks, an invalid branch_scale, and in the cases of
            `MLP`.

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
        check_arguments({}, norm_position, dropout)
        if width < 1 or blocks < 0:
            raise ValueError(f"net.width must be at least 1 and net.blocks 0 or more, got {width} and {blocks}")
        scale = resolve_branch_scale(branch_scale, blocks)
        super().__init__()
        if len(input_shape) > 1:
            self.flatten = nn.Flatten()
        stem, output = nn.Linear(math.prod(input_shape), width), nn.Linear(width, out_features)
        branches = [[nn.Linear(width, width), nn.Linear(width, width)] for _ in range(blocks)]
        initialize([stem, *(linear for pair in branches for linear in pair), output], init)
        self.stem = weight(stem) if weight else stem
        for number, linears in enumerate(branches, start=1):
            block = ResidualBlock(linears, activation, norm, weight, norm_position, dropout, scale)
            self.add_module(f"block{number}", block)
        if norm_position == "before":
            self.last = FinalNorm(width, norm)
        self.output = output
        assign_random_keys(self)


class GlobalAverage(nn.Module):
    """Global average pooling: ``(B, C, H, W)`` to ``(B, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of each channel over all positions."""
        return x.mean((2, 3))


class CNN(nn.Sequential):
    """3 × 3 convolutions (stride 2 after the first), global average pooling and a linear output layer.

    Shapes:
        ``(B, channels, H, W)`` to ``(B, out_features)``.

    Args:
        input_shape: channels, height and width of an image.
        channels: the number of output channels of each convolution.
        norm2d: called with a number of channels, returns the normalizer.
        weight: takes a convolution, returns its replacement, such as a weight-normalized one.
        activation, norm_position, dropout, init: as in `MLP`.

    Raises:
        ValueError: for inputs that are not images, an empty list of channels, a number of channels below 1, and in
            the cases of `MLP`.

    >>> CNN((1, 8, 8), 10, channels=[4, 8])(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        out_features: int,
        *,
        channels: Sequence[int] = (16, 32, 32),
        activation: Activation = "relu",
        norm2d: Norm | None = None,
        weight: Weight | None = None,
        norm_position: str = "before",
        dropout: float = 0.0,
        init: str = "default",
    ) -> None:
        if len(input_shape) != 3:
            raise ValueError(
                "net=cnn takes images of shape (channels, height, width), an input of this data has shape "
                f"{tuple(input_shape)}; choose data with images, such as digits, or net=mlp"
            )
        if not channels:
            raise ValueError("net.channels must be a list of at least one number of channels, got []")
        check_arguments({"channels": channels}, norm_position, dropout)
        super().__init__()
        convs = [
            nn.Conv2d(*sizes, kernel_size=3, stride=2 if number else 1, padding=1)
            for number, sizes in enumerate(pairwise([input_shape[0], *channels]))
        ]
        output = nn.Linear(channels[-1], out_features)
        initialize([*convs, output], init)
        for number, conv in enumerate(convs, start=1):
            layer = HiddenLayer(conv, activation, norm2d, weight, norm_position, dropout)
            self.add_module(f"hidden{number}", layer)
        self.pool = GlobalAverage()
        self.output = output
        assign_random_keys(self)
