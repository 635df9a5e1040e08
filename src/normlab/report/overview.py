"""What the tables and figures of a sweep are made from: its runs, arms and curves as frames."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from normlab.analysis.arms import SEED, label, natural, summarize, varied_keys
from normlab.analysis.target import common_target, epochs_to_target
from normlab.records.result import Result, Status
from normlab.records.sweep import Record, overrides, read_curves, setting

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Overview:
    """A sweep at a glance.

    Attributes:
        keys: what varies from arm to arm.
        metric, direction: what was optimized, and whether ``min`` or ``max`` is good.
        target: the value of the metric that the epochs are counted to.
        runs: a row per run, sorted by arm and seed, indexed by the number of its record.
        arms: a row per arm, indexed by its name: what varies, and what ``analysis.arms.summarize`` found.
        curves: a row per run, epoch and metric.
    """

    keys: list[str]
    metric: str
    direction: str
    target: float
    runs: pd.DataFrame
    arms: pd.DataFrame
    curves: pd.DataFrame


def overview(records: Sequence[Record]) -> Overview:
    """Return what at least one record has to show."""
    results = [record.result for record in records]
    curves = read_curves(records)
    metric, direction = objective(results)
    measured = curves[curves["metric"] == metric]
    settings, keys = arm_settings(results)
    runs = settings.assign(**outcomes(results, metric, direction, measured))
    order = [
        [*(natural(value) for value in row), natural(str(seed))] for *row, seed in runs[[*keys, SEED]].values
    ]
    runs = runs.loc[sorted(runs.index, key=order.__getitem__)]
    target = common_target(runs, direction)
    runs["epochs_to_target"] = epochs_to_target(measured, target, direction).reindex(runs.index)
    runs.loc[runs["status"] == Status.DIVERGED.value, "epochs_to_target"] = math.inf
    runs.loc[runs["best"].isna(), "epochs_to_target"] = math.nan
    arms = runs.drop_duplicates("arm").set_index("arm")[keys].join(summarize(runs))
    return Overview(keys, metric, direction, target, runs, arms, curves)


def objective(results: Sequence[Result]) -> tuple[str, str]:
    """Return the metric that most runs optimized, with its direction."""
    found = Counter((result.objective.metric, result.objective.direction) for result in results)
    return max(
        (pair for pair in sorted(found) if all(pair)), key=found.__getitem__, default=("val/loss", "min")
    )


def arm_settings(results: Sequence[Result]) -> tuple[pd.DataFrame, list[str]]:
    """Return a frame with each run's arm and what the varied keys came to in it, and those keys."""
    given = pd.DataFrame([overrides(result) for result in results])
    settings = pd.DataFrame(
        {key: [setting(result, key) for result in results] for key in given}, index=given.index
    )
    keys = varied_keys(given, settings)
    settings = settings[keys].fillna(UNKNOWN)
    shown, values = keys, settings.to_numpy().tolist()
    if not keys:
        chosen = next((result.choices["model"] for result in results if "model" in result.choices), UNKNOWN)
        shown, values = ["model"], [[chosen]] * len(results)
    return settings.assign(arm=[label(shown, row) for row in values]), keys


def outcomes(
    results: Sequence[Result], metric: str, direction: str, measured: pd.DataFrame
) -> dict[str, pd.Series | list]:
    """Return the columns that say how each run ended and what it reached.

    The last value of a run that was not validated in its last epoch is that of its last validation.
    """
    worst = math.inf if direction == "min" else -math.inf
    latest = measured.groupby("run")["value"].last()

    def value(result: Result, known: float | None) -> float:
        finished = result.status == Status.FINISHED and known is not None
        return (
            worst
            if result.status == Status.DIVERGED
            else known
            if finished and known is not None
            else math.nan
        )

    best = [r.best.metrics.get(metric) if r.best and r.objective.metric == metric else None for r in results]
    last = [r.last.metrics.get(metric, latest.get(k)) if r.last else None for k, r in enumerate(results)]
    return {
        "status": [result.status.value for result in results],
        SEED: pd.Series([result.config.get(SEED) for result in results], dtype="Int64"),
        "best": [value(result, known) for result, known in zip(results, best, strict=True)],
        "last": [value(result, known) for result, known in zip(results, last, strict=True)],
        "epochs": [result.epochs for result in results],
        "seconds": [result.seconds for result in results],
    }
