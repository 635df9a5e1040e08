"""Sentences of the terminal and the page on comparisons, interactions and times; see :func:`shared_conditions`."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from normlab.report.console import num
from normlab.report.report_data import ReportData, TableRow, table_rows
from normlab.report.weight_decay import weight_decay_texts
from normlab.stats.comparison import ALPHA, BETTER, WORSE
from normlab.stats.multiple_comparisons import PART_OF_POOLED
from normlab.stats.sentences import clauses, interaction_sentence, time_sentence, with_noun

MAX_SENTENCES = 6
"""With more comparisons than this, only those that declare a difference get a sentence."""
MAX_TARGETS = 6
"""The largest number of panels whose target is named."""


def shown_comparisons(data: ReportData) -> tuple[list[TableRow], list[str]]:
    """Return the comparisons that get a sentence, and a sentence about the others or the lack of any."""
    rows = [row for row in table_rows(data.analysis.comparisons) if row["verdict"] != PART_OF_POOLED]
    if data.runs["validation"].isna().all():
        return [], [f"no run has a final {data.analysis.design.choice.name}: there is nothing to compare"]
    if not rows:
        return [], ["only one arm: there is nothing to compare" if len(data.runs) else "there are no runs"]
    if len(rows) <= MAX_SENTENCES:
        return rows, lone_notes(data)
    shown = [row for row in rows if row["verdict"] in (BETTER, WORSE)]
    others = [row for row in rows if row["verdict"] not in (BETTER, WORSE)]
    return shown, [*verdict_counts(others, "other comparison" if shown else "comparison"), *lone_notes(data)]


def verdict_counts(rows: Sequence[TableRow], noun: str) -> list[str]:
    """Return a sentence with the number of comparisons by verdict; nothing if there are none."""
    counts = Counter(str(row["verdict"]).partition(":")[0] for row in rows)
    parts = [f"{verdict} in {count if len(counts) > 1 else 'all'}" for verdict, count in counts.most_common()]
    return [f"{with_noun(len(rows), noun)}: {', '.join(parts)}; the report lists them"] if rows else []


def lone_notes(data: ReportData) -> list[str]:
    """Return sentences about the panels with a single arm, or their number if there are many."""
    lone = lone_arms(data)
    if len(lone) > MAX_SENTENCES:
        return [f"{len(lone)} panels have a single arm: there is nothing to compare"]
    return [f"{arm} is the only arm at {panel}: there is nothing to compare" for panel, arm in lone]


def lone_arms(data: ReportData) -> list[tuple[str, str]]:
    """Return the panels without a comparison, each with its arm."""
    compared = {row["panel"] for row in table_rows(data.analysis.comparisons)}
    return [(row["panel"], row["arm"]) for row in table_rows(data.analysis.arms) if row["panel"] not in compared]


def shared_conditions(data: ReportData) -> tuple[list[str], str]:
    """Return the sentences of the comparisons without the clauses that all of them have, and these clauses."""
    rows, notes = shown_comparisons(data)
    parts = [clauses(row, data.analysis.grid, data.analysis.tuning) for row in rows]
    several = [each for each in parts if len(each) > 1]  # a comparison that is not comparable has one clause
    first = several[0][1:] if len(several) > 1 else []
    shared = [clause for clause in first if all(clause in each for each in several)]
    lines = ["; ".join(clause for clause in each if clause not in shared) for each in parts]
    results = [data.summary.records[number].result for number in data.summary.runs.index]
    decay = weight_decay_texts(results) if rows else []
    return [*dict.fromkeys(lines), *notes], "; ".join([*shared, *(decay if len(decay) == 1 else [])])


def time_and_interaction_sentences(data: ReportData) -> list[str]:
    """Return sentences on the time to target and on effects that differ significantly between panels."""
    times = [time_sentence(row) for row in table_rows(data.analysis.time_ratios)]
    changes = [row for row in table_rows(data.analysis.interactions) if row["p_adjusted"] <= ALPHA]
    return [*filter(None, times), *(interaction_sentence(row) for row in changes)]


def target_sentences(data: ReportData) -> list[str]:
    """Return a sentence with the target of each panel; empty if nothing is compared or no target is known."""
    choice, rows = data.analysis.design.choice, table_rows(data.analysis.targets)
    side = "at most" if choice.direction == "min" else "at least"
    known = [row for row in rows if np.isfinite(row["target"])][:MAX_TARGETS]
    values = [f"{side} {num(row['target'])}" + f" at {row['panel']}" * bool(row["panel"]) for row in known]
    is_compared = len(data.analysis.comparisons) and len(data.curves) and data.runs["validation"].notna().any()
    return [f"Target for the time to target: {choice.name} {', '.join(values)}."] if values and is_compared else []
