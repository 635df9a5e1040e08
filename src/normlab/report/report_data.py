"""Runs, curves and analysis of a sweep for its report, and ``verdicts.json``; see :func:`build_report_data`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from normlab.config.schema import MAXIMIZED, MINIMIZED, direction_of
from normlab.errors import ConfigError
from normlab.report.sweep_summary import SweepSummary, final, summarize_sweep, with_times
from normlab.results.folder import SWEEP_CONFIG
from normlab.results.result import write_atomically
from normlab.results.sweep import Record, load_yaml
from normlab.results.timing import read_timing, step_seconds
from normlab.stats.analysis import Analysis, analyze
from normlab.stats.design import GENERALIZATION, OPTIMIZATION, Design, Metric, design_of
from normlab.stats.looks import History
from normlab.stats.tables import StepTimes

CLASSES = ("loss", "acc")
"""Metrics that are both reported where targets are classes."""

VERDICTS_FILE, MAXIMUM = "verdicts.json", "max_replicates"


@dataclass(frozen=True)
class ReportOptions:
    """The options of a report; None is the default.

    Attributes:
        compare: the key whose settings are compared.
        baseline: the setting that the others are compared with.
        metric: the metric that is compared, instead of those of both questions.
        target: the value that times are counted to, or ``baseline``.
        margin: of the equivalence test.
        pairs: whether all arms are compared with each other.
    """

    compare: str | None = None
    baseline: str | None = None
    metric: str | None = None
    target: float | str | None = None
    margin: float | None = None
    pairs: bool = False

    @classmethod
    def of_runs(cls, records: Sequence[Record], folder: Path | None = None) -> "ReportOptions":
        """Return the options that runs were started with.

        Args:
            records: of the runs; those of the run that started last count.
            folder: of a sweep, whose last command counts instead: it need not have trained any run again.
        """
        latest = max(records, key=lambda record: record.result.started).result.config
        typed = (load_yaml(folder / SWEEP_CONFIG, dict) if folder else {}) or latest
        baseline = typed.get("baseline")
        return cls(
            baseline=None if baseline is None else str(baseline),
            target=typed.get("target"),
            margin=typed.get("margin"),
            pairs=bool(typed.get("pairs")),
        )


@dataclass(frozen=True)
class ReportData:
    """The content of a report.

    Attributes:
        records: of the runs, by number.
        sweep: at a glance, with the times to the target.
        runs, curves: as ``stats.design`` and ``stats.times`` describe them.
        found: the analysis.
        changed: a warning if ``max_replicates`` was changed.
    """

    records: Sequence[Record]
    summary: SweepSummary
    runs: pd.DataFrame
    curves: pd.DataFrame
    analysis: Analysis
    changed: list[str] = field(default_factory=list)


def build_report_data(
    records: Sequence[Record],
    asked: ReportOptions,
    sweep: SweepSummary | None = None,
    history: History | None = None,
    folders: Sequence[Path] = (),
) -> ReportData:
    """Analyse the runs of a sweep.

    Args:
        records: of the runs.
        asked: the options.
        sweep: the runs at a glance, if that is known already.
        history: the earlier verdicts of the folder; changed by this one.
        folders: of the sweeps, which may hold a timing.

    Raises:
        ConfigError: for a metric, a comparison or a baseline that does not exist, with those that do.
    """
    sweep = summarize_sweep(records, asked.compare) if sweep is None else sweep
    metrics = metrics_of(sweep, records, asked.metric)
    choice = Metric(sweep.metric, sweep.direction)
    outcomes = {**{metric.name: metric for metric in metrics}, "validation": choice}
    results = [record.result for record in records]
    columns = {
        column: pd.Series(final(results, metric.name, metric.direction, sweep.curves)).reindex(sweep.runs.index)
        for column, metric in outcomes.items()
    }
    runs = sweep.runs.assign(**columns)
    one = folders[0] if len(folders) == 1 else None
    changed = [] if history is None else changed_maximum(history, records, one)
    try:
        design = design_of(
            runs,
            sweep.keys,
            metrics,
            choice,
            asked.compare,
            asked.baseline,
            sweep.untyped,
            asked.pairs,
            asked.margin,
        )
        rounds = step_rounds(sweep, records, folders)
        curves = timed_curves(sweep, rounds)
        timed = arm_rounds(runs, design, rounds)
        train_curves = sweep.curves[sweep.curves["metric"] == "train_eval/loss"]
        generator = np.random.default_rng(0)
        found = analyze(
            runs, curves, design, generator, asked.target, history=history, timed=timed, train_curves=train_curves
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return ReportData(records, with_times(sweep, found.times, curves), runs, curves, found, changed)


def metrics_of(sweep: SweepSummary, records: Sequence[Record], asked: str | None) -> list[Metric]:
    """Return the metrics that arms are compared by.

    *Generalization* is the optimized metric on the test split, loss and accuracy where targets are classes;
    *optimization* the training loss in evaluation mode. Where no run has a test split, validation takes its
    place.

    Raises:
        ConfigError: no run has the metric that was asked for.
    """
    finals = {name for record in records for name in record.result.final}
    known = finals | {str(name) for name in sweep.curves["metric"]}
    if asked is not None:
        there = sorted(name for name in known if name.startswith(("train/", "train_eval/", "val/", "test/")))
        there = [name for name in there if name != "train/lr"]
        if asked not in there:
            raise ConfigError(f"--metric {asked}: no run has it; there are {', '.join(there) or 'none'}")
        return [Metric(asked, direction_of_name(asked, sweep))]
    name = sweep.metric.partition("/")[2]
    names = [name, *(other for other in CLASSES if name in CLASSES and other != name)]
    splits = [split for split in ("test", "val") if f"{split}/{name}" in known][:1]
    tested = [f"{split}/{of}" for split in splits for of in names if f"{split}/{of}" in known]
    found = [Metric(metric, direction_of_name(metric, sweep), GENERALIZATION) for metric in tested]
    if "train_eval/loss" in finals:
        found.append(Metric("train_eval/loss", "min", OPTIMIZATION))
    return found or [Metric(sweep.metric, sweep.direction)]


def direction_of_name(metric: str, sweep: SweepSummary) -> str:
    """Return whether ``min`` or ``max`` of a metric is good, which is the same on every split."""
    name = metric.partition("/")[2]
    if name == sweep.metric.partition("/")[2]:
        return sweep.direction
    if name not in MINIMIZED + MAXIMIZED:
        known = ", ".join(MINIMIZED + MAXIMIZED)
        raise ConfigError(
            f"--metric must be one of {known} on a split, or the optimized {sweep.metric}, got {metric}: whether "
            "it should be small is not known"
        )
    return direction_of(f"val/{name}", None, "--metric")


def timed_curves(sweep: SweepSummary, rounds: Mapping[int, Sequence[float]]) -> pd.DataFrame:
    """Return the curves of the metric that settings are chosen by, with the seconds of training at each point.

    Seconds are those of the steps of a run that was timed in turn with the other arms, else NaN: members of a
    population share one time, which says nothing of an arm.

    Args:
        sweep: the runs.
        rounds: of the runs that were timed, the seconds per step of each round.
    """
    curves = sweep.curves[sweep.curves["metric"] == sweep.metric][["run", "epoch", "step", "value"]]
    seconds = {run: float(np.median(own)) for run, own in rounds.items()}
    return curves.assign(seconds=curves["step"] * curves["run"].map(seconds).astype(float))


def step_rounds(sweep: SweepSummary, records: Sequence[Record], folders: Iterable[Path]) -> dict[int, list[float]]:
    """Return the seconds per step in each round of interleaved timing, of the runs of one sweep that was timed."""
    timings = [timing for folder in folders if (timing := read_timing(folder))]
    if len(timings) != 1:  # rounds of two timings are no pairs
        return {}
    found = {run: step_seconds(timings[0], records[run].result) for run in sweep.runs.index}
    return {run: own for run, own in found.items() if own}


def arm_rounds(runs: pd.DataFrame, design: Design, rounds: Mapping[int, Sequence[float]]) -> StepTimes:
    """Return the rounds of each arm of a panel; none where its runs were timed apart, as with a tuned net."""
    found: dict[tuple[tuple[str, ...], str], set[tuple[float, ...]]] = {}
    for run, row in runs.iterrows():
        own = rounds.get(int(str(run)))
        place = tuple(row[key] for key in design.panels), row[design.compare] if design.compare else ""
        found.setdefault(place, set()).update([tuple(own)] if own else [])
    return {place: list(own.pop()) for place, own in found.items() if len(own) == 1}


def names_of(folders: Sequence[Path]) -> str:
    """Return the name of a report over folders."""
    return ", ".join(folder.resolve().name for folder in folders)


def read_history(folder: Path, records: Sequence[Record]) -> History:
    """Return the earlier verdicts of a folder; without any, the maximum of replicates that its runs declare.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / VERDICTS_FILE
    if not path.exists():
        return History(declared_maximum(records, folder))
    try:
        return History.from_json(json.loads(path.read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} must hold the earlier verdicts, got {type(error).__name__}: {error}; "
            "restore it, or remove it to count looks from 1 again"
        ) from error


def write_history(folder: Path, history: History) -> None:
    """Write the verdicts of a folder, if there are any."""
    if history.looks:
        write_atomically(folder / VERDICTS_FILE, json.dumps(history.to_json(), indent=1) + "\n")


def declared_maximum(records: Sequence[Record], folder: Path | None = None) -> int | None:
    """Return the first ``max_replicates`` that was declared, None without any.

    Args:
        records: of the runs; those that did not start yet come last.
        folder: of a sweep, whose last command counts too: it need not have trained any run.
    """
    started = sorted(records, key=lambda record: (not record.result.started, record.result.started))
    declared = [*(record.result.config.get(MAXIMUM) for record in started), typed_maximum(folder)]
    return next((number for number in declared if isinstance(number, int)), None)


def typed_maximum(folder: Path | None) -> object:
    """Return ``max_replicates`` of the last command of a sweep."""
    return load_yaml(folder / SWEEP_CONFIG, dict).get(MAXIMUM) if folder else None


def changed_maximum(history: History, records: Sequence[Record], folder: Path | None = None) -> list[str]:
    """Return a warning if another maximum of replicates is declared than the one that counts.

    Args:
        history: before the verdict that is given now.
        records, folder: as in :func:`declared_maximum`.
    """
    declared = {typed_maximum(folder), *(record.result.config.get(MAXIMUM) for record in records)}
    others = sorted(number for number in declared if isinstance(number, int) and number != history.max_replicates)
    if not others:
        return []
    first = history.max_replicates
    why = "the first verdict was given without one" if first is None else f"{MAXIMUM}={first} was declared first"
    return [f"{MAXIMUM}={others[-1]} has no effect: {why}"]
