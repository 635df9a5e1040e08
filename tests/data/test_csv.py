import os
from pathlib import Path

import hypothesis.strategies as st
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch.testing import assert_close

from normlab.data import CSV
from normlab.data import csv as module
from normlab.errors import ConfigError

PEOPLE = """height,age,member,y
1.5,30,True,0.5
2.5,40,False,1.25
1e0,-50,TRUE,1.5
"""


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Path of a CSV file with three rows."""
    return write_csv(tmp_path, PEOPLE)


def write_csv(folder: Path, text: str | bytes) -> Path:
    path = folder / "people.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def make_csv(path: Path | str, target_column: str | int | None = "y", **options) -> CSV:
    sizes = {"train": 1, "val": 1, "test": 1, "batch_size": 1, "seed": 0}
    return CSV(**(sizes | options), path=str(path), target_column=target_column)


def error_message(folder: Path, text: str | bytes, target_column: str | None = "y", **options) -> str:
    """Return the one-line error that reading a file raises."""
    with pytest.raises(ConfigError) as caught:
        make_csv(write_csv(folder, text), target_column, **options).table()
    (line,) = str(caught.value).splitlines()
    return line


def test_columns_except_target_are_inputs(people):
    table = make_csv(people).table()

    assert torch.equal(table.x, torch.tensor([[1.5, 30, 1], [2.5, 40, 0], [1, -50, 1]]))
    assert torch.equal(table.y, torch.tensor([[0.5], [1.25], [1.5]]))
    assert torch.equal(make_csv(people, "age").table().x[:, 2], torch.tensor([0.5, 1.25, 1.5]))


def test_boolean_target_has_two_classes(people):
    table = make_csv(people, "member").table()

    assert table.classes == 2
    assert table.y.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "text",
    [
        PEOPLE.replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + PEOPLE.encode(),
        PEOPLE.replace(",", ", "),
        "\n" + PEOPLE.replace("\n", "\n\n") + "  \n\n",
        PEOPLE.rstrip(),
        PEOPLE.replace("height", '"height"').replace("1.5,", '"1.5",'),
    ],
    ids=["Windows lines", "byte order mark", "spaces", "blank lines", "no last newline", "quotes"],
)
def test_file_variants_give_same_table(people, tmp_path, text):
    expected = make_csv(people).table()
    table = make_csv(write_csv(tmp_path, text)).table()

    assert torch.equal(table.x, expected.x)
    assert torch.equal(table.y, expected.y)


def test_numeric_column_name_selects_target(tmp_path):
    table = make_csv(write_csv(tmp_path, "0,1\n0.5,7.5\n1.5,8.5\n"), 1).table()

    assert table.y.tolist() == [[7.5], [8.5]]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a,y\n1,2\n,3\n", "people.csv, row 3, column a: a value is missing; fill it in or remove the row"),
        ("a,y\n1,2\n3,\n", "people.csv, row 3, column y: a value is missing; fill it in or remove the row"),
        ("a,y\n1,2\n3\n", "people.csv, row 3, column y: a value is missing; fill it in or remove the row"),
        ("a,y\n1,2\nNA,3\n", "people.csv, row 3, column a: a value is missing (NA); fill it in or remove the row"),
        ("\n\na,y\n\n1,2\n \nx,3\n", "people.csv, row 7, column a: x is not a number; correct it, or"),
        ('b,a,y\n"1",1,2\n"two\nlines",3,4\n5,x,6\n', "people.csv, row 3, column b: two lines is not a number"),
        ('a,"b\nb",y\n1,1,2\n1,,4\n', "people.csv, row 4, column b b: a value is missing"),
        ('a,y\n1,"u\n\nv"\nx,w\n', "people.csv, row 5, column a: x is not a number"),
        (
            "a,y\r\n1,2\r\n\r\n-inf,3\r\n",
            "people.csv, row 4, column a: -inf is not a finite number up to 1e+150",
        ),
        ("a,y\n1,2\n1e39,3\n", "people.csv, row 3, column a: 1e+39 is not a finite 32-bit number"),
        ("a,y\n1,2\n3,4,5\n", "people.csv, row 3: 3 values for 2 columns; quote values that contain a comma"),
        ("a,y\n1,2,3\n4,5,6\n", "people.csv, row 2: 3 values for 2 columns; quote values that contain a comma"),
        ('a,y\n1,2\n"3,4\n', "people.csv cannot be read as a CSV: Error tokenizing data."),
        ("a,a,y\n1,2,3\n", "people.csv has two columns named a; rename one"),
        (",a,y\n0,1,2\n", "people.csv: column 1 has no name; name it in the first line or remove it"),
        ("a/y\n1/2\n", "people.csv has a single column, a/y, with separator comma, decimal point; the first"),
        ("y\n1\n", "people.csv has a single column, y, with "),
        ("", "people.csv is empty"),
        ("\n \n", "people.csv is empty"),
        ("a,y\n", "people.csv has no rows below its header"),
        ("a,z\n1,2\n", "data.target_column=y: people.csv has no such column; did you mean "),
        ("a,y\n1,u\n2,u\n", "people.csv: the target y must be of two classes or more, got u"),
        ("a,y\n1,é\n".encode("latin-1"), "people.csv must be text in UTF-8; save it as such ('utf-8' codec"),
    ],
)
def test_invalid_file_error_names_row_and_column(tmp_path, text, line):
    assert error_message(tmp_path, text).startswith(line)


# Some cells are quoted and contain line breaks.
CELLS = st.sampled_from(["1", "-2.5", "1e3", '"4"', '"5\n"', '"\n\n6"'])
BLANK = st.sampled_from(["", "", "\n", " \n", "\t\n\n"])


@given(
    rows=st.lists(st.tuples(BLANK, CELLS, CELLS), min_size=2, max_size=8), wrong=st.integers(0, 7), before=BLANK
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_error_row_is_line_number_in_file(tmp_path, rows, wrong, before):
    wrong %= len(rows)
    lines = [
        f"{blank}{'wrong' if row == wrong else cell},{other},1\n" for row, (blank, cell, other) in enumerate(rows)
    ]
    text = f"{before}a,b,y\n{''.join(lines)}"
    line = 1 + text[: text.index("wrong")].count("\n")

    assert error_message(tmp_path, text).startswith(f"people.csv, row {line}, column a: wrong is not a number")


def test_file_is_parsed_again_only_after_change(people, monkeypatch):
    parsed = []
    read_csv = pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda *args, **options: parsed.append(1) or read_csv(*args, **options))
    module.read_csv.cache_clear()

    for _ in range(3):
        data = make_csv(people)
        assert len(data.table()) == len(data.parts) == 3
        assert data.notices
    assert len(parsed) == 1

    people.write_text(PEOPLE.replace("0.5", "0.7"))
    os.utime(people, ns=(0, 0))
    assert make_csv(people).table().y[0].item() == pytest.approx(0.7)
    assert len(parsed) == 2


def test_path_is_relative_to_working_directory_or_home(people, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert len(make_csv("people.csv").table()) == len(make_csv("~/people.csv").table()) == 3


def test_missing_file_error_names_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    for path in ("nobody.csv", "."):
        with pytest.raises(ConfigError, match=rf"^data\.path={path}: there is no file {tmp_path}"):
            make_csv(path).table()


@pytest.mark.parametrize(
    "text",
    [
        PEOPLE.replace(".", ";").replace(",", "\t").replace(";", ","),
        PEOPLE.replace(",", ";"),
        PEOPLE.replace(",", ";").replace(".", ","),
        "\ufeff" + PEOPLE.replace(",", ";").replace(".", ",").replace("\n", ";;\r\n") + ";;;;;\r\n",
        PEOPLE.replace(",", "|"),
    ],
    ids=["tabs", "semicolons", "decimal commas", "as a spreadsheet writes", "pipes"],
)
def test_separator_and_decimal_are_detected(people, tmp_path, text):
    expected = make_csv(people).table()
    table = make_csv(write_csv(tmp_path, text)).table()

    assert torch.equal(table.x, expected.x)
    assert torch.equal(table.y, expected.y)
    assert table.names == expected.names


def test_notice_reports_only_detected_dialect(people, tmp_path):
    notice = "data: people.csv: separator semicolon, decimal comma"

    assert not any("separator" in line for line in make_csv(people).notices)
    path = write_csv(tmp_path, PEOPLE.replace(",", ";").replace(".", ","))
    assert make_csv(path).notices[0] == notice
    assert notice not in make_csv(path, separator="semicolon", decimal="comma").notices
    assert notice not in make_csv(path, separator=";", decimal=",").notices


def test_quoted_decimal_commas_require_decimal_option(tmp_path):
    path = write_csv(tmp_path, 'a,y\n"0,5","2,5"\n"1,5","3,5"\n"2,5",4\n')

    assert "row 2, column a: 0,5 is not a number with a decimal point; use data.decimal=comma" in error_message(
        tmp_path, path.read_text()
    )
    table = make_csv(path, decimal="comma").table()
    assert table.x.tolist() == [[0.5], [1.5], [2.5]]
    assert table.y.tolist() == [[2.5], [3.5], [4]]


def test_decimal_comma_applies_to_columns_with_text(tmp_path):
    path = write_csv(tmp_path, "a;b;y\n0,5;1,5;2,5\n;NA;3,5\n2,5;4;4,5\n")

    assert make_csv(path, missing="drop").table().x.tolist() == [[0.5, 1.5], [2.5, 4]]
    assert error_message(tmp_path, "a;y\n0,5;1\n1,5;2\n1.5;3\n").startswith(
        "people.csv, row 4, column a: 1.5 is not a n"
    )


@pytest.mark.parametrize("separator", [":", "space"])
def test_separator_option_accepts_any_sign(people, tmp_path, separator):
    sign = " " if separator == "space" else separator
    path = write_csv(tmp_path, PEOPLE.replace(",", sign))

    assert error_message(tmp_path, path.read_text()).startswith("people.csv has a single column, height")
    assert torch.equal(
        make_csv(path, separator=separator).table().x, make_csv(write_csv(tmp_path, PEOPLE)).table().x
    )


def test_error_row_counts_skipped_rows(tmp_path):
    text = "a;y\n1;2\n;\n\n;\nx;3\n2;4\n"

    assert error_message(tmp_path, text).startswith("people.csv, row 6, column a: x is not a number")
    assert error_message(tmp_path, text.replace("x", "NA")).startswith(
        "people.csv, row 6, column a: a value is missing (NA)"
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"separator": "xy"},
            "data.separator must be null, comma, semicolon, tab, pipe, space or a single sign, got",
        ),
        ({"separator": "x"}, "data.separator must be null, comma"),
        ({"separator": 1}, "data.separator must be null, comma"),
        ({"decimal": "dot"}, "data.decimal must be null, point or comma, got dot"),
        ({"missing": "men"}, "data.missing must be error, drop or mean, got men"),
        ({"drop": "id"}, "data.drop must be a list of columns, as [id], got id"),
    ],
)
def test_invalid_options_raise(people, options, line):
    with pytest.raises(ConfigError) as caught:
        make_csv(people, **options)

    assert str(caught.value).startswith(line)


def test_none_is_valid_class_label(tmp_path):
    path = write_csv(tmp_path, "a,kind\n1,low\n2,None\n3,NA\n")

    assert make_csv(path, "kind").notices[0] == "data: target kind taken as 3 classes (NA, None, low)"


def test_notice_lists_categories_absent_from_training(tmp_path):
    rows = "".join(f"{'Oslo' if number % 2 else 'Bern'},{number}.5\n" for number in range(8))
    data = make_csv(write_csv(tmp_path, f"city,y\n{rows}Rome,9.5\n"), train=7, val=1, test=1, seed=3)
    splits = [part.x.tolist() for part in data.parts]

    assert [0, 0] in [*splits[1], *splits[2]]
    assert data.notices[-1] == "data: categories absent from the training samples, encoded as zeros: city=Rome"
    assert data.parts[0].names == ("city=Bern", "city=Oslo")


def test_encoded_and_imputed_inputs_are_standardized(tmp_path):
    rows = "".join(
        f"{'' if number < 5 else 'Oslo' if number % 3 else 'Rome'},{number}.5\n" for number in range(40)
    )
    train = make_csv(
        write_csv(tmp_path, f"city,y\n{rows}"), train=40, val=0, test=0, missing="mean", standardize=True
    ).parts[0]

    assert train.x.shape == (40, 2)
    assert_close(train.x.mean(0), torch.zeros(2), rtol=0, atol=1e-6)
    assert_close(train.x.std(0, correction=0), torch.ones(2))
    assert (train.x.abs().amax(dim=1) < 1e-6).sum() == 5, "missing values equal the mean"


def timestamp_data(folder: Path, offset: int) -> CSV:
    """Return a dataset whose inputs and targets are large numbers with small differences."""
    rows = [f"{offset + 100 * row},{row % 7},{offset + row}.5" for row in range(30)]
    path = write_csv(folder, "\n".join(["stamp,a,y", *rows, ""]))
    return make_csv(path, train=20, val=5, test=5, standardize=True, standardize_target=True)


def test_bug_standardization_lost_digits_of_large_columns(tmp_path):
    large = [(part.x, part.y) for part in timestamp_data(tmp_path, 20240101000000).parts]
    small = [(part.x, part.y) for part in timestamp_data(tmp_path, 0).parts]

    for (x, y), (expected_x, expected_y) in zip(large, small, strict=True):
        assert torch.equal(x, expected_x)
        assert torch.equal(y, expected_y)
    assert len(large[0][0][:, 0].unique()) == len(large[0][1].unique()) == 20
