"""The sections of the page, each from what was found."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from normlab.report import charts
from normlab.report.page import PageTable, Picture, Section
from normlab.report.report_data import ReportData
from normlab.report.selectors import (
    TableRow,
    display_table,
    effect_text,
    file,
    first_panels,
    left_out,
    num,
    report_values,
    runs_at_best,
    styles_of,
    titled,
    tuned_at,
    with_interval,
)
from normlab.report.tuning_sections import fixed_steps, rates, sizes, times
from normlab.stats.sentences import percent_text

SCOPES = {
    "draw": "Draws: each replicate has samples of its own, generated from its seed.",
    "split": "Splits: each replicate divides the same table at random into training, validation and test rows, so "
    "that replicates share rows. New tables: p of the corrected resampled t test, which asks whether the "
    "difference would be found on other tables of the same kind; for test metrics only.",
    "seed": "Seeds: all replicates have the same samples and differ in initial weights and batch order alone.",
}
"""Explanations of the scopes, for the text of the comparison."""
INTERNAL = ["key", "of_panels", "seeds", "tested", "factor", "disjoint", "margin", "splits"]
"""Columns of the comparisons that are not written into the csv file."""


def sections(study: ReportData) -> Iterator[Section]:
    """Yield the sections of the page, most important first."""
    for make in (compared, best, curves, fixed_steps, rates, sizes, times):
        section = make(study)
        if section.pictures or section.tables:
            yield section


def compared(study: ReportData) -> Section:
    """Return the comparisons: who is better than the baseline, by how much, and how sure that is."""
    found, design = study.analysis, study.analysis.design
    frame = found.comparisons
    if frame.empty:
        return Section("comparison", "Comparison")
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    columns |= {"metric": "metric", design.compare: "arm", "against": "baseline", "replicates": scope_text}
    columns |= {
        "verdict": "verdict",
        "effect": effect_text,
        "p (corrected)": lambda row: num(row["p_adjusted"], 2),
    }
    columns["look"] = "look"
    if frame["new_table_p_adjusted"].notna().any():
        columns["p, new tables"] = lambda row: num(row["new_table_p_adjusted"], 2)
    if design.margin is not None:
        columns["equivalent"] = lambda row: f"p = {num(row['equivalence_p_adjusted'], 2)}"
    if (frame["failed"] + frame["baseline_failed"]).any():
        columns["failed"] = failed_text
    columns |= {
        "better in": lambda row: f"{row['better'] * row['replicates']:g} of {row['replicates']}",
        "smallest effect with 80 % power": detectable_text,
    }
    scopes = set(frame["scope"])
    words = [
        "Outcomes are means over the last tenth of the epochs. A difference is declared by the exact two-sided "
        "signed-rank test of the paired replicates. The effect is arm / baseline for losses (the median of the "
        "paired ratios, by Hodges and Lehmann) and arm − baseline for accuracies, in percentage points, with the "
        "95 % interval of the same test, not corrected for several comparisons.",
        "p is multiplied at look k by k(k + 1), at the first by 2, so that replicates may be added and tested "
        "again, and corrected by Holm within each question: all test metrics together, train_eval by itself.",
        *[text for scope, text in SCOPES.items() if scope in scopes],
        *left_out(frame),
    ]
    primary = frame[frame["metric"] == design.primary.name]
    pictures = [
        picture
        for number, (panel, own) in enumerate(first_panels(primary))
        for picture in seed_pictures(study, panel, own, number)
    ]
    public = frame.drop(columns=INTERNAL, errors="ignore")  # some are missing where no arm can be compared
    tables = [PageTable("comparisons", "arms against the baseline", public, display_table(frame, columns))]
    if len(found.interactions):
        tables.append(
            PageTable("interactions", "how effects change between panels", found.interactions, changes(study))
        )
    return Section("comparison", "Comparison", words, pictures, tables)


def changes(study: ReportData) -> pd.DataFrame:
    """Return the interactions as they are read."""
    return display_table(
        study.analysis.interactions,
        {
            study.analysis.design.compare: "arm",
            "against": "baseline",
            "from": "other",
            "to": "panel",
            "replicates": "replicates",
            "change of the effect": effect_text,
            "p (Holm)": lambda row: num(row["p_adjusted"], 2),
        },
    )


def scope_text(row: TableRow) -> str:
    """Return the number of replicates and what differs between them."""
    nouns = {"seed": "seed", "draw": "draw", "split": "split"}
    return f"{row['replicates']} {nouns[row['scope']]}{'s' * (row['replicates'] != 1)}"


def failed_text(row: TableRow) -> str:
    """Return the failed runs of the arm and of the baseline, with p of their difference."""
    p = f", p = {num(row['failure_p_adjusted'], 2)}" if not np.isnan(row["failure_p_adjusted"]) else ""
    return f"{row['failed']} against {row['baseline_failed']} of {row['failures_of']}{p}"


def detectable_text(row: TableRow) -> str:
    """Return the effect that is declared with 80 % power."""
    value = row["detectable"]
    if np.isnan(value) or np.isinf(value):
        return num(value)
    return f"× {num(float(np.exp(value)))}" if row["effect"] == "ratio" else num(value)


def seed_pictures(study: ReportData, panel: str, rows: pd.DataFrame, number: int) -> Iterator[Picture]:
    """Yield the picture of the seeds of one panel, if any were run with several arms."""
    design, wide = study.analysis.design, report_values(study, panel)
    arms = [arm for arm in (design.baseline, *rows["arm"]) if arm in wide]
    if len(arms) < 2:
        return
    name, figure = (
        file("seeds", number),
        charts.draw_seeds(wide[arms], styles_of(study), title=titled("each seed", panel), y=design.primary.name),
    )
    alt = f"{design.primary.name} of each seed with {', '.join(arms)}{' in ' + panel if panel else ''}"
    caption = "A line is a replicate, each arm at its chosen setting; × marks runs that diverged."
    yield Picture(name, figure, alt, caption, PageTable(name, "what is drawn", wide[arms].reset_index()))


def best(study: ReportData) -> Section:
    """Return the outcomes of each arm at its chosen settings."""
    frame, design = study.analysis.arms, study.analysis.design
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    columns |= {design.compare: "arm"} if design.compare else {}
    columns |= {"at": lambda row: tuned_at(study, row)} if design.tuned else {}
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
        "Interquartile means over the reported replicates, the first metric with its 95 % bootstrap interval; "
        "none is given where more than a quarter of the runs diverged. Values are means over the last tenth of "
        "the epochs; the best epoch is the lowest of many and therefore optimistic. Untrained: the final training "
        "loss is not 10 % below that of the best constant predictor. The last columns count all runs."
    ]
    tables = [PageTable("arms", "arms at their chosen settings", frame, table)]
    return Section("arms", "Best configuration per arm", words, (), tables)


def column_formatter(name: str) -> Callable[[TableRow], str]:
    """Return the function that formats a column."""
    return lambda row: num(row[name])


def curves(study: ReportData) -> Section:
    """Return the learning curves of the arms at their best, by epoch and by seconds."""
    pictures = []
    for number, (panel, _) in enumerate(first_panels(study.analysis.arms)):
        runs = runs_at_best(study, panel)
        timed = study.curves["seconds"].notna().any()
        for kind, x in (("epoch", "epoch"), ("seconds", "seconds of training"))[: 1 + timed]:
            values = wide_curves(study, runs, kind)
            if values:
                pictures.append(curve_picture(study, panel, number, kind, x, values))
    words = [
        "Arms at their best settings: the line is the median over the reported seeds, the band the middle half; "
        "from where a run diverged it counts as the worst value."
    ]
    return Section("curves", "Learning curves", [*words, *left_out(study.analysis.arms)], pictures)


def wide_curves(study: ReportData, runs: pd.DataFrame, kind: str) -> dict[str, pd.DataFrame]:
    """Return the curves of each arm, ``(moments x seeds)``, by epoch or by median seconds."""
    design, found = study.analysis.design, {}
    worst = design.choice.sign * np.inf
    for arm, own in runs.groupby("arm", sort=False):
        rows = study.curves[study.curves["run"].isin(own.index)]
        wide = rows.pivot_table(index="epoch", columns="run", values="value", aggfunc="last")
        lost = own.index[own["status"] == "diverged"]
        wide = wide.reindex(columns=wide.columns.union(lost))
        wide[lost] = wide[lost].fillna(worst)
        if kind == "seconds":
            wide.index = rows.groupby("epoch")["seconds"].median().reindex(wide.index)
        if len(wide) > 1:
            found[str(arm)] = wide
    return found


def curve_picture(
    study: ReportData, panel: str, number: int, kind: str, x: str, values: dict[str, pd.DataFrame]
) -> Picture:
    """Return the picture of a panel's curves."""
    design = study.analysis.design
    targets = study.analysis.targets
    target = (
        float(targets.loc[targets["panel"] == panel, "target"].astype(float).iloc[0]) if len(targets) else np.nan
    )
    figure = charts.draw_curves(
        values, styles_of(study), title=titled(f"by {kind}", panel), x=x, y=design.choice.name, target=target
    )
    rows = [
        wide.quantile([0.25, 0.5, 0.75], axis=1)
        .T.set_axis(["lower quartile", "median", "upper quartile"], axis=1)
        .rename_axis(kind)
        .reset_index()
        .assign(arm=arm)
        for arm, wide in values.items()
    ]
    name = file(f"curves_by_{kind}", number)
    alt = f"{design.choice.name} of {', '.join(values)} by {kind}{' in ' + panel if panel else ''}"
    return Picture(
        name,
        figure,
        alt,
        titled(f"{design.choice.name} by {kind}", panel),
        PageTable(name, "what is drawn", pd.concat(rows)),
    )
