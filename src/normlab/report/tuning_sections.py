"""Report sections Training loss at fixed steps, Hyperparameter sweep, Batch size and Time to target."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from normlab.report import charts
from normlab.report.console import num, with_interval
from normlab.report.factors import short_names
from normlab.report.page import PageTable, Picture, Section
from normlab.report.report_data import ReportData
from normlab.report.selectors import (
    MAX_PANELS,
    TableRow,
    display_table,
    effect_text,
    figure_name,
    first_panels,
    selected_runs,
    styles_of,
    table_rows,
    undrawn_panels_note,
    with_panel,
)
from normlab.stats.design import LR, is_number
from normlab.stats.ranges import BATCH_SIZE
from normlab.stats.sentences import percent_text


def tuning_section(data: ReportData) -> Section:
    """Build the section with all configurations of each arm and the selected one; empty if nothing is tuned."""
    analysis, design = data.analysis, data.analysis.design
    frame = analysis.settings
    if not design.tuned:
        return Section("tuning", "Hyperparameter sweep")
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    columns |= {design.compare: "arm"} if design.compare else {}
    table = display_table(
        frame,
        {
            **columns,
            **dict(zip(short_names(design.tuned), design.tuned, strict=True)),
            "tuning replicates": "tuning_seeds",
            f"{design.choice.name} (tuning)": lambda row: num(row["tuning_iqm"]),
            "reported replicates": "report_seeds",
            f"{design.primary.name} (reported)": lambda row: with_interval(row, "iqm"),
            "diverged": lambda row: percent_text(row["diverged"]),
            "untrained": lambda row: percent_text(row["untrained"]),
            "selection": selection_text,
        },
    )
    pictures = hyperparameter_pictures(data, LR, "learning rate", "rates") if LR in design.tuned else []
    tables = [PageTable("settings", "All configurations of each arm", frame, table)]
    if len(analysis.ranges):
        caption = "Range of the settings within 10 % of the best validation value"
        tables.append(PageTable("ranges", caption, analysis.ranges, range_table(data)))
    words = [
        f"The configuration of each arm is selected by {design.choice.name} at the end of training, on tuning "
        "replicates; where replicates are splits of one table, each replicate selects on its own validation rows. "
        "Filled markers show the selected configurations, bars 95 % intervals; a cross marks settings with "
        "diverged runs. Points are shifted sideways to avoid overlap.",
        *undrawn_panels_note(frame),
    ]
    return Section("tuning", "Hyperparameter sweep", words, pictures, tables)


def selection_text(row: TableRow) -> str:
    """Format the selection of a configuration: selected, near-best, or the share of replicates that select it."""
    if 0 < row["chosen"] < 1:
        return f"selected in {percent_text(row['chosen'])}"
    return "selected" if row["chosen"] else "near-best" if row["near_best"] else ""


def range_table(data: ReportData) -> pd.DataFrame:
    """Format the ranges of near-optimal settings for display."""
    frame = data.analysis.ranges
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    return display_table(
        frame,
        {
            **columns,
            data.analysis.design.compare or "arm": "arm",
            "hyperparameter": "key",
            "from": lambda row: f"{row['smallest']:g}",
            "to": lambda row: f"{row['largest']:g}",
            "decades": lambda row: num(row["decades"], 2),
            "at an edge of the grid": lambda row: "yes" if row["open"] else "",
        },
    )


def hyperparameter_pictures(data: ReportData, key: str, x: str, kind: str) -> list[Picture]:
    """Draw the primary metric against a tuned hyperparameter, one figure per panel."""
    design, pictures = data.analysis.design, []
    for number, (panel, rows) in enumerate(first_panels(data.analysis.settings)):
        numeric = rows[rows[key].map(lambda text: text is not None and is_number(str(text)))]
        if numeric[key].nunique() < 2:
            continue
        best = numeric.sort_values("chosen", kind="stable").drop_duplicates(["arm", key], keep="last")
        most = best.groupby("arm")["chosen"].transform("max")
        best = best.assign(chosen=(best["chosen"] == most) & (most > 0))
        figure = charts.draw_against(
            best.rename(columns={"iqm_low": "low", "iqm_high": "high"}),
            key,
            styles_of(data),
            title=with_panel(design.primary.name, panel),
            x=x,
            y=design.primary.name,
            better=design.primary.direction,
        )
        alt = f"{design.primary.name} of each arm against the {x}{' in ' + panel if panel else ''}"
        columns = ["arm", key, "iqm", "iqm_low", "iqm_high", "diverged", "chosen"]
        name = figure_name(kind, number)
        caption = with_panel(f"{design.primary.name} against the {x}", panel)
        pictures.append(Picture(name, figure, alt, caption, PageTable(name, "Data of the figure", best[columns])))
    return pictures


def batch_size_section(data: ReportData) -> Section:
    """Build the section on the effect of the batch size; empty unless batch sizes are panels."""
    analysis, design = data.analysis, data.analysis.design
    frame = analysis.arms
    if BATCH_SIZE not in design.panels:
        return Section("batch-size", "Batch size")
    others = [key for key in design.panels if key != BATCH_SIZE]
    pictures = []
    groups = frame.groupby(others, sort=False) if others else [((), frame)]
    for number, (settings, group) in enumerate(list(groups)[:MAX_PANELS]):
        panel = ", ".join(f"{name}={text}" for name, text in zip(short_names(others), settings, strict=True))
        rows = group.rename(columns={"iqm_low": "low", "iqm_high": "high", "diverged": "lost"})
        rows = rows.assign(diverged=group["diverged_share"].fillna(0), chosen=True)
        figure = charts.draw_against(
            rows,
            BATCH_SIZE,
            styles_of(data),
            title=with_panel(design.primary.name, panel),
            x="batch size",
            y=design.primary.name,
            better=design.primary.direction,
        )
        name = figure_name("batch_sizes", number)
        table = PageTable(name, "Data of the figure", rows[["arm", BATCH_SIZE, "iqm", "low", "high", "diverged"]])
        alt = f"{design.primary.name} of each arm against the batch size"
        caption = with_panel(f"{design.primary.name} against the batch size", panel)
        pictures.append(Picture(name, figure, alt, caption, table))
    columns = {**{key: key for key in others}, design.compare or "arm": "arm", "batch sizes": "batch_sizes"}
    display = display_table(analysis.batch_sizes, {**columns, "largest / smallest": lambda row: num(row["ratio"])})
    words = [
        "Each arm at its selected configuration for each batch size. The column largest / smallest is the ratio "
        f"of the largest to the smallest {design.primary.name} among the batch sizes."
    ]
    tables = [PageTable("batch_size_ratios", "Sensitivity to the batch size", analysis.batch_sizes, display)]
    return Section("batch-size", "Batch size", words, pictures, tables)


def target_section(data: ReportData) -> Section:
    """Build the section on the time that each arm takes to reach the target."""
    analysis, design = data.analysis, data.analysis.design
    pictures, sign = [], "at most" if design.choice.direction == "min" else "at least"
    for number, row in enumerate(analysis.targets.to_dict("records")[:MAX_PANELS]):
        panel, target = str(row["panel"]), float(row["target"])
        steps = steps_to_target(data, selected_runs(data, panel))
        if not np.isfinite(target) or not any(np.isfinite(arm_steps).any() for arm_steps in steps.values()):
            continue
        figure = charts.draw_reached(
            steps,
            styles_of(data),
            title=with_panel(f"{design.choice.name} {sign} {num(target)}", panel),
            x="optimizer steps",
            end=float(row["budget"]),
        )
        name = figure_name("target", number)
        long = pd.concat([pd.DataFrame({"arm": arm, "steps": np.sort(own)}) for arm, own in steps.items()])
        alt = "share of the replicates of each arm that have reached the target, by optimizer steps"
        interval = "step" if row["resolution"] == 1 else f"{num(row['resolution'])} steps"
        caption = f"The metric is evaluated every {interval}, which is the resolution of these times."
        pictures.append(Picture(name, figure, alt, caption, PageTable(name, "Data of the figure", long)))
    tables = [time_table(data)] if pictures else []
    return Section("target", "Time to target", target_rules(data), pictures, tables)


def fixed_steps_section(data: ReportData) -> Section:
    """Build the section that compares the training loss of arms after equal numbers of steps."""
    frame = data.analysis.fixed_steps
    title = "Training loss at fixed steps"
    if frame.empty:
        return Section("fixed-steps", title)
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    table = display_table(
        frame,
        {
            **columns,
            "steps": "step",
            data.analysis.design.compare or "arm": "arm",
            "loss": lambda row: num(row["arm_loss"]),
            "baseline": "baseline",
            "baseline loss": lambda row: num(row["baseline_loss"]),
            "replicates": "replicates",
            "effect": effect_text,
        },
    )
    words = [
        "Loss of the whole training split in evaluation mode, with statistics re-estimated on it, at the last "
        "measurement up to each step: medians over the reported replicates, and the paired effect with its 95 % "
        "interval. No difference is declared here; the verdict on optimization concerns the end of training."
    ]
    tables = [PageTable("fixed_steps", "Training loss after equal numbers of steps", frame, table)]
    return Section("fixed-steps", title, words, (), tables)


def steps_to_target(data: ReportData, runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the optimizer steps until the runs of each arm reach the target, ∞ if they never do."""
    steps = data.analysis.times["steps"].reindex(runs.index).dropna()
    arms = runs.loc[steps.index, "arm"]
    return {str(arm): own.to_numpy() for arm, own in steps.groupby(arms, sort=False)}


def target_rules(data: ReportData) -> list[str]:
    """Return sentences on the definition of the target and on runs that never reach it."""
    tunes = any(len(use.tuning) for use in data.analysis.grid.uses.values())
    median = f"the median over the {'tuning ' * tunes}replicates of the best value"
    rules = {
        "given": "The target is the given value.",
        "baseline": f"The target is {median} in the first three quarters of the baseline's steps.",
        "best arm": f"The target is {median} in the first three quarters of the best arm's steps.",
    }
    used = dict.fromkeys(data.analysis.targets["rule"]) if len(data.analysis.targets) else {}
    return [rules.get(str(rule), str(rule)) for rule in used] + [
        "The time of a run that diverges or never reaches the target is infinite. Where many runs of an arm do "
        "so, no ratio can be estimated; compare the shares of runs that reach the target."
    ]


def time_table(data: ReportData) -> PageTable:
    """Build the table of the time to target of each arm and its ratio to the baseline."""
    frame, design = data.analysis.arms, data.analysis.design
    baseline = design.baseline or "baseline"
    ratios: dict[Any, Any] = {
        (row["panel"], row["arm"]): row
        for row in table_rows(data.analysis.time_ratios)
        if row["baseline"] == design.baseline
    }

    def ratio(name: str) -> Callable[[TableRow], str]:
        return lambda row: with_interval(ratios[key(row)], name) if key(row) in ratios else "–"

    def key(row: TableRow) -> tuple[str, str]:
        return row["panel"], row["arm"]

    seconds = {
        f"seconds per step / {baseline}": ratio("step_time_ratio"),
        f"seconds / {baseline}": ratio("seconds_ratio"),
    }
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    columns |= {design.compare: "arm"} if design.compare else {}
    table = display_table(
        frame,
        {
            **columns,
            "median steps": lambda row: num(row["steps"], 4),
            "reached": lambda row: share_with_interval(row, "reached"),
            f"steps, ratio to {baseline}": ratio("steps_ratio"),
            **(seconds if data.analysis.time_ratios["step_time_ratio"].notna().any() else {}),
        },
    )
    written = [
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
    return PageTable("times", "Time to target", frame[written], table)


def share_with_interval(row: TableRow, name: str) -> str:
    """Format a share with its interval in percent."""
    if np.isnan(row[name]):
        return "–"
    return f"{percent_text(row[name])} ({percent_text(row[f'{name}_low'])} to {percent_text(row[f'{name}_high'])})"
