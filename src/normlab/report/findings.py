"""Sentences of the terminal and the page on comparisons, interactions and times; see :func:`shared_conditions`."""

import numpy as np

from normlab.report.console import num
from normlab.report.report_data import ReportData, TableRow, table_rows
from normlab.report.weight_decay import weight_decay_texts
from normlab.stats.comparison import ALPHA, BETTER, WORSE
from normlab.stats.multiple_comparisons import PART_OF_POOLED
from normlab.stats.sentences import clauses, interaction_sentence, sentence, time_sentence

MAX_SENTENCES = 6
"""With more comparisons than this, only those that declare a difference get a sentence."""
MAX_TARGETS = 6
"""The largest number of panels whose target is named."""


def shown_comparisons(data: ReportData) -> tuple[list[TableRow], list[str]]:
    """Return the comparisons that get a sentence, and a sentence about the others or the lack of any."""
    rows = [row for row in table_rows(data.analysis.comparisons) if row["verdict"] != PART_OF_POOLED]
    if data.runs["validation"].isna().all():
        return [], [f"No run has a final {data.analysis.design.choice.name}: there is nothing to compare."]
    if not rows:
        return [], ["Only one arm: there is nothing to compare." if len(data.runs) else "There are no runs."]
    declared = [row for row in rows if row["verdict"] in (BETTER, WORSE)]
    shown = rows if len(rows) <= MAX_SENTENCES else declared
    others = len(rows) - len(shown)
    note = f"{others} other comparisons declare no difference; the report lists all comparisons"
    return shown, [note] if others else []


def comparison_sentences(data: ReportData) -> list[str]:
    """Return a sentence for each comparison, or one sentence with the reason if there is no comparison."""
    rows, notes = shown_comparisons(data)
    return [*(sentence(row, data.analysis.grid, data.analysis.tuning) for row in rows), *notes]


def shared_conditions(data: ReportData) -> tuple[list[str], str]:
    """Return the sentences of the comparisons without the clauses that all of them have, and these clauses."""
    rows, notes = shown_comparisons(data)
    parts = [clauses(row, data.analysis.grid, data.analysis.tuning) for row in rows]
    shared = [clause for clause in parts[0][1:] if all(clause in each for each in parts)] if len(parts) > 1 else []
    lines = ["; ".join(clause for clause in each if clause not in shared) for each in parts]
    results = [data.summary.records[number].result for number in data.summary.runs.index]
    decay = weight_decay_texts(results) if rows else []
    return [*lines, *notes], "; ".join([*shared, *(decay if len(decay) == 1 else [])])


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
