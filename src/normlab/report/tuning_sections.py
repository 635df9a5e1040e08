"""The sections of the page on what was tuned: learning rates and the like, and batch sizes."""

from typing import Any

import pandas as pd

from normlab.report import charts
from normlab.report.console import short_names
from normlab.report.formatting import display_table, num, percent, with_interval
from normlab.report.page import PageTable, Picture, Section
from normlab.report.report_data import ReportData
from normlab.report.selectors import MOST, Row, file, left_out, panels, styles_of, titled
from normlab.stats.design import is_number
from normlab.stats.ranges import BATCH_SIZE

LR = "optimizer.lr"


def rates(study: ReportData) -> Section:
    """Return the section on tuned settings."""
    found, design = study.analysis, study.analysis.design
    frame = found.settings
    if not design.tuned:
        return Section("tuning", "What was tuned")
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    columns |= {design.compare: "arm"} if design.compare else {}
    table = display_table(
        frame,
        {
            **columns,
            **dict(zip(short_names(design.tuned), design.tuned, strict=True)),
            "choose": "tuning_seeds",
            f"{design.choice.name} of those": lambda row: num(row["tuning_iqm"]),
            "report": "report_seeds",
            f"{design.primary.name} of those": lambda row: with_interval(row, "iqm"),
            "diverged": lambda row: percent(row["diverged"]),
            "untrained": lambda row: percent(row["untrained"]),
            "chosen": chosen,
        },
    )
    pictures = against_key(study, LR, "learning rate", "rates") if LR in design.tuned else []
    tables = [PageTable("settings", "what every setting gave", frame, table)]
    if len(found.ranges):
        tables.append(
            PageTable("ranges", "settings within 10 % of the best validation", found.ranges, range_table(study))
        )
    words = [
        f"Settings are chosen by {design.choice.name} at the end of the training: by replicates that are not "
        "reported, or, where replicates are splits of one table, in each replicate on its own validation rows. "
        "Full dots are the chosen settings, bars 95 % intervals, × settings with which runs diverged.",
        *left_out(frame),
    ]
    return Section("tuning", "What was tuned", words, pictures, tables)


def chosen(row: Row) -> str:
    """Return whether a setting was chosen, and in how many of the replicates where they choose for themselves."""
    if 0 < row["chosen"] < 1:
        return percent(row["chosen"])
    return "chosen" if row["chosen"] else "near-best" if row["near_best"] else ""


def range_table(study: ReportData) -> pd.DataFrame:
    """Return the ranges as they are read."""
    frame = study.analysis.ranges
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    return display_table(
        frame,
        {
            **columns,
            study.analysis.design.compare or "arm": "arm",
            "of": "key",
            "from": lambda row: f"{row['smallest']:g}",
            "to": lambda row: f"{row['largest']:g}",
            "factors of ten": lambda row: num(row["decades"], 2),
            "at the edge of what was tried": lambda row: "yes" if row["open"] else "",
        },
    )


def against_key(study: ReportData, key: str, x: str, kind: str) -> list[Picture]:
    """Return a picture per panel of the metric against a tuned setting."""
    design, pictures = study.analysis.design, []
    for number, (panel, own) in enumerate(panels(study.analysis.settings)):
        numeric = own[own[key].map(lambda text: text is not None and is_number(str(text)))]
        if numeric[key].nunique() < 2:
            continue
        best = numeric.sort_values("chosen", kind="stable").drop_duplicates(["arm", key], keep="last")
        most = best.groupby("arm")["chosen"].transform("max")
        best = best.assign(chosen=(best["chosen"] == most) & (most > 0))
        figure = charts.draw_against(
            best.rename(columns={"iqm_low": "low", "iqm_high": "high"}),
            key,
            styles_of(study),
            title=titled(design.primary.name, panel),
            x=x,
            y=design.primary.name,
            better=design.primary.direction,
        )
        alt = f"{design.primary.name} of each arm against the {x}{' in ' + panel if panel else ''}"
        columns = ["arm", key, "iqm", "iqm_low", "iqm_high", "diverged", "chosen"]
        name = file(kind, number)
        caption = titled(f"{design.primary.name} against the {x}", panel)
        pictures.append(Picture(name, figure, alt, caption, PageTable(name, "what is drawn", best[columns])))
    return pictures


def sizes(study: ReportData) -> Section:
    """Return how much the batch size matters."""
    found, design = study.analysis, study.analysis.design
    frame = found.arms
    if BATCH_SIZE not in design.panels:
        return Section("batch-size", "Batch size")
    others = [key for key in design.panels if key != BATCH_SIZE]
    pictures = []
    groups = frame.groupby(others, sort=False) if others else [((), frame)]
    for number, (setting, own) in enumerate(list(groups)[:MOST]):
        where = ", ".join(f"{name}={text}" for name, text in zip(short_names(others), setting, strict=True))
        rows = own.rename(columns={"iqm_low": "low", "iqm_high": "high", "diverged": "lost"})
        rows = rows.assign(diverged=own["diverged_share"].fillna(0), chosen=True)
        figure = charts.draw_against(
            rows,
            BATCH_SIZE,
            styles_of(study),
            title=titled(design.primary.name, where),
            x="batch size",
            y=design.primary.name,
            better=design.primary.direction,
        )
        name = file("batch_sizes", number)
        drawn = PageTable(name, "what is drawn", rows[["arm", BATCH_SIZE, "iqm", "low", "high", "diverged"]])
        alt = f"{design.primary.name} of each arm against the batch size"
        pictures.append(
            Picture(name, figure, alt, titled(f"{design.primary.name} against the batch size", where), drawn)
        )
    heading = {**{key: key for key in others}, design.compare or "arm": "arm", "batch sizes": "batch_sizes"}
    table = display_table(found.batch_sizes, {**heading, "largest / smallest": lambda row: num(row["ratio"])})
    words = ["Each arm at its best setting for each batch size; largest / smallest is the ratio of these values."]
    return Section(
        "batch-size",
        "Batch size",
        words,
        pictures,
        [PageTable("batch_size_ratios", "how much it matters", found.batch_sizes, table)],
    )
