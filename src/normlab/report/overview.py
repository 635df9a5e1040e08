"""What the tables and figures of a sweep are made from: its runs, arms and curves as frames."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from normlab.analysis.arms import SEED, arrivals, label, natural, summarize, varied_keys
from normlab.records.result import Result, Status
from normlab.records.sweep import Record, overrides, read_curves, setting

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Overview:
    """A sweep at a glance.

    Attributes:
        keys: what varies from arm to arm.
        metric, direction: what was optimized, and whether ``min`` or ``max`` is good.
        runs: a row per run, sorted by arm and seed, indexed by the number of its record.
        arms: a row per arm, indexed by its name: what varies, what ``analysis.arms.summarize`` found, and whether
            most of its runs are ``untrained``.
        curves: a row per run, epoch and metric.

    With :func:`with_times` runs and arms also have their ``target``, and when they reach it.
    """

    keys: list[str]
    metric: str
    direction: str
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
    runs = runs.loc[sorted(runs.index, key=lambda number: place(runs.loc[number, [*keys, SEED]]))]
    arms = runs.drop_duplicates("arm").set_index("arm")[keys].join(summarize(runs))
    arms["untrained"] = runs.groupby("arm")["untrained"].mean() > 0.5
    return Overview(keys, metric, direction, runs, arms, curves)


def with_times(sweep: Overview, times: pd.DataFrame, curves: pd.DataFrame) -> Overview:
    """Return a sweep with the ``target`` of each run and arm, and when they reach it.

    Args:
        sweep: the sweep.
        times: a row per run, with the columns ``target`` and ``steps``.
        curves: a row per run and evaluation, with the columns ``run``, ``epoch`` and ``step``.
    """
    at = times["steps"].rename("step").rename_axis("run").reset_index()
    known = curves[["run", "step", "epoch"]].drop_duplicates(["run", "step"])
    # A time that is infinite or not known is so in epochs too.
    epochs = at.merge(known.astype({"step": float}), how="left")["epoch"].fillna(at["step"]).set_axis(times.index)
    runs = sweep.runs.assign(target=times["target"], epochs_to_target=epochs.astype(float))
    target = runs.groupby("arm")["target"].first()
    return replace(sweep, runs=runs, arms=sweep.arms.join(arrivals(runs)).join(target))


def place(settings: Iterable[object]) -> list[tuple]:
    """Return what to sort a run by, given what varies and its seed."""
    return [natural(str(setting)) for setting in settings]


def objective(results: Sequence[Result]) -> tuple[str, str]:
    """Return the metric that most runs optimized, with its direction."""
    found = Counter((result.objective.metric, result.objective.direction) for result in results)
    known = sorted(pair for pair in found if all(pair))
    return max(known, key=found.__getitem__, default=("val/loss", "min"))


def arm_settings(results: Sequence[Result]) -> tuple[pd.DataFrame, list[str]]:
    """Return a frame with each run's arm and what the varied keys came to in it, and those keys."""
    given = pd.DataFrame([overrides(result) for result in results])
    values = {str(key): [setting(result, str(key)) for result in results] for key in given}
    settings = pd.DataFrame(values, index=given.index)
    keys = varied_keys(given, settings)
    settings = settings[keys].fillna(UNKNOWN)
    shown, rows = keys, settings.to_numpy().tolist()
    if not keys:
        chosen = next((result.choices["model"] for result in results if "model" in result.choices), UNKNOWN)
        shown, rows = ["model"], [[chosen]] * len(results)
    return settings.assign(arm=[label(shown, row) for row in rows]), keys


def outcomes(
    results: Sequence[Result], metric: str, direction: str, measured: pd.DataFrame
) -> dict[str, pd.Series | list]:
    """Return the columns that say how each run ended and what it reached.

    The last value of a run that was not validated in its last epoch is that of its last validation.
    """
    worst = math.inf if direction == "min" else -math.inf
    latest = measured.groupby("run")["value"].last()
    best = [r.best.metrics.get(metric) if r.best and r.objective.metric == metric else None for r in results]
    last = [r.last.metrics.get(metric, latest.get(k)) if r.last else None for k, r in enumerate(results)]
    seeds = [result.config.get(SEED) for result in results]
    return {
        "status": [result.status.value for result in results],
        SEED: pd.Series([seed if isinstance(seed, int) else None for seed in seeds], dtype="Int64"),
        "best": [reached(result, value, worst) for result, value in zip(results, best, strict=True)],
        "last": [reached(result, value, worst) for result, value in zip(results, last, strict=True)],
        "untrained": [is_untrained(result) for result in results],
        "epochs": [result.epochs for result in results],
        "seconds": [result.seconds for result in results],
    }


def is_untrained(result: Result) -> bool:
    """Return whether a run ended with a training loss that a net which looks at nothing has, within 1 %."""
    loss = result.last.metrics.get("train/loss") if result.last else None
    return loss is not None and result.chance is not None and loss >= 0.99 * result.chance


def reached(result: Result, value: float | None, worst: float) -> float:
    """Return the value that a run counts with: NaN if it did not come to its end, or has none."""
    if result.status == Status.DIVERGED:
        return worst
    return value if result.status == Status.FINISHED and value is not None else math.nan
