import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from normlab.data import Table
from normlab.data.sampling import split_rows


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=4), spare=st.integers(0, 5), seed=st.integers(0))
@settings(deadline=None, max_examples=50)
def test_splits_are_disjoint_with_given_sizes(sizes, spare, seed):
    parts = split_rows(sum(sizes) + spare, tuple(sizes), seed % 2**63)

    assert [len(part) for part in parts] == sizes
    seen = [number for part in parts for number in part.tolist()]
    assert len(set(seen)) == len(seen) == sum(sizes)
    assert all(0 <= number < sum(sizes) + spare for number in seen)


def test_split_is_pure_function_of_seed():
    def split(seed: int) -> list[list[int]]:
        return [part.tolist() for part in split_rows(100, (60, 20, 20), seed)]

    torch.manual_seed(0)
    first = split(5)
    torch.manual_seed(1)
    torch.rand(3)

    assert split(5) == first
    assert split(6) != first


def test_splits_are_shuffled():
    train, _, test = split_rows(1000, (600, 200, 200), 0)

    assert train.tolist() != sorted(train.tolist())
    # The mean of 200 random indices below 1,000 is 500 with a standard error of 18.
    assert abs(test.double().mean() - 500) < 90


def test_too_large_splits_raise():
    with pytest.raises(ValueError, match=r"must be at most 10 samples, got 6 \+ 3 \+ 2"):
        split_rows(10, (6, 3, 2), 0)


def test_selection_keeps_classes_and_shapes():
    table = Table(torch.zeros(10, 3, 8, 8), torch.arange(10), classes=10)
    selection = table.at(torch.tensor([3, 1]))

    assert selection.y.tolist() == [3, 1]
    for part in (table, selection):
        assert part.is_classification
        assert part.out_features == 10
        assert part.input_shape == (3, 8, 8)


def test_regression_outputs_equal_target_columns():
    table = Table(torch.zeros(4, 2), torch.zeros(4, 3))

    assert not table.is_classification
    assert table.out_features == 3


def test_bug_empty_classification_split_raised():
    empty = Table(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), classes=2)
    assert len(empty) == 0


def test_feature_name_is_column_or_number():
    x, y = torch.zeros(2, 2), torch.zeros(2, 1)

    assert Table(x, y, names=("height", "age")).name_of(1) == "column age"
    assert Table(x, y).name_of(1) == "input 2"
