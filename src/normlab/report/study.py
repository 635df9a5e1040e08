"""A sweep as the statistics see it: a number per run, its curves, and what is found in them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from normlab.analysis.design import design_of
from normlab.analysis.ends import ENDS
from normlab.analysis.findings import Findings, find
from normlab.config import ConfigError, direction_of
from normlab.records.result import Result, Status
from normlab.records.sweep import Record
from normlab.report.overview import Overview, overview, with_times

TEST = "test/"


@dataclass(frozen=True)
class Asked:
    """What a person may choose of a report; what is None is found in the records.

    Attributes:
        compare: the key whose settings are compared.
        baseline: the setting that the others are compared with.
        metric: what is compared.
        target: the value that times are counted to, or ``baseline``; of a metric that has a curve.
    """

    compare: str | None = None
    baseline: str | None = None
    metric: str | None = None
    target: float | str | None = None


@dataclass(frozen=True)
class Study:
    """What a report is made from.

    Attributes:
        records: of the runs, by number.
        sweep: at a glance, with the times to the target.
        runs, curves: as ``analysis.design`` and ``analysis.times`` describe them.
        found: what the statistics say.
    """

    records: Sequence[Record]
    sweep: Overview
    runs: pd.DataFrame
    curves: pd.DataFrame
    found: Findings


def study(records: Sequence[Record], asked: Asked, sweep: Overview | None = None) -> Study:
    """Return what the runs have to say.

    Raises:
        ConfigError: for a metric, a comparison or a baseline that there is not, with those that there are; for a
            target of a metric that is measured once.
    """
    sweep = overview(records, asked.compare) if sweep is None else sweep
    metric, direction = measure(sweep, records, asked.metric)
    if asked.target is not None and metric.startswith(TEST):
        expected = "left away, as no time to it can be told of a metric that is measured once"
        raise ConfigError(f"--target must be {expected}, got {asked.target} of {metric}; use --metric val/…")
    runs = sweep.runs.assign(**values(sweep, records, metric, direction))
    try:
        design = design_of(runs, sweep.keys, metric, direction, asked.compare, asked.baseline, sweep.untyped)
        target = given_target(sweep, records, asked, metric)
        curves = timed_curves(sweep, records, metric)
        found = find(runs, curves, design, np.random.default_rng(0), target)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Study(records, with_times(sweep, found.times, curves), runs, curves, found)


def measure(sweep: Overview, records: Sequence[Record], metric: str | None) -> tuple[str, str]:
    """Return the metric that is compared, and whether ``min`` or ``max`` of it is good."""
    if metric is None or metric == sweep.metric:
        return sweep.metric, sweep.direction
    tests = {name for record in records for name in record.result.test}
    there = sorted({*sweep.curves["metric"], *tests})
    there = [name for name in there if name.startswith(("train/", "val/", TEST)) and name != "train/lr"]
    if metric not in there:
        raise ConfigError(f"--metric {metric}: no run has it; there are {', '.join(there) or 'none'}")
    # What is good of a metric is the same on every split.
    return metric, direction_of(f"val/{metric.partition('/')[2]}", None, "--metric")


def values(sweep: Overview, records: Sequence[Record], metric: str, direction: str) -> dict[str, pd.Series]:
    """Return the columns ``value``, the best of each run, and ``train_value``, the training's at that moment."""
    runs = sweep.runs
    split, _, name = metric.partition("/")
    own = f"train/{name}" if split == "val" else ""
    bests = {number: records[number].result.best for number in runs.index}
    train = {number: best.metrics.get(own, math.nan) if best else math.nan for number, best in bests.items()}
    columns = {"train_value": pd.Series(train, dtype=float)} if own else {}
    if split == "val":
        for end in ENDS:
            of_split = f"{end.removeprefix('final_')}/{name}"
            means = {number: records[number].result.final.get(of_split, math.nan) for number in runs.index}
            columns[end] = pd.Series(means, dtype=float)
    if metric == sweep.metric:
        return {"value": runs["best"].astype(float), **columns}
    if metric.startswith(TEST):
        found = pd.Series({number: records[number].result.test.get(metric, math.nan) for number in runs.index})
    else:
        of_metric = sweep.curves[sweep.curves["metric"] == metric]
        found = of_metric.groupby("run")["value"].agg(direction).reindex(runs.index)
    worst = math.inf if direction == "min" else -math.inf
    value = found.where(runs["status"] == Status.FINISHED.value, math.nan)
    return {"value": value.mask(runs["status"] == Status.DIVERGED.value, worst).astype(float)}


def given_target(sweep: Overview, records: Sequence[Record], asked: Asked, metric: str) -> float | str | None:
    """Return the target that was asked for, here or when the runs were trained."""
    if asked.target is not None or metric != sweep.metric:
        return asked.target
    targets = {float(target) for r in records if (target := r.result.config.get("target")) is not None}
    return targets.pop() if len(targets) == 1 else None


def timed_curves(sweep: Overview, records: Sequence[Record], metric: str) -> pd.DataFrame:
    """Return the curves of a metric with the seconds of training at each point.

    A run's seconds are those of its optimizer's steps, evenly divided among them. A metric of the test split,
    which is measured once, has no curve.
    """
    own = (sweep.curves["metric"] == metric) & (not metric.startswith(TEST))
    curves = sweep.curves[own][["run", "epoch", "step", "value"]]
    each = pd.Series({number: seconds_of_step(records[number].result) for number in sweep.runs.index}, dtype=float)
    return curves.assign(seconds=curves["step"] * curves["run"].map(each))


def seconds_of_step(result: Result) -> float:
    """Return the mean time of an optimizer step."""
    return result.seconds / result.steps if result.steps else math.nan


def names_of(folders: Sequence[Path]) -> str:
    """Return what a report over folders is called."""
    return ", ".join(folder.resolve().name for folder in folders)
