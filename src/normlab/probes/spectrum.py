"""Trace and spectral density of each member's Hessian with curvlinops, one member after another.

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
"""G, the number of grid points of a density."""

OperatorMeasure = Callable[[Any, int], Tensor]
"""Maps a Hessian as a curvlinops operator, and the index of its member, to a tensor."""


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

    values = map_members(landscape, generators, exact if samples >= size else estimates).double()
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

    values, grid = map_members(landscape, generators, quadrature).unbind(1)
    return values, grid


def map_members(landscape: BatchedLoss, generators: Sequence[torch.Generator], measure: OperatorMeasure) -> Tensor:
    """Apply a measure to each member's Hessian, and stack the results.

    curvlinops draws from torch's global generator, which is seeded from that of the member and restored
    afterwards.
    """
    values = []
    for k, generator in enumerate(generators):
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        hessian = hessian_operator(landscape.of_member(k))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            values.append(measure(hessian, k))
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
