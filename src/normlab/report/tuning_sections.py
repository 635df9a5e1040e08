"""Report sections Hyperparameter sweep and Time to target."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from normlab.report import charts
from normlab.report.factors import short_names
from normlab.report.page import PageTable, Picture, Section
from normlab.report.report_data import ReportData
from normlab.report.selectors import (
    MOST_PANELS,
    TableRow,
    display_table,
    effect_text,
    file,
    first_panels,
    left_out,
    num,
    runs_at_best,
    styles_of,
    table_rows,
    titled,
    with_interval,
)
from normlab.stats.design import LR, is_number
from normlab.stats.ranges import BATCH_SIZE
from normlab.stats.sentences import percent_text


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
            "diverged": lambda row: percent_text(row["diverged"]),
            "untrained": lambda row: percent_text(row["untrained"]),
            "chosen": choice_text,
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


def choice_text(row: TableRow) -> str:
    """Return whether a setting was chosen, and in how many of the replicates where they choose for themselves."""
    if 0 < row["chosen"] < 1:
        return percent_text(row["chosen"])
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
    for number, (panel, own) in enumerate(first_panels(study.analysis.settings)):
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
    for number, (setting, own) in enumerate(list(groups)[:MOST_PANELS]):
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


def times(study: ReportData) -> Section:
    """Return how long arms take to the target."""
    found, design = study.analysis, study.analysis.design
    pictures, sign = [], "at most" if design.choice.direction == "min" else "at least"
    for number, row in enumerate(found.targets.to_dict("records")[:MOST_PANELS]):
        panel, target = str(row["panel"]), float(row["target"])
        steps = steps_to(study, runs_at_best(study, panel))
        if not np.isfinite(target) or not any(np.isfinite(each).any() for each in steps.values()):
            continue
        figure = charts.draw_reached(
            steps,
            styles_of(study),
            title=titled(f"{design.choice.name} {sign} {num(target)}", panel),
            x="optimizer steps",
            end=float(row["budget"]),
        )
        name = file("target", number)
        long = pd.concat([pd.DataFrame({"arm": arm, "steps": np.sort(each)}) for arm, each in steps.items()])
        alt = "share of the seeds of each arm that have reached the target, by optimizer steps"
        often = "step" if row["resolution"] == 1 else f"{num(row['resolution'])} steps"
        caption = f"Evaluated every {often}: a time is known no better than that."
        pictures.append(Picture(name, figure, alt, caption, PageTable(name, "what is drawn", long)))
    return Section(
        "target", "Time to the target", target_words(study), pictures, [time_table(study)] if pictures else []
    )


def fixed_steps(study: ReportData) -> Section:
    """Return the training loss of the arms after equally many steps."""
    frame = study.analysis.fixed_steps
    title = "Training loss at fixed steps"
    if frame.empty:
        return Section("fixed-steps", title)
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    table = display_table(
        frame,
        {
            **columns,
            "steps": "step",
            study.analysis.design.compare or "arm": "arm",
            "loss": lambda row: num(row["arm_loss"]),
            "against": "baseline",
            "its loss": lambda row: num(row["baseline_loss"]),
            "replicates": "replicates",
            "effect": effect_text,
        },
    )
    words = [
        "The loss of the whole training split in evaluation mode, with statistics re-estimated on it, at its last "
        "measurement by then: medians over the reported replicates, and the paired effect with its 95 % interval. "
        "Nothing is declared here; the verdict on optimization is about the end of the training."
    ]
    return Section(
        "fixed-steps", title, words, (), [PageTable("fixed_steps", "training loss by steps", frame, table)]
    )


def steps_to(study: ReportData, runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return when the runs of each arm reach their target, in optimizer steps, ∞ for never."""
    steps = study.analysis.times["steps"].reindex(runs.index).dropna()
    arms = runs.loc[steps.index, "arm"]
    return {str(arm): own.to_numpy() for arm, own in steps.groupby(arms, sort=False)}


def target_words(study: ReportData) -> list[str]:
    """Return the rule of the target in words."""
    tunes = any(len(use.tuning) for use in study.analysis.grid.uses.values())
    over = f"in the median over the {'tuning ' * tunes}seeds"
    rules = {
        "given": "The target was given.",
        "baseline": f"The target is what the baseline has reached by three quarters of its steps, {over}.",
        "best arm": f"The target is what the best arm has reached by three quarters of its steps, {over}.",
    }
    used = dict.fromkeys(study.analysis.targets["rule"]) if len(study.analysis.targets) else {}
    return [rules.get(str(rule), str(rule)) for rule in used] + [
        "A run that never reaches it, or diverged, takes infinitely long; where half of an arm does not, the "
        "shares that do take the place of the ratio."
    ]


def time_table(study: ReportData) -> PageTable:
    """Return the times to the target."""
    frame, design = study.analysis.arms, study.analysis.design
    against = design.baseline or "baseline"
    ratios: dict[Any, Any] = {
        (row["panel"], row["arm"]): row
        for row in table_rows(study.analysis.time_ratios)
        if row["baseline"] == design.baseline
    }

    def ratio(name: str) -> Callable[[TableRow], str]:
        return lambda row: with_interval(ratios[key(row)], name) if key(row) in ratios else "–"

    def key(row: TableRow) -> tuple[str, str]:
        return row["panel"], row["arm"]

    seconds = {
        f"seconds per step / {against}": ratio("step_time_ratio"),
        f"seconds / {against}": ratio("seconds_ratio"),
    }
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    columns |= {design.compare: "arm"} if design.compare else {}
    table = display_table(
        frame,
        {
            **columns,
            "median steps": lambda row: num(row["steps"], 4),
            "reached by": lambda row: share_with_interval(row, "reached"),
            f"steps / {against}": ratio("steps_ratio"),
            **(seconds if study.analysis.time_ratios["step_time_ratio"].notna().any() else {}),
        },
    )
    columns_of = [
        *design.panels,
        "panel",
        "arm",
        "seeds",
        "steps",
        "seconds",
        "reached",
        "reached_low",
        "reached_high",
    ]
    return PageTable("times", "times to the target", frame[columns_of], table)


def share_with_interval(row: TableRow, name: str) -> str:
    """Return a share with its interval."""
    if np.isnan(row[name]):
        return "–"
    return f"{percent_text(row[name])} ({percent_text(row[f'{name}_low'])} to {percent_text(row[f'{name}_high'])})"
