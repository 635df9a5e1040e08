"""Layers that the nets share."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from normlab.norms.activation import make_activation
from normlab.norms.counter_rng import StochasticLayer

Norm = Callable[[int], nn.Module]
Weight = Callable[[nn.Module], nn.Module]
Activation = str | Callable[[], nn.Module]
Map = nn.Linear | nn.Conv2d
INITS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "default": None,
    "kaiming": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
    "gaussian": lambda weight: nn.init.normal_(weight, std=0.01),
}
"""How weights may begin, by name."""


class Dropout(StochasticLayer):
    """Sets each entry to zero with probability p, and scales the others so that the mean stays.

    In training mode ``y = x · m / (1 − p)`` with ``m ~ Bernoulli(1 − p)`` for each entry; in evaluation mode
    ``y = x``, and nothing is drawn. What is dropped does not depend on the precision, but for one entry in 2²⁴.

    Shapes: x and y ``(B, …)``; y has the dtype of x.

    Raises:
        ValueError: for a p outside [0, 1).

    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), Dropout: a simple way to prevent neural
    networks from overfitting, JMLR 15.

    >>> layer = Dropout(0.5)
    >>> layer(torch.ones(8))
    tensor([0., 2., 2., 2., 0., 2., 0., 0.])
    >>> layer.eval()(torch.ones(3))
    tensor([1., 1., 1.])
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p of Dropout must be a number in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x; in training mode also go on to the next step."""
        if not self.training:
            return x
        kept = self.uniform(x.shape, torch.promote_types(x.dtype, torch.float32)) >= self.p
        self.advance()
        return x * kept / (1 - self.p)

    def extra_repr(self) -> str:
        """Return the argument as ``torch.nn.Dropout`` prints it."""
        return f"p={self.p}"


def initialize(maps: Iterable[Map], init: str) -> None:
    """Draw the weights of linear maps and convolutions anew; biases then begin at 0.

    ``default`` leaves them as torch made them, ``U(±1/√fan_in)`` weights and biases alike. ``kaiming``: ``N(0,
    2/fan_in)``, for ReLU (He 2015, arXiv:1502.01852). ``xavier``: ``U(±√(6/(fan_in + fan_out)))`` (Glorot and
    Bengio 2010). ``gaussian``: ``N(0, 0.01²)``, small whatever the width.

    Raises:
        ValueError: for another name.
    """
    if init not in INITS:
        raise ValueError(f"net.init must be one of {', '.join(INITS)}, got {init}")
    draw = INITS[init]
    if draw is None:
        return
    for layer in maps:
        draw(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def require_choices(sizes: dict[str, Sequence[int]], norm_position: str, dropout: float) -> None:
    """Refuse sizes below 1, an unknown position of the normalizers, and a dropout outside [0, 1)."""
    for name, values in sizes.items():
        if any(size < 1 for size in values):
            raise ValueError(f"net.{name} must be a list of sizes of at least 1, got {list(values)}")
    if norm_position not in ("before", "after"):
        raise ValueError(f"net.norm_position must be before or after, got {norm_position}")
    if not 0 <= dropout < 1:
        raise ValueError(f"net.dropout must be a number in [0, 1), got {dropout}")


def draw_apart(net: nn.Module) -> None:
    """Give each layer that draws a key of its own: those of one key would draw the same numbers."""
    for key, layer in enumerate(layer for layer in net.modules() if isinstance(layer, StochasticLayer)):
        layer.seed(key)


class HiddenLayer(nn.Sequential):
    """A linear map or a convolution, then normalizer and activation in either order, then dropout if there is any.

    ``before``: ``φ(norm(W x + b))``; ``after``: ``norm(φ(W x + b))``. Without a normalizer its place, the slot
    named ``norm``, holds the identity, so that every arm is measured at the same point.

    Shapes:
        ``(B, in_features)`` to ``(B, out_features)``, or ``(B, in_channels, H, W)`` to ``(B, out_channels, H',
        W')``.
    """

    def __init__(
        self,
        layer: Map,
        activation: Activation,
        norm: Norm | None,
        weight: Weight | None,
        norm_position: str,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        slot = norm(layer.weight.shape[0]) if norm else nn.Identity()
        name = "linear" if isinstance(layer, nn.Linear) else "conv"
        self.add_module(name, weight(layer) if weight else layer)
        if norm_position == "before":
            self.norm, self.activation = slot, make_activation(activation)
        else:
            self.activation, self.norm = make_activation(activation), slot
        if dropout > 0:
            self.dropout = Dropout(dropout)
