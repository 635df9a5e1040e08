"""A sweep as the statistics see it: outcomes and curves of its runs, and the analysis; see :func:`study`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from normlab.analysis.design import GENERALIZATION, OPTIMIZATION, Metric, design_of
from normlab.analysis.findings import Findings, find
from normlab.analysis.history import History
from normlab.config import ConfigError, direction_of
from normlab.records.folder import SWEEP_CONFIG
from normlab.records.sweep import Record, load
from normlab.report.overview import Overview, final, overview, with_times

CLASSES = ("loss", "acc")
"""Metrics that are both reported where targets are classes."""


@dataclass(frozen=True)
class Asked:
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
    def of_runs(cls, records: Sequence[Record], folder: Path | None = None) -> "Asked":
        """Return the options that runs were started with.

        Args:
            records: of the runs; those of the run that started last count.
            folder: of a sweep, whose last command counts instead: it need not have trained any run again.
        """
        latest = max(records, key=lambda record: record.result.started).result.config
        typed = (load(folder / SWEEP_CONFIG, dict) if folder else {}) or latest
        baseline = typed.get("baseline")
        return cls(
            baseline=None if baseline is None else str(baseline),
            target=typed.get("target"),
            margin=typed.get("margin"),
            pairs=bool(typed.get("pairs")),
        )


@dataclass(frozen=True)
class Study:
    """The content of a report.

    Attributes:
        records: of the runs, by number.
        sweep: at a glance, with the times to the target.
        runs, curves: as ``analysis.design`` and ``analysis.times`` describe them.
        found: the analysis.
    """

    records: Sequence[Record]
    sweep: Overview
    runs: pd.DataFrame
    curves: pd.DataFrame
    found: Findings


def study(
    records: Sequence[Record], asked: Asked, sweep: Overview | None = None, history: History | None = None
) -> Study:
    """Analyse the runs of a sweep.

    Args:
        records: of the runs.
        asked: the options.
        sweep: the runs at a glance, if that is known already.
        history: the earlier verdicts of the folder; changed by this one.

    Raises:
        ConfigError: for a metric, a comparison or a baseline that does not exist, with those that do.
    """
    sweep = overview(records, asked.compare) if sweep is None else sweep
    metrics = metrics_of(sweep, records, asked.metric)
    choice = Metric(sweep.metric, sweep.direction)
    outcomes = {**{metric.name: metric for metric in metrics}, "validation": choice}
    results = [record.result for record in records]
    columns = {
        column: pd.Series(final(results, metric.name, metric.direction, sweep.curves)).reindex(sweep.runs.index)
        for column, metric in outcomes.items()
    }
    runs = sweep.runs.assign(**columns)
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
        curves = timed_curves(sweep)
        train_curves = sweep.curves[sweep.curves["metric"] == "train_eval/loss"]
        found = find(
            runs,
            curves,
            design,
            np.random.default_rng(0),
            asked.target,
            history=history,
            train_curves=train_curves,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Study(records, with_times(sweep, found.times, curves), runs, curves, found)


def metrics_of(sweep: Overview, records: Sequence[Record], asked: str | None) -> list[Metric]:
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


def direction_of_name(metric: str, sweep: Overview) -> str:
    """Return whether ``min`` or ``max`` of a metric is good, which is the same on every split."""
    name = metric.partition("/")[2]
    if name == sweep.metric.partition("/")[2]:
        return sweep.direction
    return direction_of(f"val/{name}", None, "--metric")


def timed_curves(sweep: Overview) -> pd.DataFrame:
    """Return the curves of the metric that settings are chosen by, with the seconds of training at each point.

    Seconds are NaN: members of a population share one time, which says nothing of an arm.
    """
    curves = sweep.curves[sweep.curves["metric"] == sweep.metric][["run", "epoch", "step", "value"]]
    return curves.assign(seconds=math.nan)


def names_of(folders: Sequence[Path]) -> str:
    """Return what a report over folders is called."""
    return ", ".join(folder.resolve().name for folder in folders)
