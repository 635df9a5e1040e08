"""Report sections Comparison, Best configuration per arm and Learning curves; the entry is :func:`sections`."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from normlab.report import charts
from normlab.report.console import num, with_interval
from normlab.report.page import PageTable, Picture, Section
from normlab.report.report_data import ReportData
from normlab.report.selectors import (
    TableRow,
    display_table,
    effect_text,
    figure_name,
    first_panels,
    reported_values,
    selected_runs,
    selected_settings,
    styles_of,
    undrawn_panels_note,
    with_panel,
)
from normlab.report.tuning_sections import batch_size_section, fixed_steps_section, target_section, tuning_section
from normlab.stats.sentences import percent_text

SCOPES = {
    "draw": "Draws: each replicate has its own samples, generated from its seed.",
    "split": "Splits: each replicate divides the same table at random into training, validation and test rows, so "
    "replicates share rows. The column “p (new tables)” gives the p-value of the corrected resampled t test "
    "(Nadeau and Bengio 2003) for other tables of the same kind; it is available for test metrics only.",
    "seed": "Seeds: all replicates have the same samples and differ only in initial weights and batch order.",
}
"""Explanation of each kind of replicate, for the text of the section Comparison."""
INTERNAL_COLUMNS = ["key", "of_panels", "seeds", "tested", "factor", "disjoint", "margin", "splits"]
"""Columns of the comparisons that the csv file omits."""


def sections(data: ReportData) -> Iterator[Section]:
    """Yield the non-empty sections of the page in their order."""
    builders = (
        comparison_section,
        configuration_section,
        curve_section,
        fixed_steps_section,
        tuning_section,
        batch_size_section,
        target_section,
    )
    for build in builders:
        section = build(data)
        if section.pictures or section.tables:
            yield section


def comparison_section(data: ReportData) -> Section:
    """Build the section with the verdict, effect and p-value of each comparison."""
    analysis, design = data.analysis, data.analysis.design
    frame = analysis.comparisons
    if frame.empty:
        return Section("comparison", "Comparison")
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    columns |= {"metric": "metric", design.compare: "arm", "baseline": "baseline", "replicates": scope_text}
    columns |= {
        "verdict": "verdict",
        "effect": effect_text,
        "p (corrected)": lambda row: num(row["p_adjusted"], 2),
    }
    columns["look"] = "look"
    if frame["new_table_p_adjusted"].notna().any():
        columns["p (new tables)"] = lambda row: num(row["new_table_p_adjusted"], 2)
    if design.margin is not None:
        columns["equivalence p"] = lambda row: num(row["equivalence_p_adjusted"], 2)
    if (frame["failed"] + frame["baseline_failed"]).any():
        columns["failed to train"] = failed_text
    columns |= {
        "better in": lambda row: f"{row['better'] * row['replicates']:g} of {row['replicates']}",
        "detectable effect": detectable_text,
    }
    scopes = set(frame["scope"])
    words = [
        "Metrics are means over the last tenth of the epochs. Arms are compared by the exact two-sided "
        "signed-rank test over paired replicates. The effect is the ratio arm / baseline for losses "
        "(Hodges–Lehmann estimate of the paired ratios) and the difference arm − baseline in percentage points "
        "for accuracies. Its 95 % interval comes from the same test and is uncorrected for multiple comparisons. "
        "The detectable effect is the smallest effect, in either direction, that the test finds with 80 % power.",
        "The corrected p-value allows for repeated looks and multiple comparisons. At look k it is multiplied by "
        "k(k + 1), or according to the O’Brien–Fleming boundary if max_replicates is declared. A look is one "
        "analysis of the sweep; analyzing again with more replicates is another. Holm’s correction is applied "
        "within each question: test metrics form one question, train_eval another.",
        *(text for scope, text in SCOPES.items() if scope in scopes),
        *undrawn_panels_note(frame),
    ]
    primary = frame[frame["metric"] == design.primary.name]
    pictures = [
        picture
        for number, (panel, rows) in enumerate(first_panels(primary))
        for picture in replicate_pictures(data, panel, rows, number)
    ]
    public = frame.drop(columns=INTERNAL_COLUMNS, errors="ignore")  # without a comparison some columns are missing
    tables = [PageTable("comparisons", "Comparisons between arms", public, display_table(frame, columns))]
    if len(analysis.interactions):
        caption = "Interactions: change of the effect between panels"
        tables.append(PageTable("interactions", caption, analysis.interactions, interaction_table(data)))
    return Section("comparison", "Comparison", words, pictures, tables)


def interaction_table(data: ReportData) -> pd.DataFrame:
    """Format the interactions for display."""
    return display_table(
        data.analysis.interactions,
        {
            data.analysis.design.compare: "arm",
            "baseline": "baseline",
            "from panel": "other",
            "to panel": "panel",
            "replicates": "replicates",
            "change of the effect": effect_text,
            "p (Holm)": lambda row: num(row["p_adjusted"], 2),
        },
    )


def scope_text(row: TableRow) -> str:
    """Format the number and kind of replicates, as ``12 splits``."""
    return f"{row['replicates']} {row['scope']}{'s' * (row['replicates'] != 1)}"


def failed_text(row: TableRow) -> str:
    """Format the number of runs of the arm and of the baseline that failed to train, with the p-value."""
    p = f", p = {num(row['failure_p_adjusted'], 2)}" if not np.isnan(row["failure_p_adjusted"]) else ""
    return f"{row['failed']} vs. {row['baseline_failed']} of {row['failures_of']}{p}"


def detectable_text(row: TableRow) -> str:
    """Format the effect that the test detects with 80 % power."""
    value = row["detectable"]
    if np.isnan(value) or np.isinf(value):
        return num(value)
    return f"× {num(float(np.exp(value)))}" if row["effect"] == "ratio" else num(value)


def replicate_pictures(data: ReportData, panel: str, rows: pd.DataFrame, number: int) -> Iterator[Picture]:
    """Yield the figure of the paired replicates of a panel, if it has several arms."""
    design, wide = data.analysis.design, reported_values(data, panel)
    arms = [arm for arm in (design.baseline, *rows["arm"]) if arm in wide]
    if len(arms) < 2:
        return
    name, title = figure_name("seeds", number), with_panel("Paired replicates", panel)
    figure = charts.draw_seeds(wide[arms], styles_of(data), title=title, y=design.primary.name)
    alt = f"{design.primary.name} of each replicate with {', '.join(arms)}{' in ' + panel if panel else ''}"
    caption = "Each line is a replicate, with each arm at its selected configuration; × marks diverged runs."
    yield Picture(name, figure, alt, caption, PageTable(name, "Data of the figure", wide[arms].reset_index()))


def configuration_section(data: ReportData) -> Section:
    """Build the section with the metrics of each arm at its selected configuration."""
    frame, design = data.analysis.arms, data.analysis.design
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    columns |= {design.compare: "arm"} if design.compare else {}
    columns |= {"hyperparameters": lambda row: selected_settings(data, row)} if design.tuned else {}
    others = [metric.name for metric in design.metrics[1:]]
    table = display_table(
        frame,
        {
            **columns,
            "replicates": "seeds",
            design.primary.name: lambda row: with_interval(row, "iqm"),
            **{name: column_formatter(name) for name in others},
            f"{design.choice.name}": column_formatter("validation"),
            f"best {design.choice.name}": column_formatter("best"),
            "diverged": lambda row: percent_text(row["diverged_share"]),
            "untrained": lambda row: percent_text(row["untrained_share"]),
            "runs": "runs",
            "failed": "failed",
            "stopped": "stopped",
        },
    )
    words = [
        "Interquartile means over the reported replicates; the first metric has a 95 % bootstrap interval. There "
        "is no value if more than a quarter of these runs diverged. Metrics are means over the last tenth of the "
        "epochs; the value of the best epoch is selected among all epochs and therefore optimistic. A run is "
        "untrained if its final training loss is above 90 % of that of the best constant predictor. The columns "
        "runs, failed and stopped count all runs of the arm."
    ]
    tables = [PageTable("arms", "Each arm at its selected configuration", frame, table)]
    return Section("arms", "Best configuration per arm", words, (), tables)


def column_formatter(name: str) -> Callable[[TableRow], str]:
    """Return a function that formats the value of a column in a row."""
    return lambda row: num(row[name])


def curve_section(data: ReportData) -> Section:
    """Build the section with the learning curves by epoch and, if timed, by seconds of training."""
    pictures = []
    for number, (panel, _) in enumerate(first_panels(data.analysis.arms)):
        runs = selected_runs(data, panel)
        timed = data.curves["seconds"].notna().any()
        for kind, x in (("epoch", "epoch"), ("seconds", "seconds of training"))[: 1 + timed]:
            values = wide_curves(data, runs, kind)
            if values:
                pictures.append(curve_picture(data, panel, number, kind, x, values))
    words = [
        "Each arm at its selected configuration: the line is the median over the reported replicates, the band "
        "the interquartile range. From the epoch at which a run diverges, it counts with the worst value."
    ]
    return Section("curves", "Learning curves", [*words, *undrawn_panels_note(data.analysis.arms)], pictures)


def wide_curves(data: ReportData, runs: pd.DataFrame, kind: str) -> dict[str, pd.DataFrame]:
    """Return the curves of each arm, ``(evaluations x runs)``, indexed by epoch or by median seconds."""
    wide_by_arm = {}
    worst = data.analysis.design.choice.sign * np.inf
    for arm, arm_runs in runs.groupby("arm", sort=False):
        rows = data.curves[data.curves["run"].isin(arm_runs.index)]
        wide = rows.pivot_table(index="epoch", columns="run", values="value", aggfunc="last")
        diverged = arm_runs.index[arm_runs["status"] == "diverged"]
        wide = wide.reindex(columns=wide.columns.union(diverged))
        wide[diverged] = wide[diverged].fillna(worst)
        if kind == "seconds":
            wide.index = rows.groupby("epoch")["seconds"].median().reindex(wide.index)
        if len(wide) > 1:
            wide_by_arm[str(arm)] = wide
    return wide_by_arm


def curve_picture(
    data: ReportData, panel: str, number: int, kind: str, x: str, values: dict[str, pd.DataFrame]
) -> Picture:
    """Draw the learning curves of a panel."""
    design = data.analysis.design
    targets = data.analysis.targets
    target = (
        float(targets.loc[targets["panel"] == panel, "target"].astype(float).iloc[0]) if len(targets) else np.nan
    )
    figure = charts.draw_curves(
        values, styles_of(data), title=with_panel(f"by {kind}", panel), x=x, y=design.choice.name, target=target
    )
    rows = [
        wide.quantile([0.25, 0.5, 0.75], axis=1)
        .T.set_axis(["lower quartile", "median", "upper quartile"], axis=1)
        .rename_axis(kind)
        .reset_index()
        .assign(arm=arm)
        for arm, wide in values.items()
    ]
    name = figure_name(f"curves_by_{kind}", number)
    alt = f"{design.choice.name} of {', '.join(values)} by {kind}{' in ' + panel if panel else ''}"
    return Picture(
        name,
        figure,
        alt,
        with_panel(f"{design.choice.name} by {kind}", panel),
        PageTable(name, "Data of the figure", pd.concat(rows)),
    )
