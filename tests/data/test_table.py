import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.testing import assert_close

from normlab.data import Table


def numbered(samples: int) -> Table:
    """Return a table whose samples carry their own number."""
    number = torch.arange(samples, dtype=torch.float32).unsqueeze(1)
    return Table(number, -number)


def numbers(part: Table) -> list[int]:
    return part.x.flatten().int().tolist()


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=4), spare=st.integers(0, 5), seed=st.integers(0))
@settings(deadline=None, max_examples=50)
def test_parts_have_their_sizes_and_share_no_sample(sizes, spare, seed):
    parts = numbered(sum(sizes) + spare).split(tuple(sizes), seed % 2**63)

    assert [len(part) for part in parts] == sizes
    seen = [number for part in parts for number in numbers(part)]
    assert len(set(seen)) == len(seen) == sum(sizes)
    assert all(torch.equal(part.y, -part.x) for part in parts)


def test_the_split_is_a_pure_function_of_the_seed():
    def split(seed: int) -> list[list[int]]:
        return [numbers(part) for part in numbered(100).split((60, 20, 20), seed)]

    torch.manual_seed(0)
    first = split(5)
    torch.manual_seed(1)
    torch.rand(3)

    assert split(5) == first
    assert split(6) != first


def test_the_parts_are_shuffled():
    train, _, test = numbered(1000).split((600, 200, 200), 0)

    assert numbers(train) != sorted(numbers(train))
    # The mean of 200 of the numbers up to 1,000, drawn at random, is 500 with a standard error of 18.
    assert abs(test.x.mean() - 500) < 90


def test_more_samples_than_there_are_cannot_be_asked_for():
    with pytest.raises(ValueError, match=r"6 \+ 3 \+ 2 asks for more than the 10 samples"):
        numbered(10).split((6, 3, 2), 0)


def test_classes_and_shapes_go_along_with_the_samples():
    table = Table(torch.zeros(10, 3, 8, 8), torch.arange(10), classes=10)
    train, val = table.split((6, 4), 0)

    for part in (table, train, val, train.standardized_by(train)):
        assert part.is_classification
        assert part.out_features == 10
        assert part.input_shape == (3, 8, 8)


def test_a_regression_table_has_as_many_outputs_as_its_targets_have_columns():
    table = Table(torch.zeros(4, 2), torch.zeros(4, 3))

    assert not table.is_classification
    assert table.out_features == 3


@pytest.mark.parametrize("shape", [(50, 3), (50, 2, 4)])
def test_standardized_inputs_have_mean_0_and_standard_deviation_1_and_targets_stay(shape):
    x = 100 + 7 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = Table(x, torch.ones(50, 1))
    z = table.standardized_by(table)

    assert_close(z.x.mean(0), torch.zeros_like(z.x[0]), rtol=0, atol=1e-12)
    assert_close(z.x.square().mean(0), torch.ones_like(z.x[0]), rtol=1e-12, atol=0)
    assert torch.equal(z.y, table.y)


def test_standardizing_takes_the_other_tables_statistics():
    other = Table(torch.tensor([[0.0, 10.0], [4.0, 10.0]]), torch.zeros(2, 1))
    z = Table(torch.tensor([[2.0, 10.0], [6.0, 13.0]]), torch.zeros(2, 1)).standardized_by(other)

    assert_close(z.x, torch.tensor([[0.0, 0.0], [2.0, 3.0]]))


@given(
    value=st.floats(-1e6, 1e6, width=32),
    samples=st.integers(1, 1000),
    dtype=st.sampled_from(["float32", "float64"]),
)
@settings(deadline=None, max_examples=100)
def test_a_constant_feature_is_only_centered_whatever_its_rounding(value, samples, dtype):
    x: Tensor = torch.full((samples, 3), value, dtype=getattr(torch, dtype))
    table = Table(x, torch.zeros(samples, 1))

    assert table.standardized_by(table).x.abs().max() <= 1e-6 * abs(value)


def test_standardized_targets_by_hand():
    other = Table(torch.zeros(4, 1), torch.tensor([[1.0, 5.0], [1.0, 5.0], [3.0, 5.0], [7.0, 5.0]]))
    z = Table(torch.ones(2, 1), torch.tensor([[3.0, 5.0], [9.0, 8.0]])).target_standardized_by(other)

    # 1, 1, 3, 7 have a mean of 3 and a variance of (4 + 4 + 0 + 16) / 4 = 6; the fives are only centered.
    assert_close(z.y, torch.tensor([[0.0, 0.0], [6 / 6**0.5, 3.0]]))
    assert torch.equal(z.x, torch.ones(2, 1))


def test_classes_are_not_standardized():
    table = Table(torch.zeros(3, 1), torch.arange(3), classes=3)

    with pytest.raises(ValueError, match=r"^data\.standardize_target must be false for classes, got true$"):
        table.target_standardized_by(table)


def test_bug_a_split_without_samples_of_classes_was_refused():
    empty = Table(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), classes=2)
    assert len(empty) == 0
