"""``report.json``: every number of the page, as strict JSON."""

import csv
import html
import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest

from normlab import load_sweep
from normlab.report.__main__ import main
from normlab.report.console import num
from normlab.report.report_json import TABLES, json_value
from normlab.results.result import Status
from normlab.stats.sentences import p_value


@pytest.fixture
def read(tmp_path):
    """Return a function that writes the report of the sweep and returns its ``report.json``."""

    def write(*arguments):
        main([str(tmp_path / "sweep"), *arguments, "--out", str(tmp_path / "page")])
        text = (tmp_path / "page/report.json").read_text()
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    return write


def several_panels(make_run):
    """Write a sweep with two panels, two learning rates, a diverged and a failed run."""
    for seed in range(16):
        for model, level in (("bn", 2.0), ("ln", 2.5), ("nobn", 3.0)):
            for size in (64, 128):
                for lr in ("0.01", "0.1"):
                    end = level + 0.01 * ((7 * seed + size) % 5) + (lr == "0.1")
                    name = f"model={model} optimizer.lr={lr} data.batch_size={size} seed={seed}"
                    make_run(name, (end + 1, end, end + 0.5))
    make_run("model=bn optimizer.lr=1.0 data.batch_size=64 seed=0", (9.0,), status=Status.DIVERGED)
    make_run("model=bn optimizer.lr=1.0 data.batch_size=64 seed=1", (9.0,), status=Status.FAILED)


def test_tables_of_the_page_are_in_it(make_run, read, tmp_path):
    several_panels(make_run)
    report = read("--margin", "0.05")
    tables = report | report["figures"]
    files = sorted((tmp_path / "page").glob("*.csv"))
    expected = {name for name in TABLES if report[name]} | set(report["figures"])
    assert expected <= {path.stem for path in files} <= set(tables)
    for path in files:
        with path.open() as file:
            written = list(csv.DictReader(file))
        rows = tables[path.stem]
        assert len(rows) == len(written)
        for row, cells in zip(rows, written, strict=True):
            assert list(row) == list(cells)
            assert all(is_equal(row[name], cells[name]) for name in row), path.stem


def is_equal(value, cell):
    """Return True if a value of the JSON is that of a csv cell; infinite numbers are null."""
    if value is None:
        return cell in ("", "inf", "-inf")
    return float(cell) == value if isinstance(value, float) else str(value) == cell


def test_comparisons_are_those_of_the_api(make_run, read, tmp_path):
    several_panels(make_run)
    rows, compared = pd.DataFrame(read()["comparisons"]), load_sweep(tmp_path / "sweep").compare()
    assert set(compared["verdict"]) == {"better"}
    for name in ("panel", "arm", "baseline", "metric", "effect", "estimate", "verdict", "replicates"):
        assert rows[name].tolist() == compared[name].tolist()
    assert rows["p_adjusted"].tolist() == compared["p"].tolist()


def test_keys_are_the_same_for_every_sweep(make_run, read, tmp_path):
    make_run("model=bn seed=0")
    alone = read()
    several_panels(make_run)
    several = read()
    assert list(alone) == list(several)
    assert alone["schema"] == 1
    assert alone["comparisons"] == []
    assert several["design"]["metrics"][0] == {
        "name": "test/loss",
        "direction": "min",
        "question": "generalization",
    }


def test_second_report_has_the_same_bytes(make_run, read, tmp_path):
    several_panels(make_run)
    read()
    first = (tmp_path / "page/report.json").read_bytes()
    read()
    assert (tmp_path / "page/report.json").read_bytes() == first


def test_values_without_a_counterpart_are_null_or_text():
    found = json_value({1: [math.inf, -math.inf, math.nan, pd.NA, None], "path": tuple("ab"), "flag": True})
    assert found == {"1": [None] * 5, "path": ["a", "b"], "flag": True}


def test_code_of_the_documentation_reads_it(make_run, read, tmp_path, capsys):
    several_panels(make_run)
    read()
    text = (Path(__file__).parents[2] / "docs/report.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    exec(code.replace("outputs/mine/report", str(tmp_path / "page")), {})
    assert len(capsys.readouterr().out.splitlines()) == 1 + 8  # the path of the page, and the comparisons


def test_documentation_names_every_key(make_run, read):
    make_run("model=bn seed=0")
    text = (Path(__file__).parents[2] / "docs/report.md").read_text()
    assert not [key for key in read() if f"`{key}`" not in text]


def test_first_table_and_answers_are_on_the_page(make_run, read, tmp_path):
    several_panels(make_run)
    report = read("--margin", "0.05")
    page = html.unescape((tmp_path / "page/index.html").read_text()).replace("\u00a0", " ")
    head = re.sub(r"<[^>]+>", "|", page.partition("<main>")[0])
    for row in report["effects"]:
        effect = f"× {num(row['estimate'])} ({num(row['low'])} to {num(row['high'])})"
        known = [name for name in ("value", "best_epoch") if row[name] is not None]
        values = [f"{num(row[name])} vs. {num(row[f'baseline_{name}'])}" for name in known]
        assert known == ["value", "best_epoch"][: 2 if row["metric"] == "test/loss" else 1]
        for text in (effect, p_value(row["p"]), row["verdict"], *values):
            assert f"|{text}|" in head
    assert [(each["panel"], each["state"]) for each in report["answers"]] == [
        ("data.batch_size=64", "different"),
        ("data.batch_size=128", "different"),
    ]
    for each in report["answers"]:
        words = re.sub(r"\W+", " ", head)
        assert re.sub(r"\W+", " ", each["text"]).strip() in words
    for label, text in report["conditions"].items():
        assert f"|{label.capitalize()}|" in head
        assert f"|{text}|" in head
