"""How numbers and their intervals are written on the page."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from normlab.report.console import format_number

MINUS = "\N{MINUS SIGN}"


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


def percent(share: float) -> str:
    """Return a share.

    >>> percent(0.25), percent(float("nan"))
    ('25 %', '–')
    """
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"


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
