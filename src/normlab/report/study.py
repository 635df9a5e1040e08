"""A sweep as the statistics see it: outcomes and curves of its runs, and the analysis; see :func:`study`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normlab.analysis.design import GENERALIZATION, OPTIMIZATION, Design, Metric, design_of
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
    """The options of a report; None is what the runs were started with, or else the default.

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
    pairs: bool | None = None

    @classmethod
    def of_sweep(cls, folder: Path) -> "Asked":
        """Return the options that a sweep was last started with, which need not have trained any run again."""
        typed = load(folder / SWEEP_CONFIG, dict)
        baseline = typed.get("baseline")
        return cls(
            baseline=None if baseline is None else str(baseline),
            target=typed.get("target"),
            margin=typed.get("margin"),
            pairs=typed.get("pairs"),
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
        design = given_design(runs, sweep, records, asked, metrics, choice)
        curves = timed_curves(sweep)
        found = find(
            runs,
            curves,
            design,
            np.random.default_rng(0),
            given_target(records, asked),
            history=history,
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
    split = (
        "test" if any(of.startswith("test/") for of in finals) or not finals else sweep.metric.partition("/")[0]
    )
    names = [
        name,
        *(other for other in CLASSES if name in CLASSES and f"{split}/{other}" in known - {f"{split}/{name}"}),
    ]
    found = [Metric(f"{split}/{of}", direction_of_name(f"{split}/{of}", sweep), GENERALIZATION) for of in names]
    trained = [Metric("train_eval/loss", "min", OPTIMIZATION)] if "train_eval/loss" in finals else []
    return [*found, *trained]


def direction_of_name(metric: str, sweep: Overview) -> str:
    """Return whether ``min`` or ``max`` of a metric is good, which is the same on every split."""
    name = metric.partition("/")[2]
    if name == sweep.metric.partition("/")[2]:
        return sweep.direction
    return direction_of(f"val/{name}", None, "--metric")


def given_design(
    runs: pd.DataFrame,
    sweep: Overview,
    records: Sequence[Record],
    asked: Asked,
    metrics: Sequence[Metric],
    choice: Metric,
) -> Design:
    """Return the design, by the options of the report, or else those that the runs were started with."""
    baseline, recorded = asked.baseline, given(records, "baseline")
    if baseline is None and asked.compare is None and recorded is not None:
        baseline = str(recorded)
    margin = asked.margin if asked.margin is not None else given(records, "margin")
    pairs = asked.pairs if asked.pairs is not None else bool(given(records, "pairs"))
    return design_of(runs, sweep.keys, metrics, choice, asked.compare, baseline, sweep.untyped, pairs, margin)


def given(records: Sequence[Record], key: str) -> Any:
    """Return the value of a key that changes no run, of the run that started last and has one."""
    started = sorted(records, key=lambda record: record.result.started, reverse=True)
    return next((value for record in started if (value := record.result.config.get(key)) is not None), None)


def given_target(records: Sequence[Record], asked: Asked) -> float | str | None:
    """Return the target that was asked for, here or when the runs were trained."""
    if asked.target is not None:
        return asked.target
    targets = {float(target) for r in records if (target := r.result.config.get("target")) is not None}
    return targets.pop() if len(targets) == 1 else None


def timed_curves(sweep: Overview) -> pd.DataFrame:
    """Return the curves of the metric that settings are chosen by, with the seconds of training at each point.

    Seconds are NaN: members of a population share one time, which says nothing of an arm.
    """
    curves = sweep.curves[sweep.curves["metric"] == sweep.metric][["run", "epoch", "step", "value"]]
    return curves.assign(seconds=math.nan)


def names_of(folders: Sequence[Path]) -> str:
    """Return what a report over folders is called."""
    return ", ".join(folder.resolve().name for folder in folders)
