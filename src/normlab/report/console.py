"""Tables of a sweep: ``summary.csv``, ``table.csv``, and the printed one with its footnotes."""

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from normlab.report.factors import short_names, untyped_note
from normlab.report.sweep_summary import SweepSummary
from normlab.results.result import Result
from normlab.results.sweep import Record
from normlab.stats.configurations import ABSENT, ENDS

END = "train_eval, val, test: means over the last tenth of the epochs"
TRAIN_EVAL = "train_eval: of the whole training split in evaluation mode, with statistics re-estimated on it"


def table_title(sweep: SweepSummary) -> str:
    """Return the title of the table: the metric, and whether low or high is good."""
    better = "lower" if sweep.direction == "min" else "higher"
    return f"{sweep.metric.partition('/')[2]} at the end of the training ({better} is better)"


def footnotes(sweep: SweepSummary) -> list[str]:
    """Return the lines below the table."""
    return [*seed_notes(sweep), *column_notes(sweep), *lost_runs(sweep), *difference_warnings(sweep)]


def difference_warnings(sweep: SweepSummary) -> list[str]:
    """Return the warnings about differences that nobody typed and about runs that repeat another."""
    lines, count = untyped_note(sweep.untyped), sweep.repeated
    if count == 1:
        lines.append("1 run repeats another configuration and seed; it counts once")
    elif count:
        lines.append(f"{count} runs repeat another configuration and seed; each counts once")
    return lines


def seed_notes(sweep: SweepSummary) -> list[str]:
    """Return the note on the number of seeds that means are over."""
    counts = sorted(set(sweep.configurations["seeds"]) - {0})
    if not counts:
        trained = (sweep.runs["epochs"] > 0).any() or not sweep.configurations["finished"].any()
        return ["no run came to its end: there is nothing to compare"] if trained else ["nothing was trained"]
    if counts == [1]:
        return ["one seed per arm: no spread can be given, and one seed supports no claim", END, TRAIN_EVAL]
    over = f"{counts[0]} seeds" if len(counts) == 1 else "the seeds of each arm"
    alone = ["an arm with one seed shows no spread, and one seed supports no claim"] if counts[0] == 1 else []
    return [f"{END} ± standard error over {over}", TRAIN_EVAL, *alone]


def column_notes(sweep: SweepSummary) -> list[str]:
    """Return the meaning of the column of epochs, if there is anything in it."""
    lines = []
    if sweep.configurations["timed"].any():
        side, targets = "at most" if sweep.direction == "min" else "at least", sweep.configurations["target"]
        one = targets.nunique(dropna=False) == 1
        value = f"is {side} {format_number(targets.iloc[0])}, the target" if one else "reaches its target"
        several = (
            "; median over the seeds, and how many got there" if sweep.configurations["seeds"].max() > 1 else ""
        )
        lines.append(f"epochs: until {sweep.metric} {value}{several}")
    return lines


def lost_runs(sweep: SweepSummary) -> list[str]:
    """Return notes on runs that did not finish, did not train, or finished without the metric."""
    arms, runs, lines = sweep.configurations, sweep.runs, []
    if arms["diverged"].any():
        infinity = "inf" if sweep.direction == "min" else "-inf"
        lines.append(f"a diverged run counts as {infinity}, the worst value there is: so does the mean of its arm")
    unended = [name for name in ("stopped", "failed") if arms[name].any()]
    if unended:
        lines.append(f"{' and '.join(unended)} runs are in no mean: summary.csv names them")
    if arms["untrained"].any():
        lines.append(
            "untrained: finished with a training loss that is not 10 % below that of the best constant predictor"
        )
    missing = int((runs["val"].isna() & (runs["status"] == "finished") & (runs["epochs"] > 0)).sum())
    if missing:
        lines.append(f"finished runs without {sweep.metric}, which are in no mean: {missing}")
    return lines


def run_table(sweep: SweepSummary, records: Sequence[Record], folder: Path | None) -> pd.DataFrame:
    """Return ``summary.csv``: a row per run, its folder as it is called from ``folder``, if there is one.

    A run that repeats another has a row too.
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
    best, last = (with_unended(sweep, results, name) for name in ("best", "last"))
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


def with_unended(sweep: SweepSummary, results: Sequence[Result], moment: str) -> pd.Series:
    """Return the best or last values, of a run that did not come to its end those that it had so far."""
    moments = [None if result.status.done else getattr(result, moment) for result in results]
    so_far = [at.metrics.get(sweep.metric) if at else None for at in moments]
    return sweep.listed[moment].fillna(pd.Series(so_far, index=sweep.listed.index, dtype=float))


def is_metric(name: str) -> bool:
    """Return whether a number of an epoch belongs into a table: losses and metrics do."""
    return name.startswith(("train/", "val/")) and name != "train/lr"


def configuration_table(sweep: SweepSummary) -> pd.DataFrame:
    """Return ``table.csv``: a row per arm, with what varies and the numbers that are printed."""
    return (
        sweep.configurations.assign(metric=sweep.metric, direction=sweep.direction)
        .rename_axis("arm")
        .reset_index()
    )


def csv(table: pd.DataFrame) -> str:
    """Return a table as the text of a csv file; what is not known is empty.

    >>> csv(pd.DataFrame({"a": [1.5, float("inf"), float("nan")], "b": ["x,y", "z", None]}))
    'a,b\\n1.5,"x,y"\\ninf,z\\n,\\n'
    """
    return table.to_csv(index=False, lineterminator="\n")


def table_lines(sweep: SweepSummary) -> list[str]:
    """Return the lines of the table that is printed, without its notes."""
    short = zip(short_names(sweep.keys), sweep.keys, strict=True)
    left = {name: sweep.configurations[key].tolist() for name, key in short} or {
        "arm": sweep.configurations.index.tolist()
    }
    rows = sweep.configurations.to_dict("records")
    stopped = {"stopped": [str(row["stopped"]) for row in rows]} if sweep.configurations["stopped"].any() else {}
    some = sweep.configurations["untrained"].any()
    untrained = {"untrained": [str(row["untrained"]) for row in rows]} if some else {}
    right = {
        "runs": [str(row["runs"]) for row in rows],
        "diverged": [str(row["diverged"]) for row in rows],
        **stopped,
        "failed": [str(row["failed"]) for row in rows],
        **untrained,
        **{end: [format_mean(row[f"{end}_mean"], row[f"{end}_se"]) for row in rows] for end in ENDS},
        "epochs": [time(row["epochs_to_target"], row["reached"], row["timed"]) for row in rows],
    }
    return aligned(left, right)


def aligned(left: dict[str, list[str]], right: dict[str, list[str]]) -> list[str]:
    """Return lines of columns, those of ``left`` flush left and those of ``right`` flush right.

    >>> aligned({"arm": ["bn", "nobn"]}, {"runs": ["10", "8"]})
    ['arm   runs', 'bn      10', 'nobn     8']
    """
    columns = []
    for cells, flush in ((left, str.ljust), (right, str.rjust)):
        for name, values in cells.items():
            width = max(map(display_width, [name, *values]))
            columns.append([flush(text, width - display_width(text) + len(text)) for text in [name, *values]])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def display_width(text: str) -> int:
    """Return the number of columns that a text takes in a terminal: Chinese letters take two, accents none.

    >>> display_width("bn"), display_width("批归一"), display_width("e\u0301")
    (2, 6, 1)
    """
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def format_number(value: float, digits: int = 4) -> str:
    """Return a number with so many digits that count, or a dash for one that is not known.

    >>> [format_number(x) for x in (0.123456, 591.1077, 9999.7, 3.2e-07, float("inf"), float("nan"))]
    ['0.1235', '591.1', '10000', '3.2e-07', 'inf', '-']
    """
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if 10**digits - 0.5 <= abs(value) < 1e7 else f"{value:.{digits}g}"


def format_mean(mean: float, error: float) -> str:
    """Return a mean with its standard error to two digits, or the mean alone if there is none.

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


def time(epochs: float, reached: int, of: int) -> str:
    """Return the median epoch with the share of seeds that got there.

    >>> time(57.0, 8, 8), time(float("inf"), 3, 8), time(float("nan"), 0, 0)
    ('57 (8/8)', 'inf (3/8)', '-')
    """
    return f"{epochs:g} ({reached}/{of})" if of else "-"
