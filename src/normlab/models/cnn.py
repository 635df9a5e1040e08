"""A small convolutional network for images with a configurable normalizer, :class:`CNN`."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from normlab.models.layers import (
    Activation,
    HiddenLayer,
    Norm,
    Weight,
    assign_random_keys,
    check_arguments,
    initialize,
)


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

    >>> import torch
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
        # All layers are initialized before the normalizers, whose random weights would otherwise change them.
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
