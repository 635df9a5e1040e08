"""Detection of weights whose scale does not change the loss; the entry is `weight_norm_diagonal`.

Letters: K members, P parameters of a member.
"""

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from normlab.probes.landscape import BatchedLoss

FACTORS = (1.0, 3.0)
"""Range of the base-2 exponents of the trial factors. They exceed 1 so that ε matters less than the variance."""

INVARIANCE_TOLERANCE = 0.05
"""Relative tolerance for the gradient of a scale-invariant loss; the effect of ε is well below it."""


def weight_norm_diagonal(landscape: BatchedLoss) -> Tensor:
    r"""Return the diagonal of D: the norm of each group of scale-invariant weights, 1 for other parameters.

    If ``f(s·w) = f(w)``, then the gradient at ``s·w`` is 1/s of that at w, and the Hessian 1/s² of it. DHD with
    ``D = ‖w‖`` is then the same at w and at ``s·w``, and so is its largest eigenvalue.

    The weights of a layer have one row for each output. Batch normalization removes the scale of each row, group
    normalization that of each group of rows, layer normalization that of all rows together. D contains the norms
    of the smallest scale-invariant groups: single rows, else the smallest equal groups of adjacent rows, else the
    whole layer.

    The test does not depend on layer classes. It multiplies each group of rows by a factor of its own. The groups
    are scale-invariant if the gradient is divided by the same factors, and the gradient of all other parameters
    does not change.

    Weights are first tested together with the bias of their layer. Before layer normalization, only weights and
    bias together are scale-invariant; before batch normalization with batch statistics, the bias has no effect,
    and neither has its entry in D. In both cases ‖w‖ is the norm of the weights without the bias, and is used for
    both. If this test fails, the weights are tested alone, as weight normalization only uses their direction. With
    frozen statistics, no normalizer over the batch removes scale.

    Shapes:
        returns ``(K, P)``.

    van Laarhoven (2017), L2 regularization versus batch and weight normalization, arXiv:1706.05350.
    """
    diagonal = torch.ones_like(landscape.theta)
    gradient = landscape.gradients(landscape.theta)
    weights = dict(zip(landscape.names, landscape.unflatten(landscape.theta), strict=True))
    for name, candidates in rescaling_candidates(landscape):
        weight = weights[name]
        untested = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        for names in candidates:
            rows = weight_rows(landscape, names, weight.shape[1]).to(weight.device)
            invariant = untested & is_scale_invariant(landscape, rows.clamp(max=0), gradient)
            untested = untested & ~invariant
            for group, lengths in groupings(weight, rows):
                if not bool(invariant.any()):
                    break
                group_invariant = invariant & is_scale_invariant(landscape, group, gradient)
                entries = group_invariant.unsqueeze(1) & (group >= 0)
                diagonal = torch.where(entries, lengths[:, group.clamp(min=0)], diagonal)
                invariant = invariant & ~group_invariant
            if not bool(untested.any()):
                break
    return diagonal


def weight_rows(landscape: BatchedLoss, names: Sequence[str], rows: int) -> Tensor:
    """Return the row index of each entry of θ in a layer, −1 for entries of other layers, ``(P,)``.

    Each entry of a bias belongs to the row of the same index.
    """
    parts = [
        torch.arange(rows).repeat_interleave(shape.numel() // rows)
        if name in names
        else -torch.ones(shape.numel())
        for name, shape in zip(landscape.names, landscape.shapes, strict=True)
    ]
    return torch.cat(parts).long()


def groupings(weight: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each partition of a layer's rows into equal groups of adjacent rows, smallest groups first.

    Shapes:
        weight ``(K, R, …)``; rows ``(P,)``, see :func:`weight_rows`; yields, for G groups, the group index of each
        entry of θ, ``(P,)``, −1 for other layers, and the norms of the weights of the groups, ``(K, G)``.
    """
    count = weight.shape[1]
    for size in range(1, count + 1):
        if count % size == 0:
            group = torch.where(rows < 0, rows, rows.div(size, rounding_mode="floor"))
            yield group, weight.reshape(len(weight), count // size, -1).norm(dim=2)


def rescaling_candidates(landscape: BatchedLoss) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each weight with the names to rescale together: with the bias of its layer if any, then alone."""
    shapes = dict(zip(landscape.names, landscape.shapes, strict=True))
    for name, shape in shapes.items():
        if len(shape) > 1:
            # The tensors of a parametrized layer are named layer.parametrizations.weight.original1.
            plain = re.sub(r"parametrizations\.(\w+)\.\w+$", r"\1", name)
            bias = re.sub(r"\w+$", "bias", plain)
            yield name, [[name, bias], [name]] if shapes.get(bias) == shape[:1] else [[name]]


def is_scale_invariant(landscape: BatchedLoss, group: Tensor, gradient: Tensor) -> Tensor:
    """Return True for members whose loss does not change with the scale of each group of entries of θ.

    Shapes:
        group ``(P,)``, the group index of each entry, −1 for entries outside of all groups; returns ``(K,)``.
    """
    count, in_group = int(group.max()) + 1, group >= 0
    # Factors differ between groups, to detect a loss that depends on the ratio of their scales.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    factors = torch.logspace(*FACTORS, count, base=2)[order].to(gradient)
    factor = torch.where(in_group, factors[group.clamp(min=0)], 1)
    difference = factor * landscape.gradients(factor * landscape.theta) - gradient
    has_gradient = (gradient[:, in_group] != 0).any(1)
    return (
        has_gradient
        & within_tolerance(difference[:, in_group], gradient[:, in_group])
        & within_tolerance(difference[:, ~in_group], gradient[:, ~in_group])
    )


def within_tolerance(difference: Tensor, value: Tensor) -> Tensor:
    """Return True where the norm of a difference is within the tolerance: ``(K, n)`` to ``(K,)``."""
    return difference.norm(dim=1) <= INVARIANCE_TOLERANCE * value.norm(dim=1)
