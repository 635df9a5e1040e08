"""The report page of a sweep, ``report/index.html``: with its main sections.

The entry is :func:`write_report`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normlab.report import charts
from normlab.report.answer import answers, overview
from normlab.report.conditions import conditions
from normlab.report.console import difference_warnings, effect_text, num, with_interval
from normlab.report.effects import effect_table
from normlab.report.findings import shared_conditions, target_sentences, time_and_interaction_sentences
from normlab.report.forest import effect_groups, short_panel, split_groups
from normlab.report.latex import main_table
from normlab.report.page import OPEN_EFFECTS, Page, PageTable, Picture, Section, write_page
from normlab.report.provenance import provenance
from normlab.report.report_data import ReportData, TableRow, curve_direction, table_rows
from normlab.report.report_json import report_json
from normlab.report.sections import (
    Columns,
    chart_per_panel,
    display_table,
    further_sections,
    panel_columns,
    replicate_chart,
    styles_of,
    undrawn_panels_note,
    with_panel,
)
from normlab.report.sweep_summary import BANDS, quartile_curves
from normlab.results.result import write_atomically
from normlab.stats.comparison import BETTER, DIFFERENCE, POINTS, RATIO, WORSE
from normlab.stats.multiple_comparisons import PART_OF_POOLED
from normlab.stats.sentences import percent_text
from normlab.stats.warnings import test_warnings

FOLDER, JSON_FILE, TEX_FILE = "report", "report.json", "report.tex"
MAX_EFFECTS = 24
"""The largest number of effects in a figure."""
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


def write_report(folders: Sequence[Path], data: ReportData, out: Path) -> Path:
    """Write the report page, its figures and tables, and ``report.json`` and ``report.tex`` into a folder.

    Returns the path of the page.

    Args:
        folders: the folders of the sweeps.
        data: their runs and analysis.
        out: the folder of the report.
    """
    page = build_page(folders, data)
    index = write_page(page, out)
    write_atomically(out / JSON_FILE, report_json(page, data))
    write_atomically(out / TEX_FILE, f"{main_table(data)}\n")
    return index


def build_page(folders: Sequence[Path], data: ReportData) -> Page:
    """Assemble the content of the page from its sections."""
    design, effects, found = data.analysis.design, effect_table(data), answers(data)
    others = ", ".join(arm for arm in design.arms if arm != design.baseline)
    subject = f"{others} against {design.baseline}" if others else design.primary.name
    shown, collapsed = split_groups(effect_groups(data, effects), OPEN_EFFECTS - 2 * (len(found) > 2))
    first = (comparison_section, configuration_section, curve_section)
    sections = [*(section(data) for section in first), *further_sections(data)]
    baselines = set(effects["baseline"])
    return Page(
        title=f"{', '.join(folder.resolve().name for folder in folders)}: {subject}",
        answers=found,
        overview=overview(data, found),
        groups=shown,
        more_groups=collapsed,
        baseline=baselines.pop() if len(baselines) == 1 else "",
        note=effects_note(data, effects),
        effects=PageTable("effects", "Effects by the primary metrics", effects) if len(effects) else None,
        conditions=conditions(data),
        caveats=ordered_caveats(data),
        sections=[section for section in sections if section.pictures or section.tables],
        provenance=provenance(folders, data.summary.records),
    )


def ordered_caveats(data: ReportData) -> list[str]:
    """Return all warnings, each once, those about the verdicts first."""
    analysis = data.analysis
    verdicts = [*data.changed, *test_warnings(table_rows(analysis.comparisons)), *analysis.ends, *analysis.edges]
    return list(dict.fromkeys([*verdicts, *difference_warnings(data.summary), *analysis.warnings]))


def effects_note(data: ReportData, effects: pd.DataFrame) -> str:
    """Explain the columns of the first table; empty without rows."""
    values = "End of training: mean over the last tenth of the epochs, interquartile mean over replicates."
    best = (
        "Best epoch: the same metric at the best validation epoch, which is selected and therefore optimistic."
        if effects["best_epoch"].notna().any()
        else ""
    )
    if effects.empty or not effects["verdict"].any():
        return " ".join(filter(None, [values, best])) if len(effects) else ""
    kinds = {
        RATIO: "ratio (×) of losses",
        POINTS: "difference of accuracies in percentage points",
        DIFFERENCE: "difference",
    }
    used = [text for kind, text in kinds.items() if (effects["effect"] == kind).any()]
    looks = f"look {max(row['look'] for row in table_rows(data.analysis.comparisons))}"
    p = f"p: exact signed-rank test, corrected for the comparisons of a question and for {looks}."
    effect = f"Effect: {', '.join(used)}; filled dots: a difference is declared." if used else ""
    return " ".join(filter(None, [effect, p.replace(" and for look 0", ""), values, best]))


def effect_pictures(data: ReportData) -> Iterator[Picture]:
    """Yield a figure per metric with the effects of the arms and their intervals, if any interval is bounded."""
    design, frame = data.analysis.design, data.analysis.comparisons
    if frame.empty or not np.isfinite(frame["estimate_high"].astype(float)).any():
        return
    for metric in design.metrics:
        rows = frame[(frame["metric"] == metric.name) & (frame["verdict"] != PART_OF_POOLED)].head(MAX_EFFECTS)
        if rows.empty or rows["estimate"].isna().all():
            continue
        better = "lower" if metric.direction == "min" else "higher"
        several = rows["baseline"].nunique() > 1
        names = rows["arm"] + " / " + rows["baseline"] if several else rows["arm"]
        panels = rows["panel"].map(short_panel)  # leaves room for the intervals
        labels = (panels + ": ").where(panels != "", "") + names
        to = "the baseline" if several else rows["baseline"].iloc[0]
        kind = "ratio" if (rows["effect"] == RATIO).all() else "difference"
        x = f"{kind} to {to}" + " in percentage points" * metric.is_share
        columns = ["panel", "arm", "baseline", "effect", "estimate", "estimate_low", "estimate_high"]
        shown = rows[columns].assign(label=labels, declared=rows["verdict"].isin([BETTER, WORSE]))
        figure = charts.draw_effects(shown, styles_of(data), title=f"{metric.name} ({better} is better)", x=x)
        caption = "Effect with its 95 % interval; filled: a difference is declared."
        alt = f"{kind} of {metric.name} between the arms and {to}, with intervals"
        yield Picture(f"effects_{metric.name.replace('/', '_')}", figure, alt, caption, shown)


def comparison_section(data: ReportData) -> Section:
    """Build the section with the verdict, effect and p-value of each comparison."""
    analysis, design = data.analysis, data.analysis.design
    frame = analysis.comparisons
    if frame.empty:
        return Section("comparison", "Comparison")
    optional: dict[str, tuple[Any, Any]] = {
        "p (new tables)": (
            frame["new_table_p_adjusted"].notna().any(),
            lambda row: num(row["new_table_p_adjusted"], 2),
        ),
        "equivalence p": (design.margin is not None, lambda row: num(row["equivalence_p_adjusted"], 2)),
        "failed to train": ((frame["failed"] + frame["baseline_failed"]).any(), failed_text),
    }
    columns: Columns = {
        **panel_columns(data, frame, "metric"),
        "baseline": "baseline",
        "replicates": lambda row: f"{row['replicates']} {row['scope']}{'s' * (row['replicates'] != 1)}",
        "verdict": "verdict",
        "effect": effect_text,
        "p (corrected)": lambda row: num(row["p_adjusted"], 2),
        "look": "look",
        **{name: source for name, (is_shown, source) in optional.items() if is_shown},
        "better in": lambda row: f"{row['better'] * row['replicates']:g} of {row['replicates']}",
        "detectable effect": detectable_text,
    }
    scopes = set(frame["scope"])
    notes = [
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
    pictures = [*effect_pictures(data), *chart_per_panel(data, "seeds", replicate_chart)]
    public = frame.drop(columns=INTERNAL_COLUMNS, errors="ignore")  # without a comparison some columns are missing
    tables = [PageTable("comparisons", "Comparisons between arms", public, display_table(frame, columns))]
    if len(analysis.interactions):
        tables.append(interaction_table(data))
    findings, shared = shared_conditions(data)
    sentences = [*findings, *time_and_interaction_sentences(data), *target_sentences(data)]
    return Section("comparison", "Comparison", notes, pictures, tables, sentences, shared)


def interaction_table(data: ReportData) -> PageTable:
    """Build the table of the changes of an effect between panels."""
    frame = data.analysis.interactions
    columns: Columns = {
        data.analysis.design.compare: "arm",
        "baseline": "baseline",
        "from panel": "other",
        "to panel": "panel",
        "replicates": "replicates",
        "change of the effect": effect_text,
        "p (Holm)": lambda row: num(row["p_adjusted"], 2),
    }
    caption = "Interactions: change of the effect between panels"
    return PageTable("interactions", caption, frame, display_table(frame, columns))


def failed_text(row: TableRow) -> str:
    """Format the number of runs of the arm and of the baseline that failed to train, with the p-value."""
    p = f", p = {num(row['failure_p_adjusted'], 2)}" if not np.isnan(row["failure_p_adjusted"]) else ""
    return f"{row['failed']} vs. {row['baseline_failed']} of {row['failures_of']}{p}"


def detectable_text(row: TableRow) -> str:
    """Format the effect that the test detects with 80 % power."""
    value = row["detectable"]
    return f"× {num(float(np.exp(value)))}" if row["effect"] == RATIO and np.isfinite(value) else num(value)


def configuration_section(data: ReportData) -> Section:
    """Build the section with the metrics of each arm at its selected configuration."""
    frame, design = data.analysis.arms, data.analysis.design
    columns: Columns = {
        **panel_columns(data, frame),
        **({"hyperparameters": data.selected_settings} if design.tuned else {}),
        "replicates": "seeds",
        design.primary.name: lambda row: with_interval(row, "iqm"),
        **{metric.name: number_formatter(metric.name) for metric in design.metrics[1:]},
        design.choice.name: number_formatter("validation"),
        f"best {design.choice.name}": number_formatter("best"),
        **{name: share_formatter(name) for name in ("diverged", "untrained") if frame[f"{name}_share"].any()},
        "runs": "runs",
        **{name: name for name in ("failed", "stopped") if frame[name].any()},
    }
    notes = [
        "Interquartile means over the reported replicates; the first metric has a 95 % bootstrap interval. There "
        "is no value if more than a quarter of these runs diverged. Metrics are means over the last tenth of the "
        "epochs; the value of the best epoch is selected among all epochs and therefore optimistic. A run is "
        "untrained if its final training loss is above 90 % of that of the best constant predictor. The columns "
        "runs, failed and stopped count all runs of the arm. Columns that are 0 for all arms are left out."
    ]
    tables = [PageTable("arms", "Each arm at its selected configuration", frame, display_table(frame, columns))]
    title = "Best configuration per arm" if design.tuned else "Results per arm"
    return Section("arms", title, notes, (), tables)


def share_formatter(name: str) -> Callable[[TableRow], str]:
    """Return a function that formats the share of runs in a state."""
    return lambda row: percent_text(row[f"{name}_share"])


def number_formatter(name: str) -> Callable[[TableRow], str]:
    """Return a function that formats the number in a column."""
    return lambda row: num(row[name])


def curve_section(data: ReportData) -> Section:
    """Build the section with the curves of training loss, validation loss and accuracy."""
    notes = [
        "Each arm at its selected configuration: the line is the median over the reported replicates, the band "
        "the interquartile range. The value axis spans the second half of training; a triangle at its edge "
        "marks where earlier values leave it. From the epoch at which a run diverges, it counts with the worst "
        "value; × marks the end of a "
        "curve for which half of the runs diverged.",
        *undrawn_panels_note(data.analysis.arms),
    ]
    return Section("curves", "Learning curves", notes, chart_per_panel(data, "curves", curve_charts))


def curve_charts(data: ReportData, panel: str) -> Iterator[Picture]:
    """Yield the learning curves of a panel by epoch, and those of the validation metric by seconds if timed."""
    design, runs = data.analysis.design, data.selected_runs(panel)
    rows = data.summary.curves[data.summary.curves["run"].isin(runs.index)]
    known = {name: part for name, part in rows.groupby("metric", observed=True) if part["epoch"].nunique() > 1}
    training = next((name for name in ("train_eval/loss", "train/loss") if name in known), "")
    names = [
        name for name in dict.fromkeys([training, "val/loss", "val/acc", design.choice.name]) if name in known
    ]
    for name in names:
        curves = quartile_curves(data.summary, known[name].assign(step=known[name]["epoch"]), runs["arm"])
        if curves.empty:  # most runs have lost their curves
            continue
        yield curve_picture(data, panel, name, "epoch", curves)
        seconds = data.median_seconds(runs)
        if name == design.choice.name and len(seconds):
            timed = curves.join(seconds, on=["name", "epoch"]).dropna(subset="seconds")
            if len(timed):
                yield curve_picture(data, panel, name, "seconds", timed)


def curve_picture(data: ReportData, panel: str, metric: str, x: str, curves: pd.DataFrame) -> Picture:
    """Draw the learning curves of a metric by epoch or by seconds of training."""
    choice, targets = data.analysis.design.choice, data.analysis.targets
    of_panel = targets.loc[targets["panel"] == panel, "target"] if len(targets) else pd.Series()
    target = float(of_panel.iloc[0]) if len(of_panel) and metric == choice.name else np.nan
    better = curve_direction(data.summary, metric)
    title = with_panel(charts.TITLES.get(metric, metric), panel)
    labels: Mapping[str, Any] = {"title": title, "x": x, "y": metric}
    figure = charts.draw_curves(curves, styles_of(data), **labels, better=better, target=target)
    by = "seconds of training" if x == "seconds" else x
    caption = with_panel(f"{metric} by {by}", panel)
    names = dict(zip(["name", *BANDS], ["arm", "lower quartile", "median", "upper quartile"], strict=True))
    numbers = curves[["name", x, *BANDS]].rename(columns=names)
    name = f"{'seconds_' * (x == 'seconds')}{metric.replace('/', '_')}"
    return Picture(name, figure, f"{caption} of {', '.join(curves['name'].unique())}", caption, numbers)
