"""Statistics of what goes through activations: moments, dead and saturated units, effective rank.

All layers are measured together: with a small net it is calls of functions that take time.

Letters: K members, L layers, D units of a layer, R rows, the samples at every position of an image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from normlab.models.layer_lookup import mean_std

Numbers = dict[str, Tensor]


def statistics(outputs: Sequence[Tensor]) -> Numbers:
    r"""Return the statistics of layers' outputs; H are one layer's outputs in one member.

    ``mean`` and ``std`` are over all entries. ``dead`` is the share of units that put out the same for every row,
    such as a ReLU that is never positive, and NaN of a single row. ``effective_rank`` is that of H, see
    :func:`rank_of`, and ``centered_effective_rank`` that of H less its mean row.

    After a ReLU the first is at most about π² whatever the width: of D independent units with standard normal
    inputs M has 1/2 on its diagonal and 1/2π elsewhere, so that the mean row outweighs all else. The second is
    not bounded so.

    Shapes:
        outputs ``(K, R, D)`` each; returns ``(L, K)`` each, in float64.
    """
    found = torch.stack([value for h in outputs for value in of_layer(h)])
    mean, std, alive, *moments = found.view(len(outputs), 7, -1).unbind(1)
    trace = moments[0]
    units = found.new_tensor([[h.shape[2] if h.shape[1] > 1 else torch.nan] for h in outputs])
    return {
        "mean": mean + 0 * trace,
        "std": std,
        # What is not finite never is the same, but is not alive either: times 0 it is NaN.
        "dead": 1 - alive / units + 0 * trace,
        "effective_rank": rank_of(*moments[:2]),
        "centered_effective_rank": rank_of(*moments[2:]),
    }


def of_layer(h: Tensor) -> tuple[Tensor, ...]:
    """Return mean, standard deviation, the number of units that are alive, and the moments of H and H centered."""
    # A double holds the fourth powers of what float32 holds.
    h = h.double()
    # Units that are the same for every row are 0 in this, and stay so.
    centered = h - h[:, :1]
    alive = centered.abs().sum(1).count_nonzero(1)
    centered -= centered.mean(1, keepdim=True)
    return *mean_std(h.flatten(1)), alive, *gram_moments(h), *gram_moments(centered)


def gram_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    """Return tr HᵀH and ‖HᵀH‖: ``(K, R, D)`` to twice ``(K,)``."""
    gram = torch.bmm(h, h.mT) if h.shape[1] < h.shape[2] else torch.bmm(h.mT, h)
    return gram.diagonal(dim1=1, dim2=2).sum(1), norm(gram)


def rank_of(trace: Tensor, gram: Tensor) -> Tensor:
    r"""Return the effective rank from tr HᵀH and ‖HᵀH‖: a lower bound on the rank of H.

    .. math::
        \frac{(\operatorname{tr} M)^2}{\|M\|_F^2} \le \operatorname{rank} H, \quad M = \frac{1}{R} H^\top H

    It is 1 where all rows are multiples of one, which deep nets without normalization come near to, D where M is a
    multiple of the identity, and 0 where there are zeros only. Of outputs in float64 that are below 1e-77 or above
    1e77 it is not to be had.

    Daneshmand, Kohler, Bach, Hofmann and Lucchi (2020), Batch normalization provably avoids rank collapse for
    randomly initialised deep networks, arXiv:2003.01652.
    """
    return (trace / gram).square().masked_fill(trace == 0, 0)


def preactivation_rank(inputs: Sequence[Tensor]) -> Numbers:
    """Return the effective rank of the inputs of layers' activations: ``(K, R, D)`` each to ``(L, K)``."""
    moments = [gram_moments(h.double()) for h in inputs]
    return {"preactivation_effective_rank": torch.stack([rank_of(*each) for each in moments])}


def saturated(h: Tensor, low: float, high: float, threshold: float) -> Tensor:
    """Return the share of outputs that are at a bound, or nearer to it than ``threshold · (high − low)``.

    Shapes:
        h ``(K, R, D)``; returns ``(K,)``.
    """
    distance = (h - (low + high) / 2).abs_().flatten(1)
    return (distance >= (0.5 - threshold) * (high - low)).double().mean(1) + 0 * distance.sum(1)


def norm(x: Tensor) -> Tensor:
    """Return the norm of each member's ``(K, …)``, in float64: a vanishing gradient's square is 0 in float32."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), dtype=torch.float64)
