"""docs/statistics.md: the example runs, and its numbers agree with the code."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from normlab.stats.estimates import COVERAGE
from normlab.stats.paired_tests import corrected_t_detectable, detectable_shift, replicates_for

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
SIMULATIONS = importlib.import_module("simulations").SIMULATIONS
TEXT = (ROOT / "docs" / "statistics.md").read_text()


def test_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.startswith("bn is better than nobn: test/loss ratio ")


def test_each_simulation_has_tables():
    between = dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", TEXT, flags=re.DOTALL))
    assert set(between) == set(SIMULATIONS)
    assert all(" %" in tables for tables in between.values())


def test_coverage_constant_is_lowest_of_table():
    table = TEXT.split("interquartile mean\n")[1].split("\n\n")[0].splitlines()
    seeds = [int(number) for number in re.findall(r"n = (\d+)", table[0])]
    rows = [re.findall(r"([\d.]+) %", line) for line in table[1:4]]
    lowest = {n: min(float(row[place]) / 100 for row in rows) for place, n in enumerate(seeds)}
    assert {n: lowest[n] for n in COVERAGE} == pytest.approx(COVERAGE, abs=0.006)


def numbers(title):
    """Return the numbers of a table in the page, by row."""
    lines = TEXT.split(f"    {title}\n")[1].split("\n\n")[0].splitlines()[1:]
    return {line[4:].split("  ")[0]: [float(number) for number in line.split()[-3:]] for line in lines}


def test_detectable_shifts_match_table():
    table = numbers("difference in sd found with 80 % power, m comparisons")
    assert len(table) == 6
    for row, found in table.items():
        n = int(row.removeprefix("n = "))
        assert found == pytest.approx([detectable_shift(n, 0.05 / m) for m in (1, 3, 7)], abs=0.01)


def test_required_pairs_match_table():
    table = numbers("pairs that a difference needs, m comparisons")
    assert len(table) == 4
    for row, found in table.items():
        difference = float(row.removesuffix(" sd"))
        assert found == pytest.approx([replicates_for(difference, 0.05 / m) for m in (1, 3, 7)], rel=0.02, abs=1)


def test_corrected_t_detectable_matches_table():
    table = numbers("difference in sd that the corrected t finds with 80 % power")
    assert len(table) == 4
    for row, found in table.items():
        train, test = (int(number) for number in re.findall(r"\d+", row))
        assert found == pytest.approx([corrected_t_detectable(j, train, test) for j in (12, 24, 100)], abs=1e-3)
