"""The arms, panels and runs that report sections show, and the format of their numbers."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from normlab.report.console import format_number
from normlab.report.factors import short_names
from normlab.report.figures import Style, styles
from normlab.report.report_data import ReportData

MINUS = "\N{MINUS SIGN}"
MOST_PANELS = 12
"""Panels that are drawn of each kind; the tables have all."""
TableRow = dict[str, Any]


def num(value: float, digits: int = 3) -> str:
    """Return a number as a reader expects it.

    >>> num(-0.01234), num(float("inf")), num(float("nan"))
    ('−0.0123', '∞', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return f"{MINUS if value < 0 else ''}∞"
    return format_number(value, digits).replace("-", MINUS)


def with_interval(row: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """Return an estimate and its interval.

    >>> with_interval({"ratio": 0.5, "ratio_low": 0.4, "ratio_high": float("inf")}, "ratio")
    '0.5 (0.4 to ∞)'
    """
    value, low, high = (row[name], row[f"{name}_low"], row[f"{name}_high"])
    if value is None or math.isnan(value):
        return "–"
    if math.isnan(low) or math.isnan(high):
        return num(value, digits)
    return f"{num(value, digits)} ({num(low, digits)} to {num(high, digits)})"


def effect_text(row: Mapping[str, Any]) -> str:
    """Return an effect with its interval: a ratio as × 0.95, a difference with its unit."""
    if math.isnan(row["estimate"]):
        return "–"
    text = with_interval(row, "estimate")
    return f"× {text}" if row["effect"] == "ratio" else f"{text} points" if row["effect"] == "points" else text


def display_table(frame: pd.DataFrame, columns: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table of texts and numbers: by heading, the column, or a function of the row."""
    rows = frame.to_dict("records")
    return pd.DataFrame(
        {head: [of(row) if callable(of) else row[of] for row in rows] for head, of in columns.items()},
        dtype=object,
    )


def styles_of(study: ReportData) -> dict[str, Style]:
    """Return the colour and line of each arm, the same everywhere."""
    arms = study.analysis.design.arms
    return dict(zip(arms, styles([(arm,) for arm in arms]), strict=True))


def table_rows(frame: pd.DataFrame) -> list[TableRow]:
    """Return the rows of a table."""
    return frame.to_dict("records")  # type: ignore[return-value]


def first_panels(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the first panels of a table, by name."""
    return [(str(name), own) for name, own in frame.groupby("panel", sort=False)][:MOST_PANELS]


def left_out(frame: pd.DataFrame) -> list[str]:
    """Return the note on panels that are not drawn."""
    count = frame["panel"].nunique() if len(frame) else 0
    return [f"{count - MOST_PANELS} more panels are in the tables alone."] if count > MOST_PANELS else []


def file(kind: str, number: int) -> str:
    """Return the name of a picture's files.

    >>> file("curves", 0), file("curves", 1)
    ('curves', 'curves_2')
    """
    return f"{kind}_{number + 1}" if number else kind


def titled(what: str, panel: str) -> str:
    """Return the title of a picture of one panel."""
    return f"{what}, {panel}" if panel else what


def tuned_at(study: ReportData, row: TableRow) -> str:
    """Return an arm's setting of what was tuned."""
    tuned = study.analysis.design.tuned
    names = zip(short_names(tuned), tuned, strict=True)
    settings = ", ".join(f"{name} {row[key]}" for name, key in names if pd.notna(row[key]))
    return settings or ("chosen in each replicate" if row["seeds"] else "–")


def runs_at_best(study: ReportData, panel: str) -> pd.DataFrame:
    """Return the reported runs of a panel's arms at their chosen settings, with their arm."""
    found = study.analysis
    cells, parts = found.grid, []
    for (of_panel, arm), tuned in found.tuning.items():
        if cells.panel_name(of_panel) != panel:
            continue
        chosen = dict(zip(cells.uses[of_panel].report.tolist(), tuned.chosen.tolist(), strict=True))
        own = [chosen.get(column, -1) == row for row, column in zip(cells.row, cells.column, strict=True)]
        parts.append(study.runs[np.array(own, dtype=bool)].assign(arm=arm))
    return pd.concat(parts) if parts else study.runs.iloc[:0].assign(arm="")


def report_values(study: ReportData, panel: str) -> pd.DataFrame:
    """Return the primary metric of a panel's arms at their chosen settings, ``(seeds x arms)``."""
    name = study.analysis.design.primary.name
    return runs_at_best(study, panel).dropna(subset=[name]).groupby(["seed", "arm"])[name].mean().unstack("arm")
