"""Building blocks of the nets: hidden layers, dropout, weight initialization and argument checks."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from normlab.errors import require, require_net_sizes
from normlab.norms.activation import make_activation
from normlab.norms.counter_rng import StochasticLayer

Norm = Callable[[int], nn.Module]
Weight = Callable[[nn.Module], nn.Module]
Activation = str | Callable[[], nn.Module]
LinearMap = nn.Linear | nn.Conv2d
INITS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "default": None,
    "kaiming": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
    "gaussian": lambda weight: nn.init.normal_(weight, std=0.01),
}
"""Weight initializations by name; ``default`` keeps the initialization of torch."""


class Dropout(StochasticLayer):
    """Inverted dropout with a counter-based generator.

    In training mode ``y = x · m / (1 − p)`` with ``m ~ Bernoulli(1 − p)`` for each entry; in evaluation mode
    ``y = x`` without random numbers. The mask is the same in every precision, except for about one entry in 2²⁴.

    Shapes: x and y ``(B, …)``; y has the dtype of x.

    Raises:
        ValueError: if p is outside [0, 1).

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
        """Return y; in training mode, also advance the generator by one step."""
        if not self.training:
            return x
        mask = self.uniform_by_sample(x.shape, torch.promote_types(x.dtype, torch.float32)) >= self.p
        self.advance()
        return x * mask / (1 - self.p)

    def extra_repr(self) -> str:
        """Return p in the format of ``torch.nn.Dropout``."""
        return f"p={self.p}"


def initialize(maps: Iterable[LinearMap], init: str) -> None:
    """Initialize the weights of linear maps and convolutions, and set the biases to 0.

    ``default`` keeps torch's initialization, ``U(±1/√fan_in)`` for weights and biases. ``kaiming``: ``N(0,
    2/fan_in)``, for ReLU (He et al. 2015, arXiv:1502.01852). ``xavier``: ``U(±√(6/(fan_in + fan_out)))`` (Glorot
    and Bengio 2010). ``gaussian``: ``N(0, 0.01²)`` for every width.

    Raises:
        ValueError: for a name that is not in ``INITS``.
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


def check_arguments(sizes: dict[str, Sequence[int]], norm_position: str, dropout: float) -> None:
    """Raise ValueError for sizes below 1, an unknown ``norm_position``, or dropout outside [0, 1)."""
    require_net_sizes(sizes, dropout)
    require(norm_position in ("before", "after"), "net.norm_position", "before or after", norm_position)


def assign_random_keys(net: nn.Module) -> None:
    """Assign each stochastic layer a distinct key; layers with the same key draw the same numbers."""
    for key, layer in enumerate(layer for layer in net.modules() if isinstance(layer, StochasticLayer)):
        layer.seed(key)


class HiddenLayer(nn.Sequential):
    """A linear map or convolution, normalizer and activation in either order, and optional dropout.

    ``before``: ``φ(norm(W x + b))``; ``after``: ``norm(φ(W x + b))``. Without a normalizer, the submodule ``norm``
    is the identity, so probes measure every arm at the same point.

    Shapes:
        ``(B, in_features)`` to ``(B, out_features)``, or ``(B, in_channels, H, W)`` to ``(B, out_channels, H',
        W')``.
    """

    def __init__(
        self,
        layer: LinearMap,
        activation: Activation,
        norm: Norm | None,
        weight: Weight | None,
        norm_position: str,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        normalizer = norm(layer.weight.shape[0]) if norm else nn.Identity()
        name = "linear" if isinstance(layer, nn.Linear) else "conv"
        self.add_module(name, weight(layer) if weight else layer)
        if norm_position == "before":
            self.norm, self.activation = normalizer, make_activation(activation)
        else:
            self.activation, self.norm = make_activation(activation), normalizer
        if dropout > 0:
            self.dropout = Dropout(dropout)
