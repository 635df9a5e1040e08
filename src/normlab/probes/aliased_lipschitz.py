"""A published estimator of the gradient's Lipschitz constant with its fault, to show what the fault does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normlab.probes.gradient_lipschitz import require_perturbations
from normlab.probes.landscape import BatchedLoss
from normlab.probes.scene import Measurement, Probe, TrainingSnapshot, normal


def aliased_lipschitz(
    landscape: BatchedLoss, radius: float = 1e-5, samples: int = 100, *, generators: Sequence[torch.Generator]
) -> Tensor:
    """Estimate the Lipschitz constant with a fault: parameters are restored without a copy of the saved tensor.

    The next perturbation, in place, then moves the saved tensor too: from the second sample on both gradients are
    of the same point, and every estimate but the first is 0. :func:`gradient_lipschitz` is the one to use.

    Shapes:
        returns ``(S, K)``.
    """
    require_perturbations(radius, samples)
    parameters, saved = landscape.theta.clone(), landscape.theta.clone()
    found = []
    for delta in radius * normal(generators, (samples, landscape.theta.shape[1]), landscape.theta):
        parameters.add_(delta)
        moved = landscape.gradients(parameters)
        parameters = saved  # the fault
        found.append((moved - landscape.gradients(parameters)).norm(dim=1) / delta.norm(dim=1))
    return torch.stack(found)


@dataclass(frozen=True, kw_only=True)
class AliasedLipschitz(Probe):
    """:func:`aliased_lipschitz`, for the record: median and maximum of estimates that are wrong.

    Args:
        radius, samples, data: as of :class:`GradientLipschitz`.
    """

    radius: float = 1e-5
    samples: int = 100
    data: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_perturbations(self.radius, self.samples)

    def __call__(self, scene: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield median and maximum, and every sample."""
        for mode in self.modes:
            landscape = scene.landscape(mode, self.data)
            found = aliased_lipschitz(landscape, self.radius, self.samples, generators=scene.generators)
            numbers = {"median": found.median(0).values, "max": found.max(0).values}
            yield Measurement(self.name, mode, numbers, {"samples": found.T}, headline=("median", "max"))
