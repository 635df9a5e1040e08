"""Selection of arms, panels and runs for report sections, and formatting of their numbers."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from normlab.report.console import with_interval
from normlab.report.factors import short_names
from normlab.report.figures import Style, styles
from normlab.report.report_data import ReportData

MAX_PANELS = 12
"""The largest number of panels with a figure; tables list all panels."""
TableRow = dict[str, Any]


def effect_text(row: Mapping[str, Any]) -> str:
    """Format an effect with its interval: a ratio as ``× 0.95``, a difference with its unit."""
    if math.isnan(row["estimate"]):
        return "–"
    text = with_interval(row, "estimate")
    return f"× {text}" if row["effect"] == "ratio" else f"{text} points" if row["effect"] == "points" else text


def display_table(frame: pd.DataFrame, columns: Mapping[str, Any]) -> pd.DataFrame:
    """Build a table for display.

    Args:
        frame: the numbers.
        columns: by heading, a column of ``frame`` or a function of a row.
    """
    rows = frame.to_dict("records")
    return pd.DataFrame(
        {
            head: [source(row) if callable(source) else row[source] for row in rows]
            for head, source in columns.items()
        },
        dtype=object,
    )


def styles_of(data: ReportData) -> dict[str, Style]:
    """Return the colour and line of each arm, the same in all figures."""
    arms = data.analysis.design.arms
    return dict(zip(arms, styles([(arm,) for arm in arms]), strict=True))


def table_rows(frame: pd.DataFrame) -> list[TableRow]:
    """Convert a table to a list of rows, each a dictionary by column."""
    return frame.to_dict("records")  # type: ignore[return-value]


def first_panels(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the names and rows of the first ``MAX_PANELS`` panels of a table."""
    return [(str(name), rows) for name, rows in frame.groupby("panel", sort=False)][:MAX_PANELS]


def undrawn_panels_note(frame: pd.DataFrame) -> list[str]:
    """Return a note with the number of panels that have no figure; empty if all have one."""
    count = frame["panel"].nunique() - MAX_PANELS if len(frame) else 0
    return [f"{count} more panels are shown in the tables only."] if count > 0 else []


def figure_name(kind: str, number: int) -> str:
    """Return the file name of the figure of a panel, without extension.

    >>> figure_name("curves", 0), figure_name("curves", 1)
    ('curves', 'curves_2')
    """
    return f"{kind}_{number + 1}" if number else kind


def with_panel(title: str, panel: str) -> str:
    """Append the name of the panel to a title, if there are several panels."""
    return f"{title}, {panel}" if panel else title


def selected_settings(data: ReportData, row: TableRow) -> str:
    """Format the tuned hyperparameters of an arm at its selected configuration."""
    tuned = data.analysis.design.tuned
    names = zip(short_names(tuned), tuned, strict=True)
    settings = ", ".join(f"{name} {row[key]}" for name, key in names if pd.notna(row[key]))
    return settings or ("selected in each replicate" if row["seeds"] else "–")


def selected_runs(data: ReportData, panel: str) -> pd.DataFrame:
    """Return the reported runs of a panel at the selected configuration of their ``arm``."""
    grid, parts = data.analysis.grid, []
    for (key, arm), tuned in data.analysis.tuning.items():
        if grid.panel_name(key) != panel:
            continue
        selected = dict(zip(grid.uses[key].report.tolist(), tuned.chosen.tolist(), strict=True))
        mask = [selected.get(column, -1) == row for row, column in zip(grid.row, grid.column, strict=True)]
        parts.append(data.runs[np.array(mask, dtype=bool)].assign(arm=arm))
    return pd.concat(parts) if parts else data.runs.iloc[:0].assign(arm="")


def reported_values(data: ReportData, panel: str) -> pd.DataFrame:
    """Return the primary metric of a panel at the selected configurations, ``(seeds x arms)``."""
    name = data.analysis.design.primary.name
    return selected_runs(data, panel).dropna(subset=[name]).groupby(["seed", "arm"])[name].mean().unstack("arm")
