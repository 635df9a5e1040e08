"""Spectra of K symmetric maps: extreme eigenvalues by the Lanczos method; trace and density with curvlinops.

Letters: K members, P the size of each map, M vectors of a basis, E ends of a spectrum, S samples, G grid
points.
"""

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # it is documented

from normlab.models.generators import forked_generators, seed_generators
from normlab.probes.landscape import BatchedLoss

SMALLEST, LARGEST = 0, -1
"""Indices of the smallest and largest eigenvalue in ascending order."""

SIZE_FLOOR = 0.1
"""Floor of the size that the tolerance is relative to, as a share of the spectral radius."""

DENSITY_POINTS = 256
"""G, the number of grid points of a density."""


class ExtremeEigenvalues(NamedTuple):
    """Extreme eigenvalues of K spectra.

    Shapes:
        all ``(E, K)``; values and errors in float64.

    Attributes:
        values: NaN where products are not finite.
        errors: the residuals ‖Hx − λx‖ of unit vectors x; H has an eigenvalue within this distance of λ.
        converged: True where the error is within the tolerance.
    """

    values: Tensor
    errors: Tensor
    converged: Tensor


def lanczos(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    ends: Sequence[int] = (SMALLEST, LARGEST),
    *,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> ExtremeEigenvalues:
    r"""Compute extreme eigenvalues of K symmetric maps with the Lanczos method (1950).

    Each member's map H is projected onto the span of ``q, Hq, H²q, …``, where it is a tridiagonal matrix T. The
    extreme eigenvalues of T approach both ends of the spectrum of H from within; power iteration would find only
    the eigenvalue that is larger in absolute value. Each new vector is orthogonalized against all previous ones,
    so that no eigenvalue occurs twice.

    Iterations stop when every requested eigenvalue λ of every member has an error of at most ``tolerance ·
    max(|λ|, 0.1·max|λᵢ|)``. The result of a member is that of the iteration in which it first reaches this error,
    so it does not depend on the other members.

    Shapes:
        product ``(K, P)`` to the same; start ``(K, P)``.

    Args:
        product: multiplies the vector of each member by its map.
        start: a random vector for each member.
        ends: the eigenvalues to return, of ``SMALLEST`` and ``LARGEST``.
        iterations: the largest number of products.
        tolerance: the relative error at which iterations stop.

    Raises:
        ValueError: if iterations is below 1, or the tolerance is not positive.
    """
    require_limits(iterations, tolerance)
    members, size = start.shape
    limit = min(iterations, size)
    process = LanczosProcess(start, limit)
    missing = process.matrix.new_full((len(ends), members), torch.nan)
    result = ExtremeEigenvalues(missing, missing, torch.zeros_like(missing, dtype=torch.bool))
    next_check = 1
    for count in range(1, limit + 1):
        process.extend(product)
        if count in (next_check, limit):
            next_check = count + 1 + count // 8
            values, errors, radius = process.ritz(ends)
            small = errors <= tolerance * torch.maximum(values.abs(), SIZE_FLOOR * radius)
            kept, done = result.converged, result.converged | small
            result = ExtremeEigenvalues(
                torch.where(kept, result.values, values), torch.where(kept, result.errors, errors), done
            )
            if bool((done | process.broken).all()):
                break
    return result


def require_limits(iterations: int, tolerance: float) -> None:
    """Raise ValueError if iterations is below 1, or the tolerance is not positive."""
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be a number > 0, got {tolerance}")


class LanczosProcess:
    """K orthonormal Krylov bases, extended vector by vector, and the maps in them as tridiagonal matrices.

    Attributes:
        broken: mask of the members with a product that is not finite, ``(K,)``.
    """

    def __init__(self, start: Tensor, limit: int) -> None:
        members, size = start.shape
        self.basis = start.new_empty(members, limit, size)
        self.matrix = torch.zeros(members, limit, limit, dtype=torch.float64, device=start.device)
        self.next = start / start.norm(dim=1, keepdim=True)
        self.coupling = self.matrix.new_ones(members)
        self.scale = self.matrix.new_zeros(members)
        self.broken = torch.zeros(members, dtype=torch.bool, device=start.device)
        self.count = 0

    def extend(self, product: Callable[[Tensor], Tensor]) -> None:
        """Add the next vector to each basis.

        Once a basis spans its whole Krylov space, T is padded with its first diagonal entry, which lies within the
        spectrum and so does not change the extreme eigenvalues.
        """
        j, size = self.count, self.basis.shape[2]
        self.basis[:, j] = self.next
        rest, diagonal = orthogonalize(product(self.next), self.basis[:, : j + 1])
        coupling = rest.norm(dim=1).double()
        self.broken |= ~(diagonal + coupling).isfinite()
        ended = self.broken | (self.coupling == 0)
        self.scale = torch.maximum(self.scale, diagonal.abs() + coupling)
        exhausted = coupling <= 10 * torch.finfo(rest.dtype).eps * self.scale
        if j + 1 == size:
            exhausted = torch.ones_like(exhausted)

        self.matrix[:, j, j] = torch.where(ended, self.matrix[:, 0, 0] if j else 0.0, diagonal)
        # eigh raises an error for NaN.
        self.matrix[self.broken] = 0
        if j:
            self.matrix[:, j, j - 1] = self.matrix[:, j - 1, j] = self.coupling.masked_fill(ended, 0)
        self.coupling = coupling.masked_fill(ended | exhausted, 0)
        unit = rest / self.coupling.to(rest).unsqueeze(1)
        self.next = torch.where(self.coupling.unsqueeze(1) > 0, unit, 0)
        self.count += 1

    def ritz(self, ends: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the requested eigenvalues of T, their errors ``(E, K)``, and the spectral radius ``(K,)``."""
        values, vectors = torch.linalg.eigh(self.matrix[:, : self.count, : self.count])
        errors = self.coupling.unsqueeze(1) * vectors[:, -1].abs()
        values[self.broken] = errors[self.broken] = torch.nan
        indices = list(ends)
        return values[:, indices].T, errors[:, indices].T, values.abs().amax(1)


def orthogonalize(vectors: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Orthogonalize vectors against bases; also return their components along the last basis vector.

    Shapes:
        vectors ``(K, P)``, basis ``(K, M, P)``; returns ``(K, P)`` and, in float64, ``(K,)``.
    """
    rest, along = vectors.unsqueeze(2), torch.zeros(len(vectors), dtype=torch.float64, device=vectors.device)
    # After one pass, rounding leaves a component along the basis, so there are two.
    for _ in range(2):
        components = basis @ rest
        rest = torch.baddbmm(rest, basis.transpose(1, 2), components, alpha=-1)
        along += components[:, -1, 0].double()
    return rest.squeeze(2), along


def trace(
    landscape: BatchedLoss, samples: int = 100, *, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    r"""Estimate the trace of each Hessian with the Hutchinson estimator, and its standard error.

    .. math::
        \mathrm{tr}\, H \approx \frac{1}{S} \sum_s v_s^\top H v_s, \quad v_s \in \{-1, 1\}^P

    The estimate is unbiased; the variance of a sample is ``2 Σ_{i≠j} H_ij²``. With at least P samples, the exact
    diagonal costs no more, so it is used instead, with an error of 0.

    Shapes:
        returns trace and standard error, ``(K,)`` each; NaN for a member whose Hessian is not finite.

    Args:
        landscape: the loss and its parameters θ.
        samples: S, at least 2 for a standard error.
        generators: one for each member.

    Raises:
        ValueError: if samples is below 2.
        ImportError: if curvlinops is not installed.

    Hutchinson (1990), A stochastic estimator of the trace of the influence matrix, doi:10.1080/03610919008812866.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2 for a standard error of the trace, got {samples}")
    curvlinops = load_curvlinops()
    size = landscape.theta.shape[1]

    def estimates(hessian: Any, k: int) -> Tensor:
        return torch.stack([curvlinops.hutchinson_trace(hessian, 1) for _ in range(samples)])

    def exact(hessian: Any, k: int) -> Tensor:
        value = torch.stack([unit @ (hessian @ unit) for unit in torch.eye(size).to(landscape.theta)]).sum()
        return value.expand(samples)

    values = map_hessians(landscape, generators, exact if samples >= size else estimates).double()
    return values.mean(1), values.std(1) / samples**0.5


def density(
    landscape: BatchedLoss,
    smallest: Tensor,
    largest: Tensor,
    *,
    iterations: int = 64,
    repeats: int = 4,
    generators: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor]:
    r"""Estimate the spectral density of each Hessian on a grid by stochastic Lanczos quadrature.

    .. math::
        p(\lambda) = \frac{1}{P} \sum_i \delta(\lambda - \lambda_i)

    with every δ replaced by a Gaussian, which is narrower with more iterations. p integrates to 1. The grid
    extends beyond both ends of the spectrum by a twentieth of its width.

    Shapes:
        smallest and largest ``(K,)``; returns density and grid, ``(K, G)`` each. NaN for a member whose Hessian is
        not finite, or has a single eigenvalue.

    Args:
        landscape: the loss and its parameters θ.
        smallest, largest: the extreme eigenvalues.
        iterations: the number of products for each start vector.
        repeats: the number of random start vectors to average over.
        generators: one for each member.

    Raises:
        ImportError: if curvlinops is not installed.

    Papyan (2020), Traces of class/cross-class structure pervade deep learning spectra, arXiv:2008.11865.
    """
    curvlinops = load_curvlinops()
    steps = max(2, min(iterations, landscape.theta.shape[1]))

    def quadrature(hessian: Any, k: int) -> Tensor:
        ends = smallest[k].item(), largest[k].item()
        missing = landscape.theta.new_full((2, DENSITY_POINTS), torch.nan)
        if not ends[0] < ends[1]:
            return missing
        try:
            grid, values = curvlinops.lanczos_approximate_spectrum(
                hessian, steps, DENSITY_POINTS, repeats, boundaries=ends
            )
        except LinAlgError:
            # The Krylov space of the start vector may have fewer dimensions than there are steps.
            return missing
        return torch.stack([values, grid])

    values, grid = map_hessians(landscape, generators, quadrature).unbind(1)
    return values, grid


def map_hessians(
    landscape: BatchedLoss, generators: Sequence[torch.Generator], measure: Callable[[Any, int], Tensor]
) -> Tensor:
    """Apply a measure to each member's Hessian, an operator of curvlinops, and its index; stack the results.

    curvlinops draws from torch's global generator, which is seeded from that of the member and restored
    afterwards.
    """
    values = []
    for k, generator in enumerate(generators):
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        with forked_generators(landscape.theta):
            seed_generators(landscape.theta, seed)
            values.append(measure(hessian_operator(landscape.of_members(slice(k, k + 1))), k))
    return torch.stack(values)


def hessian_operator(landscape: BatchedLoss) -> Any:
    """Return the Hessian of one net as a linear operator of curvlinops.

    Its products are those of the landscape, over all data in one batch. curvlinops' own Hessian would add up
    batches, each normalized by its own statistics.
    """
    load_curvlinops()
    from curvlinops._torch_base import PyTorchLinearOperator

    product, theta = landscape.hessian(), landscape.theta[0]

    class Hessian(PyTorchLinearOperator):
        SELF_ADJOINT = True
        device, dtype = theta.device, theta.dtype

        def _matmat(self, matrix: list[Tensor]) -> list[Tensor]:
            return [torch.cat([product(vector.unsqueeze(0)) for vector in matrix[0].T]).T]

    return Hessian([theta.shape], [theta.shape])


def require_curvlinops() -> None:
    """Raise ImportError if curvlinops is not installed."""
    if find_spec("curvlinops") is None:
        raise ImportError(
            "trace and density need curvlinops, which is not installed; run pip install 'normlab[curvature]'"
        )


def load_curvlinops() -> Any:
    """Import curvlinops on demand, because the import takes seconds.

    Raises:
        ImportError: if curvlinops is not installed.
    """
    require_curvlinops()
    with warnings.catch_warnings():
        # Its dependency linear_operator uses the deprecated torch.jit.
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
        import curvlinops
    return curvlinops
