"""Dropout whose draws belong to the layer and its step."""

import torch
from torch import Tensor

from normlab.norms.counter_rng import StochasticLayer


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
