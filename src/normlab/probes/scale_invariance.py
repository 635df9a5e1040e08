"""Which weights a loss does not see the scale of, found out on the loss itself.

Letters: K members, P parameters of a member.
"""

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from normlab.probes.landscape import BatchedLoss

FACTORS = (1.0, 3.0)
"""Range of exponents of 2 that weights are multiplied by. Above 1, ε counts for less beside the variance."""

INVARIANCE_TOLERANCE = 0.05
"""By which share the gradient may differ from that of a loss without scale: what ε does is well below it."""


def weight_norm_diagonal(landscape: BatchedLoss) -> Tensor:
    r"""Return the diagonal of D: the norm of the weights that are scale-invariant together, 1 for others.

    A loss with ``f(s·w) = f(w)`` has at ``s·w`` a gradient that is 1/s of that at w, and a Hessian that is 1/s² of
    it. DHD with ``D = ‖w‖`` is then the same at w and at ``s·w``, and so is its largest eigenvalue.

    The weights of a layer are rows, one for each output. Batch normalization takes out the scale of each row,
    layer normalization that of all rows together, group normalization that of each group of rows. D holds the
    norms of the smallest groups whose scale the loss does not see: single rows, else the smallest equal groups of
    adjacent rows, else the whole layer.

    No class of layer is asked. Groups of a tensor of two axes or more are scale-invariant when with each
    multiplied by a factor of its own the gradient is divided by the same factors, and that of all other
    parameters stays.

    Weights are first tried together with their layer's bias. Before layer normalization only both together are
    scale-invariant, and both are rescaled or none; before batch normalization by the batch's statistics the bias
    has no effect, nor has its entry in D. So ‖w‖, in either case, is that of the weights without the bias, and
    holds for both. If that fails the weights are tried alone: weight normalization takes only their direction. By
    frozen statistics no normalizer over the batch removes scale.

    Shapes:
        returns ``(K, P)``.

    van Laarhoven (2017), L2 regularization versus batch and weight normalization, arXiv:1706.05350.
    """
    diagonal = torch.ones_like(landscape.theta)
    gradient = landscape.gradients(landscape.theta)
    weights = dict(zip(landscape.names, landscape.parts(landscape.theta), strict=True))
    for name, with_bias in layers(landscape):
        weight = weights[name]
        unsettled = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        for names in with_bias:
            rows = weight_rows(landscape, names, weight.shape[1]).to(weight.device)
            invariant = unsettled & is_scale_invariant(landscape, rows.clamp(max=0), gradient)
            unsettled = unsettled & ~invariant
            for group, lengths in groupings(weight, rows):
                if not bool(invariant.any()):
                    break
                found = invariant & is_scale_invariant(landscape, group, gradient)
                own = found.unsqueeze(1) & (group >= 0)
                diagonal = torch.where(own, lengths[:, group.clamp(min=0)], diagonal)
                invariant = invariant & ~found
            if not bool(unsettled.any()):
                break
    return diagonal


def weight_rows(landscape: BatchedLoss, names: Sequence[str], rows: int) -> Tensor:
    """Return the row of a layer's weights that each entry of θ belongs to, −1 for other layers' entries: ``(P,)``.

    A bias has an entry for each row.
    """
    parts = [
        torch.arange(rows).repeat_interleave(shape.numel() // rows)
        if name in names
        else -torch.ones(shape.numel())
        for name, shape in zip(landscape.names, landscape.shapes, strict=True)
    ]
    return torch.cat(parts).long()


def groupings(weight: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each division of a layer's rows into equal groups of adjacent ones, the smallest groups first.

    Shapes:
        weight ``(K, R, …)``; rows, of each entry of θ, ``(P,)``; yields with G groups the group of each entry,
        ``(P,)``, −1 for other layers' entries, and the norms of the groups' weights, ``(K, G)``.
    """
    count = weight.shape[1]
    for size in range(1, count + 1):
        if count % size == 0:
            group = torch.where(rows < 0, rows, rows.div(size, rounding_mode="floor"))
            yield group, weight.reshape(len(weight), count // size, -1).norm(dim=2)


def layers(landscape: BatchedLoss) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each tensor of weights, with what to try: with its layer's bias, if there is one, then alone."""
    shapes = dict(zip(landscape.names, landscape.shapes, strict=True))
    for name, shape in shapes.items():
        if len(shape) > 1:
            # A parametrized layer keeps its tensors as layer.parametrizations.weight.original1.
            plain = re.sub(r"parametrizations\.(\w+)\.\w+$", r"\1", name)
            bias = re.sub(r"\w+$", "bias", plain)
            yield name, [[name, bias], [name]] if shapes.get(bias) == shape[:1] else [[name]]


def is_scale_invariant(landscape: BatchedLoss, group: Tensor, gradient: Tensor) -> Tensor:
    """Return which members' loss does not change with the scale of each group of entries of θ.

    Shapes:
        group ``(P,)``, the number of each entry's group, −1 for entries of none; returns ``(K,)``.
    """
    count, own = int(group.max()) + 1, group >= 0
    # Each group has a factor of its own, so that a loss that depends on their ratio is told apart.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    factors = torch.logspace(*FACTORS, count, base=2)[order].to(gradient)
    factor = torch.where(own, factors[group.clamp(min=0)], 1)
    difference = factor * landscape.gradients(factor * landscape.theta) - gradient
    seen = (gradient[:, own] != 0).any(1)
    return seen & same(difference[:, own], gradient[:, own]) & same(difference[:, ~own], gradient[:, ~own])


def same(difference: Tensor, value: Tensor) -> Tensor:
    """Return where the norm of a difference is within the tolerance: ``(K, n)`` to ``(K,)``."""
    return difference.norm(dim=1) <= INVARIANCE_TOLERANCE * value.norm(dim=1)
