"""``report.tex``: the main table as a fragment that compiles."""

import re

import pandas as pd
import pytest

from normlab import load_sweep
from normlab.report.__main__ import main
from normlab.report.latex import escaped, latex_table


@pytest.fixture
def fragment(tmp_path):
    """Return a function that writes the report of the sweep and returns its ``report.tex``."""

    def write():
        main([str(tmp_path / "sweep")])
        return (tmp_path / "sweep/report/report.tex").read_text()

    return write


def require_compilable(tex):
    """Check braces, column counts and special characters, which is what LaTeX stops at."""
    depth = 0
    for mark in re.sub(r"\\[{}]", "", tex):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        assert depth >= 0
    assert depth == 0
    columns = len(re.search(r"\\begin\{tabular\}\{(l+)\}", tex)[1])
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert rows
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == columns - 1
        assert not re.search(r"(?<!\\)[%#_]", row)
        assert len(re.findall(r"(?<!\\)\$", row)) % 2 == 0
        assert row.isascii()
    assert re.findall(r"\\\w+rule", tex) == [r"\toprule", r"\midrule", r"\bottomrule"]


def test_main_table_is_that_of_the_api(make_run, fragment, tmp_path):
    for seed in range(8):
        for model, level in (("ws_gn", 1.0), ("bn", 2.0), ("nobn", 3.0)):
            for size in (64, 128):
                make_run(f"model={model} data.batch_size={size} seed={seed}", (5.0, level + 0.1 * (seed % 3)))
    tex = fragment()
    require_compilable(tex)
    assert tex == load_sweep(tmp_path / "sweep").to_latex() + "\n"
    assert r"data.batch\_size=64 & ws\_gn & 8 & " in tex
    assert r"$\times$ 0." in tex


def test_single_arm_has_no_empty_columns(make_run, fragment):
    for seed in range(4):
        make_run(f"model=bn seed={seed}")
    tex = fragment()
    require_compilable(tex)
    assert r"replicates & test/loss \\" in tex


def test_infinite_intervals_are_mathematics(make_run, fragment):
    for seed in range(3):
        make_run(f"model=bn seed={seed}", (1.0, 1.0 + seed))
        make_run(f"model=nobn seed={seed}", (2.0, 2.0 + seed))
    tex = fragment()
    require_compilable(tex)
    assert r"to $\infty$)" in tex


@pytest.mark.parametrize("name", ["a_b", "50 %", "R&D", "#1", "{x}", "a$b", "~x^2", "\\input", "−0.5 × ∞"])
def test_names_are_escaped(name):
    require_compilable(latex_table(pd.DataFrame({name: [name], "other": ["x"]})))
    assert escaped("plain (0.1 to 0.2)") == "plain (0.1 to 0.2)"
