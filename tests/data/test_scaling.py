import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from normlab.data.table import Standardizer, cast_numbers, count_merged_values, merged_values_warning


def standardized(values: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return Standardizer.fit(reference)(values)


def name_of(index: int) -> str:
    return f"input {index + 1}"


@pytest.mark.parametrize("shape", [(50, 3), (50, 2, 4)])
def test_standardized_features_have_mean_0_and_std_1(shape):
    x = 100 + 7 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    z = standardized(x, x)

    assert z.dtype == torch.float64
    assert_close(z.mean(0), torch.zeros_like(z[0]), rtol=0, atol=1e-12)
    assert_close(z.square().mean(0), torch.ones_like(z[0]), rtol=1e-12, atol=0)


def test_statistics_come_from_fitted_samples():
    fitted = torch.tensor([[0.0, 10.0], [4.0, 10.0]])
    z = standardized(torch.tensor([[2.0, 10.0], [6.0, 13.0]]), fitted)

    assert z.tolist() == [[0.0, 0.0], [2.0, 3.0]]


def test_standardized_values_equal_hand_computation():
    # 1, 1, 3, 7 have a mean of 3 and a variance of (4 + 4 + 0 + 16) / 4 = 6; the fives are only centered.
    fitted = torch.tensor([[1.0, 5.0], [1.0, 5.0], [3.0, 5.0], [7.0, 5.0]])
    z = standardized(torch.tensor([[3.0, 5.0], [9.0, 8.0]]), fitted)

    assert_close(z, torch.tensor([[0.0, 0.0], [6 / 6**0.5, 3.0]], dtype=torch.float64))


@given(
    value=st.floats(-1e6, 1e6, width=32),
    samples=st.integers(1, 1000),
    dtype=st.sampled_from(["float32", "float64"]),
)
@settings(deadline=None, max_examples=100)
def test_constant_feature_is_exactly_centered(value, samples, dtype):
    x = torch.full((samples, 3), value, dtype=getattr(torch, dtype))

    assert torch.equal(standardized(x, x), torch.zeros(samples, 3, dtype=torch.float64))


@pytest.mark.parametrize("offset", [20240101000000, 1.7e9, -1.7e18])
def test_bug_large_close_numbers_lost_digits(offset):
    small = 1024.0 * torch.randint(0, 4096, (250, 2), generator=torch.Generator().manual_seed(0)).double()

    assert torch.equal(standardized(offset + small, offset + small), standardized(small, small))


def test_standardizing_does_not_modify_input():
    x = torch.ones(3, 2, dtype=torch.float64)
    standardized(x, x)

    assert torch.equal(x, torch.ones(3, 2, dtype=torch.float64))


def test_cast_keeps_class_indices():
    assert cast_numbers(torch.tensor([[0.1]], dtype=torch.float64), torch.float32, name_of).dtype == torch.float32
    assert cast_numbers(torch.tensor([[0.5]]), torch.float64, name_of).tolist() == [[0.5]]
    assert cast_numbers(torch.arange(3), torch.float32, name_of).dtype == torch.long
    assert cast_numbers(torch.zeros(0, 2, dtype=torch.float64), torch.float32, name_of).shape == (0, 2)


def test_cast_overflow_raises():
    values = torch.tensor([[1.0, 2.0], [3.0, 1e39]], dtype=torch.float64)

    with pytest.raises(
        ValueError, match=r"^data: input 2 must be at most 3\.4e\+38 after preprocessing, got 1e\+39"
    ):
        cast_numbers(values, torch.float32, name_of)
    assert torch.equal(cast_numbers(values, torch.float64, name_of), values)


def test_merged_values_are_counted():
    # At 1.7e9 the numbers of float32 are 128 apart.
    assert count_merged_values(1.7e9 + torch.arange(250).double()) == (250, 3)
    assert count_merged_values(torch.arange(250.0).double()) is None
    assert count_merged_values(torch.full((3,), torch.nan, dtype=torch.float64)) is None


def test_few_merged_neighbours_are_ignored():
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    assert len(uniform.float().unique()) < 20000
    assert count_merged_values(uniform) is None


def test_merged_values_warning_names_remedy():
    timestamps, small = 1.7e9 + torch.arange(250).double(), torch.arange(250).double()
    line = (
        "data: input 2 has 250 distinct values, of which float32 keeps 3; "
        "data.standardize=true keeps them distinct"
    )

    assert merged_values_warning(small.unsqueeze(1), name_of, "data.standardize") == []
    assert merged_values_warning(torch.stack([small, timestamps], dim=1), name_of, "data.standardize") == [line]
    (warning,) = merged_values_warning(
        torch.stack([small, timestamps, timestamps], dim=1), name_of, "data.standardize"
    )
    assert warning == line.replace(";", " (similarly for 1 more);")


def test_nearly_constant_feature_is_only_centered():
    x = torch.zeros(1000, 3)
    x[:9, 0], x[:10, 1] = 1.0, 1.0
    x[:, 2] = torch.arange(1000.0)
    scale = Standardizer.fit(x)
    assert scale.nearly_constant.tolist() == [True, False, False]
    z = scale(x)
    assert_close(z[:, 0], (x[:, 0] - 0.009).double(), rtol=0, atol=1e-8)
    assert_close(z[0, 1].item(), (1 - 0.01) / (0.01 * 0.99) ** 0.5)
    assert float(z.abs().max()) < 11, "z is at most 1/√0.01 for features with a most common value"
