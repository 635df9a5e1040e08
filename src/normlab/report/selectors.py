"""What the sections of the page share: the arms' looks, panels, and the runs of arms at their best."""

from typing import Any

import numpy as np
import pandas as pd

from normlab.report.console import short_names
from normlab.report.palette import Style, styles
from normlab.report.report_data import ReportData

MOST = 12
"""Panels that are drawn of each kind; the tables have all."""
Row = dict[str, Any]


def styles_of(study: ReportData) -> dict[str, Style]:
    """Return the colour and line of each arm, the same everywhere."""
    arms = study.analysis.design.arms
    return dict(zip(arms, styles([(arm,) for arm in arms]), strict=True))


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """Return the rows of a table."""
    return frame.to_dict("records")  # type: ignore[return-value]


def panels(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the first panels of a table, by name."""
    return [(str(name), own) for name, own in frame.groupby("panel", sort=False)][:MOST]


def left_out(frame: pd.DataFrame) -> list[str]:
    """Return the note on panels that are not drawn."""
    count = frame["panel"].nunique() if len(frame) else 0
    return [f"{count - MOST} more panels are in the tables alone."] if count > MOST else []


def file(kind: str, number: int) -> str:
    """Return the name of a picture's files.

    >>> file("curves", 0), file("curves", 1)
    ('curves', 'curves_2')
    """
    return f"{kind}_{number + 1}" if number else kind


def titled(what: str, panel: str) -> str:
    """Return the title of a picture of one panel."""
    return f"{what}, {panel}" if panel else what


def tuned_at(study: ReportData, row: Row) -> str:
    """Return an arm's setting of what was tuned."""
    tuned = study.analysis.design.tuned
    names = zip(short_names(tuned), tuned, strict=True)
    settings = ", ".join(f"{name} {row[key]}" for name, key in names if pd.notna(row[key]))
    return settings or ("chosen in each replicate" if row["seeds"] else "–")


def at_best(study: ReportData, panel: str) -> pd.DataFrame:
    """Return the reported runs of a panel's arms at their chosen settings, with their arm."""
    found = study.analysis
    cells, parts = found.grid, []
    for (of_panel, arm), tuned in found.tuning.items():
        if cells.panel(of_panel) != panel:
            continue
        chosen = dict(zip(cells.uses[of_panel].report.tolist(), tuned.chosen.tolist(), strict=True))
        own = [chosen.get(column, -1) == row for row, column in zip(cells.row, cells.column, strict=True)]
        parts.append(study.runs[np.array(own, dtype=bool)].assign(arm=arm))
    return pd.concat(parts) if parts else study.runs.iloc[:0].assign(arm="")


def report_values(study: ReportData, panel: str) -> pd.DataFrame:
    """Return the primary metric of a panel's arms at their chosen settings, ``(seeds x arms)``."""
    name = study.analysis.design.primary.name
    return at_best(study, panel).dropna(subset=[name]).groupby(["seed", "arm"])[name].mean().unstack("arm")
