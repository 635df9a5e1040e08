"""Parts of the source experiments: the net `SourceMLP` and the faulty probe `AliasedLipschitz`.

Use them only to reproduce those experiments; see docs/source-experiments.md.
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


class SourceMLP(MLP):
    """An `MLP` with the initial weights of the source program.

    The program calls ``torch.manual_seed(42)`` once, then draws its data, a net with BatchNorm and a net without,
    all from the global generator. This class repeats these draws before it initializes its own weights, so seed 42
    reproduces the program's weights. Unlike with `MLP`, two arms with the same seed start from different weights.

    Shapes: as in `MLP`.

    Args:
        input_shape, out_features, hidden, norm, weight: as in `MLP`.
        samples: number of samples (people) in the program's data.
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
    """Estimate the Lipschitz constant of the gradient with the aliasing fault of the source program.

    The parameters are restored by assigning the saved tensor instead of a copy of it. The next in-place
    perturbation then changes the saved tensor too. From the second sample on, both gradients are taken at the same
    point, and all estimates but the first are 0. Use :func:`gradient_lipschitz` for correct estimates.

    Shapes:
        returns ``(S, K)``, for S samples and K members.

    Raises:
        ValueError: radius is not positive, or samples is below 1.
    """
    require_perturbations(radius, samples)
    parameters, saved = landscape.theta.clone(), landscape.theta.clone()
    estimates = []
    for delta in radius * landscape.normal(generators, samples):
        parameters.add_(delta)
        perturbed = landscape.gradients(parameters)
        parameters = saved  # The fault: no copy.
        estimates.append((perturbed - landscape.gradients(parameters)).norm(dim=1) / delta.norm(dim=1))
    return torch.stack(estimates)


@dataclass(frozen=True, kw_only=True)
class AliasedLipschitz(Probe):
    """Median and maximum of the faulty estimates of :func:`aliased_lipschitz`.

    Args:
        radius, samples, data: as in `GradientLipschitz`.
    """

    radius: float = 1e-5
    samples: int = 100
    data: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_perturbations(self.radius, self.samples)

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield the median and the maximum per member, with the estimates of all samples."""
        for mode in self.modes:
            landscape = snapshot.landscape(mode, self.data)
            estimates = aliased_lipschitz(landscape, self.radius, self.samples, generators=snapshot.generators)
            numbers = {"median": estimates.median(0).values, "max": estimates.max(0).values}
            yield Measurement(mode, numbers, {"samples": estimates.T}, headline=("median", "max"))
