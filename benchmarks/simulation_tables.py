"""Tables of simulated rates, as text and in docs/statistics.md."""

import re
from collections.abc import Callable

import numpy as np

Table = dict[str, dict[str, float]]
"""Rows of columns."""
Tables = dict[str, Table]
"""Tables by their titles."""
Simulation = Callable[[int, np.random.Generator], Tables]
"""A function of the number of simulations and a generator."""


def printed(title: str, table: Table) -> str:
    """Return a table as text."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    widths = [max(len(column), 8) + 2 for column in columns]
    margin = max(16, *(len(name) + 1 for name in table))
    lines = [title, " " * margin + "".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))]
    for name, row in table.items():
        grid = [cell(column, row.get(column)) for column in columns]
        lines.append(f"{name:{margin}}" + "".join(f"{c:>{w}}" for c, w in zip(grid, widths, strict=True)))
    return "\n".join(lines)


def cell(column: str, value: float | None) -> str:
    """Return a number as text: counts of pairs, differences with three decimals, all else in percent."""
    if value is None or np.isnan(value):
        return "-"
    if column.startswith("pairs"):
        return f"{value:.0f}"
    return f"{value:.3f}" if column.startswith("difference") else f"{100 * value:.1f} %"


def written(text: str, name: str, tables: Tables) -> str:
    """Return a page with the tables of a simulation between its markers ``<!-- name -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the page lacks the markers.
    """
    blocks = "\n\n".join(printed(title, table) for title, table in tables.items())
    indented = "\n".join(f"    {line}".rstrip() for line in blocks.splitlines())
    between = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    page, found = between.subn(lambda match: f"{match[1]}\n{indented}\n\n{match[2]}", text)
    if found != 1:
        raise ValueError(f"the page must have <!-- {name} --> with an <!-- end --> once, got it {found} times")
    return page
