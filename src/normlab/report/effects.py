"""The effects at the head of the report page, and the values of both arms; the entry is :func:`effect_table`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from normlab.report.answer import is_equivalent, tested_rows
from normlab.report.console import num, with_interval
from normlab.report.report_data import COMPARISON_COLUMNS, ReportData, TableRow, table_rows
from normlab.report.sweep_summary import counted_value
from normlab.results.result import Result, worst_value
from normlab.stats.design import Metric
from normlab.stats.estimates import Resampler, iqm_estimate
from normlab.stats.sentences import margin_text

EFFECT_COLUMNS = [
    *COMPARISON_COLUMNS.values(),
    "equivalent",
    "margin",
    "value",
    "value_low",
    "value_high",
    "baseline_value",
    "best_epoch",
    "baseline_best_epoch",
]
"""The columns of :func:`effect_table`."""


def effect_table(data: ReportData) -> pd.DataFrame:
    """Return a row per metric, panel and comparison: the effect, and the values of both arms.

    Columns: ``EFFECT_COLUMNS``, the first ones as in :meth:`normlab.api.Sweep.compare`; ``equivalent``, whether
    the arms are equivalent within the ``margin``, a text; ``value`` with its interval and ``baseline_value``, the
    IQMs of the metric at the end of training; ``best_epoch`` and ``baseline_best_epoch``, those of the same metric
    at the best validation epoch. A sweep that compares nothing has a row per metric, panel and arm, without
    an effect.
    """
    arms, best = data.analysis.arms, best_epoch_values(data)
    values = {(row["panel"], row["arm"]): row for row in table_rows(arms)}
    compared = tested_rows(data)
    rows: list[dict[str, Any]] = []
    for row in compared or list(uncompared_rows(data)):
        place, base = (row["panel"], row["arm"]), (row["panel"], row["baseline"])
        own, other, metric = values.get(place, {}), values.get(base, {}), row["metric"]
        is_primary = metric == data.analysis.design.primary.name
        low, high = (own.get(f"iqm_{end}", np.nan) if is_primary else np.nan for end in ("low", "high"))
        rows.append(
            {name: row[source] for source, name in COMPARISON_COLUMNS.items()}
            | {
                "equivalent": bool(row["baseline"]) and is_equivalent(row),
                "margin": margin_text(row) if row["baseline"] and pd.notna(row["equivalence_p_adjusted"]) else "",
                "value": own.get(metric, np.nan),
                "value_low": low,
                "value_high": high,
                "baseline_value": other.get(metric, np.nan),
                "best_epoch": best.get((*place, metric), np.nan),
                "baseline_best_epoch": best.get((*base, metric), np.nan),
            }
        )
    return pd.DataFrame(rows, columns=EFFECT_COLUMNS)


def uncompared_rows(data: ReportData) -> Iterator[dict[str, Any]]:
    """Yield a row per metric, panel and arm with runs, without an effect."""
    empty = {"effect": "", "verdict": "", "baseline": ""}
    numbers = dict.fromkeys(["estimate", "estimate_low", "estimate_high", "p_adjusted"], np.nan)
    for metric in data.analysis.design.metrics:
        for row in table_rows(data.analysis.arms):
            if row["seeds"]:
                shown = {"panel": row["panel"], "arm": row["arm"], "replicates": row["seeds"]}
                yield {**empty, **numbers, **shown, "metric": metric.name}


def best_epoch_values(data: ReportData) -> dict[tuple[str, str, str], float]:
    """Return the IQM of each metric at the best validation epoch, by panel, arm and metric."""
    grid, found, no_intervals = data.analysis.grid, {}, Resampler(np.random.default_rng(0), 0)
    for metric in data.analysis.design.metrics:
        results = [data.summary.records[number].result for number in data.runs.index]
        table = grid.arrange(np.array([at_best_epoch(result, metric) for result in results], dtype=float))
        for (panel, arm), tuned in data.analysis.tuning.items():
            picked = tuned.pick(table, grid.uses[panel])
            value = iqm_estimate(picked[~np.isnan(picked)], no_intervals).value
            found[grid.panel_name(panel), arm, metric.name] = value
    return found


def at_best_epoch(result: Result, metric: Metric) -> float:
    """Return a metric of a run at its best validation epoch; infinite for a diverged run, NaN if unknown."""
    known = {**(result.best.metrics if result.best else {}), **result.test}
    return counted_value(result, known.get(metric.name), worst_value(metric.direction))


def value_pair(row: TableRow, name: str) -> str:
    """Format the values of an arm and its baseline, ``0.21 vs. 0.25``; of the arm alone without a baseline."""
    if not row["baseline"]:
        return with_interval(row, name) if f"{name}_low" in row else num(row[name])
    return f"{num(row[name])} vs. {num(row[f'baseline_{name}'])}"
