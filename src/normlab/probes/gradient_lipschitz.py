"""How far the gradient moves when the parameters move in random directions.

Letters: K members, S samples, R radii, P parameters of a member.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normlab.probes.landscape import BatchedLoss
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot, member_normal

RADII = (0.1, 1.0, 10.0)
"""At which multiples of the radius to measure: a smooth loss gives the same at all of them."""

RADIUS_TOLERANCE = 0.1
"""By which share two estimates may differ before the result is flagged."""


def gradient_lipschitz(
    landscape: BatchedLoss, radius: float = 1e-5, samples: int = 100, *, generators: Sequence[torch.Generator]
) -> Tensor:
    r"""Return estimates of the gradient's Lipschitz constant, one for each random direction.

    .. math::
        L = \frac{\|\nabla f(\theta + \delta) - \nabla f(\theta)\|}{\|\delta\|}, \quad \delta \sim r \cdot N(0, I)

    For a quadratic it is ‖Hδ‖/‖δ‖, an average curvature: its mean square is ‖H‖²_F / P, and it is never above the
    largest |λ|, of which it is a lower bound.

    Shapes:
        returns ``(S, K)``.

    Args:
        landscape: the loss, and where to look from.
        radius: r, the standard deviation of each entry of δ.
        samples: S, how many directions.
        generators: one for each member.

    Raises:
        ValueError: for a radius that is not positive, or no sample.
    """
    require_perturbations(radius, samples)
    delta = radius * member_normal(generators, (samples, landscape.theta.shape[1]), landscape.theta)
    return ratios(landscape, delta)


def ratios(landscape: BatchedLoss, delta: Tensor) -> Tensor:
    """Return ‖∇f(θ + δ) − ∇f(θ)‖ / ‖δ‖ for each δ, ``(S, K, P)`` to ``(S, K)``."""
    points = landscape.theta + delta
    moved = landscape.gradients(points) - landscape.gradients(landscape.theta)
    # θ + δ is rounded: its distance to θ is what the gradient has seen.
    return moved.norm(dim=-1) / (points - landscape.theta).norm(dim=-1)


def require_perturbations(radius: float, samples: int) -> None:
    """Refuse a radius that is not positive, and to draw nothing."""
    if not radius > 0:
        raise ValueError(f"radius must be a number > 0, got {radius}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")


@dataclass(frozen=True, kw_only=True)
class GradientLipschitz(Probe):
    """:func:`gradient_lipschitz` at a tenth of the radius, at it and at ten times as much, in float32 and float64.

    ``unreliable`` is 1 where medians at two radii, or in the two precisions, differ by more than a tenth: kinks
    between the points, as of ReLU, or rounding. With ``double`` all but ``median_float32`` are of float64.

    Args:
        radius: the standard deviation of each entry of a perturbation.
        samples: how many perturbations.
        data: ``minibatch`` or ``train``, what the loss is over.
        double: whether to measure in float64.
    """

    radius: float = 1e-5
    samples: int = 100
    data: str = "train"
    double: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_perturbations(self.radius, self.samples)

    def __call__(self, scene: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield median, quartiles and maximum, and every sample."""
        for mode in self.modes:
            landscape = scene.landscape(mode, self.data, double=self.double)
            delta = member_normal(scene.generators, (self.samples, landscape.theta.shape[1]), landscape.theta)
            found = torch.stack([ratios(landscape, self.radius * radius * delta) for radius in RADII], dim=1)
            low, middle, high = found.double().quantile(found.new_tensor([0.25, 0.5, 0.75]).double(), dim=0)
            numbers = {
                "median": middle[1],
                "q25": low[1],
                "q75": high[1],
                "max": found[:, 1].max(0).values,
                "median_error": median_error(found[:, 1]),
                "median_tenth_radius": middle[0],
                "median_ten_radii": middle[2],
            }
            estimates = [*middle]
            if self.double:
                single = scene.landscape(mode, self.data)
                estimates.append(ratios(single, (self.radius * delta).to(single.theta)).median(0).values)
                numbers["median_float32"] = estimates[-1]
            numbers["unreliable"] = differ(torch.stack([estimate.double() for estimate in estimates]))
            yield Measurement(
                self.name, mode, numbers, {"samples": found.permute(2, 1, 0)}, headline=("median", "unreliable")
            )


def differ(estimates: Tensor) -> Tensor:
    """Return 1 where estimates ``(E, K)`` are further apart than they may be, else 0; NaN where one is missing."""
    low, high = estimates.amin(0), estimates.amax(0)
    return torch.where((low - high).isfinite(), (high > (1 + RADIUS_TOLERANCE) * low).double(), torch.nan)


def median_error(samples: Tensor) -> Tensor:
    """Return the standard error of the median of ``(S, K)`` samples, from the interval of its order statistics.

    The ranks ``S/2 ± √S/2`` hold the median with the probability of one standard error to either side.
    """
    ranked, count = samples.sort(dim=0).values, len(samples)
    half = count**0.5 / 2
    low, high = max(0, round(count / 2 - half)), min(count - 1, round(count / 2 + half))
    return (ranked[high] - ranked[low]) / 2
