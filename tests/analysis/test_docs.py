"""docs/statistics.md: its example runs, and the code knows the coverage that stands there."""

import re
from pathlib import Path

import pytest

from normlab.analysis.coverage import COVERAGE

TEXT = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()


def test_the_example(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.startswith("bn is better than nobn in val/loss, p = 0.0078, 8 paired seeds; ")


def test_the_coverage_with_few_seeds_is_the_lowest_of_the_table():
    table = TEXT.split("interquartile mean\n")[1].split("\n\n")[0].splitlines()
    seeds = [int(number) for number in re.findall(r"n = (\d+)", table[0])]
    rows = [re.findall(r"([\d.]+) %", line) for line in table[1:4]]
    lowest = {n: min(float(row[place]) / 100 for row in rows) for place, n in enumerate(seeds)}
    assert {n: lowest[n] for n in COVERAGE} == pytest.approx(COVERAGE, abs=0.005)
