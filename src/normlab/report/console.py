"""Tables of a sweep: ``summary.csv``, ``table.csv``, and the printed table with its footnotes."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from normlab.report.factors import implicit_note, short_names
from normlab.report.probe_data import probe_table
from normlab.report.sweep_summary import SweepSummary
from normlab.results.result import Result
from normlab.results.sweep import Record
from normlab.stats.comparison import POINTS, RATIO
from normlab.stats.design import ABSENT, ENDS, PLAIN

MINUS = "\N{MINUS SIGN}"
PRINTED_RATIOS, MIN_SEEDS = 24, 8
"""The maximum number of printed ratios, and the minimum number of seeds of each; the report has all of them."""
TABLE_LETTERS = 100
"""The maximum width of a printed table, unless a single column is wider."""
MEAN_NOTE = "train_eval, val, test: means over the last tenth of the epochs"
TRAIN_EVAL_NOTE = (
    "train_eval: measured on the whole training split in evaluation mode, with statistics re-estimated on it"
)


def table_title(sweep: SweepSummary) -> str:
    """Return the title of the printed table, with the metric and its direction."""
    better = "lower" if sweep.direction == "min" else "higher"
    return f"{sweep.metric.partition('/')[2]} at the end of training ({better} is better)"


def footnotes(sweep: SweepSummary) -> list[str]:
    """Return the lines printed below the table."""
    return [*seed_notes(sweep), *column_notes(sweep), *lost_runs(sweep), *difference_warnings(sweep)]


def difference_warnings(sweep: SweepSummary) -> list[str]:
    """Return warnings about keys that differ without an override, and about repeated runs."""
    lines, count = implicit_note(sweep.implicit), sweep.repeated
    if count == 1:
        lines.append("1 run repeats the configuration and seed of another; each pair counts once")
    elif count:
        lines.append(f"{count} runs repeat the configuration and seed of another; each pair counts once")
    return lines


def seed_notes(sweep: SweepSummary) -> list[str]:
    """Return notes on the number of seeds that the means are taken over."""
    counts = sorted(set(sweep.configurations["seeds"]) - {0})
    if not counts:
        trained = (sweep.runs["epochs"] > 0).any() or not sweep.configurations["finished"].any()
        return ["no run finished"] if trained else ["nothing was trained"]
    if counts == [1]:
        note = "one seed per configuration: no standard error, and one seed supports no claim"
        return [note, MEAN_NOTE, TRAIN_EVAL_NOTE]
    over = f"{counts[0]} seeds" if len(counts) == 1 else "the seeds of each configuration"
    single = "a configuration with one seed has no standard error, and one seed supports no claim"
    return [f"{MEAN_NOTE} ± standard error over {over}", TRAIN_EVAL_NOTE, *[single] * (counts[0] == 1)]


def column_notes(sweep: SweepSummary) -> list[str]:
    """Return the note on the column ``epochs``, if it has values."""
    lines = []
    if sweep.configurations["timed"].any():
        side, targets = "at most" if sweep.direction == "min" else "at least", sweep.configurations["target"]
        one = targets.nunique(dropna=False) == 1
        value = f"is {side} the target, {format_number(targets.iloc[0])}" if one else "reaches its target"
        several = (
            "; median over seeds (seeds that reach it / all seeds)"
            if sweep.configurations["seeds"].max() > 1
            else ""
        )
        lines.append(f"epochs: until {sweep.metric} {value}{several}")
    return lines


def lost_runs(sweep: SweepSummary) -> list[str]:
    """Return notes on runs that did not finish, stayed untrained, or lack the metric."""
    configurations, runs, lines = sweep.configurations, sweep.runs, []
    if configurations["diverged"].any():
        infinity = "inf" if sweep.direction == "min" else "-inf"
        lines.append(
            f"a diverged run counts as {infinity}, the worst value, and so does the mean of its configuration"
        )
    excluded = [name for name in ("stopped", "failed", "pruned") if configurations[name].any()]
    if excluded:
        lines.append(f"{' and '.join(excluded)} runs are excluded from all means; summary.csv lists them")
    if configurations["untrained"].any():
        lines.append("untrained: finished with a training loss above 90 % of that of the best constant predictor")
    missing = int((runs["val"].isna() & (runs["status"] == "finished") & (runs["epochs"] > 0)).sum())
    if missing:
        lines.append(f"finished runs without {sweep.metric}, excluded from all means: {missing}")
    return lines


def run_table(sweep: SweepSummary, records: Sequence[Record], folder: Path | None) -> pd.DataFrame:
    """Return the table of ``summary.csv``, a row per run, including repeated runs.

    Paths of run folders are relative to ``folder``, if it is given.
    """
    runs = sweep.listed
    ordered = [records[number] for number in runs.index]
    results = [record.result for record in ordered]
    lasts = [result.last.metrics if result.last else {} for result in results]
    ends = pd.DataFrame(
        [{f"last/{name}": value for name, value in last.items() if is_metric(name)} for last in lasts]
    )
    tests = pd.DataFrame([result.test for result in results])
    finals = pd.DataFrame([{f"final/{name}": value for name, value in result.final.items()} for result in results])
    best, last = (with_partial_values(sweep, results, name) for name in ("best", "last"))
    columns: dict[str, Any] = {
        "name": [result.name for result in results],
        **{key: runs[key].replace(ABSENT, None).tolist() for key in [*sweep.keys, *sweep.named]},
        "status": runs["status"].tolist(),
        "seed": runs["seed"].array,
        f"best/{sweep.metric}": best.tolist(),
        "best_epoch": pd.array([result.best.epoch if result.best else None for result in results], dtype="Int64"),
        **{str(name): ends[name].tolist() for name in ends},
        f"last/{sweep.metric}": last.tolist(),
        **{str(name): tests[name].tolist() for name in tests},
        **{str(name): finals[name].tolist() for name in finals},
        "epochs": runs["epochs"].tolist(),
        "steps": [result.steps for result in results],
        "seconds": runs["seconds"].tolist(),
        "error": [result.error for result in results],
        "folder": [
            (record.folder.relative_to(folder) if folder else record.folder).as_posix() for record in ordered
        ],
    }
    return pd.DataFrame(columns)


def with_partial_values(sweep: SweepSummary, results: Sequence[Result], moment: str) -> pd.Series:
    """Return the best or last value of each run; for stopped and failed runs, the value up to then."""
    moments = [None if result.status.done else getattr(result, moment) for result in results]
    so_far = [at.metrics.get(sweep.metric) if at else None for at in moments]
    return sweep.listed[moment].fillna(pd.Series(so_far, index=sweep.listed.index, dtype=float))


def is_metric(name: str) -> bool:
    """Return True for losses and metrics, which tables list, and False for other numbers of an epoch."""
    return name.startswith(("train/", "val/")) and name != "train/lr"


def configuration_table(sweep: SweepSummary) -> pd.DataFrame:
    """Return the table of ``table.csv``, a row per configuration; the column of its name is called ``arm``."""
    table = sweep.configurations.assign(metric=sweep.metric, direction=sweep.direction)
    return table.rename_axis("arm").reset_index()


def csv_text(table: pd.DataFrame) -> str:
    """Convert a table to csv; missing values are empty.

    >>> csv_text(pd.DataFrame({"a": [1.5, float("inf"), float("nan")], "b": ["x,y", "z", None]}))
    'a,b\\n1.5,"x,y"\\ninf,z\\n,\\n'
    """
    return table.to_csv(index=False, lineterminator="\n")


def table_lines(sweep: SweepSummary) -> list[str]:
    """Return the lines of the printed table, a row per configuration."""
    short = zip(short_names(sweep.keys), sweep.keys, strict=True)
    left = {name: sweep.configurations[key].tolist() for name, key in short} or {
        "configuration": sweep.configurations.index.tolist()
    }
    rows = sweep.configurations.to_dict("records")
    stopped = {"stopped": [str(row["stopped"]) for row in rows]} if sweep.configurations["stopped"].any() else {}
    pruned = {"pruned": [str(row["pruned"]) for row in rows]} if sweep.configurations["pruned"].any() else {}
    some = sweep.configurations["untrained"].any()
    untrained = {"untrained": [str(row["untrained"]) for row in rows]} if some else {}
    right = {
        "runs": [str(row["runs"]) for row in rows],
        "diverged": [str(row["diverged"]) for row in rows],
        **stopped,
        "failed": [str(row["failed"]) for row in rows],
        **pruned,
        **untrained,
        **{end: [format_mean(row[f"{end}_mean"], row[f"{end}_se"]) for row in rows] for end in ENDS},
        "epochs": [format_epochs(row["epochs_to_target"], row["reached"], row["timed"]) for row in rows],
    }
    return aligned(left, right)


def aligned(left: dict[str, list[str]], right: dict[str, list[str]]) -> list[str]:
    """Format columns of text as lines, those of ``left`` flush left and those of ``right`` flush right.

    >>> aligned({"model": ["bn", "nobn"]}, {"runs": ["10", "8"]})
    ['model  runs', 'bn       10', 'nobn      8']
    """
    columns = []
    for cells, flush in ((left, str.ljust), (right, str.rjust)):
        for name, values in cells.items():
            width = max(map(display_width, [name, *values]))
            columns.append([flush(text, width - display_width(text) + len(text)) for text in [name, *values]])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def display_width(text: str) -> int:
    """Return the number of terminal columns of a text: CJK characters take two, combining accents none.

    >>> display_width("bn"), display_width("批归一"), display_width("e\u0301")
    (2, 6, 1)
    """
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def format_number(value: float, digits: int = 4) -> str:
    """Format a number with ``digits`` significant digits, or a dash for NaN.

    >>> [format_number(x) for x in (0.123456, 591.1077, 9999.7, 3.2e-07, float("inf"), float("nan"))]
    ['0.1235', '591.1', '10000', '3.2e-07', 'inf', '-']
    """
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if 10**digits - 0.5 <= abs(value) < 1e7 else f"{value:.{digits}g}"


def num(value: float, digits: int = 3) -> str:
    """Format a number with a minus sign, ∞ for infinity and a dash for NaN.

    >>> num(-0.01234), num(float("inf")), num(float("nan"))
    ('−0.0123', '∞', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return f"{MINUS if value < 0 else ''}∞"
    return format_number(value, digits).replace("-", MINUS)


def with_interval(row: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """Format an estimate with its interval, from the columns ``name``, ``name_low`` and ``name_high``.

    >>> with_interval({"ratio": 0.5, "ratio_low": 0.4, "ratio_high": float("inf")}, "ratio")
    '0.5 (0.4 to ∞)'
    """
    value, low, high = (row[name], row[f"{name}_low"], row[f"{name}_high"])
    if value is None or math.isnan(value):
        return "–"
    if math.isnan(low) or math.isnan(high):
        return num(value, digits)
    return f"{num(value, digits)} ({num(low, digits)} to {num(high, digits)})"


def effect_text(row: Mapping[str, Any]) -> str:
    """Format an effect with its interval: a ratio as ``× 0.95``, a difference with its unit."""
    if math.isnan(row["estimate"]):
        return "–"
    text = with_interval(row, "estimate")
    return f"× {text}" if row["effect"] == RATIO else f"{text} points" if row["effect"] == POINTS else text


def format_mean(mean: float, error: float) -> str:
    """Format a mean with its standard error to two digits, or the mean alone if the error is NaN.

    >>> [format_mean(173.7543, 4.2371), format_mean(1.5, float("nan")), format_mean(float("inf"), float("nan"))]
    ['173.8 ± 4.2', '1.5', 'inf']
    >>> [format_mean(0.5, 0.0), format_mean(2859.9, 123.4), format_mean(3e9, 1.5e8)]
    ['0.5 ± 0', '2860 ± 123', '3.00e+09 ± 1.5e+08']
    """
    if not error > 0:
        return format_number(mean) if math.isnan(error) else f"{format_number(mean)} ± 0"
    places = 1 - math.floor(math.log10(error))
    if abs(mean) >= 1e7 or places > 6:
        digits = max(0, min(6, places + math.floor(math.log10(abs(mean) or error))))
        return f"{mean:.{digits}e} ± {error:.1e}"
    return f"{mean:.{max(places, 0)}f} ± {error:.{max(places, 0)}f}"


def format_epochs(epochs: float, reached: int, timed: int) -> str:
    """Format the median epochs to the target with the number of seeds that reach it.

    >>> format_epochs(57.0, 8, 8), format_epochs(float("inf"), 3, 8), format_epochs(float("nan"), 0, 0)
    ('57 (8/8)', 'inf (3/8)', '-')
    """
    return f"{epochs:g} ({reached}/{timed})" if timed else "-"


def ratio_lines(table: pd.DataFrame) -> list[str]:
    """Return the printed table of ratios over at least ``MIN_SEEDS`` seeds; empty if there are none."""
    known = table[(table["seeds"] >= MIN_SEEDS) & table["ratio"].notna()]
    rows = known.head(PRINTED_RATIOS).to_dict("records")
    if not rows:
        return []
    left = {
        "configuration": [str(row["arm"]) for row in rows],
        "quantity": [str(row["quantity"]).removeprefix("probe/") for row in rows],
    }
    right = {
        f"ratio to {PLAIN} (95 % interval)": [
            "one is untrained" if row["untrained"] else with_interval(row, "ratio")  # type: ignore[arg-type]
            for row in rows
        ],
        f"seeds below {PLAIN}": [f"{round(row['smaller'] * row['seeds'])}/{row['seeds']}" for row in rows],
    }
    return [
        *aligned(left, right),
        "",
        "ratio: Hodges–Lehmann estimate over paired seeds",
    ]


def printed_probes(sweep: SweepSummary) -> list[str]:
    """Return the lines of one printed table per probe; a table wider than ``TABLE_LETTERS`` is split."""
    table = probe_table(sweep)
    left = {
        name: sweep.configurations[key].tolist()
        for name, key in zip(short_names(sweep.keys), sweep.keys, strict=True)
    }
    left = left or {"configuration": sweep.configurations.index.tolist()}
    several = (sweep.runs.groupby("configuration")["seed"].nunique() > 1).any()
    over = ", median over finished runs" if several else ""
    tables: dict[str, dict[str, list[str]]] = {}
    for column in table:
        _, probe, mode, quantity = str(column).split("/", 3)
        tables.setdefault(probe, {})[f"{quantity} ({mode})"] = [format_number(value) for value in table[column]]
    lines: list[str] = []
    for probe, cells in tables.items():
        lines += [*([""] if lines else []), f"{probe}: last measurement{over}"]
        for part in split_columns(left, cells):
            lines += aligned(left, part)
    return lines


def split_columns(left: dict[str, list[str]], right: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    """Split the columns of ``right`` into parts that fit beside ``left`` within ``TABLE_LETTERS``."""
    parts: list[dict[str, list[str]]] = [{}]
    for name, cells in right.items():
        if parts[-1] and max(map(len, aligned(left, {**parts[-1], name: cells}))) > TABLE_LETTERS:
            parts.append({})
        parts[-1][name] = cells
    return parts
