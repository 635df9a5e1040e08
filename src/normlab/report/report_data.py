"""Runs, curves and analysis of a sweep for its report, and ``verdicts.json``; see :func:`build_report_data`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normlab.config.schema import MAXIMIZED, MINIMIZED, direction_of
from normlab.errors import ConfigError
from normlab.report.factors import short_names
from normlab.report.sweep_summary import SweepSummary, final_values, summarize_sweep, with_times
from normlab.results.folder import SWEEP_CONFIG
from normlab.results.result import write_atomically
from normlab.results.sweep import Record, load_yaml, read_timing, step_seconds
from normlab.stats.analysis import Analysis, StepTimes, analyze
from normlab.stats.design import GENERALIZATION, OPTIMIZATION, Design, Metric, design_of
from normlab.stats.looks import History

CLASSIFICATION_METRICS = ("loss", "acc")
"""Metrics that are both reported for classification."""

COMPARISON_COLUMNS = {
    "panel": "panel",
    "arm": "arm",
    "baseline": "baseline",
    "metric": "metric",
    "effect": "effect",
    "estimate": "estimate",
    "estimate_low": "low",
    "estimate_high": "high",
    "p_adjusted": "p",
    "verdict": "verdict",
    "replicates": "replicates",
}
"""The columns of :meth:`normlab.api.Sweep.compare` and of the page's first table, by those of the analysis."""
VERDICTS_FILE, MAX_REPLICATES = "verdicts.json", "max_replicates"


TableRow = dict[str, Any]


def table_rows(frame: pd.DataFrame) -> list[TableRow]:
    """Convert a table to a list of rows, each a dictionary by column."""
    return frame.to_dict("records")  # type: ignore[return-value]


@dataclass(frozen=True)
class ReportOptions:
    """The options of a report; None is the default.

    Attributes:
        compare: the compared factor; its settings are the arms.
        baseline: the arm that the others are compared with.
        metric: the compared metric, instead of those of generalization and optimization.
        target: the validation value for the time to target, or ``baseline``.
        margin: the margin of the equivalence test.
        pairs: True to compare all arms with each other.
    """

    compare: str | None = None
    baseline: str | None = None
    metric: str | None = None
    target: float | str | None = None
    margin: float | None = None
    pairs: bool = False

    @classmethod
    def of_runs(cls, records: Sequence[Record], folder: Path | None = None) -> "ReportOptions":
        """Return the options of the run that started last, or of the last command of a sweep.

        Args:
            records: the records of the runs.
            folder: the folder of a sweep; its last command counts even if it trained no run.
        """
        latest = max(records, key=lambda record: record.result.started).result.config
        config = (load_yaml(folder / SWEEP_CONFIG, dict) if folder else {}) or latest
        baseline, claim = config.get("baseline"), config.get("claim") or {}
        return cls(
            compare=claim.get("compare"),
            baseline=None if baseline is None else str(baseline),
            target=config.get("target"),
            margin=config.get("margin"),
            pairs=bool(config.get("pairs")),
        )


@dataclass(frozen=True)
class ReportData:
    """The content of a report.

    Attributes:
        summary: the sweep as data frames, with the times to target.
        runs: a row per run with its outcomes; see :mod:`normlab.stats.design`.
        curves: validation curves with seconds; see :mod:`normlab.stats.learning_speed`.
        analysis: the statistical analysis.
        changed: a warning if ``max_replicates`` was changed after the first verdict.
    """

    summary: SweepSummary
    runs: pd.DataFrame
    curves: pd.DataFrame
    analysis: Analysis
    changed: list[str] = field(default_factory=list)

    def selected_runs(self, panel: str) -> pd.DataFrame:
        """Return the reported runs of a panel at the selected configuration of their ``arm``."""
        grid, parts = self.analysis.grid, []
        for (key, arm), tuned in self.analysis.tuning.items():
            if grid.panel_name(key) != panel:
                continue
            selected = dict(zip(grid.uses[key].report.tolist(), tuned.chosen.tolist(), strict=True))
            mask = [selected.get(column, -1) == row for row, column in zip(grid.row, grid.column, strict=True)]
            parts.append(self.runs[np.array(mask, dtype=bool)].assign(arm=arm))
        return pd.concat(parts) if parts else self.runs.iloc[:0].assign(arm="")

    def selected_settings(self, row: TableRow) -> str:
        """Format the tuned hyperparameters of an arm at its selected configuration, given its row of ``arms``."""
        tuned = self.analysis.design.tuned
        names = zip(short_names(tuned), tuned, strict=True)
        settings = ", ".join(f"{name} {row[key]}" for name, key in names if pd.notna(row[key]))
        return settings or ("selected in each replicate" if row["seeds"] else "–")

    def median_seconds(self, runs: pd.DataFrame) -> pd.Series:
        """Return the median seconds of training up to each epoch, ``seconds``, by ``name`` (the arm) and epoch."""
        known = self.curves[self.curves["run"].isin(runs.index) & self.curves["seconds"].notna()]
        names = known["run"].map(runs["arm"]).rename("name")
        return known.groupby([names, "epoch"])["seconds"].median()

    @cached_property
    def probe_ratios(self) -> pd.DataFrame:
        """The ratios of probe numbers to those without normalization, over paired seeds."""
        from normlab.report.probe_data import probe_ratios  # imports matplotlib

        return probe_ratios(self.summary)


def build_report_data(
    records: Sequence[Record],
    options: ReportOptions,
    sweep: SweepSummary | None = None,
    history: History | None = None,
    folders: Sequence[Path] = (),
) -> ReportData:
    """Analyse a sweep: tune each arm, then compare the arms.

    Args:
        records: the records of the runs.
        options: the options of the report.
        sweep: the summary of the records, if it is already computed.
        history: the earlier verdicts of the folder; updated with this analysis.
        folders: the folders of the sweeps, which may hold interleaved timings.

    Raises:
        ConfigError: if the metric, the compared key or the baseline does not exist; the message lists those that
            do.
    """
    sweep = summarize_sweep(records, options.compare) if sweep is None else sweep
    metrics = compared_metrics(sweep, records, options.metric)
    choice = Metric(sweep.metric, sweep.direction)
    outcomes = {**{metric.name: metric for metric in metrics}, "validation": choice}
    results = [record.result for record in records]
    columns = {
        column: pd.Series(final_values(results, metric.name, metric.direction, sweep.curves)).reindex(
            sweep.runs.index
        )
        for column, metric in outcomes.items()
    }
    runs = sweep.runs.assign(**columns)
    folder = folders[0] if len(folders) == 1 else None
    changed = [] if history is None else changed_maximum(history, records, folder)
    try:
        design = design_of(
            runs,
            sweep.keys,
            metrics,
            choice,
            options.compare,
            options.baseline,
            sweep.implicit,
            options.pairs,
            options.margin,
        )
        rounds = step_rounds(sweep, records, folders)
        curves = timed_curves(sweep, rounds)
        timed = arm_rounds(runs, design, rounds)
        train_curves = sweep.curves[sweep.curves["metric"] == "train_eval/loss"]
        generator = np.random.default_rng(0)
        analysis = analyze(
            runs,
            curves,
            design,
            generator,
            options.target,
            history=history,
            timed=timed,
            train_curves=train_curves,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return ReportData(with_times(sweep, analysis.times, curves), runs, curves, analysis, changed)


def compared_metrics(sweep: SweepSummary, records: Sequence[Record], requested: str | None) -> list[Metric]:
    """Return the metrics by which arms are compared: the requested metric, or those of both questions.

    The question *generalization* uses the optimized metric on the test split, for classification both loss and
    accuracy; without a test split, it uses the validation split. The question *optimization* uses the training
    loss in evaluation mode.

    Raises:
        ConfigError: if no run has the requested metric.
    """
    finals = {name for record in records for name in record.result.final}
    known = finals | {str(name) for name in sweep.curves["metric"].unique()}
    if requested is not None:
        available = sorted(name for name in known if name.startswith(("train/", "train_eval/", "val/", "test/")))
        available = [name for name in available if name != "train/lr"]
        if requested not in available:
            listing = ", ".join(available) or "none"
            raise ConfigError(f"metric must be one of the runs' metrics ({listing}), got {requested}")
        return [Metric(requested, direction_of_name(requested, sweep))]
    name = sweep.metric.partition("/")[2]
    names = [
        name,
        *(other for other in CLASSIFICATION_METRICS if name in CLASSIFICATION_METRICS and other != name),
    ]
    splits = [split for split in ("test", "val") if f"{split}/{name}" in known][:1]
    tested = [f"{split}/{of}" for split in splits for of in names if f"{split}/{of}" in known]
    metrics = [Metric(metric, direction_of_name(metric, sweep), GENERALIZATION) for metric in tested]
    if "train_eval/loss" in finals:
        metrics.append(Metric("train_eval/loss", "min", OPTIMIZATION))
    return metrics or [Metric(sweep.metric, sweep.direction)]


def direction_of_name(metric: str, sweep: SweepSummary) -> str:
    """Return the direction of a metric, ``min`` or ``max``; it is the same on every split."""
    name = metric.partition("/")[2]
    if name == sweep.metric.partition("/")[2]:
        return sweep.direction
    if name not in MINIMIZED + MAXIMIZED:
        known = ", ".join(MINIMIZED + MAXIMIZED)
        raise ConfigError(
            f"metric must be one of {known} on a split, or the optimized {sweep.metric}, got {metric}, whose "
            "direction is unknown"
        )
    return direction_of(f"val/{name}", None, "metric")


def curve_direction(sweep: SweepSummary, metric: str) -> str:
    """Return the direction of a curve: that of the optimized metric, ``max`` for accuracy, otherwise ``min``."""
    if metric == sweep.metric:
        return sweep.direction
    return "max" if metric.endswith("/acc") else "min"


def timed_curves(sweep: SweepSummary, rounds: Mapping[int, Sequence[float]]) -> pd.DataFrame:
    """Return the validation curves with the seconds of training at each point.

    Seconds are the steps times the median step time of the interleaved timing, NaN without such a timing: members
    of a population share one wall-clock time, so the time of a sweep does not tell arms apart.

    Args:
        sweep: the sweep.
        rounds: the seconds per step in each timing round, by run.
    """
    curves = sweep.curves[sweep.curves["metric"] == sweep.metric][["run", "epoch", "step", "value"]]
    seconds = {run: float(np.median(times)) for run, times in rounds.items()}
    return curves.assign(seconds=curves["step"] * curves["run"].map(seconds).astype(float))


def step_rounds(sweep: SweepSummary, records: Sequence[Record], folders: Iterable[Path]) -> dict[int, list[float]]:
    """Return the seconds per step in each timing round, by run; empty unless exactly one sweep has a timing."""
    timings = [timing for folder in folders if (timing := read_timing(folder))]
    if len(timings) != 1:  # rounds of different timings cannot be paired
        return {}
    rounds = {run: step_seconds(timings[0], records[run].result) for run in sweep.runs.index}
    return {run: seconds for run, seconds in rounds.items() if seconds}


def arm_rounds(runs: pd.DataFrame, design: Design, rounds: Mapping[int, Sequence[float]]) -> StepTimes:
    """Return the timing rounds of each panel and arm.

    Arms with several timings are omitted, such as those whose network size is tuned.
    """
    timings: dict[tuple[tuple[str, ...], str], set[tuple[float, ...]]] = {}
    for run, row in runs.iterrows():
        seconds = rounds.get(int(str(run)))
        key = tuple(row[name] for name in design.panels), row[design.compare] if design.compare else ""
        timings.setdefault(key, set()).update([tuple(seconds)] if seconds else [])
    return {key: list(seconds.pop()) for key, seconds in timings.items() if len(seconds) == 1}


def read_history(folder: Path, records: Sequence[Record]) -> History:
    """Read the earlier verdicts of a sweep; without any, a new history with the declared ``max_replicates``.

    Raises:
        ConfigError: if the file is damaged.
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
    """Write the verdicts of a sweep, if there are any."""
    if history.looks:
        write_atomically(folder / VERDICTS_FILE, json.dumps(history.to_json(), indent=1) + "\n")


def declared_maximum(records: Sequence[Record], folder: Path | None = None) -> int | None:
    """Return the first declared ``max_replicates``, or None.

    Args:
        records: the records of the runs, in any order; they count by their start, planned runs last.
        folder: the folder of a sweep; its last command counts even if it trained no run.
    """
    started = sorted(records, key=lambda record: (not record.result.started, record.result.started))
    declared = [*(record.result.config.get(MAX_REPLICATES) for record in started), command_maximum(folder)]
    return next((number for number in declared if isinstance(number, int)), None)


def command_maximum(folder: Path | None) -> object:
    """Return ``max_replicates`` of the last command of a sweep."""
    return load_yaml(folder / SWEEP_CONFIG, dict).get(MAX_REPLICATES) if folder else None


def changed_maximum(history: History, records: Sequence[Record], folder: Path | None = None) -> list[str]:
    """Return a warning if runs declare another ``max_replicates`` than the history.

    Args:
        history: the history before this analysis.
        records, folder: as in :func:`declared_maximum`.
    """
    declared = {command_maximum(folder), *(record.result.config.get(MAX_REPLICATES) for record in records)}
    others = sorted(number for number in declared if isinstance(number, int) and number != history.max_replicates)
    if not others:
        return []
    first = history.max_replicates
    reason = (
        "the first verdict was given without a maximum"
        if first is None
        else f"{MAX_REPLICATES}={first} was declared first"
    )
    return [f"{MAX_REPLICATES}={others[-1]} has no effect: {reason}"]
