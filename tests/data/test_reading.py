import numpy as np
import pandas as pd
import pytest
import torch

from normlab.data.parsing import MAX_INTEGER_CLASSES, Source
from normlab.data.tabular import ParsedTable, ParsingOptions, parse_table
from normlab.errors import ConfigError

SOURCE = Source("some.table", lambda row: f"some.table, sample {row}", ", by hand")


def parse(target: object, task: str = "auto", options: dict | None = None, **columns) -> ParsedTable:
    """Parse a table with the target, a numeric column a and the given columns."""
    y = pd.Series(target)
    frame = pd.DataFrame({"a": np.arange(len(y)), **columns, "y": y})
    return parse_table(frame, ParsingOptions(target_column="y", task=task, **(options or {})), SOURCE)


@pytest.mark.parametrize(
    ("target", "classes"),
    {
        "words": (["b", "a", "c", "a"], [1, 0, 2, 0]),
        "words with spaces around": (["b ", "a", "b", " a"], [1, 0, 1, 0]),
        "booleans": ([True, False, True], [1, 0, 1]),
        "whole numbers": ([10, 9, 10, 30], [1, 0, 1, 2]),
        "whole numbers with a point": ([10.0, 9.0], [1, 0]),
        "20 whole numbers": (list(range(MAX_INTEGER_CLASSES)), list(range(MAX_INTEGER_CLASSES))),
        "categories": (pd.Categorical(["x", "y", "x"]), [0, 1, 0]),
        "categories of digits": (pd.Categorical(["10", "9", "10", "-1"]), [2, 1, 2, 0]),
        "words, some with digits": (["0", "1", "2", "3+"], [0, 1, 2, 3]),
    }.values(),
)
def test_classes_are_numbered_in_sorted_order(target, classes):
    table = parse(target).table

    assert table.y.tolist() == classes
    assert table.y.dtype == torch.long
    assert table.classes == len(set(classes))


@pytest.mark.parametrize("target", [[0.5, 1.0, 2.0], list(range(MAX_INTEGER_CLASSES + 1)), ["0.5", "1", "2"]])
def test_fractions_and_many_integers_are_regression(target):
    table = parse(target).table

    assert not table.is_classification
    assert table.y.dtype == torch.float64
    assert table.y.flatten().tolist() == [float(value) for value in target]


def test_task_option_overrides_inference():
    assert parse([3, 1, 2], "regression").table.y.tolist() == [[3.0], [1.0], [2.0]]
    assert parse([0.5, 0.25], "classification").table.y.tolist() == [1, 0]
    assert parse(pd.Categorical(["7", "5"]), "regression").table.y.tolist() == [[7.0], [5.0]]
    assert parse([3, 1, 2], "regression").notices == parse([0.5, 0.25], "classification").notices == ()


@pytest.mark.parametrize(
    ("target", "notice"),
    [
        (["b", "a", "c"], "data: target y taken as 3 classes (a, b, c)"),
        (
            [2, 1],
            "data: target y taken as 2 classes (1, 2); data.task=regression would take it as a regression target",
        ),
        (
            [0.5, 1.0, 0.5],
            "data: target y taken as a regression target; "
            "data.task=classification would take its 2 distinct values as classes",
        ),
    ],
)
def test_notice_reports_inferred_task(target, notice):
    assert parse(target).notices == (notice,)


def test_notice_abbreviates_many_classes():
    (notice,) = parse([f"c{number:02}" for number in range(30)]).notices

    assert notice == "data: target y taken as 30 classes (c00, c01, c02, c03, c04, …, c29)"


def test_inputs_are_other_columns_in_order():
    frame = pd.DataFrame({"b": [1, 2], "y": [0.5, 1.5], "a": [True, False], "c": pd.Categorical(["3", "4"])})
    parsed = parse_table(frame, ParsingOptions(target_column="y"), SOURCE)

    assert parsed.table.names == ("b", "a", "c")
    assert torch.equal(parsed.table.x, torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 1.0]]))
    assert parsed.categories == ((), (), ("3", "4"))


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
            "sample 2, column b: inf is not a finite number up to 1e+150; correct",
        ),
        ({}, [1.5, np.inf, 2], "auto", "sample 1, column y: inf is not a finite"),
        ({}, [1, np.inf, 2], "classification", "sample 1, column y: inf is not a finite"),
        ({}, ["1", "x", "2"], "regression", "column y: x is not a number; use data.task=classification"),
        ({}, ["x", "x", "x"], "auto", "some.table: the target y must be of two classes or more, got x"),
        ({}, [4, 4, 4], "auto", "some.table: the target y must be of two classes or more, got 4"),
    ],
)
def test_invalid_value_error_names_row_and_column(columns, target, task, line):
    with pytest.raises(ConfigError) as caught:
        parse(target, task, **columns)

    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistyped_number_raises_in_regression_target():
    target = [f"{number}.5" for number in range(30)] + ["3O.5"]

    with pytest.raises(
        ValueError, match=r"sample 30, column y: 3O\.5 is not a number; correct it, by hand, or use"
    ):
        parse(target)
    assert parse(target, "classification").table.classes == 31


def test_error_shortens_long_value():
    with pytest.raises(ConfigError) as caught:
        parse([1, 2], b=["one\ntwo " + "three " * 20, "4"])

    assert "column b: one two three three three three three t… is not a number" in str(caught.value)


@pytest.mark.parametrize(
    ("target_column", "line"),
    [
        (None, "data.target_column must be a column of some.table (height, weight), got null"),
        ("hight", "data.target_column=hight: some.table has no such column; did you mean height?"),
    ],
)
def test_unknown_target_error_suggests_columns(target_column, line):
    with pytest.raises(ConfigError) as caught:
        parse_table(
            pd.DataFrame({"height": [1], "weight": [2]}), ParsingOptions(target_column=target_column), SOURCE
        )

    assert str(caught.value) == line


def test_table_without_inputs_raises():
    with pytest.raises(ValueError, match=r"some\.table has no column besides the target y"):
        parse_table(pd.DataFrame({"y": [1, 2]}), ParsingOptions(target_column="y"), SOURCE)


def error_message(target: object, task: str = "auto", options: dict | None = None, **columns) -> str:
    """Return the error that parsing raises."""
    with pytest.raises(ConfigError) as caught:
        parse(target, task, options, **columns)
    return str(caught.value)


NUMBERS = [0.5, 1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    ("column", "values", "categories"),
    [
        (["x", "y", "x", "z"], [0, 1, 0, 2], ("x", "y", "z")),
        (["x ", " x", "x", "None"], [1, 1, 1, 0], ("None", "x")),
        (["TRUE", "false", " True", "FALSE"], [1, 0, 1, 0], ()),
        ([True, False, True, True], [1, 0, 1, 1], ()),
        (["a1", "7", "b2", "c3"], [1, 0, 2, 3], ("7", "a1", "b2", "c3")),
        (["-1", "2.5", "1e3", " 4"], [-1, 2.5, 1000, 4], ()),
        (pd.Categorical(["2", "10", "2", "2"]), [0, 1, 0, 0], ("2", "10")),
        (pd.Categorical(["TRUE", "FALSE", "TRUE", "TRUE"]), [1, 0, 1, 1], ()),
    ],
)
def test_columns_become_numbers_or_category_indices(column, values, categories):
    parsed = parse(NUMBERS, b=column)

    assert parsed.table.x[:, 1].tolist() == values
    assert parsed.categories == ((), categories)


def test_inputs_are_float32_only_if_exact():
    assert parse(NUMBERS, b=[1.5, 2, 3, 4]).table.x.dtype == torch.float32
    exact = parse(NUMBERS, b=[20240101000000, 20240101000001, 0.1, 1]).table.x
    assert exact.dtype == torch.float64
    assert exact[:, 1].tolist() == [20240101000000, 20240101000001, 0.1, 1]


def test_notice_reports_encoding_and_missing_values():
    b, c, d = ["x", "y", "x", None], ["u", "v", "w", "u"], ["TRUE", "FALSE", "TRUE", "TRUE"]

    assert parse(NUMBERS, "regression", {"missing": "drop"}, b=b, c=c, d=d).notices == (
        "data: 2 columns one-hot encoded (b: 2 classes, c: 3 classes), true taken as 1 and false as 0 (d), "
        "1 row with missing values dropped",
    )
    assert parse(NUMBERS, "regression", {"missing": "mean"}, b=b).notices == (
        "data: 1 column one-hot encoded (b: 2 classes), 1 missing value imputed with the training mean (b)",
    )
    assert parse(NUMBERS, "regression", {"missing": "mean"}, b=NUMBERS).notices == ()


def test_too_many_categories_raise():
    names = [f"n{number}" for number in range(51)]

    assert parse(range(51), b=[*names[:50], "n0"]).categories[1] == tuple(sorted(names[:50]))
    assert error_message(range(51), b=names) == (
        "some.table, sample 0, column b: n0 is not a number, and the column has 51 categories, more than the "
        "50 that can be one-hot encoded; leave the column out with data.drop=[b]"
    )
    assert len(parse(range(51), options={"drop": ("b",)}, b=names).table.names) == 1


@pytest.mark.parametrize("task", ["auto", "regression"])
def test_missing_drop_removes_rows(task):
    b, y = [1, None, 3, 4, "NA"], [0.5, 1.5, None, 3.5, 4.5]
    table = parse(y, task, {"missing": "drop"}, b=b).table

    assert table.x.tolist() == [[0, 1], [3, 4]]
    assert table.y.tolist() == [[0.5], [3.5]]


def test_missing_mean_keeps_inputs_and_rejects_targets():
    x = parse(NUMBERS, options={"missing": "mean"}, b=[1, None, 3, "nan"]).table.x

    assert x[:, 1].isnan().tolist() == [False, True, False, True]
    assert error_message([0.5, None, 1.5], options={"missing": "mean"}) == (
        "some.table, sample 1, column y: a value is missing; fill it in or remove the row, by hand, "
        "or use data.missing=drop"
    )


def test_column_or_table_without_values_raises():
    assert error_message(NUMBERS, options={"missing": "mean"}, b=[None] * 4) == (
        "some.table: column b has no values; leave it out with data.drop=[b]"
    )
    assert error_message([1.5, 2.5], options={"missing": "drop"}, b=[None, 1], c=[1, None]) == (
        "data.missing must be mean, as every row of some.table has a missing value, got drop"
    )


@pytest.mark.parametrize("name", ["None", "NA", "nan", "null", "NaN", "N/A"])
def test_class_label_may_be_any_text(name):
    parsed = parse(["low", name, "low", "high"])

    assert parsed.table.classes == 3
    assert f"3 classes ({', '.join(sorted(['low', name, 'high']))})" in parsed.notices[0]
    with pytest.raises(ConfigError, match=r"sample 1, column y: a value is missing; fill it in"):
        parse(["low", None, "low", "high"])


def test_na_among_numbers_is_missing_value():
    target = ["1", "NA", "0", "1"]

    assert "sample 1, column y: a value is missing (NA); fill it in" in error_message(target)
    assert parse(target, options={"missing": "drop"}).table.y.tolist() == [1, 0, 1]
    assert parse(target, "classification").table.classes == 3
    assert "sample 1, column b: a value is missing (NA); fill it in" in error_message(NUMBERS, b=target)


def test_drop_option_removes_columns():
    table = parse(NUMBERS, options={"drop": ("b", "c")}, b=["?"] * 4, c=[None] * 4, d=[1, 2, 3, 4]).table

    assert table.names == ("a", "d")


@pytest.mark.parametrize(
    ("drop", "line"),
    [
        (("hight",), "data.drop: some.table has no column hight; did you mean height?"),
        (("y",), "data.drop must be without y, the target, got [y]"),
        (("height", "a"), "some.table has no column besides the target y; it needs at least one input column"),
    ],
)
def test_invalid_drop_raises(drop, line):
    assert error_message(NUMBERS, options={"drop": drop}, height=NUMBERS) == line


def test_large_integer_classes_stay_distinct():
    assert parse([2**60, 2**60 + 1, 2**60]).table.y.tolist() == [0, 1, 0]


def test_float32_overflow_is_recorded_with_message():
    large = [1e39, 2e39, 3e39, 4e39]
    reason = "1e+39 is not a finite 32-bit number; standardize it, correct it or remove the row, by hand"

    parsed = parse(large, "regression", b=large)
    assert parsed.input_overflow == f"some.table, sample 0, column b: {reason}"
    assert parsed.target_overflow == f"some.table, sample 0, column y: {reason}"
    assert parsed.table.x[:, 1].tolist() == parsed.table.y.flatten().tolist() == large
    assert parse(NUMBERS).input_overflow == parse(NUMBERS).target_overflow == ""
    assert "1e+200 is not a finite number up to 1e+150" in error_message(NUMBERS, b=[1, 2, 1e200, 4])


def test_other_decimal_sign_raises():
    source = Source("some.table", lambda row: f"some.table, sample {row}", decimal=".")
    frame = pd.DataFrame({"a": ["0,5", "1.234,5"], "y": ["2,5", "3"]})

    with pytest.raises(
        ConfigError, match=r"column a: 0,5 is not a number with a decimal point; use data\.decimal="
    ):
        parse_table(frame, ParsingOptions(target_column="y"), source)
    with pytest.raises(
        ConfigError, match=r"column y: 2,5 is not a number with a decimal point; use data\.decimal="
    ):
        parse_table(frame.assign(a=[1, 2]), ParsingOptions(target_column="y"), source)
