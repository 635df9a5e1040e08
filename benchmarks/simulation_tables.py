"""Format tables of simulated rates as text, and insert them into docs/statistics.md."""

import re
from collections.abc import Callable

import numpy as np

Table = dict[str, dict[str, float]]
"""Values by row, then by column."""
Tables = dict[str, Table]
"""Tables by title."""
Simulation = Callable[[int, np.random.Generator], Tables]
"""A function of the number of repetitions and a generator."""


def printed(title: str, table: Table) -> str:
    """Format a table as text."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    widths = [max(len(column), 8) + 2 for column in columns]
    margin = max(16, *(len(name) + 1 for name in table))
    lines = [title, " " * margin + "".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))]
    for name, row in table.items():
        grid = [cell(title, row.get(column)) for column in columns]
        lines.append(f"{name:{margin}}" + "".join(f"{c:>{w}}" for c, w in zip(grid, widths, strict=True)))
    return "\n".join(lines)


def cell(title: str, value: float | None) -> str:
    """Format a value by its table: counts of pairs, differences in sd with three decimals, otherwise percent."""
    if value is None or np.isnan(value):
        return "-"
    if title.startswith("pairs") or title.endswith("number of pairs"):
        return f"{value:.0f}"
    return f"{value:.3f}" if title.startswith("difference in sd") else f"{100 * value:.1f} %"


def written(text: str, name: str, tables: Tables) -> str:
    """Insert tables into a page between its markers ``<!-- name -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the page does not have this pair of markers exactly once.
    """
    blocks = "\n\n".join(printed(title, table) for title, table in tables.items())
    indented = "\n".join(f"    {line}".rstrip() for line in blocks.splitlines())
    between = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    page, count = between.subn(lambda match: f"{match[1]}\n{indented}\n\n{match[2]}", text)
    if count != 1:
        raise ValueError(f"the page must have <!-- {name} --> with an <!-- end --> once, got it {count} times")
    return page
