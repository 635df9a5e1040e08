"""Trace and spectral density of a Hessian, by curvlinops: of one net after another.

Letters: K members, P parameters of a member, S samples, G points of a grid.
"""

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # it is documented

from normlab.probes.landscape import BatchedLoss

DENSITY_POINTS = 256
"""G, at how many points a density is given."""

OperatorMeasure = Callable[[Any, int], Tensor]
"""Of a Hessian as an operator of curvlinops, and of the place of its member."""


def trace(
    landscape: BatchedLoss, samples: int = 100, *, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    r"""Return an estimate of each Hessian's trace, and its standard error.

    .. math::
        \mathrm{tr}\, H \approx \frac{1}{S} \sum_s v_s^\top H v_s, \quad v_s \in \{-1, 1\}^P

    It is unbiased; the variance of a sample is ``2 Σ_{i≠j} H_ij²``. As many samples as parameters would cost what
    the diagonal does, which is then taken itself, with an error of 0.

    Shapes:
        returns twice ``(K,)``; NaN for a member whose Hessian is not finite.

    Args:
        landscape: the loss, and where to look from.
        samples: S.
        generators: one for each member.

    Raises:
        ValueError: for fewer than 2 samples, of which there is no standard error.
        ImportError: curvlinops is not installed.

    Hutchinson (1990), A stochastic estimator of the trace of the influence matrix, doi:10.1080/03610919008812866.
    """
    if samples < 2:
        raise ValueError(f"samples of a trace must be at least 2, for its standard error, got {samples}")
    curvlinops = load_curvlinops()
    size = landscape.theta.shape[1]

    def estimates(hessian: Any, k: int) -> Tensor:
        return torch.stack([curvlinops.hutchinson_trace(hessian, 1) for _ in range(samples)])

    def exact(hessian: Any, k: int) -> Tensor:
        whole = torch.stack([unit @ (hessian @ unit) for unit in torch.eye(size).to(landscape.theta)]).sum()
        return whole.expand(samples)

    each = of_each(landscape, generators, exact if samples >= size else estimates).double()
    return each.mean(1), each.std(1) / samples**0.5


def density(
    landscape: BatchedLoss,
    smallest: Tensor,
    largest: Tensor,
    *,
    iterations: int = 64,
    repeats: int = 4,
    generators: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor]:
    r"""Return each Hessian's spectral density, and the grid that it is given on: stochastic Lanczos quadrature.

    .. math::
        p(\lambda) = \frac{1}{P} \sum_i \delta(\lambda - \lambda_i)

    with every δ widened to a Gaussian, the narrower the more iterations there are. p integrates to 1. The grid
    goes beyond both ends of the spectrum by a twentieth of its width.

    Shapes:
        smallest and largest ``(K,)``; returns twice ``(K, G)``. NaN for a member whose Hessian is not finite, or
        has a single eigenvalue.

    Args:
        landscape: the loss, and where to look from.
        smallest, largest: the ends of the spectra.
        iterations: products for a start vector.
        repeats: start vectors, of which the mean is taken.
        generators: one for each member.

    Raises:
        ImportError: curvlinops is not installed.

    Papyan (2020), Traces of class/cross-class structure pervade deep learning spectra, arXiv:2008.11865.
    """
    curvlinops = load_curvlinops()
    steps = max(2, min(iterations, landscape.theta.shape[1]))

    def quadrature(hessian: Any, k: int) -> Tensor:
        ends = smallest[k].item(), largest[k].item()
        nothing = landscape.theta.new_full((2, DENSITY_POINTS), torch.nan)
        if not ends[0] < ends[1]:
            return nothing
        try:
            grid, values = curvlinops.lanczos_approximate_spectrum(
                hessian, steps, DENSITY_POINTS, repeats, boundaries=ends
            )
        except LinAlgError:
            # The start vector may lead to fewer dimensions than there are steps.
            return nothing
        return torch.stack([values, grid])

    values, grid = of_each(landscape, generators, quadrature).unbind(1)
    return values, grid


def of_each(landscape: BatchedLoss, generators: Sequence[torch.Generator], measure: OperatorMeasure) -> Tensor:
    """Measure each member's Hessian, and stack the results.

    curvlinops draws from torch's global generator, which begins at a draw from the member's and is put back.
    """
    found = []
    for k, generator in enumerate(generators):
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        hessian = as_operator(landscape.of_member(k))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            found.append(measure(hessian, k))
    return torch.stack(found)


def as_operator(landscape: BatchedLoss) -> Any:
    """Return the Hessian of one net as a linear operator of curvlinops.

    Its products are those of the landscape, whose data are seen whole. curvlinops would go through them batch by
    batch and add up, each with statistics of its own; it is handed none.
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
    """Raise ImportError, with what to do, where curvlinops is not installed."""
    if find_spec("curvlinops") is None:
        raise ImportError("trace and density need curvlinops, which is missing: pip install 'normlab[curvature]'")


def load_curvlinops() -> Any:
    """Return curvlinops, which takes seconds to import."""
    require_curvlinops()
    with warnings.catch_warnings():
        # linear_operator, which it imports, compiles with torch.jit.
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", DeprecationWarning)
        import curvlinops
    return curvlinops
