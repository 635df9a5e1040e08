"""The numbers of a report as JSON, ``report.json``; the entry is :func:`report_json`."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from normlab.report.page import Page, pictures
from normlab.report.report_data import ReportData, TableRow

SCHEMA = 1
"""The number of the layout: a new key keeps it; a key that goes or changes its meaning raises it."""
TABLES = (
    *("effects", "comparisons", "interactions", "arms", "settings", "ranges", "batch_size_ratios"),
    *("fixed_steps", "times", "probe_ratios", "runs"),
)
"""The tables of the page, which are lists of rows; empty if the page has no such table."""


def report_json(page: Page, data: ReportData) -> str:
    """Return every number of a page as strict JSON: NaN and infinite numbers are null.

    Each row of a table has a line of its own. The tables and the data of the figures are those of the page.
    """
    on_page = {table.name: table for section in page.sections for table in section.tables}
    on_page |= {page.effects.name: page.effects} if page.effects else {}
    drawn = {picture.name: picture.table for picture in pictures(page)}
    design = data.analysis.design
    parts: dict[str, Any] = {
        "schema": SCHEMA,
        "title": page.title,
        "design": {
            "compare": design.compare,
            "baseline": design.baseline,
            "arms": list(design.arms),
            "tuned": list(design.tuned),
            "panels": list(design.panels),
            "metrics": [
                {"name": metric.name, "direction": metric.direction, "question": metric.question}
                for metric in design.metrics
            ],
            "selected_by": design.choice.name,
            "margin": design.margin,
            "pairs": design.pairs,
        },
        "answers": [
            {"panel": each.panel, "state": each.state, "best": each.best or None, "text": each.text}
            for each in page.answers
        ],
        "conditions": {label.lower(): text for label, text in page.conditions},
        "findings": [sentence for section in page.sections for sentence in section.sentences],
        "warnings": list(page.caveats),
        "provenance": {label.replace(" ", "_"): value.split("\n") for label, value in page.provenance},
        "targets": frame_rows(data.analysis.targets),
        "time_ratios": frame_rows(data.analysis.time_ratios),
        **{name: frame_rows(on_page[name].frame) if name in on_page else [] for name in TABLES},
        "figures": {name: frame_rows(table.frame) for name, table in drawn.items() if table is not None},
    }
    return "{\n" + ",\n".join(f"{strict(key)}: {json_text(value)}" for key, value in parts.items()) + "\n}\n"


def frame_rows(frame: pd.DataFrame) -> list[TableRow]:
    """Return the rows of a table with values that JSON has.

    >>> frame_rows(pd.DataFrame({"arm": ["bn"], "loss": [math.inf], "seed": pd.array([None], dtype="Int64")}))
    [{'arm': 'bn', 'loss': None, 'seed': None}]
    """
    names = [str(name) for name in frame]
    columns = [json_column(frame.iloc[:, position]) for position in range(len(names))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def json_column(column: pd.Series) -> list[Any]:
    """Return the values of a column as JSON has them; a column of numbers takes one pass."""
    if column.dtype.kind == "f":
        return column.astype(object).where(np.isfinite(column), None).tolist()
    return [json_value(value) for value in column.tolist()]


def json_value(value: Any) -> Any:
    """Convert a value to one of JSON's: missing and infinite values to None, others without a counterpart to text.

    >>> json_value(math.nan), json_value({"n": (1, math.inf)}), json_value(pd.NA)
    (None, {'n': [1, None]}, None)
    """
    if isinstance(value, str | int):  # most cells of a large sweep
        return value
    if isinstance(value, Mapping):
        return {str(key): json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(entry) for entry in value]
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, float) else str(value)


def json_text(value: Any) -> str:
    """Return a value as JSON; each row of a table has a line of its own.

    >>> print(json_text({"loss": [{"arm": "bn"}, {"arm": "ln"}]}))
    {"loss": [
    {"arm": "bn"},
    {"arm": "ln"}
    ]}
    """
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return "[\n" + ",\n".join(map(strict, value)) + "\n]"
    if isinstance(value, dict):
        return "{" + ",\n".join(f"{strict(key)}: {json_text(entry)}" for key, entry in value.items()) + "}"
    return strict(value)


def strict(value: Any) -> str:
    """Return a value as JSON in one line; an infinite number is an error."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
