"""The tables of what the probes of a sweep found last, of the numbers that a table has room for."""

from collections.abc import Sequence

import pandas as pd

from normlab.report.console import aligned, format_number, short_names
from normlab.report.sweep_summary import SweepSummary
from normlab.results.sweep import Record

WIDTH = 100
"""How many letters a line that is printed has, at most, where one column is not wider."""


def run_columns(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per record and a column ``probe/<probe>/<mode>/<quantity>`` per number, NaN where missing."""
    return pd.DataFrame([record.result.probes for record in records], index=range(len(records)), dtype=float)


def probe_table(sweep: SweepSummary, records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per arm: the median of each number over the seeds whose runs finished, NaN left out."""
    finished = sweep.runs[sweep.runs["status"] == "finished"].drop_duplicates(["arm", "seed"])
    found = run_columns(records).loc[finished.index]
    return found.groupby(finished["arm"]).median().reindex(sweep.arms.index)


def printed_probes(sweep: SweepSummary, records: Sequence[Record]) -> list[str]:
    """Return the lines of a table for each probe, below each other; a wide one is broken."""
    table = probe_table(sweep, records)
    left = {name: sweep.arms[key].tolist() for name, key in zip(short_names(sweep.keys), sweep.keys, strict=True)}
    left = left or {"arm": sweep.arms.index.tolist()}
    several = (sweep.runs.groupby("arm")["seed"].nunique() > 1).any()
    over = ", median over the finished seeds" if several else ""
    blocks: dict[str, dict[str, list[str]]] = {}
    for column in table:
        _, probe, mode, quantity = str(column).split("/", 3)
        blocks.setdefault(probe, {})[f"{quantity} ({mode})"] = [format_number(value) for value in table[column]]
    lines: list[str] = []
    for probe, cells in blocks.items():
        lines += [*([""] if lines else []), f"{probe}: when it last looked{over}"]
        for part in broken(left, cells):
            lines += aligned(left, part)
    return lines


def broken(left: dict[str, list[str]], right: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    """Return the columns of ``right`` in parts, each of which fits beside ``left``."""
    parts: list[dict[str, list[str]]] = [{}]
    for name, cells in right.items():
        if parts[-1] and max(map(len, aligned(left, {**parts[-1], name: cells}))) > WIDTH:
            parts.append({})
        parts[-1][name] = cells
    return parts
