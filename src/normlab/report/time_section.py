"""The section of the page on how long arms take to the target."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from normlab.report import charts
from normlab.report.formatting import display_table, effect_text, num, percent, with_interval
from normlab.report.page import PageTable, Picture, Section
from normlab.report.report_data import ReportData
from normlab.report.selectors import MOST, Row, at_best, file, rows_of, styles_of, titled


def times(study: ReportData) -> Section:
    """Return how long arms take to the target."""
    found, design = study.analysis, study.analysis.design
    pictures, sign = [], "at most" if design.choice.direction == "min" else "at least"
    for number, row in enumerate(found.targets.to_dict("records")[:MOST]):
        panel, target = str(row["panel"]), float(row["target"])
        steps = steps_to(study, at_best(study, panel))
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
        for row in rows_of(study.analysis.time_ratios)
        if row["baseline"] == design.baseline
    }

    def ratio(name: str) -> Callable[[Row], str]:
        return lambda row: with_interval(ratios[key(row)], name) if key(row) in ratios else "–"

    def key(row: Row) -> tuple[str, str]:
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
            "reached by": lambda row: share(row, "reached"),
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


def share(row: Row, name: str) -> str:
    """Return a share with its interval."""
    if np.isnan(row[name]):
        return "–"
    return f"{percent(row[name])} ({percent(row[f'{name}_low'])} to {percent(row[f'{name}_high'])})"
