"""A small convolutional net for images that is handed its normalizer."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from normlab.models.layers import (
    Activation,
    HiddenLayer,
    Norm,
    Weight,
    draw_apart,
    initialize,
    require_choices,
)


class GlobalAverage(nn.Module):
    """The mean of each channel over all positions: ``(B, C, H, W)`` to ``(B, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the means."""
        return x.mean((2, 3))


class CNN(nn.Sequential):
    """Convolutions of 3 × 3, all but the first with stride 2, the mean over all positions, and a linear output.

    Shapes:
        ``(B, channels, H, W)`` to ``(B, out_features)``.

    Args:
        input_shape: channels, height and width of an image.
        channels: how many channels each convolution puts out.
        norm2d: called with a number of channels, returns their normalizer.
        weight: takes a convolution, returns the one to use in its place.
        activation, norm_position, dropout, init: as in `MLP`.

    Raises:
        ValueError: for inputs that are not images, a number of channels below 1, and what `MLP` raises.

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
            raise ValueError("net.channels must have at least one number of channels, got []")
        require_choices({"channels": channels}, norm_position, dropout)
        super().__init__()
        # All maps are drawn first: a normalizer that draws weights of its own must not shift the others'.
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
        draw_apart(self)
