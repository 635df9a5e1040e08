import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from normlab.probes.landscape import BatchedLoss
from normlab.probes.spectrum import DENSITY_POINTS, density, hessian_operator, trace

MISSING = "trace and density need curvlinops, which is not installed; run pip install 'normlab\\[curvature\\]'"


CURVLINOPS = pytest.mark.skipif(find_spec("curvlinops") is None, reason="curvlinops is not installed")


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectra(*spectra: Tensor) -> Tensor:
    values = torch.stack(spectra)
    vectors = torch.linalg.qr(draws(len(values), values.shape[1], values.shape[1])).Q
    return vectors @ torch.diag_embed(values) @ vectors.mT


def quadratic(hessians: Tensor) -> BatchedLoss:
    """Return ``½ θᵀHθ`` of each member, H ``(K, P, P)``."""
    theta = draws(*hessians.shape[:2], seed=1)
    return BatchedLoss(lambda params, h: params["w"] @ h @ params["w"] / 2, {"w": theta}, [hessians])


def generators(members: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 * seed + k) for k in range(members)]


@CURVLINOPS
def test_operator_multiplies_by_hessian():
    hessian = with_spectra(torch.linspace(-1, 3, 7, dtype=torch.float64))
    operator = hessian_operator(quadratic(hessian))
    vectors = draws(7, 4)

    assert_close(operator @ vectors, hessian[0] @ vectors)
    assert_close(operator @ vectors[:, 0], hessian[0] @ vectors[:, 0])
    assert_close(torch.from_numpy(operator.to_scipy() @ vectors[:, 0].numpy()), hessian[0] @ vectors[:, 0])


@CURVLINOPS
def test_trace_is_within_standard_error():
    hessians = with_spectra(*draws(2, 30, seed=3))
    exact = hessians.diagonal(dim1=1, dim2=2).sum(1)
    scores = []
    for seed in range(20):
        value, error = trace(quadratic(hessians), 25, generators=generators(2, seed))
        scores.append((value - exact) / error)

    # The mean square of a Student t with 24 degrees of freedom is 1.09; 40 of them have 1.09 ± 0.27.
    assert 0.4 < torch.cat(scores).square().mean() < 2.2


@CURVLINOPS
def test_trace_error_shrinks_with_root_of_samples():
    hessians = with_spectra(*draws(2, 60, seed=3))
    off_diagonal = hessians - torch.diag_embed(hessians.diagonal(dim1=1, dim2=2))
    deviation = (2 * off_diagonal.square().sum((1, 2))).sqrt()

    for samples in (10, 50):
        errors = [trace(quadratic(hessians), samples, generators=generators(2, seed))[1] for seed in range(8)]
        expected = deviation / samples**0.5
        assert_close(torch.stack(errors).square().mean(0).sqrt(), expected, rtol=0.25, atol=0)


@CURVLINOPS
@pytest.mark.parametrize("size", [1, 5])
def test_trace_is_exact_with_enough_samples(size):
    hessians = with_spectra(*draws(2, size, seed=3))
    value, error = trace(quadratic(hessians), 5, generators=generators(2))

    assert_close(value, hessians.diagonal(dim1=1, dim2=2).sum(1))
    assert_close(error, torch.zeros(2).double(), atol=1e-12, rtol=0)


@CURVLINOPS
def test_density_integrates_to_1_and_peaks_at_eigenvalues():
    spectrum = torch.cat([torch.full((60,), 0.0), torch.full((30,), 4.0), torch.full((10,), 10.0)]).double()
    ends = spectrum.min().reshape(1), spectrum.max().reshape(1)
    rough = spectrum + 1e-3 * draws(100)
    values, grid = density(quadratic(with_spectra(rough)), *ends, repeats=10, generators=generators(1))

    assert values.shape == grid.shape == (1, DENSITY_POINTS)
    assert_close(torch.trapezoid(values, grid), torch.ones(1).double(), rtol=1e-3, atol=0)
    inner = values[0, 1:-1]
    peaks = (inner > values[0, :-2]) & (inner > values[0, 2:]) & (inner > 0.1 * values.max())
    assert_close(grid[0, 1:-1][peaks], torch.tensor([0.0, 4.0, 10.0]).double(), atol=0.1, rtol=0)
    for low, high, share in ((-1, 2, 0.6), (2, 7, 0.3), (7, 11, 0.1)):
        within = (grid[0] > low) & (grid[0] < high)
        assert_close(torch.trapezoid(values[0, within], grid[0, within]).item(), share, atol=0.06, rtol=0)


@CURVLINOPS
def test_mean_of_density_is_trace_over_size():
    hessians = with_spectra(*draws(2, 50, seed=3))
    ends = torch.linalg.eigvalsh(hessians)[:, [0, -1]].T
    values, grid = density(quadratic(hessians), *ends, iterations=20, repeats=20, generators=generators(2))

    assert_close(
        torch.trapezoid(values * grid, grid), hessians.diagonal(dim1=1, dim2=2).mean(1), atol=0.15, rtol=0
    )


@CURVLINOPS
def test_stacked_members_equal_single_members():
    hessians = with_spectra(*draws(3, 20, seed=3))
    whole, ends = quadratic(hessians), torch.linalg.eigvalsh(hessians)[:, [0, -1]].T
    traces, errors = trace(whole, 5, generators=generators(3))
    values, grids = density(whole, *ends, generators=generators(3))

    for k in range(3):
        own = whole.of_members(slice(k, k + 1))
        value, error = trace(own, 5, generators=generators(3)[k : k + 1])
        assert_close((value, error), (traces[k : k + 1], errors[k : k + 1]))
        value, grid = density(own, *ends[:, k : k + 1], generators=generators(3)[k : k + 1])
        assert_close((value, grid), (values[k : k + 1], grids[k : k + 1]))


@CURVLINOPS
def test_undefined_results_are_nan_per_member():
    even = torch.linspace(-1, 3, 12, dtype=torch.float64)
    hessians = with_spectra(even, even, 0 * even, 2 * even)
    ends = torch.linalg.eigvalsh(hessians)[:, [0, -1]].T
    hessians[0, 2, 3] = ends[:, 0] = torch.nan
    values, grids = density(quadratic(hessians), *ends, generators=generators(4))
    value, error = trace(quadratic(hessians), 5, generators=generators(4))

    assert values.isnan().all(1).tolist() == grids.isnan().all(1).tolist() == [True, False, True, False]
    assert values[[1, 3]].isfinite().all()
    assert value.isnan().tolist() == error.isnan().tolist() == [True, False, False, False]


@CURVLINOPS
def test_small_krylov_space_gives_nan_density():
    hessian = torch.zeros(1, 4, 4).double()
    values, grids = density(quadratic(hessian), torch.zeros(1), torch.ones(1), generators=generators(1))

    assert values.isnan().all()
    assert grids.isnan().all()


@CURVLINOPS
def test_global_generator_is_neither_used_nor_changed():
    landscape, ends = quadratic(with_spectra(draws(20, seed=3))), (-torch.ones(1) * 3, torch.ones(1) * 3)

    def measure() -> tuple[Tensor, ...]:
        own = generators(1)
        return *trace(landscape, 5, generators=own), *density(landscape, *ends, generators=own)

    first = measure()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        before = torch.get_rng_state()
        second = measure()
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_single_trace_sample_raises():
    with pytest.raises(ValueError, match="samples must be at least 2 for a standard error of the trace, got 1"):
        trace(quadratic(torch.eye(3).double()[None]), 1, generators=generators(1))


def test_missing_curvlinops_raises_with_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    landscape, one = quadratic(torch.eye(3).double()[None]), torch.ones(1)

    with pytest.raises(ImportError, match=MISSING):
        trace(landscape, generators=generators(1))
    with pytest.raises(ImportError, match=MISSING):
        density(landscape, -one, one, generators=generators(1))
