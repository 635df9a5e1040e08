"""Extreme eigenvalues of symmetric maps that are known by their products: of K maps at once.

Letters: K members, P the size of each map, M vectors of a basis, E ends of a spectrum.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST, LARGEST = 0, -1
"""The ends of a spectrum, as places in the order of its eigenvalues."""

SMALL = 0.1
"""An eigenvalue below this share of the largest size in the spectrum is wanted as exactly as one of that size."""


class ExtremeEigenvalues(NamedTuple):
    """Eigenvalues at the ends of K spectra.

    Shapes:
        all ``(E, K)``, the numbers in float64.

    Attributes:
        values: NaN where products were not finite.
        errors: the residuals ‖Hx − λx‖ of unit vectors x; an eigenvalue is no further than this from λ.
        converged: true where the error is within the tolerance.
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
    r"""Return the eigenvalues at the ends of K spectra, by the method of Lanczos (1950).

    Each member's map H is projected onto the span of ``q, Hq, H²q, …``, where it is a tridiagonal T. The extreme
    eigenvalues of T come from within toward both ends of H's spectrum; power iteration would find the one that is
    larger in absolute value. Each new vector is made orthogonal to all before, so that none is found twice.

    Iterations end when every wanted end of every member has an error of at most ``tolerance`` times its own size,
    or times a tenth of the largest size in the spectrum where that is more. A member's numbers are those of the
    iteration in which they first are that exact, whatever the others still need.

    Shapes:
        product ``(K, P)`` to the same; start ``(K, P)``.

    Args:
        product: multiplies each member's vector with its map.
        start: a random vector for each member.
        ends: which eigenvalues are wanted, ``SMALLEST`` and ``LARGEST``.
        iterations: how many products are taken at most.
        tolerance: the relative error to reach.

    Raises:
        ValueError: for iterations below 1, or a tolerance that is not positive.
    """
    require_limits(iterations, tolerance)
    members, size = start.shape
    limit = min(iterations, size)
    process = Process(start, limit)
    nothing = process.matrix.new_full((len(ends), members), torch.nan)
    found = ExtremeEigenvalues(nothing, nothing, torch.zeros_like(nothing, dtype=torch.bool))
    check = 1
    for count in range(1, limit + 1):
        process.extend(product)
        if count in (check, limit):
            check = count + 1 + count // 8
            found = first_of(found, process.ritz(ends), tolerance)
            if bool((found.converged | process.broken).all()):
                break
    return found


def require_limits(iterations: int, tolerance: float) -> None:
    """Refuse to take no product, and a tolerance that nothing can reach."""
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be a number > 0, got {tolerance}")


class Process:
    """K orthonormal bases that grow by a vector at a time, and the tridiagonal matrices of the maps in them.

    Attributes:
        broken: the members with a product that was not finite, ``(K,)``.
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
        """Take the next vector into each basis.

        Where a basis holds all that its start vector leads to, T goes on with numbers from within its spectrum.
        """
        j, size = self.count, self.basis.shape[2]
        self.basis[:, j] = self.next
        rest, diagonal = orthogonal(product(self.next), self.basis[:, : j + 1])
        coupling = rest.norm(dim=1).double()
        self.broken |= ~(diagonal + coupling).isfinite()
        ended = self.broken | (self.coupling == 0)
        self.scale = torch.maximum(self.scale, diagonal.abs() + coupling)
        complete = coupling <= 10 * torch.finfo(rest.dtype).eps * self.scale
        if j + 1 == size:
            complete = torch.ones_like(complete)

        self.matrix[:, j, j] = torch.where(ended, self.matrix[:, 0, 0] if j else 0.0, diagonal)
        # eigh refuses NaN.
        self.matrix[self.broken] = 0
        if j:
            self.matrix[:, j, j - 1] = self.matrix[:, j - 1, j] = self.coupling.masked_fill(ended, 0)
        self.coupling = coupling.masked_fill(ended | complete, 0)
        unit = rest / self.coupling.to(rest).unsqueeze(1)
        self.next = torch.where(self.coupling.unsqueeze(1) > 0, unit, 0)
        self.count += 1

    def ritz(self, ends: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the wanted eigenvalues of T and their errors, ``(E, K)`` each, and the largest size, ``(K,)``."""
        values, vectors = torch.linalg.eigh(self.matrix[:, : self.count, : self.count])
        errors = self.coupling.unsqueeze(1) * vectors[:, -1].abs()
        values[self.broken] = errors[self.broken] = torch.nan
        wanted = list(ends)
        return values[:, wanted].T, errors[:, wanted].T, values.abs().amax(1)


def orthogonal(vectors: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Orthogonalize vectors against bases; also return their products with the last of each basis, in float64.

    Shapes:
        vectors ``(K, P)``, basis ``(K, M, P)``; returns ``(K, P)`` and ``(K,)``.
    """
    rest, along = vectors.unsqueeze(2), torch.zeros(len(vectors), dtype=torch.float64, device=vectors.device)
    # Once leaves of rounding as much as there was of the basis.
    for _ in range(2):
        parts = basis @ rest
        rest = torch.baddbmm(rest, basis.transpose(1, 2), parts, alpha=-1)
        along += parts[:, -1, 0].double()
    return rest.squeeze(2), along


def first_of(
    found: ExtremeEigenvalues, ritz: tuple[Tensor, Tensor, Tensor], tolerance: float
) -> ExtremeEigenvalues:
    """Return the earlier eigenvalues where they are exact enough, else the current ones."""
    values, errors, sizes = ritz
    exact = errors <= tolerance * torch.maximum(values.abs(), SMALL * sizes)
    return ExtremeEigenvalues(
        torch.where(found.converged, found.values, values),
        torch.where(found.converged, found.errors, errors),
        found.converged | exact,
    )
