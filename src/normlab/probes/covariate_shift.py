"""Internal covariate shift: change of a layer's gradient by the updates of the layers below it.

Letters: K members, L layers, P parameters of a member.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from normlab.probes.along_gradient import cosine
from normlab.probes.interpolation import flatten_state
from normlab.probes.landscape import BatchedLoss
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot, parameters_by_layer


class Shift(NamedTuple):
    """Change of the gradient of each layer from G to G', ``(L, K)`` each.

    Attributes:
        difference: ``‖G − G'‖``.
        relative: ``‖G − G'‖ / ‖G‖``, NaN where G is 0.
        cosine: cosine of the angle between G and G', NaN where one of them is 0.
    """

    difference: Tensor
    relative: Tensor
    cosine: Tensor


def covariate_shift(landscape: BatchedLoss, after: Tensor, layers: Sequence[Tensor]) -> Shift:
    r"""Return the change of each layer's gradient when only the layers below it take their step.

    .. math::
        G_i = \nabla_{\theta_i} f(\theta_1, \dots, \theta_L), \quad
        G'_i = \nabla_{\theta_i} f(\theta^+_1, \dots, \theta^+_{i-1}, \theta_i, \dots, \theta_L)

    with θ the parameters before the step and θ⁺ those after it. The first layer has no layer below, so its shift
    is 0. The points of all layers are evaluated in one batch.

    Shapes:
        after ``(K, P)``; each of layers ``(P,)``, boolean.

    Args:
        landscape: the loss, at the parameters before the step.
        after: the parameters after the step.
        layers: masks of the parameters of each layer, in order of the forward pass; see
            :meth:`BatchedLoss.parameter_mask`.

    Santurkar, Tsipras, Ilyas and Madry (2018), How does batch normalization help optimization?, arXiv:1805.11604,
    definition 2.1.
    """
    masks = torch.stack(list(layers))
    below = (masks.cumsum(0) - masks.long()).bool()
    gradients = landscape.gradients(torch.where(below.unsqueeze(1), after, landscape.theta))
    # The first point is θ itself, because no layer is below the first.
    pairs = [(gradients[0, :, mask], gradient[:, mask]) for mask, gradient in zip(masks, gradients, strict=True)]
    difference = torch.stack([(g - moved).norm(dim=1) for g, moved in pairs])
    size = torch.stack([g.norm(dim=1) for g, _ in pairs])
    relative = torch.where(size == 0, torch.nan, difference / size)
    return Shift(difference, relative, torch.stack([cosine(g, moved) for g, moved in pairs]))


@dataclass(frozen=True, kw_only=True)
class CovariateShift(Probe):
    """Runs :func:`covariate_shift` for every layer, with the optimizer's update and the minibatch of the step.

    The layers are those of :func:`normlab.probes.snapshot.parameters_by_layer`; the parameters of a layer include
    those of its normalizer. Buffers, and therefore frozen statistics, are those before the step.

    Numbers: ``difference``, ``relative`` and ``cosine`` of every layer, such as ``layer/difference``, and their
    means over layers without the first, whose shift is 0 by definition. Layers with gradient 0 are excluded from
    the means of ``relative`` and ``cosine``. All numbers are NaN if no step is taken.

    Args:
        double: whether to compute in float64.
    """

    double: bool = False
    modes: Sequence[str] = ("batch",)

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield a measurement for each mode."""
        trained = set(snapshot.trained)
        pairs = parameters_by_layer(snapshot.net).items()
        parameters = {layer: [name for name in names if name in trained] for layer, names in pairs}
        layers = [layer for layer, names in parameters.items() if names]
        # If the first layer of the net is not trained, every trained layer has a layer below.
        higher = slice(int(layers[0] == next(iter(parameters))), None)
        for mode in self.modes:
            landscape = snapshot.landscape(mode, double=self.double)
            if snapshot.after is snapshot.before:
                shift = Shift(*landscape.theta.new_full((3, len(layers), landscape.members), torch.nan))
            else:
                masks = [landscape.parameter_mask(parameters[layer]) for layer in layers]
                shift = covariate_shift(landscape, flatten_state(landscape, snapshot.after), masks)
            quantities = shift._asdict()
            numbers = {
                name: mean_over_layers(values[higher], shift.difference[higher])
                for name, values in quantities.items()
            }
            for name, values in quantities.items():
                numbers |= {f"{layer}/{name}": value for layer, value in zip(layers, values, strict=True)}
            yield Measurement(self.name, mode, numbers, headline=("relative", "cosine"))


def mean_over_layers(values: Tensor, difference: Tensor) -> Tensor:
    """Return the mean over the layers with a gradient other than 0, ``(L, K)`` to ``(K,)``.

    NaN is kept where the difference is not finite either, because there the loss itself is not finite.
    """
    undefined = values.isnan() & difference.isfinite()
    return values.masked_fill(undefined, 0).sum(0) / (~undefined).sum(0)
