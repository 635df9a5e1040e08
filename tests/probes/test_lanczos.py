import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from normlab.probes.spectrum import LARGEST, SMALLEST, ExtremeEigenvalues, LanczosProcess, lanczos

EVEN = torch.linspace(-3, 5, 30, dtype=torch.float64)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectra(*spectra: Tensor) -> Tensor:
    """Return symmetric matrices with these eigenvalues, ``(K, P, P)``."""
    values = torch.stack(spectra)
    vectors = torch.linalg.qr(draws(len(values), values.shape[1], values.shape[1])).Q
    return vectors @ torch.diag_embed(values) @ vectors.mT


def multiply(matrices: Tensor):
    return lambda vectors: (matrices @ vectors.unsqueeze(2)).squeeze(2)


def ends_of(matrices: Tensor, **options) -> ExtremeEigenvalues:
    start = draws(*matrices.shape[:2], seed=1).to(matrices)
    return lanczos(multiply(matrices), start, **options)


def test_ends_are_algebraic_for_any_signs():
    spectra = [EVEN, EVEN - 10, EVEN + 10, -EVEN]
    result = ends_of(with_spectra(*spectra), tolerance=1e-8)

    assert result.converged.all()
    assert_close(result.values[SMALLEST], torch.stack([s.min() for s in spectra]))
    assert_close(result.values[LARGEST], torch.stack([s.max() for s in spectra]))


def test_requested_ends_are_returned_in_order():
    matrices = with_spectra(EVEN)
    both, largest = ends_of(matrices), ends_of(matrices, ends=(LARGEST,))

    assert_close(ends_of(matrices, ends=(LARGEST, SMALLEST)).values, both.values.flip(0))
    assert largest.values.shape == largest.errors.shape == largest.converged.shape == (1, 1)
    assert_close(largest.values[0], both.values[LARGEST])


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3])
def test_eigenvalue_error_is_within_tolerance(tolerance):
    spectra = [EVEN, EVEN.exp(), EVEN**3]
    result = ends_of(with_spectra(*spectra), tolerance=tolerance)

    assert result.converged.all()
    for k, spectrum in enumerate(spectra):
        assert ((spectrum.unsqueeze(1) - result.values[:, k]).abs().amin(0) <= result.errors[:, k] + 1e-12).all()
        size = spectrum.abs().max()
        assert (result.errors[:, k] <= tolerance * result.values[:, k].abs().clamp_min(0.1 * size)).all()


def test_error_is_residual_of_ritz_vector():
    matrices = with_spectra(EVEN, EVEN.exp())
    process = LanczosProcess(draws(2, 30, seed=1), 6)
    for _ in range(6):
        process.extend(multiply(matrices))
    values, errors, _ = process.ritz([LARGEST])

    _, small = torch.linalg.eigh(process.matrix)
    vectors = (process.basis.mT @ small[:, :, -1:]).squeeze(2)
    residuals = (multiply(matrices)(vectors) - values[0].unsqueeze(1) * vectors).norm(dim=1)
    assert_close(errors[0], residuals)
    assert_close(process.basis @ process.basis.mT, torch.eye(6, dtype=torch.float64).expand(2, 6, 6))


def test_stacked_members_equal_single_members():
    fast = torch.cat([torch.linspace(-1, 1, 28, dtype=torch.float64), torch.tensor([-100.0, 90.0])])
    matrices = with_spectra(fast, EVEN, EVEN**3)
    together = ends_of(matrices, tolerance=0.05)

    start = draws(3, 30, seed=1)
    for k in range(3):
        own = lanczos(multiply(matrices[k : k + 1]), start[k : k + 1], tolerance=0.05)
        assert_close(together.values[:, k : k + 1], own.values)
        assert_close(together.errors[:, k : k + 1], own.errors, rtol=1e-6, atol=1e-12)


def test_iterations_stop_at_convergence():
    matrices, calls = with_spectra(torch.cat([torch.ones(99), torch.tensor([50.0])]).double()), []

    def product(vectors: Tensor) -> Tensor:
        calls.append(1)
        return multiply(matrices)(vectors)

    assert lanczos(product, draws(1, 100)).converged.all()
    assert len(calls) < 5


def test_iteration_limit_returns_unconverged_values():
    result = ends_of(with_spectra(EVEN), iterations=3, tolerance=1e-6)

    assert not result.converged.any()
    assert (result.errors > 1e-6 * 5).all()
    assert EVEN.min() < result.values[SMALLEST].item() < result.values[LARGEST].item() < EVEN.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("spectrum", "expected"),
    [
        ([0.0] * 20, (0, 0)),
        ([2.0] * 20, (2, 2)),
        ([-2.0] * 20, (-2, -2)),
        ([3.0] + [0.0] * 19, (0, 3)),
        ([1.0, -1.0] * 10, (-1, 1)),
        ([2.0, 2.0, 2.0, 1.0, 1.0, 4.0], (1, 4)),
        ([7.0], (7, 7)),
        ([-1.0, 1.0], (-1, 1)),
    ],
)
def test_small_krylov_space_contains_both_ends(spectrum, expected, dtype):
    result = ends_of(with_spectra(torch.tensor(spectrum).double(), torch.tensor(spectrum).double() * 3).to(dtype))

    assert result.converged.all()
    wanted = torch.tensor(expected, dtype=torch.float64).unsqueeze(1) * torch.tensor([1.0, 3.0])
    assert_close(result.values, wanted, rtol=1e-5, atol=1e-5)


def test_exhausted_members_do_not_change():
    few = torch.tensor([2.0] * 29 + [1.0]).double()
    result = ends_of(with_spectra(few, EVEN, torch.zeros(30).double() + 4), tolerance=1e-9)

    assert result.converged.all()
    assert_close(result.values, torch.tensor([[1.0, -3, 4], [2.0, 5, 4]]).double())


def test_padding_between_checks_adds_no_eigenvalue():
    """With nine distinct eigenvalues, the basis is complete after nine products and checked after ten."""
    nine = torch.linspace(1, 2, 9, dtype=torch.float64).repeat(4)
    result = ends_of(torch.diag_embed(torch.stack([nine, -nine])), tolerance=1e-14)

    assert_close(result.values, torch.tensor([[1.0, -2], [2.0, -1]]).double())


def test_small_eigenvalue_uses_tolerance_floor():
    spectrum = torch.cat([torch.linspace(1e-4, 50, 199), torch.tensor([100.0])]).double()
    result = ends_of(with_spectra(spectrum), iterations=200)

    assert result.converged.all()
    assert 1e-3 * result.values[SMALLEST] < result.errors[SMALLEST] <= 1e-3 * 10.0


def test_full_iterations_are_exact():
    matrices = with_spectra(*draws(3, 8, seed=2))
    result = ends_of(matrices, tolerance=1e-15)

    values = torch.linalg.eigvalsh(matrices)
    assert result.converged.all()
    assert_close(result.values, values[:, [0, -1]].T)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_nonfinite_member_leaves_other_members_unchanged(number):
    matrices = with_spectra(EVEN, EVEN, 2 * EVEN)
    expected = ends_of(matrices)
    matrices[1, 3, 4] = number
    result = ends_of(matrices)

    assert result.values[:, 1].isnan().all()
    assert result.errors[:, 1].isnan().all()
    assert result.converged.tolist() == [[True, False, True]] * 2
    assert_close(result.values[:, [0, 2]], expected.values[:, [0, 2]])


def test_float32_eigenvalues_are_within_tolerance():
    result = ends_of(with_spectra(EVEN, 100 * EVEN).float())

    assert result.converged.all()
    assert result.values.dtype == result.errors.dtype == torch.float64
    assert_close(result.values, torch.tensor([[-3.0, -300], [5, 500]]).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"tolerance": 0.0}, "tolerance must be a number > 0, got 0.0"),
        ({"tolerance": torch.nan}, "tolerance must be a number > 0, got nan"),
    ],
)
def test_invalid_limits_raise(options, message):
    with pytest.raises(ValueError, match=message):
        ends_of(with_spectra(EVEN), **options)
