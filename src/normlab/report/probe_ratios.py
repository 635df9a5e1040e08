"""What the probes found in each arm against the one without normalization, seed by seed; nothing is declared."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from normlab.report.console import aligned
from normlab.report.formatting import with_interval
from normlab.report.panels import MODEL
from normlab.report.probe_tables import run_columns
from normlab.report.sweep_summary import SweepSummary
from normlab.results.sweep import Record
from normlab.stats.comparison import RATIO, named, shown_estimate
from normlab.stats.design import PLAIN
from normlab.stats.estimates import UNKNOWN, Estimate
from normlab.stats.outcomes import log_ratios
from normlab.stats.pseudomedian import pseudomedian

MOST, ENOUGH = 24, 8
"""The lines that are printed, and the seeds that a line needs; the report has all."""
COLUMNS = ["arm", "baseline", "quantity", "untrained", "seeds", "ratio", "ratio_low", "ratio_high", "smaller"]


def probe_ratios(sweep: SweepSummary, records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per arm and number: its ratio to that of the arm that differs in the model alone.

    The ratio is the Hodges–Lehmann estimate over paired seeds, with the interval of the signed-rank test;
    ``smaller`` is the share of the seeds in which the arm's number is smaller. Flags are left out. Empty without
    an arm of ``nobn``.
    """
    found = run_columns(records).reindex(sweep.runs.index)
    rows = []
    for arm, baseline in pairs(sweep):
        untrained = bool(sweep.arms.loc[[arm, baseline], "mostly_untrained"].any())
        for quantity in found:
            both = paired(sweep, found[quantity], arm, baseline)
            if len(both) and not both.isin([0.0, 1.0]).all(axis=None):
                ours, theirs = both[arm].to_numpy(), both[baseline].to_numpy()
                about = {"arm": arm, "baseline": baseline, "quantity": quantity, "untrained": untrained}
                estimate = named("ratio", ratio(ours, theirs))
                rows.append({**about, "seeds": len(both), **estimate, "smaller": float((ours < theirs).mean())})
    return pd.DataFrame(rows, columns=COLUMNS)


def ratio(arm: np.ndarray, baseline: np.ndarray) -> Estimate:
    """Return the ratio of paired numbers with its 95 % interval; NaN unless all are positive."""
    if (arm <= 0).any() or (baseline <= 0).any():
        return UNKNOWN
    return shown_estimate(RATIO, pseudomedian(log_ratios(arm, baseline)))


def paired(sweep: SweepSummary, values: pd.Series, arm: str, baseline: str) -> pd.DataFrame:
    """Return the finite values of two arms, ``(seeds x 2)``."""
    runs = sweep.runs.assign(value=values.where(np.isfinite(values)))
    known = runs[runs["arm"].isin([arm, baseline])].dropna(subset=["value", "seed"])
    wide = known.drop_duplicates(["arm", "seed"]).pivot(index="seed", columns="arm", values="value")
    return wide.reindex(columns=[arm, baseline]).dropna()


def pairs(sweep: SweepSummary) -> Iterator[tuple[str, str]]:
    """Yield each arm with a normalizer, and the one that differs from it in having none."""
    if MODEL not in sweep.keys:
        return
    settings = {str(arm): dict(row) for arm, row in sweep.arms[sweep.keys].to_dict("index").items()}
    names = {tuple(own.items()): arm for arm, own in settings.items()}
    for arm, own in settings.items():
        other = names.get(tuple({**own, MODEL: PLAIN}.items()))
        if other is not None and other != arm:
            yield arm, other


def ratio_lines(table: pd.DataFrame) -> list[str]:
    """Return the lines of the table that is printed, where there are as many seeds as a claim needs."""
    rows = table[(table["seeds"] >= ENOUGH) & table["ratio"].notna()].head(MOST).to_dict("records")
    if not rows:
        return []
    left = {
        f"against {PLAIN}": [str(row["arm"]) for row in rows],
        "of": [str(row["quantity"]).removeprefix("probe/") for row in rows],
    }
    right = {
        "ratio (95 % interval)": [
            "one is untrained" if row["untrained"] else with_interval(row, "ratio")  # type: ignore[arg-type]
            for row in rows
        ],
        "smaller": [f"{round(row['smaller'] * row['seeds'])}/{row['seeds']}" for row in rows],
    }
    return [
        *aligned(left, right),
        "",
        "ratio: median over the seeds, paired (Hodges–Lehmann); smaller: in how many of them",
    ]
