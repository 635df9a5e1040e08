"""Two faults of the source experiments, reproduced on purpose: their initial weights, and a wrong estimator.

Use neither for anything else; see docs/source-experiments.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normlab.models import MLP
from normlab.models.layers import Norm, Weight
from normlab.probes import Measurement, Probe, TrainingSnapshot
from normlab.probes.gradient_lipschitz import require_perturbations
from normlab.probes.landscape import BatchedLoss
from normlab.probes.snapshot import member_normal


class SourceMLP(MLP):
    """An `MLP` whose weights are drawn after the fitness data, from the same generator.

    The program makes its data, then a net with BatchNorm, then one without, after one ``torch.manual_seed(42)``:
    with that seed these are its weights. Two arms of one seed therefore start from different ones, as they do not
    with `MLP`.

    Shapes: as of `MLP`.

    Args:
        input_shape, out_features, hidden, norm, weight: as in `MLP`.
        samples: how many people the data are of.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        out_features: int,
        *,
        hidden: Sequence[int] = (64,),
        norm: Norm | None = None,
        weight: Weight | None = None,
        samples: int = 1000,
    ) -> None:
        for _ in range(3):
            torch.rand(samples, 1)
        torch.randn(samples, 1)
        if norm is None:
            MLP(input_shape, out_features, hidden=hidden)
        super().__init__(input_shape, out_features, hidden=hidden, norm=norm, weight=weight)


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
    for delta in radius * member_normal(generators, (samples, landscape.theta.shape[1]), landscape.theta):
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
