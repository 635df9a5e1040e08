"""Further sections of the report page, and the helpers of all sections; see :func:`further_sections`.

The sections are Training loss at fixed steps, Hyperparameter sweep, Batch size, Time to target, Probe measurements
and Runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from normlab.report import charts
from normlab.report.console import effect_text, num, run_table, with_interval
from normlab.report.factors import short_names
from normlab.report.figures import Style, arm_styles
from normlab.report.page import PageTable, Picture, Section
from normlab.report.probe_figures import probe_figures
from normlab.report.provenance import rerun_command
from normlab.report.report_data import ReportData, TableRow, table_rows
from normlab.stats.design import LR, is_number
from normlab.stats.sentences import percent_text
from normlab.stats.tuning import BATCH_SIZE

MAX_PANELS = 12
"""The largest number of panels with a figure; tables list all panels."""
MAX_RUNS = 2000
"""The largest number of runs on the page; ``runs.csv`` lists all."""
Columns = dict[str, str | Callable[[TableRow], Any]]
"""By heading, a column of a frame or a function of its rows."""


def further_sections(data: ReportData) -> Iterator[Section]:
    """Yield the sections of the page from the loss at fixed steps on, also those without content."""
    yield from (fixed_steps_section(data), tuning_section(data), batch_size_section(data), target_section(data))
    yield from (probe_section(data), run_section(data))


def display_table(frame: pd.DataFrame, columns: Mapping[str, Any]) -> pd.DataFrame:
    """Build a table for display from the columns of a frame and functions of its rows."""
    rows = table_rows(frame)
    cells = {
        head: [source(row) if callable(source) else row[source] for row in rows]
        for head, source in columns.items()
    }
    return pd.DataFrame(cells, dtype=object)


def panel_columns(data: ReportData, frame: pd.DataFrame, *names: str) -> Columns:
    """Return the columns of the panel, if there are several, of the given names, and of the arm."""
    compare = data.analysis.design.compare
    panel = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    return {**panel, **{name: name for name in names}, **({compare: "arm"} if compare else {})}


def chart_per_panel(
    data: ReportData, kind: str, draw: Callable[[ReportData, str], Iterator[Picture]]
) -> list[Picture]:
    """Return the charts of the first ``MAX_PANELS`` panels, with file names that start with ``kind``."""
    panels: Sequence[str] = data.analysis.arms["panel"].unique().tolist() if len(data.analysis.arms) else []
    return [
        replace(picture, name="_".join(filter(None, [kind, picture.name, str(number + 1) * (number > 0)])))
        for number, panel in enumerate(panels[:MAX_PANELS])
        for picture in draw(data, panel)
    ]


def undrawn_panels_note(frame: pd.DataFrame) -> list[str]:
    """Return a note with the number of panels that have no figure; empty if all have one."""
    count = frame["panel"].nunique() - MAX_PANELS if len(frame) else 0
    return [f"{count} more panels are shown in the tables only."] if count > 0 else []


def with_panel(title: str, panel: str) -> str:
    """Append the name of the panel to a title, if there are several panels."""
    return f"{title}, {panel}" if panel else title


def styles_of(data: ReportData) -> dict[str, Style]:
    """Return the colour and line of each arm, the same in all figures."""
    return arm_styles(data.analysis.design.arms)


def replicate_chart(data: ReportData, panel: str) -> Iterator[Picture]:
    """Yield the figure of the paired replicates of a panel, if it has several arms."""
    name, wide = data.analysis.design.primary.name, paired_values(data, panel)
    arms = [str(arm) for arm in wide]
    if len(arms) < 2 or data.analysis.comparisons.empty:
        return
    figure = charts.draw_seeds(wide, styles_of(data), title=with_panel("Paired replicates", panel), y=name)
    alt = with_panel(f"{name} of each replicate with {', '.join(arms)}", panel)
    caption = "Each line is a replicate, with each arm at its selected configuration; × marks diverged runs."
    yield Picture("", figure, alt, caption, wide.reset_index())


def paired_values(data: ReportData, panel: str) -> pd.DataFrame:
    """Return the primary metric of each replicate at the selected settings, ``(seeds x arms)``, baseline first."""
    design, runs = data.analysis.design, data.selected_runs(panel)
    name = design.primary.name
    wide = runs.dropna(subset=[name]).groupby(["seed", "arm"])[name].mean().unstack("arm")
    return wide[[arm for arm in dict.fromkeys([design.baseline, *design.arms]) if arm in wide]]


def fixed_steps_section(data: ReportData) -> Section:
    """Build the section that compares the training loss of arms after equal numbers of steps."""
    frame, title = data.analysis.fixed_steps, "Training loss at fixed steps"
    if frame.empty:
        return Section("fixed-steps", title)
    columns: Columns = {
        **panel_columns(data, frame),
        "steps": "step",
        "loss": lambda row: num(row["arm_loss"]),
        "baseline": "baseline",
        "baseline loss": lambda row: num(row["baseline_loss"]),
        "replicates": "replicates",
        "effect": effect_text,
    }
    notes = [
        "Loss of the whole training split in evaluation mode, with statistics re-estimated on it, at the last "
        "measurement up to each step: medians over the reported replicates, and the paired effect with its 95 % "
        "interval. No difference is declared here; the verdict on optimization concerns the end of training."
    ]
    caption = "Training loss after equal numbers of steps"
    return Section(
        "fixed-steps", title, notes, (), [PageTable("fixed_steps", caption, frame, display_table(frame, columns))]
    )


def tuning_section(data: ReportData) -> Section:
    """Build the section with all configurations of each arm and the selected one; empty if nothing is tuned."""
    analysis, design = data.analysis, data.analysis.design
    frame = analysis.settings
    if not design.tuned:
        return Section("tuning", "Hyperparameter sweep")
    columns: Columns = {
        **panel_columns(data, frame),
        **dict(zip(short_names(design.tuned), design.tuned, strict=True)),
        "tuning replicates": "tuning_seeds",
        f"{design.choice.name} (tuning)": lambda row: num(row["tuning_iqm"]),
        "reported replicates": "report_seeds",
        f"{design.primary.name} (reported)": lambda row: with_interval(row, "iqm"),
        "diverged": lambda row: percent_text(row["diverged"]),
        "untrained": lambda row: percent_text(row["untrained"]),
        "selection": selection_text,
    }
    caption = "All configurations of each arm"
    tables = [PageTable("settings", caption, frame, display_table(frame, columns))]
    if len(analysis.ranges):
        tables.append(range_table(data))
    notes = [
        f"The configuration of each arm is selected by {design.choice.name} at the end of training, on tuning "
        "replicates; where replicates are splits of one table, each replicate selects on its own validation rows. "
        "Filled markers show the selected configurations, bars 95 % intervals; a cross marks settings with "
        "diverged runs. Points are shifted sideways to avoid overlap.",
        *undrawn_panels_note(frame),
    ]
    pictures = chart_per_panel(data, "rates", rate_chart) if LR in design.tuned else []
    return Section("tuning", "Hyperparameter sweep", notes, pictures, tables)


def selection_text(row: TableRow) -> str:
    """Format the selection of a configuration: selected, near-best, or the share of replicates that select it."""
    if 0 < row["chosen"] < 1:
        return f"selected in {percent_text(row['chosen'])}"
    return "selected" if row["chosen"] else "near-best" if row["near_best"] else ""


def range_table(data: ReportData) -> PageTable:
    """Build the table of the ranges of near-optimal settings."""
    frame = data.analysis.ranges
    columns: Columns = {
        **panel_columns(data, frame),
        "hyperparameter": "key",
        "from": lambda row: f"{row['smallest']:g}",
        "to": lambda row: f"{row['largest']:g}",
        "decades": lambda row: num(row["decades"], 2),
        "at an edge of the grid": lambda row: "yes" if row["open"] else "",
    }
    caption = "Range of the settings within 10 % of the best validation value"
    return PageTable("ranges", caption, frame, display_table(frame, columns))


def rate_chart(data: ReportData, panel: str) -> Iterator[Picture]:
    """Yield the figure of the primary metric against the learning rate, if several rates are numbers."""
    best = rate_rows(data, panel)
    if best[LR].nunique() > 1:
        yield hyperparameter_picture(data, best, LR, "learning rate", panel)


def rate_rows(data: ReportData, panel: str) -> pd.DataFrame:
    """Return a row of ``settings`` per arm and numeric learning rate: of several, the one chosen most often.

    ``chosen`` is True for the learning rate that the arm chose most often.
    """
    rows = data.analysis.settings[data.analysis.settings["panel"] == panel]
    numeric = rows[rows[LR].map(lambda text: text is not None and is_number(str(text)))]
    best = numeric.sort_values("chosen", kind="stable").drop_duplicates(["arm", LR], keep="last")
    most = best.groupby("arm")["chosen"].transform("max")
    return best.assign(chosen=(best["chosen"] == most) & (most > 0))


def hyperparameter_picture(data: ReportData, rows: pd.DataFrame, key: str, x: str, panel: str) -> Picture:
    """Draw the primary metric of each arm against a hyperparameter."""
    primary = data.analysis.design.primary
    title, caption = with_panel(primary.name, panel), with_panel(f"{primary.name} against the {x}", panel)
    labels = {"title": title, "x": x, "y": primary.name, "better": primary.direction}
    figure = charts.draw_against(rows, key, styles_of(data), **labels)
    columns = ["arm", key, "iqm", "iqm_low", "iqm_high", "diverged", "chosen"]
    return Picture("", figure, f"{caption}, for each arm", caption, rows[columns])


def batch_size_section(data: ReportData) -> Section:
    """Build the section on the effect of the batch size; empty unless batch sizes are panels."""
    analysis, design = data.analysis, data.analysis.design
    if BATCH_SIZE not in design.panels:
        return Section("batch-size", "Batch size")
    others = [key for key in design.panels if key != BATCH_SIZE]
    groups = analysis.arms.groupby(others, sort=False) if others else [((), analysis.arms)]
    pictures = []
    for number, (settings, group) in enumerate(list(groups)[:MAX_PANELS]):
        panel = ", ".join(f"{name}={text}" for name, text in zip(short_names(others), settings, strict=True))
        rows = group.assign(diverged=group["diverged_share"].fillna(0), chosen=True)
        picture = hyperparameter_picture(data, rows, BATCH_SIZE, "batch size", panel)
        pictures.append(replace(picture, name=f"batch_sizes{f'_{number + 1}' * (number > 0)}"))
    columns: Columns = {**{key: key for key in others}, design.compare or "arm": "arm"}
    columns |= {"batch sizes": "batch_sizes", "largest / smallest": lambda row: num(row["ratio"])}
    table = display_table(analysis.batch_sizes, columns)
    notes = [
        "Each arm at its selected configuration for each batch size. The column largest / smallest is the ratio "
        f"of the largest to the smallest {design.primary.name} among the batch sizes."
    ]
    tables = [PageTable("batch_size_ratios", "Sensitivity to the batch size", analysis.batch_sizes, table)]
    return Section("batch-size", "Batch size", notes, pictures, tables)


def target_section(data: ReportData) -> Section:
    """Build the section on the time that each arm takes to reach the target."""
    pictures = chart_per_panel(data, "target", target_chart)
    return Section(
        "target", "Time to target", target_rules(data), pictures, [time_table(data)] if pictures else []
    )


def target_chart(data: ReportData, panel: str) -> Iterator[Picture]:
    """Yield the figure of the share of replicates that have reached the target, if any has."""
    choice, targets = data.analysis.design.choice, data.analysis.targets
    runs = data.selected_runs(panel)
    steps = data.analysis.times["steps"].reindex(runs.index).dropna()
    by_arm = {str(arm): each.to_numpy() for arm, each in steps.groupby(runs["arm"], sort=False)}
    row = targets[targets["panel"] == panel].iloc[0] if len(targets) else {"target": np.nan}
    if not np.isfinite(float(row["target"])) or not np.isfinite(steps).any():
        return
    sign = "≤" if choice.direction == "min" else "≥"
    title = with_panel(f"reached {choice.name} {sign} {num(float(row['target']))}", panel)
    figure = charts.draw_reached(
        by_arm, styles_of(data), title=title, x="optimizer steps", end=float(row["budget"])
    )
    long = pd.concat([pd.DataFrame({"arm": arm, "steps": np.sort(each)}) for arm, each in by_arm.items()])
    alt = "share of the replicates of each arm that have reached the target, by optimizer steps"
    interval = "step" if row["resolution"] == 1 else f"{num(row['resolution'])} steps"
    caption = f"The metric is evaluated every {interval}, which is the resolution of these times."
    yield Picture("", figure, alt, caption, long)


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
    frame, design, time_ratios = data.analysis.arms, data.analysis.design, data.analysis.time_ratios
    ratios: dict[tuple[str, str], TableRow] = {}
    for row in table_rows(time_ratios):  # of several pairs of an arm, that with the baseline comes first
        ratios.setdefault((row["panel"], row["arm"]), row)
    baselines = {row["baseline"] for row in ratios.values()}
    baseline = baselines.pop() if len(baselines) == 1 else "baseline"

    def ratio(name: str) -> Callable[[TableRow], str]:
        return lambda row: with_interval(ratios[at], name) if (at := (row["panel"], row["arm"])) in ratios else "–"

    def reached(row: TableRow) -> str:
        if np.isnan(row["reached"]):
            return "–"
        share, low, high = (percent_text(row[name]) for name in ("reached", "reached_low", "reached_high"))
        return f"{share} ({low} to {high})"

    columns: Columns = {
        **panel_columns(data, frame),
        "median steps": lambda row: num(row["steps"], 4),
        "reached": reached,
        f"steps, ratio to {baseline}": ratio("steps_ratio"),
    }
    if time_ratios["step_time_ratio"].notna().any():
        columns[f"seconds per step / {baseline}"] = ratio("step_time_ratio")
        columns[f"seconds / {baseline}"] = ratio("seconds_ratio")
    written = ["panel", "arm", "seeds", "steps", "seconds", "reached", "reached_low", "reached_high"]
    table = display_table(frame, columns)
    return PageTable("times", "Time to target", frame[[*design.panels, *written]], table)


def probe_section(data: ReportData) -> Section:
    """Build the section on probe measurements."""
    pictures = [
        Picture(
            stem,
            figure,
            alt=f"{figure.get_suptitle()}, of {', '.join(probe.configurations)}",
            caption=f"Measurements of the probe {probe.name}; the table has medians over seeds at the last one.",
            data=probe.last_medians(),
            wide=True,
        )
        for stem, figure, probe in probe_figures(data.summary)
    ]
    notes = [
        "Measurements of the loss and the network during training, over all seeds. Ratios are Hodges–Lehmann "
        "estimates over paired seeds with pointwise 95 % intervals; no difference is declared from them."
    ]
    frame = data.probe_ratios
    columns: Columns = {
        "configuration": "arm",
        "quantity": lambda row: row["quantity"].removeprefix("probe/"),
        "seeds": "seeds",
        "ratio to nobn": lambda row: "one is untrained" if row["untrained"] else with_interval(row, "ratio"),
        "seeds below nobn": lambda row: percent_text(row["smaller"]),
    }
    caption = "Ratio of each configuration to the same configuration with nobn, over paired seeds"
    tables = [PageTable("probe_ratios", caption, frame, display_table(frame, columns))] if len(frame) else []
    return Section("probes", "Probe measurements", notes, pictures, tables if pictures else [])


def run_section(data: ReportData) -> Section:
    """Build the section with all runs and the commands that repeat them."""
    table, records = run_table(data.summary, data.summary.records, None), data.summary.records
    frame = table.assign(command=[rerun_command(records[number].result) for number in data.summary.listed.index])
    names = ["name", "status", "seed", f"best/{data.summary.metric}", "epochs", "seconds", "error", "command"]
    is_cut = len(frame) > MAX_RUNS
    note = [f"The table shows the first {MAX_RUNS} of {len(frame)} runs; runs.csv lists all."] if is_cut else []
    caption = "All runs, each with the command that repeats it"
    return Section("runs", "Runs", note, (), [PageTable("runs", caption, frame, frame[names].head(MAX_RUNS))])
