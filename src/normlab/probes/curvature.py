"""Extreme eigenvalues of the Hessian, also scaled by weight norms, and the stability limit of the optimizer.

Letters: K members, P parameters of a member, G points of a grid.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from normlab.probes.landscape import POINTS_AT_ONCE, BatchedLoss
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
    generators: Sequence[torch.Generator] = (),
    start: Tensor | None = None,
    scale: Tensor | None = None,
    decay: Tensor | None = None,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> ExtremeEigenvalues:
    """Compute extreme eigenvalues of each member's Hessian with the Lanczos method.

    The loss is over all data of the landscape in one batch, and so are the batch statistics.

    Shapes:
        returns values, errors and convergence flags, ``(E, K)`` each.

    Args:
        landscape: the loss and its parameters θ.
        ends: which eigenvalues to return: ``SMALLEST``, ``LARGEST`` or both.
        generators: one for each member, to draw the start.
        start: start vectors, ``(K, P)``, instead of random ones.
        scale: the diagonal of D, ``(K, P)``, to use DHD instead of H.
        decay: λ, ``(K,)``, to use H + λI instead of H, or the diagonal of Λ, ``(K, P)``; with scale, D(H + λI)D.
        iterations: the largest number of products with the Hessian.
        tolerance: the relative error at which iterations stop.

    Raises:
        ValueError: if iterations is below 1, or the tolerance is not positive.

    >>> bowl = BatchedLoss.of(lambda params: 3 * params["w"][0] ** 2 - params["w"][1] ** 2, {"w": torch.zeros(2)})
    >>> extreme_eigenvalues(bowl, generators=[torch.Generator()]).values.flatten()
    tensor([-2.0000,  6.0000], dtype=torch.float64)
    """
    require_limits(iterations, tolerance)
    theta = landscape.theta
    if start is None:
        start = landscape.normal(generators)[0]
    members, size = theta.shape
    # A group of members iterates until the last of them has converged, so groups are small.
    count = max(1, min(POINTS_AT_ONCE, MEMORY // (min(iterations, size) * size * theta.element_size())))
    groups = []
    for group in (slice(first, first + count) for first in range(0, members, count)):
        diagonal, shift = (None if part is None else part[group].to(theta) for part in (scale, decay))
        product = scaled_product(landscape.of_members(group).hessian(), diagonal, shift)
        groups.append(lanczos(product, start[group], ends, iterations=iterations, tolerance=tolerance))
    return ExtremeEigenvalues(*(torch.cat(parts, dim=1) for parts in zip(*groups, strict=True)))


def scaled_product(
    product: Callable[[Tensor], Tensor], diagonal: Tensor | None, decay: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """Turn the product with H into the product with D(H + λI)D, D diagonal."""

    def scaled(vectors: Tensor) -> Tensor:
        inner = vectors if diagonal is None else diagonal * vectors
        outer = product(inner) if decay is None else product(inner) + decay.view(len(decay), -1) * inner
        return outer if diagonal is None else diagonal * outer

    return scaled


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
        members, count = weight.shape[:2]
        untested = torch.ones(members, dtype=torch.bool, device=weight.device)
        for names in candidates:
            rows = weight_rows(landscape, names, count).to(weight.device)
            invariant = untested & is_scale_invariant(landscape, rows.clamp(max=0), gradient)
            untested = untested & ~invariant
            for size in (size for size in range(1, count + 1) if count % size == 0 and invariant.any()):
                group = torch.where(rows < 0, rows, rows.div(size, rounding_mode="floor"))
                found = invariant & is_scale_invariant(landscape, group, gradient)
                norms = weight.reshape(members, count // size, -1).norm(dim=2)[:, group.clamp(min=0)]
                diagonal = torch.where(found.unsqueeze(1) & (group >= 0), norms, diagonal)
                invariant = invariant & ~found
            if not bool(untested.any()):
                break
    return diagonal


def rescaling_candidates(landscape: BatchedLoss) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each weight with the names to rescale together: with the bias of its layer if any, then alone."""
    shapes = dict(zip(landscape.names, landscape.shapes, strict=True))
    for name, shape in shapes.items():
        if len(shape) > 1:
            # The tensors of a parametrized layer are named layer.parametrizations.weight.original1.
            plain = re.sub(r"parametrizations\.(\w+)\.\w+$", r"\1", name)
            bias = re.sub(r"\w+$", "bias", plain)
            yield name, [[name, bias], [name]] if shapes.get(bias) == shape[:1] else [[name]]


def weight_rows(landscape: BatchedLoss, names: Sequence[str], count: int) -> Tensor:
    """Return the row of each entry of θ in these parameters with ``count`` rows, −1 for others: ``(P,)``."""
    rows = torch.full_like(landscape.theta[0], -1, dtype=torch.long)
    for name, view in zip(landscape.names, landscape.unflatten(rows), strict=True):
        if name in names:
            view.copy_(torch.arange(count).view(-1, *[1] * (view.dim() - 1)))
    return rows


def is_scale_invariant(landscape: BatchedLoss, group: Tensor, gradient: Tensor) -> Tensor:
    """Return True for members whose loss does not change with the scale of each group of entries of θ.

    Shapes:
        group ``(P,)``, the group index of each entry, −1 for entries outside of all groups; returns ``(K,)``.
    """
    count, inside = int(group.max()) + 1, group >= 0
    # Factors differ between groups, to detect a loss that depends on the ratio of their scales.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    factors = torch.logspace(*FACTORS, count, base=2)[order].to(gradient)
    factor = torch.where(inside, factors[group.clamp(min=0)], 1)
    difference = factor * landscape.gradients(factor * landscape.theta) - gradient

    def unchanged(entries: Tensor) -> Tensor:
        return difference[:, entries].norm(dim=1) <= INVARIANCE_TOLERANCE * gradient[:, entries].norm(dim=1)

    return (gradient[:, inside] != 0).any(1) & unchanged(inside) & unchanged(~inside)


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
    ``preconditioned_stability``, 38 for β₁ = 0.9. P is undefined before the first update. If some parameters have
    no weight decay, λI is diagonal, with 0 for them; SGD then has these quantities as well, with P = I, and
    ``stability`` is NaN. P of AdamW then has the factor ``1 − ηλ/2``.

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
        """Return extreme eigenvalues, their errors, and the stability limits, ``(K,)`` each.

        The symmetric ``P^(−1/2) (H + λI) P^(−1/2)`` has the same eigenvalues as P⁻¹(H + λI). Members without P are
        converged.
        """
        lr, adaptive = snapshot.lr, snapshot.preconditioning
        spectrum = partial(
            extreme_eigenvalues,
            landscape,
            start=landscape.normal(snapshot.generators)[0],
            iterations=self.iterations,
            tolerance=self.tolerance,
        )
        (low, high), (low_error, high_error), (low_converged, converged) = spectrum()
        numbers = {
            "lambda_max": high,
            "lambda_min": low,
            "lambda_max_error": high_error,
            "lambda_min_error": low_error,
            "lambda_max_lr": high * lr,
            "stability": torch.full_like(lr, torch.nan) if snapshot.stability is None else snapshot.stability,
        }
        converged_all, scaled, scale = low_converged & converged, high, weight_norm_diagonal(landscape)
        if not bool((scale == 1).all()):
            # With the same start, members without scale-invariant weights get the same eigenvalue as before.
            (scaled,), _, (converged,) = spectrum((LARGEST,), scale=scale)
        converged_all = converged_all & converged
        if adaptive is not None:
            scale = adaptive.diagonal.rsqrt()
            (value,), (error,), (converged,) = spectrum((LARGEST,), scale=scale, decay=adaptive.decay)
            numbers["preconditioned_lambda_max"], numbers["preconditioned_lambda_max_error"] = value, error
            numbers["preconditioned_lambda_max_lr"] = value * lr
            numbers["preconditioned_stability"] = adaptive.limit
            converged_all = converged_all & (converged | adaptive.diagonal.isnan().any(1))
        partial_data = self.data == "minibatch" and snapshot.minibatch[0].shape[1] < snapshot.train[0].shape[1]
        return numbers | {
            "dhd_lambda_max": scaled,
            "converged": converged_all.double(),
            "indicative": torch.full_like(lr, float(partial_data)),
        }
