from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from normlab.data.csv import SEPARATORS, Dialect, detect_dialect


def detect(folder: Path, text: str, separator: str | None = None, decimal: str | None = None) -> Dialect:
    path = folder / "people.csv"
    path.write_text(text, encoding="utf-8")
    return detect_dialect(path, separator, decimal)


@pytest.mark.parametrize(
    ("text", "separator", "decimal"),
    [
        ("a,y\n1.5,2\n", ",", "."),
        ("a;y\n1,5;2\n", ";", ","),
        ("a;y\n1.5;2\n", ";", "."),
        ("a\ty\n1,5\t2\n", "\t", ","),
        ("a|y\n1|2\n", "|", "."),
        ("\ufeffa;b;y;;\n0,5;1;2,5;;\n", ";", ","),
        ('"height; m",y\n1,2\n', ",", "."),
        ("height, m;weight, kg;y\n1,5;70,5;1\n1,6;71;2\n", ";", ","),
        ("a,y\n1;2,3\n", ",", "."),
        ('text,y\n"a;b;c",2\n', ",", "."),
        ('a,y\n"1,5","2,5"\n', ",", "."),
        ("a;y\n1,5;2.5\n1,6;3,5\n", ";", ","),
        ("a;date;y\n1,5;1.5.20;7\n", ";", ","),
        ("a y\n1 2\n", ",", "."),
        ("", ",", "."),
    ],
)
def test_dialect_is_detected(tmp_path, text, separator, decimal):
    assert detect(tmp_path, text) == Dialect(separator, decimal)


@given(
    separator=st.sampled_from([",", ";", "\t", "|"]),
    decimal=st.sampled_from([".", ","]),
    rows=st.lists(st.tuples(*3 * [st.floats(-100, 100)]), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_dialect_of_written_table_is_detected(tmp_path, separator, decimal, rows):
    if separator == decimal:
        return
    lines = [["a", "b", "y"], *([f"{value:.3f}".replace(".", decimal) for value in row] for row in rows)]
    text = "".join(f"{separator.join(line)}\n" for line in lines)

    assert detect(tmp_path, text) == Dialect(separator, decimal)


def test_given_signs_are_not_detected(tmp_path):
    text = "a;b,y\n1,5;2\n"

    assert detect(tmp_path, text, separator=",") == Dialect(",", ".")
    assert detect(tmp_path, text, separator=";", decimal=".") == Dialect(";", ".")
    assert detect(tmp_path, "a,b;y\n1,2;3\n", decimal=",") == Dialect(";", ",")


def test_dialect_string_names_both_signs():
    assert str(Dialect(";", ",")) == "separator semicolon, decimal comma"
    assert str(Dialect(":", ".")) == "separator :, decimal point"
    assert set(SEPARATORS.values()) == {",", ";", "\t", "|", " "}
