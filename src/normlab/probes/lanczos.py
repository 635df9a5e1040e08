"""Extreme eigenvalues of K symmetric linear maps at once, from their matrix-vector products.

Letters: K members, P the size of each map, M vectors of a basis, E ends of a spectrum.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST, LARGEST = 0, -1
"""Indices of the smallest and largest eigenvalue in ascending order."""

SIZE_FLOOR = 0.1
"""Floor of the size that the tolerance is relative to, as a share of the spectral radius."""


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
            result = keep_converged(result, process.ritz(ends), tolerance)
            if bool((result.converged | process.broken).all()):
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


def keep_converged(
    result: ExtremeEigenvalues, ritz: tuple[Tensor, Tensor, Tensor], tolerance: float
) -> ExtremeEigenvalues:
    """Keep the eigenvalues that have converged, and replace the others by the current ones."""
    values, errors, radius = ritz
    converged = errors <= tolerance * torch.maximum(values.abs(), SIZE_FLOOR * radius)
    return ExtremeEigenvalues(
        torch.where(result.converged, result.values, values),
        torch.where(result.converged, result.errors, errors),
        result.converged | converged,
    )
