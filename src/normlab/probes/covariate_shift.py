"""Internal covariate shift: how far the updates of the layers below move the gradient of a layer.

Letters: K members, L layers, P parameters of a member.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from normlab.probes.along_gradient import cosine
from normlab.probes.interpolation import point
from normlab.probes.landscape import BatchedLoss
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot, parts_of


class Shift(NamedTuple):
    """How far the gradient of each layer moves, ``(L, K)`` each.

    Attributes:
        difference: ``‖G − G'‖``.
        relative: ``‖G − G'‖ / ‖G‖``, NaN where G is 0.
        cosine: of the angle between G and G', NaN where one of them is 0.
    """

    difference: Tensor
    relative: Tensor
    cosine: Tensor


def covariate_shift(landscape: BatchedLoss, after: Tensor, layers: Sequence[Tensor]) -> Shift:
    r"""Return how the gradient of each layer moves when only the layers below it take their step.

    .. math::
        G_i = \nabla_{\theta_i} f(\theta_1, \dots, \theta_L), \quad
        G'_i = \nabla_{\theta_i} f(\theta^+_1, \dots, \theta^+_{i-1}, \theta_i, \dots, \theta_L)

    with θ the parameters before the step and θ⁺ those after it. Below the first layer there is none: its shift is
    0. The points of all layers are measured in one batch.

    Shapes:
        after ``(K, P)``; each of layers ``(P,)``, true or false.

    Args:
        landscape: the loss, at the parameters before the step.
        after: the parameters after it.
        layers: which parameters belong to each layer, in the order of the data; see `BatchedLoss.columns`.

    Santurkar, Tsipras, Ilyas and Madry (2018), How does batch normalization help optimization?, arXiv:1805.11604,
    definition 2.1.
    """
    masks = torch.stack(list(layers))
    below = (masks.cumsum(0) - masks.long()).bool()
    gradients = landscape.gradients(torch.where(below.unsqueeze(1), after, landscape.theta))
    # Nothing has moved for the first layer: that point is θ itself.
    pairs = [(gradients[0, :, mask], gradient[:, mask]) for mask, gradient in zip(masks, gradients, strict=True)]
    difference = torch.stack([(g - moved).norm(dim=1) for g, moved in pairs])
    size = torch.stack([g.norm(dim=1) for g, _ in pairs])
    relative = torch.where(size == 0, torch.nan, difference / size)
    return Shift(difference, relative, torch.stack([cosine(g, moved) for g, moved in pairs]))


@dataclass(frozen=True, kw_only=True)
class CovariateShift(Probe):
    """:func:`covariate_shift` of every layer by the optimizer's own update, on the step's own minibatch.

    A layer's parameters are all that it holds, those of its normalizer among them; the layers are those of
    :func:`normlab.probes.snapshot.parts_of`, which hold every parameter that is trained. Buffers, and so frozen
    statistics, are those before the step.

    Found are ``difference``, ``relative`` and ``cosine`` of every layer, as ``layer/difference``, and their means
    over the layers but the net's first, whose shift is 0 by definition. A layer whose gradient is 0, so that there
    is no angle, is left out of the means of ``relative`` and ``cosine``. All are NaN where no step is taken.

    Args:
        double: whether to measure in float64.
    """

    double: bool = False
    modes: Sequence[str] = ("batch",)

    def __call__(self, scene: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield the shift of each layer, and the means."""
        trained = set(scene.trained)
        pairs = parts_of(scene.net).items()
        parts = {layer: [name for name in names if name in trained] for layer, names in pairs}
        layers = [layer for layer, names in parts.items() if names]
        # Where the net's first layer is not trained, all of those that are have layers below.
        higher = slice(int(layers[0] == next(iter(parts))), None)
        for mode in self.modes:
            landscape = scene.landscape(mode, double=self.double)
            if scene.after is scene.before:
                shift = Shift(*landscape.theta.new_full((3, len(layers), landscape.members), torch.nan))
            else:
                masks = [landscape.columns(parts[layer]) for layer in layers]
                shift = covariate_shift(landscape, point(landscape, scene.after), masks)
            found = shift._asdict()
            numbers = {
                name: mean_over_layers(values[higher], shift.difference[higher]) for name, values in found.items()
            }
            for name, values in found.items():
                numbers |= {f"{layer}/{name}": value for layer, value in zip(layers, values, strict=True)}
            yield Measurement(self.name, mode, numbers, headline=("relative", "cosine"))


def mean_over_layers(values: Tensor, difference: Tensor) -> Tensor:
    """Return the mean over layers, ``(L, K)`` to ``(K,)``, without those that have no value for a gradient of 0.

    NaN stays where the difference is not finite either: there something went wrong.
    """
    without = values.isnan() & difference.isfinite()
    return values.masked_fill(without, 0).sum(0) / (~without).sum(0)
