from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from normlab.data.csv import SEPARATORS, Dialect, detect_dialect


def dialect(folder: Path, text: str, separator: str | None = None, decimal: str | None = None) -> Dialect:
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
def test_signs_are_found(tmp_path, text, separator, decimal):
    assert dialect(tmp_path, text) == Dialect(separator, decimal)


@given(
    separator=st.sampled_from([",", ";", "\t", "|"]),
    decimal=st.sampled_from([".", ","]),
    rows=st.lists(st.tuples(*3 * [st.floats(-100, 100)]), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_signs_that_a_table_is_written_with_are_found(tmp_path, separator, decimal, rows):
    if separator == decimal:
        return
    lines = [["a", "b", "y"], *([f"{value:.3f}".replace(".", decimal) for value in row] for row in rows)]
    text = "".join(f"{separator.join(line)}\n" for line in lines)

    assert dialect(tmp_path, text) == Dialect(separator, decimal)


def test_signs_that_are_given_are_not_looked_for(tmp_path):
    text = "a;b,y\n1,5;2\n"

    assert dialect(tmp_path, text, separator=",") == Dialect(",", ".")
    assert dialect(tmp_path, text, separator=";", decimal=".") == Dialect(";", ".")
    assert dialect(tmp_path, "a,b;y\n1,2;3\n", decimal=",") == Dialect(";", ",")


def test_both_signs_are_told_in_words():
    assert str(Dialect(";", ",")) == "separator semicolon, decimal comma"
    assert str(Dialect(":", ".")) == "separator :, decimal point"
    assert set(SEPARATORS.values()) == {",", ";", "\t", "|", " "}
