"""Local Lipschitz estimates of the gradient from random perturbations of the parameters.

Letters: K members, S samples, R radii, P parameters of a member.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normlab.probes.landscape import BatchedLoss
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot

RADII = (0.1, 1.0, 10.0)
"""Multiples of the radius at which to measure; for a smooth loss the estimates agree."""

RADIUS_TOLERANCE = 0.1
"""Relative difference of two estimates above which the result is flagged as unreliable."""


def gradient_lipschitz(
    landscape: BatchedLoss, radius: float = 1e-5, samples: int = 100, *, generators: Sequence[torch.Generator]
) -> Tensor:
    r"""Estimate the Lipschitz constant of the gradient in each of S random directions.

    .. math::
        L = \frac{\|\nabla f(\theta + \delta) - \nabla f(\theta)\|}{\|\delta\|}, \quad \delta \sim r \cdot N(0, I)

    For a quadratic with Hessian H it is ‖Hδ‖/‖δ‖, an average curvature: its mean square is ‖H‖²_F / P, and it is a
    lower bound on the largest |λ|.

    Shapes:
        returns ``(S, K)``.

    Args:
        landscape: the loss and its parameters θ.
        radius: r, the standard deviation of each entry of δ.
        samples: S, the number of directions.
        generators: one for each member.

    Raises:
        ValueError: if the radius is not positive, or samples is below 1.
    """
    require_perturbations(radius, samples)
    delta = radius * landscape.normal(generators, samples)
    return gradient_change_ratios(landscape, delta)


def gradient_change_ratios(landscape: BatchedLoss, delta: Tensor) -> Tensor:
    """Return ‖∇f(θ + δ) − ∇f(θ)‖ / ‖δ‖ for each δ, ``(S, K, P)`` to ``(S, K)``."""
    points = landscape.theta + delta
    change = landscape.gradients(points) - landscape.gradients(landscape.theta)
    # θ + δ is rounded, so its actual distance to θ is used instead of ‖δ‖.
    return change.norm(dim=-1) / (points - landscape.theta).norm(dim=-1)


def require_perturbations(radius: float, samples: int) -> None:
    """Raise ValueError if the radius is not positive, or samples is below 1."""
    if not radius > 0:
        raise ValueError(f"radius must be a number > 0, got {radius}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")


@dataclass(frozen=True, kw_only=True)
class GradientLipschitz(Probe):
    """Runs :func:`gradient_lipschitz` at 0.1, 1 and 10 times the radius, in float32 and float64.

    ``unreliable`` is 1 if the medians at two radii, or in the two precisions, differ by more than a tenth. Reasons
    are kinks between the points, as with ReLU, or rounding. With ``double`` all numbers except ``median_float32``
    are computed in float64.

    Args:
        radius: the standard deviation of each entry of a perturbation.
        samples: the number of perturbations.
        data: ``minibatch`` or ``train``, the data of the loss.
        double: whether to compute in float64.

    Raises:
        ValueError: if the radius is not positive, or samples is below 1.
    """

    radius: float = 1e-5
    samples: int = 100
    data: str = "train"
    double: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_perturbations(self.radius, self.samples)

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield median, quartiles and maximum, and an array of all samples, for each mode."""
        for mode in self.modes:
            landscape = snapshot.landscape(mode, self.data, double=self.double)
            delta = landscape.normal(snapshot.generators, self.samples)
            scaled = [gradient_change_ratios(landscape, self.radius * radius * delta) for radius in RADII]
            estimates = torch.stack(scaled, dim=1)
            levels = torch.tensor([0.25, 0.5, 0.75]).to(estimates.double())
            low, middle, high = estimates.double().quantile(levels, dim=0)
            numbers = {
                "median": middle[1],
                "q25": low[1],
                "q75": high[1],
                "max": estimates[:, 1].max(0).values,
                "median_error": median_error(estimates[:, 1]),
                "median_tenth_radius": middle[0],
                "median_ten_radii": middle[2],
            }
            medians = [*middle]
            if self.double:
                single = snapshot.landscape(mode, self.data)
                ratios = gradient_change_ratios(single, (self.radius * delta).to(single.theta))
                numbers["median_float32"] = ratios.median(0).values
                medians.append(numbers["median_float32"].double())
            numbers["unreliable"] = estimates_disagree(torch.stack(medians))
            arrays = {"samples": estimates.permute(2, 1, 0)}
            yield Measurement(mode, numbers, arrays, headline=("median", "unreliable"))


def estimates_disagree(estimates: Tensor) -> Tensor:
    """Return 1 where estimates ``(E, K)`` differ by more than the tolerance, else 0; NaN where one is missing."""
    low, high = estimates.amin(0), estimates.amax(0)
    return torch.where((low - high).isfinite(), (high > (1 + RADIUS_TOLERANCE) * low).double(), torch.nan)


def median_error(samples: Tensor) -> Tensor:
    """Return the standard error of the median of samples ``(S, K)`` from order statistics.

    The interval between the ranks ``S/2 ± √S/2`` covers the median with the probability of ± 1 standard error.
    """
    ranked, count = samples.sort(dim=0).values, len(samples)
    half = count**0.5 / 2
    low, high = max(0, round(count / 2 - half)), min(count - 1, round(count / 2 + half))
    return (ranked[high] - ranked[low]) / 2
