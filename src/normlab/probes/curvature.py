"""Extreme eigenvalues of the Hessian, also scaled by weight norms, and the stability limit of the optimizer.

Letters: K members, P parameters of a member, G points of a grid.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normlab.probes.landscape import POINTS_AT_ONCE, BatchedLoss, member_normal
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot
from normlab.probes.spectrum import (
    LARGEST,
    SMALLEST,
    ExtremeEigenvalues,
    density,
    lanczos,
    require_curvlinops,
    require_limits,
    trace,
)

MEMORY = 2**28
"""Bytes that the Lanczos bases of a group of members may use."""

FACTORS = (1.0, 3.0)
"""Range of the base-2 exponents of the trial factors. They exceed 1 so that ε matters less than the variance."""

INVARIANCE_TOLERANCE = 0.05
"""Relative tolerance for the gradient of a scale-invariant loss; the effect of ε is well below it."""

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
    """Compute extreme eigenvalues of each member's Hessian with the Lanczos method.

    The loss is over all data of the landscape in one batch, and so are the batch statistics.

    Shapes:
        returns values, errors and convergence flags, ``(E, K)`` each.

    Args:
        landscape: the loss and its parameters θ.
        ends: which eigenvalues to return: ``SMALLEST``, ``LARGEST`` or both.
        scale: the diagonal of D, ``(K, P)``, to use DHD instead of H.
        decay: λ, ``(K,)``, to use H + λI instead of H; with scale, D(H + λI)D.
        iterations: the largest number of products with the Hessian.
        tolerance: the relative error at which iterations stop.
        generators: one for each member.

    Raises:
        ValueError: if iterations is below 1, or the tolerance is not positive.

    >>> bowl = BatchedLoss.of(lambda params: 3 * params["w"][0] ** 2 - params["w"][1] ** 2, {"w": torch.zeros(2)})
    >>> extreme_eigenvalues(bowl, generators=[torch.Generator()]).values.flatten()
    tensor([-2.0000,  6.0000], dtype=torch.float64)
    """
    require_limits(iterations, tolerance)
    (start,) = member_normal(generators, (1, landscape.theta.shape[1]), landscape.theta)
    return eigenvalues_from_start(landscape, start, ends, scale, iterations, tolerance, decay)


def eigenvalues_from_start(
    landscape: BatchedLoss,
    start: Tensor,
    ends: Sequence[int],
    scale: Tensor | None,
    iterations: int,
    tolerance: float,
    decay: Tensor | None = None,
) -> ExtremeEigenvalues:
    """Compute :func:`extreme_eigenvalues` from given start vectors ``(K, P)``."""
    members, size = start.shape
    # A group of members iterates until the last of them has converged, so groups are small.
    group = max(1, min(POINTS_AT_ONCE, MEMORY // (min(iterations, size) * size * start.element_size())))
    groups = []
    for first in range(0, members, group):
        members_of_group = slice(first, first + group)
        diagonal, shift = (None if part is None else part[members_of_group] for part in (scale, decay))
        product = scaled_product(landscape.of_members(members_of_group).hessian(), diagonal, shift)
        groups.append(lanczos(product, start[members_of_group], ends, iterations=iterations, tolerance=tolerance))
    return ExtremeEigenvalues(*(torch.cat(parts, dim=1) for parts in zip(*groups, strict=True)))


def scaled_product(
    product: Callable[[Tensor], Tensor], diagonal: Tensor | None, decay: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """Turn the product with H into the product with D(H + λI)D, D diagonal."""
    if decay is not None:
        shift = decay.unsqueeze(1)
        return scaled_product(lambda vectors: product(vectors) + shift.to(vectors) * vectors, diagonal, None)
    return product if diagonal is None else lambda vectors: diagonal * product(diagonal * vectors)


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


@dataclass(frozen=True, kw_only=True)
class Curvature(Probe):
    """Extreme eigenvalues of the Hessian H and the stability limit; optionally trace and spectral density.

    ``lambda_max_lr`` is λmax·η. Gradient descent is unstable on a quadratic if it exceeds ``stability``: 2 without
    momentum, 2(1 + μ) with heavy-ball and (2 + 2μ)/(1 + 2μ) with Nesterov momentum, each minus ηλ for weight decay
    λ; NaN for other optimizers. If the minibatch is smaller than the training split, the Hessian of the minibatch
    is only indicative, and ``indicative`` is 1.

    Adam and AdamW also have ``preconditioned_lambda_max``, λmax of P⁻¹(H + λI) with P before the step, where λ is
    Adam's weight decay and 0 for AdamW, whose decay is not part of the gradient;
    ``preconditioned_lambda_max_lr``, its product with η; and the limit of that product,
    ``preconditioned_stability``, 38 for β₁ = 0.9. P is undefined before the first update.

    ``dhd_lambda_max`` is λmax of DHD, see :func:`weight_norm_diagonal`. Unlike
    λmax, it does not depend on the scale of weights whose scale a normalizer cancels.

    ``lambda_min_error`` and ``lambda_max_error`` bound the errors of ``lambda_min`` and ``lambda_max``;
    ``converged`` is 1 if all errors are within the tolerance. The data always form one batch, because batch
    statistics of parts of them would define another net.

    Args:
        data: ``minibatch`` or ``train``, the data of the loss.
        iterations: the largest number of products with the Hessian for each spectrum.
        tolerance: the relative error of the eigenvalues.
        trace_samples: the number of samples of the estimates ``trace`` and ``trace_error``; 0 for none.
        density: whether to estimate the spectral density, arrays ``density`` and ``density_grid``, ``(K, G)``.
        double: whether to compute in float64.

    Raises:
        ValueError: if iterations is below 1, the tolerance not positive, or trace_samples 1 or negative.
        ImportError: if trace or density is requested, and curvlinops is not installed.
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

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield a measurement for each mode."""
        for mode in self.modes:
            landscape = snapshot.landscape(mode, self.data, double=self.double)
            numbers = self.eigenvalues(landscape, snapshot)
            arrays = {}
            if self.trace_samples:
                numbers["trace"], numbers["trace_error"] = trace(
                    landscape, self.trace_samples, generators=snapshot.generators
                )
            if self.density:
                arrays["density"], arrays["density_grid"] = density(
                    landscape, numbers["lambda_min"], numbers["lambda_max"], generators=snapshot.generators
                )
            headline = [name for name in HEADLINE if name in numbers]
            yield Measurement(mode, numbers, arrays, headline)

    def eigenvalues(self, landscape: BatchedLoss, snapshot: TrainingSnapshot) -> dict[str, Tensor]:
        """Return extreme eigenvalues, their errors, and the stability limits, ``(K,)`` each."""
        (start,) = member_normal(snapshot.generators, (1, landscape.theta.shape[1]), landscape.theta)
        plain = eigenvalues_from_start(
            landscape, start, (SMALLEST, LARGEST), None, self.iterations, self.tolerance
        )
        scale, dhd = weight_norm_diagonal(landscape), ExtremeEigenvalues(*(part[1:] for part in plain))
        if not bool((scale == 1).all()):
            # With the same start, members without scale-invariant weights get the same eigenvalue as before.
            dhd = eigenvalues_from_start(landscape, start, (LARGEST,), scale, self.iterations, self.tolerance)
        converged = plain.converged.all(0) & dhd.converged[0]
        preconditioned, preconditioned_converged = self.preconditioned_eigenvalues(landscape, snapshot, start)
        partial = self.data == "minibatch" and snapshot.minibatch[0].shape[1] < snapshot.train[0].shape[1]
        return {
            "lambda_max": plain.values[1],
            "lambda_min": plain.values[0],
            "lambda_max_error": plain.errors[1],
            "lambda_min_error": plain.errors[0],
            "lambda_max_lr": plain.values[1] * snapshot.lr,
            "stability": torch.full_like(snapshot.lr, torch.nan)
            if snapshot.stability is None
            else snapshot.stability,
            **preconditioned,
            "dhd_lambda_max": dhd.values[0],
            "converged": (converged & preconditioned_converged).double(),
            "indicative": torch.full_like(snapshot.lr, float(partial)),
        }

    def preconditioned_eigenvalues(
        self, landscape: BatchedLoss, snapshot: TrainingSnapshot, start: Tensor
    ) -> tuple[dict[str, Tensor], Tensor | bool]:
        """Return the largest eigenvalue of P⁻¹(H + λI) with its limit, and convergence flags ``(K,)``.

        The symmetric ``P^(−1/2) (H + λI) P^(−1/2)`` has the same eigenvalues. Members without P are converged.
        """
        preconditioning = snapshot.preconditioning
        if preconditioning is None:
            return {}, True
        scale, decay = preconditioning.diagonal.rsqrt().to(landscape.theta), preconditioning.decay
        ends = eigenvalues_from_start(landscape, start, (LARGEST,), scale, self.iterations, self.tolerance, decay)
        return {
            "preconditioned_lambda_max": ends.values[0],
            "preconditioned_lambda_max_error": ends.errors[0],
            "preconditioned_lambda_max_lr": ends.values[0] * snapshot.lr,
            "preconditioned_stability": preconditioning.limit,
        }, ends.converged[0] | preconditioning.diagonal.isnan().any(1)
