"""Every arm against the one without normalization, seed by seed: ``compared.csv`` and what is printed of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from normlab.analysis.arms import replicates
from normlab.analysis.paired import ENOUGH, compare
from normlab.records.result import Result
from normlab.records.sweep import Record
from normlab.report.overview import Overview
from normlab.report.tables import aligned, number

BASELINE = "nobn"
MOST = 24
"""Lines that are printed; compared.csv has all."""
COLUMNS = ["arm", "baseline", "quantity", "untrained", "seeds", "ratio", "low", "high", "smaller", "p"]


def comparisons(sweep: Overview, records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per arm and quantity: its values against those of the arm that differs in the model alone.

    Quantities are the optimized metric at its last value and what the probes found last, unless it is but a flag.
    Empty without a baseline.
    """
    generator, rows = np.random.default_rng(0), []
    for arm, baseline in pairs(sweep):
        for quantity, values in quantities(sweep, [record.result for record in records]).items():
            ours, theirs = (values[values["arm"] == name].set_index("seed")["value"] for name in (arm, baseline))
            both = ours.index.intersection(theirs.index)
            if len(both):
                found = compare(ours[both], theirs[both], generator)
                untrained = bool(sweep.arms.loc[[arm, baseline], "untrained"].any())
                row = {"arm": arm, "baseline": baseline, "quantity": quantity, "untrained": untrained}
                rows.append({**row, **asdict(found)})
    return pd.DataFrame(rows, columns=COLUMNS)


def pairs(sweep: Overview) -> Iterator[tuple[str, str]]:
    """Yield each arm with a normalizer, and the one that differs from it in having none."""
    if "model" not in sweep.keys:
        return
    settings = {str(arm): dict(row) for arm, row in sweep.arms[sweep.keys].to_dict("index").items()}
    for arm, own in settings.items():
        for other, theirs in settings.items():
            if arm != other and theirs == {**own, "model": BASELINE}:
                yield arm, other


def quantities(sweep: Overview, results: Sequence[Result]) -> dict[str, pd.DataFrame]:
    """Return what is compared by name: a frame of ``arm``, ``seed`` and ``value``."""
    runs = replicates(sweep.runs.assign(best=sweep.runs["best"].where(sweep.runs["last"].notna())))
    found = {f"last {sweep.metric}": runs.assign(value=runs["last"])[["arm", "seed", "value"]]}
    probed = pd.DataFrame([result.probes for result in results]).reindex(sweep.runs.index)
    for name in probed:
        frame = sweep.runs.assign(value=probed[name])[["arm", "seed", "value"]]
        found[str(name)] = frame.dropna().drop_duplicates(["arm", "seed"])
    return {name: frame for name, frame in found.items() if not frame["value"].isin([0.0, 1.0]).all()}


def printed(table: pd.DataFrame) -> list[str]:
    """Return the lines of the table that is printed, where a verdict is possible, and what its columns are."""
    if table.empty or table["seeds"].max() < ENOUGH:
        return []
    rows: list[dict[str, Any]] = table.head(MOST).to_dict("records")  # type: ignore[assignment]
    of = [row["quantity"].removeprefix("probe/") for row in rows]
    left = {"against nobn": [row["arm"] for row in rows], "of": of}
    right = {
        "ratio": [number(row["ratio"], 3) for row in rows],
        "95 % interval": [interval(row) for row in rows],
        "smaller": [f"{row['smaller']}/{row['seeds']}" for row in rows],
        "verdict": [verdict(row) for row in rows],
    }
    more = [f"and {len(table) - MOST} more in compared.csv"] if len(table) > MOST else []
    return [
        *aligned(left, right),
        *more,
        "",
        "ratio: interquartile mean over the seeds, paired; smaller: in how many of them",
        "verdict: by the sign-flip test of the differences, p at most 0.05; each comparison for itself",
    ]


def interval(row: Mapping[str, Any]) -> str:
    """Return the interval of a ratio, if there is one."""
    if np.isnan(row["low"]):
        return "-"
    return f"{number(row['low'], 3)} to {number(row['high'], 3)}"


def verdict(row: Mapping[str, Any]) -> str:
    """Return what a comparison shows, if anything: by the test alone, never by the interval.

    What probes found has no verdict where one of the two learned nothing: it is not the same thing that is probed.

    >>> row = {"quantity": "last val/loss", "untrained": False, "seeds": 24, "p": 0.004, "smaller": 5}
    >>> verdict(row), verdict({**row, "seeds": 4})
    ('larger, p = 0.004', 'too few seeds')
    >>> verdict({**row, "quantity": "probe/curvature/batch/lambda_max", "untrained": True})
    'one is untrained'
    """
    if row["untrained"] and row["quantity"].startswith("probe/"):
        return "one is untrained"
    if row["seeds"] < ENOUGH:
        return "too few seeds"
    if row["p"] > 0.05:
        return f"no difference shown, p = {row['p']:.2g}"
    return f"{'smaller' if row['smaller'] > row['seeds'] / 2 else 'larger'}, p = {row['p']:.2g}"
