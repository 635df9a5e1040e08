import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from normlab.data import Table
from normlab.data.table import split_rows


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=4), spare=st.integers(0, 5), seed=st.integers(0))
@settings(deadline=None, max_examples=50)
def test_parts_have_their_sizes_and_share_no_sample(sizes, spare, seed):
    parts = split_rows(sum(sizes) + spare, tuple(sizes), seed % 2**63)

    assert [len(part) for part in parts] == sizes
    seen = [number for part in parts for number in part.tolist()]
    assert len(set(seen)) == len(seen) == sum(sizes)
    assert all(0 <= number < sum(sizes) + spare for number in seen)


def test_the_split_is_a_pure_function_of_the_seed():
    def split(seed: int) -> list[list[int]]:
        return [part.tolist() for part in split_rows(100, (60, 20, 20), seed)]

    torch.manual_seed(0)
    first = split(5)
    torch.manual_seed(1)
    torch.rand(3)

    assert split(5) == first
    assert split(6) != first


def test_the_parts_are_shuffled():
    train, _, test = split_rows(1000, (600, 200, 200), 0)

    assert train.tolist() != sorted(train.tolist())
    # The mean of 200 of the numbers up to 1,000, drawn at random, is 500 with a standard error of 18.
    assert abs(test.double().mean() - 500) < 90


def test_more_samples_than_there_are_cannot_be_asked_for():
    with pytest.raises(ValueError, match=r"must be at most 10 samples, got 6 \+ 3 \+ 2"):
        split_rows(10, (6, 3, 2), 0)


def test_classes_and_shapes_go_along_with_the_samples():
    table = Table(torch.zeros(10, 3, 8, 8), torch.arange(10), classes=10)
    some = table.at(torch.tensor([3, 1]))

    assert some.y.tolist() == [3, 1]
    for part in (table, some):
        assert part.is_classification
        assert part.out_features == 10
        assert part.input_shape == (3, 8, 8)


def test_a_regression_table_has_as_many_outputs_as_its_targets_have_columns():
    table = Table(torch.zeros(4, 2), torch.zeros(4, 3))

    assert not table.is_classification
    assert table.out_features == 3


def test_bug_a_split_without_samples_of_classes_was_refused():
    empty = Table(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), classes=2)
    assert len(empty) == 0


def test_a_feature_is_called_by_its_column_or_by_its_number():
    x, y = torch.zeros(2, 2), torch.zeros(2, 1)

    assert Table(x, y, names=("height", "age")).name_of(1) == "column age"
    assert Table(x, y).name_of(1) == "input 2"
