"""The Hessian of the loss: the ends of its spectrum, and how far they are from where gradient descent is unstable.

Letters: K members, P parameters of a member, G points of a grid.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normlab.probes.lanczos import LARGEST, SMALLEST, ExtremeEigenvalues, lanczos, require_limits
from normlab.probes.landscape import POINTS_AT_ONCE, BatchedLoss
from normlab.probes.scale_invariance import weight_norm_diagonal
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot, member_normal
from normlab.probes.spectrum import density, require_curvlinops, trace

MEMORY = 2**28
"""How many bytes the bases of members that are taken together may fill."""


HEADLINE = ("lambda_max", "lambda_max_lr", "preconditioned_lambda_max_lr")


def extreme_eigenvalues(
    landscape: BatchedLoss,
    ends: Sequence[int] = (SMALLEST, LARGEST),
    *,
    scale: Tensor | None = None,
    decay: Tensor | None = None,
    iterations: int = 100,
    tolerance: float = 1e-3,
    generators: Sequence[torch.Generator],
) -> ExtremeEigenvalues:
    """Return the smallest and the largest eigenvalue of each member's Hessian, by the method of Lanczos.

    The loss is over all of the landscape's data at once, so that batch statistics are those of all of it.

    Shapes:
        returns values, errors and whether they converged, ``(E, K)`` each.

    Args:
        landscape: the loss, and where to look from.
        ends: which, of ``SMALLEST`` and ``LARGEST``.
        scale: the diagonal of D, ``(K, P)``, to take DHD in the place of H.
        decay: λ, ``(K,)``, to take H + λI in the place of H, and of it D(H + λI)D.
        iterations: how many products with the Hessian are taken at most.
        tolerance: the relative error to reach.
        generators: one for each member.

    Raises:
        ValueError: for iterations below 1, or a tolerance that is not positive.

    >>> bowl = BatchedLoss.of(lambda params: 3 * params["w"][0] ** 2 - params["w"][1] ** 2, {"w": torch.zeros(2)})
    >>> extreme_eigenvalues(bowl, generators=[torch.Generator()]).values.flatten()
    tensor([-2.0000,  6.0000], dtype=torch.float64)
    """
    require_limits(iterations, tolerance)
    (start,) = member_normal(generators, (1, landscape.theta.shape[1]), landscape.theta)
    return ends_from(landscape, start, ends, scale, iterations, tolerance, decay)


def ends_from(
    landscape: BatchedLoss,
    start: Tensor,
    ends: Sequence[int],
    scale: Tensor | None,
    iterations: int,
    tolerance: float,
    decay: Tensor | None = None,
) -> ExtremeEigenvalues:
    """Return the same, from start vectors ``(K, P)``."""
    members, size = start.shape
    # Members that are taken together go on until the last of them has converged.
    group = max(1, min(POINTS_AT_ONCE, MEMORY // (min(iterations, size) * size * start.element_size())))
    found = []
    for first in range(0, members, group):
        own = slice(first, first + group)
        diagonal, shift = (None if part is None else part[own] for part in (scale, decay))
        product = scaled(landscape.of_members(own).hessian(), diagonal, shift)
        found.append(lanczos(product, start[own], ends, iterations=iterations, tolerance=tolerance))
    return ExtremeEigenvalues(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))


def scaled(
    product: Callable[[Tensor], Tensor], diagonal: Tensor | None, decay: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """Return the products of D(H + λI)D from those of H."""
    if decay is not None:
        shift = decay.unsqueeze(1)
        return scaled(lambda vectors: product(vectors) + shift.to(vectors) * vectors, diagonal, None)
    return product if diagonal is None else lambda vectors: diagonal * product(diagonal * vectors)


@dataclass(frozen=True, kw_only=True)
class Curvature(Probe):
    """The ends of the Hessian's spectrum, λmax times the learning rate, λmax of DHD; if asked, trace and density.

    ``lambda_max_lr`` is λmax·η, to be held against ``stability``, above which gradient descent is unstable on a
    quadratic: 2, with heavy ball momentum 2(1 + μ), with Nesterov's (2 + 2μ)/(1 + 2μ), less ηλ for weight decay
    λ; NaN for other optimizers. Where the Hessian is of a minibatch smaller than the training split this is a
    hint and no more, and ``indicative`` is 1.

    With Adam and AdamW there are also ``preconditioned_lambda_max``, λmax of P⁻¹(H + λI) with P as before the
    step, its product with η, ``preconditioned_lambda_max_lr``, and the limit of that product, 38 with β₁ = 0.9,
    ``preconditioned_stability``. P is not known before the first update. λ is weight decay within the gradient.

    ``dhd_lambda_max`` is that of DHD, see :func:`normlab.probes.scale_invariance.scales`: unlike λmax it is not
    moved by the mere size of weights, a unit's or a layer's, that a normalizer takes out again.

    Within ``lambda_min_error`` and ``lambda_max_error`` of these numbers there is an eigenvalue; ``converged`` is
    1 where both, and that of DHD, are within the tolerance. The data are always taken whole: measured batch by
    batch, a net with batch statistics would be another.

    Args:
        data: ``minibatch`` or ``train``, what the loss is over.
        iterations: how many products with the Hessian the eigenvalues may take.
        tolerance: their relative error.
        trace_samples: how many samples to estimate the trace from, ``trace`` and ``trace_error``; 0 for none.
        density: whether to estimate the spectral density, arrays ``density`` and ``density_grid``, ``(K, G)``.
        double: whether to measure in float64.

    Raises:
        ValueError: for iterations below 1, a tolerance that is not positive, or one sample of the trace.
        ImportError: trace or density are asked for, and curvlinops is not installed.
    """

    data: str = "train"
    iterations: int = 100
    tolerance: float = 1e-3
    trace_samples: int = 0
    density: bool = False
    double: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_limits(self.iterations, self.tolerance)
        if self.trace_samples < 0 or self.trace_samples == 1:
            raise ValueError(f"trace_samples must be 0 for none or at least 2, got {self.trace_samples}")
        if self.trace_samples or self.density:
            require_curvlinops()

    def __call__(self, scene: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield eigenvalues, and what else is asked for."""
        for mode in self.modes:
            landscape = scene.landscape(mode, self.data, double=self.double)
            numbers = self.eigenvalues(landscape, scene)
            arrays = {}
            if self.trace_samples:
                numbers["trace"], numbers["trace_error"] = trace(
                    landscape, self.trace_samples, generators=scene.generators
                )
            if self.density:
                arrays["density"], arrays["density_grid"] = density(
                    landscape, numbers["lambda_min"], numbers["lambda_max"], generators=scene.generators
                )
            headline = [name for name in HEADLINE if name in numbers]
            yield Measurement(self.name, mode, numbers, arrays, headline)

    def eigenvalues(self, landscape: BatchedLoss, scene: TrainingSnapshot) -> dict[str, Tensor]:
        """Return the ends of the spectrum, and the limits that they are compared with."""
        (start,) = member_normal(scene.generators, (1, landscape.theta.shape[1]), landscape.theta)
        plain = ends_from(landscape, start, (SMALLEST, LARGEST), None, self.iterations, self.tolerance)
        scale, without_scale = weight_norm_diagonal(landscape), ExtremeEigenvalues(*(part[1:] for part in plain))
        if not bool((scale == 1).all()):
            # The start is the same, so that a member without such weights finds what it has already.
            without_scale = ends_from(landscape, start, (LARGEST,), scale, self.iterations, self.tolerance)
        converged = plain.converged.all(0) & without_scale.converged[0]
        preconditioned, settled = self.preconditioned(landscape, scene, start)
        partial = self.data == "minibatch" and scene.minibatch[0].shape[1] < scene.train[0].shape[1]
        return {
            "lambda_max": plain.values[1],
            "lambda_min": plain.values[0],
            "lambda_max_error": plain.errors[1],
            "lambda_min_error": plain.errors[0],
            "lambda_max_lr": plain.values[1] * scene.lr,
            "stability": torch.full_like(scene.lr, torch.nan) if scene.stability is None else scene.stability,
            **preconditioned,
            "dhd_lambda_max": without_scale.values[0],
            "converged": (converged & settled).double(),
            "indicative": torch.full_like(scene.lr, float(partial)),
        }

    def preconditioned(
        self, landscape: BatchedLoss, scene: TrainingSnapshot, start: Tensor
    ) -> tuple[dict[str, Tensor], Tensor | bool]:
        """Return the largest eigenvalue of P⁻¹(H + λI) and its limit, and whether it converged where there is a P.

        It is that of ``P^(−1/2) (H + λI) P^(−1/2)``, which is symmetric.
        """
        given = scene.preconditioning
        if given is None:
            return {}, True
        rate, decay = given.diagonal.rsqrt().to(landscape.theta), given.decay
        ends = ends_from(landscape, start, (LARGEST,), rate, self.iterations, self.tolerance, decay)
        return {
            "preconditioned_lambda_max": ends.values[0],
            "preconditioned_lambda_max_error": ends.errors[0],
            "preconditioned_lambda_max_lr": ends.values[0] * scene.lr,
            "preconditioned_stability": given.limit,
        }, ends.converged[0] | given.diagonal.isnan().any(1)
