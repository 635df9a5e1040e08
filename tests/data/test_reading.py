import numpy as np
import pandas as pd
import pytest
import torch

from normlab.config import ConfigError
from normlab.data.columns import Source
from normlab.data.reading import Choices, Reading, table_of
from normlab.data.target import FEW

SOURCE = Source("some.table", lambda row: f"some.table, sample {row}", ", by hand")


def read(target: object, task: str = "auto", choices: dict | None = None, **columns) -> Reading:
    """Return what is made of a target, with a column of numbers beside it."""
    y = pd.Series(target)
    frame = pd.DataFrame({"a": np.arange(len(y)), **columns, "y": y})
    return table_of(frame, Choices(target_column="y", task=task, **(choices or {})), SOURCE)


@pytest.mark.parametrize(
    ("target", "classes"),
    {
        "words": (["b", "a", "c", "a"], [1, 0, 2, 0]),
        "words with spaces around": (["b ", "a", "b", " a"], [1, 0, 1, 0]),
        "booleans": ([True, False, True], [1, 0, 1]),
        "whole numbers": ([10, 9, 10, 30], [1, 0, 1, 2]),
        "whole numbers with a point": ([10.0, 9.0], [1, 0]),
        "20 whole numbers": (list(range(FEW)), list(range(FEW))),
        "categories": (pd.Categorical(["x", "y", "x"]), [0, 1, 0]),
        "categories of digits": (pd.Categorical(["10", "9", "10", "-1"]), [2, 1, 2, 0]),
        "words, some with digits": (["0", "1", "2", "3+"], [0, 1, 2, 3]),
    }.values(),
)
def test_classes_are_numbered_in_sorted_order(target, classes):
    table = read(target).table

    assert table.y.tolist() == classes
    assert table.y.dtype == torch.long
    assert table.classes == len(set(classes))


@pytest.mark.parametrize("target", [[0.5, 1.0, 2.0], list(range(FEW + 1)), ["0.5", "1", "2"]])
def test_fractions_and_many_whole_numbers_are_to_be_predicted_as_numbers(target):
    table = read(target).table

    assert not table.is_classification
    assert table.y.dtype == torch.float64
    assert table.y.flatten().tolist() == [float(value) for value in target]


def test_the_task_may_be_said():
    assert read([3, 1, 2], "regression").table.y.tolist() == [[3.0], [1.0], [2.0]]
    assert read([0.5, 0.25], "classification").table.y.tolist() == [1, 0]
    assert read(pd.Categorical(["7", "5"]), "regression").table.y.tolist() == [[7.0], [5.0]]
    assert read([3, 1, 2], "regression").notices == read([0.5, 0.25], "classification").notices == ()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (["b", "a", "c"], "data: target y taken as 3 classes (a, b, c)"),
        ([2, 1], "data: target y taken as 2 classes (1, 2); data.task=regression would predict it as a number"),
        (
            [0.5, 1.0, 0.5],
            "data: target y taken as a number to predict; "
            "data.task=classification would take its 2 distinct values as classes",
        ),
    ],
)
def test_what_a_target_was_taken_for_is_said_with_what_to_type_otherwise(target, said):
    assert read(target).notices == (said,)


def test_many_classes_are_not_all_listed():
    (said,) = read([f"c{number:02}" for number in range(30)]).notices

    assert said == "data: target y taken as 30 classes (c00, c01, c02, c03, c04, …, c29)"


def test_inputs_are_all_other_columns_in_their_order():
    frame = pd.DataFrame({"b": [1, 2], "y": [0.5, 1.5], "a": [True, False], "c": pd.Categorical(["3", "4"])})
    reading = table_of(frame, Choices(target_column="y"), SOURCE)

    assert reading.table.names == ("b", "a", "c")
    assert torch.equal(reading.table.x, torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 1.0]]))
    assert reading.words == ((), (), ("3", "4"))


@pytest.mark.parametrize(
    ("columns", "target", "task", "line"),
    [
        ({"b": [1, None, 3]}, [1, 2, 3], "auto", "some.table, sample 1, column b: a value is missing; fill it in"),
        ({}, ["u", None, "v"], "auto", "some.table, sample 1, column y: a value is missing; fill it in or remove"),
        ({}, [1.5, 2.5, None], "auto", "some.table, sample 2, column y: a value is missing"),
        ({"b": pd.array([1, None, 3], "Int64")}, [1, 2, 3], "auto", "sample 1, column b: a value is missing"),
        ({"b": pd.Categorical(["1", None, "2"])}, [1, 2, 3], "auto", "sample 1, column b: a value is missing"),
        (
            {"b": ["1", "two", "3"]},
            [1, 2, 3],
            "auto",
            "sample 1, column b: two is not a number; correct it, by hand, or leave the column out with",
        ),
        (
            {"b": [1, 2, np.inf]},
            [1, 2, 3],
            "auto",
            "sample 2, column b: inf is not a finite 32-bit number; correct",
        ),
        ({"b": [1, -1e39, 2]}, [1, 2, 3], "auto", "sample 1, column b: -1e+39 is not a finite 32-bit number"),
        ({}, [1.5, np.inf, 2], "auto", "sample 1, column y: inf is not a finite"),
        ({}, [1, np.inf, 2], "classification", "sample 1, column y: inf is not a finite"),
        ({}, ["1", "x", "2"], "regression", "column y: x is not a number; use data.task=classification"),
        ({}, ["x", "x", "x"], "auto", "some.table: the target y must be of two classes or more, got x"),
        ({}, [4, 4, 4], "auto", "some.table: the target y must be of two classes or more, got 4"),
    ],
)
def test_what_cannot_be_used_is_named_by_row_and_column(columns, target, task, line):
    with pytest.raises(ConfigError) as caught:
        read(target, task, **columns)

    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_slip_among_many_numbers_does_not_make_them_classes():
    target = [f"{number}.5" for number in range(30)] + ["3O.5"]

    with pytest.raises(
        ValueError, match=r"sample 30, column y: 3O\.5 is not a number; correct it, by hand, or use"
    ):
        read(target)
    assert read(target, "classification").table.classes == 31


def test_a_value_over_several_lines_is_shown_in_one_and_cut_off():
    with pytest.raises(ConfigError) as caught:
        read([1, 2], b=["one\ntwo " + "three " * 20, "4"])

    assert "column b: one two three three three three three t… is not a number" in str(caught.value)


@pytest.mark.parametrize(
    ("target_column", "line"),
    [
        (None, "data.target_column must be a column of some.table (height, weight), got null"),
        ("hight", "data.target_column=hight: some.table has no such column; did you mean height?"),
    ],
)
def test_a_target_that_is_not_there_is_answered_with_those_there_are(target_column, line):
    with pytest.raises(ConfigError) as caught:
        table_of(pd.DataFrame({"height": [1], "weight": [2]}), Choices(target_column=target_column), SOURCE)

    assert str(caught.value) == line


def test_a_target_alone_is_refused():
    with pytest.raises(ValueError, match=r"some\.table has no column beside the target y"):
        table_of(pd.DataFrame({"y": [1, 2]}), Choices(target_column="y"), SOURCE)
