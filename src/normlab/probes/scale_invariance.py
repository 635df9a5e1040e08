"""Which weights a loss does not see the scale of, found out on the loss itself.

Letters: K members, P parameters of a member.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from normlab.probes.landscape import Landscape

FACTOR = 2.0
"""What weights are multiplied by: more than 1, where ε counts for less beside the variance."""

TOLERANCE = 0.05
"""By which share the gradient may differ from that of a loss without scale: what ε does is well below it."""


def scales(landscape: Landscape) -> Tensor:
    r"""Return the diagonal of D: the norm of its layer's weights for scale-invariant weights, 1 for others.

    A loss with ``f(s·w) = f(w)`` has at ``s·w`` a gradient that is 1/s of that at w, and a Hessian that is 1/s² of
    it. DHD with ``D = ‖w‖`` is then the same at w and at ``s·w``, and so is its largest eigenvalue.

    No class of layer is asked. A layer's weights, a tensor of two axes or more, are scale-invariant when at twice
    the weights their gradient is half of what it was, and that of all other parameters what it was.

    They are first tried together with their layer's bias. Before layer normalization only both together are
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
        length = weights[name].flatten(1).norm(dim=1)
        unsettled = torch.ones_like(length, dtype=torch.bool)
        for names in with_bias:
            own = landscape.columns(names).to(diagonal.device)
            invariant = unsettled & is_scale_invariant(landscape, own, gradient)
            diagonal = torch.where(invariant.unsqueeze(1) & own, length.unsqueeze(1), diagonal)
            unsettled = unsettled & ~invariant
            if not bool(unsettled.any()):
                break
    return diagonal


def layers(landscape: Landscape) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each tensor of weights, with what to try: with its layer's bias, if there is one, then alone."""
    for name, shape in zip(landscape.names, landscape.shapes, strict=True):
        if len(shape) > 1:
            # A parametrized layer keeps its tensors as layer.parametrizations.weight.original1.
            plain = re.sub(r"parametrizations\.(\w+)\.\w+$", r"\1", name)
            bias = re.sub(r"\w+$", "bias", plain)
            yield name, [[name, bias], [name]] if bias in landscape.names else [[name]]


def is_scale_invariant(landscape: Landscape, own: Tensor, gradient: Tensor) -> Tensor:
    """Return which members' loss does not see the scale of the entries ``own`` of θ: ``(P,)`` to ``(K,)``."""
    moved = landscape.gradients(torch.where(own, FACTOR * landscape.theta, landscape.theta))
    difference = torch.where(own, FACTOR * moved, moved) - gradient
    seen = (gradient[:, own] != 0).any(1)
    return seen & same(difference[:, own], gradient[:, own]) & same(difference[:, ~own], gradient[:, ~own])


def same(difference: Tensor, value: Tensor) -> Tensor:
    """Return where the norm of a difference is within the tolerance: ``(K, n)`` to ``(K,)``."""
    return difference.norm(dim=1) <= TOLERANCE * value.norm(dim=1)
