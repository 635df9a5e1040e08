"""The report of a sweep: from its records alone to ``report/index.html``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normlab.report.console import run_table
from normlab.report.figures import drawing
from normlab.report.footnotes import difference_warnings
from normlab.report.formatting import display_table, num, percent, with_interval
from normlab.report.page import Page, PageTable, Picture, Section, write_page
from normlab.report.probe_ratios import probe_ratios
from normlab.report.probes import last_numbers, probe_figures
from normlab.report.provenance import commands, facts
from normlab.report.report_data import ReportData, names_of
from normlab.report.sections import sections
from normlab.report.selectors import rows_of
from normlab.stats.comparison import ALPHA, BETTER, WORSE
from normlab.stats.comparisons import ONE_SPLIT
from normlab.stats.sentences import interaction_sentence, sentence, time_sentence

FOLDER = "report"
FEW = 6
"""Comparisons up to which each has a sentence; of more, those that declare a difference."""
PANELS = 6
"""Panels of which the target is told."""
SHOWN = 2000
"""Runs that the page lists; ``runs.csv`` has all."""


def write_report(folders: Sequence[Path], found: ReportData, out: Path) -> Path:
    """Write the page and all that is on it into a folder, and return the page.

    Args:
        folders: of the sweeps.
        found: what their runs have to say.
        out: the folder of the report.
    """
    with drawing():
        return write_page(page_of(folders, found), out)


def page_of(folders: Sequence[Path], found: ReportData) -> Page:
    """Return the content of the page."""
    design = found.analysis.design
    others = ", ".join(arm for arm in design.arms if arm != design.baseline)
    what = f"{others} against {design.baseline}" if others else design.primary.name
    title = f"{names_of(folders)}: {what}{data_text(found)}"
    parts = [*sections(found), *probes(found), runs(found)]
    said = [*sentences(found), *more_sentences(found), *targets(found)]
    warnings = [*difference_warnings(found.summary), *found.changed, *found.analysis.warnings]
    return Page(title, said, warnings, parts, facts(folders, found.records))


def data_text(found: ReportData) -> str:
    """Return the dataset with its numbers of samples, for the title; empty if there are several or none."""
    runs = [found.records[number].result for number in found.summary.runs.index]
    names = {run.choices.get("data", "") for run in runs}
    sizes = {tuple(run.data.get(split) for split in ("train", "val", "test")) for run in runs}
    if len(names) != 1 or "" in names:
        return ""
    known = len(sizes) == 1 and all(size is not None for size in next(iter(sizes)))
    rows = " + ".join(map(str, next(iter(sizes)))) if known else ""
    return f", {names.pop()}" + (f" ({rows} training, validation and test samples)" if rows else "")


def sentences(found: ReportData) -> list[str]:
    """Return a sentence for each comparison, or the reason why there is none."""
    analysis = found.analysis
    rows = [row for row in rows_of(analysis.comparisons) if row["verdict"] != ONE_SPLIT]
    if found.runs["validation"].isna().all():
        return [f"No run has a final {analysis.design.choice.name}: there is nothing to compare."]
    if rows:
        told = rows if len(rows) <= FEW else [row for row in rows if row["verdict"] in (BETTER, WORSE)]
        others = [f"{len(rows) - len(told)} other comparisons declare no difference; the report has all of them"]
        lines = [sentence(row, analysis.grid, analysis.tuning) for row in told]
        return [*lines, *others[: len(rows) - len(told)]]
    return ["One arm: there is nothing to compare it with."] if len(found.runs) else ["There are no runs."]


def more_sentences(found: ReportData) -> list[str]:
    """Return sentences on the times to the target, and on effects that change between panels."""
    times = [time_sentence(row) for row in rows_of(found.analysis.time_ratios)]
    changes = [row for row in rows_of(found.analysis.interactions) if row["p_adjusted"] <= ALPHA]
    return [*filter(None, times), *(interaction_sentence(row) for row in changes)]


def targets(found: ReportData) -> list[str]:
    """Return the target that the sentences speak of, if there is one."""
    choice, rows = found.analysis.design.choice, rows_of(found.analysis.targets)
    side = "at most" if choice.direction == "min" else "at least"
    known = [row for row in rows if np.isfinite(row["target"])][:PANELS]
    values = [f"{side} {num(row['target'])}" + f" at {row['panel']}" * bool(row["panel"]) for row in known]
    comparing = len(found.analysis.comparisons) and len(found.curves) and found.runs["validation"].notna().any()
    return [f"The target: {choice.name} {', '.join(values)}."] if values and comparing else []


def probes(found: ReportData) -> Iterator[Section]:
    """Yield the section on probes, if there were any."""
    pictures = [
        Picture(
            stem,
            figure,
            alt=f"{figure.texts[0].get_text()}, of {', '.join(probe.arms)}",
            caption=f"{probe.name}: the numbers are medians over the seeds when it last looked.",
            table=PageTable(stem, "when it last looked", last_numbers(probe)),
            wide=True,
        )
        for stem, figure, probe in probe_figures(found.summary, found.records)
    ]
    if pictures:
        words = (
            "What was measured of the loss and of the net while it trained, over all seeds. Nothing is declared "
            "here: ratios are Hodges–Lehmann estimates over paired seeds, their 95 % intervals pointwise."
        )
        yield Section("probes", "Why: what the probes found", [words], pictures, ratio_tables(found))


def ratio_tables(found: ReportData) -> list[PageTable]:
    """Return the probe ratios of the arms against the one without normalization, if there is one."""
    frame = probe_ratios(found.summary, found.records)
    columns: dict[str, Any] = {
        "arm": "arm",
        "of": lambda row: row["quantity"].removeprefix("probe/"),
        "seeds": "seeds",
        "ratio": lambda row: "one is untrained" if row["untrained"] else with_interval(row, "ratio"),
        "smaller": lambda row: percent(row["smaller"]),
    }
    return (
        [PageTable("probe_ratios", "arms against nobn", frame, display_table(frame, columns))]
        if len(frame)
        else []
    )


def runs(found: ReportData) -> Section:
    """Return every run, with the command that trains it again."""
    table = run_table(found.summary, found.records, None)
    again = commands(found.records).loc[found.summary.listed.index]
    frame = table.assign(command=again.to_list())
    few = ["name", "status", "seed", f"best/{found.summary.metric}", "epochs", "seconds", "error", "command"]
    first: pd.DataFrame = frame[few].head(SHOWN)
    more = [f"The first {SHOWN} of {len(frame)} runs; runs.csv has all."] if len(frame) > SHOWN else []
    return Section(
        "runs", "Every run", more, (), [PageTable("runs", "every run, and how to get it again", frame, first)]
    )
