"""What the tables and figures of a sweep are made from: its runs, arms and curves as frames."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from normlab.analysis.arms import SEED, arrivals, label, natural, summarize
from normlab.analysis.design import MODEL
from normlab.records.result import Result, Status
from normlab.records.sweep import Record, read_curves, read_written
from normlab.report.factors import UNKNOWN, Factors, find_factors
from normlab.report.untyped import is_without_effect, leaves


@dataclass(frozen=True)
class Overview:
    """A sweep at a glance.

    Attributes:
        keys: what varies from arm to arm; see ``factors``.
        metric, direction: what was optimized, and whether ``min`` or ``max`` is good.
        runs: a row per run, sorted by arm and seed, indexed by the number of its record. Runs that repeat the
            configuration and the seed of another are left out.
        arms: a row per arm, indexed by its name: what varies, what ``analysis.arms.summarize`` found, and whether
            most of its runs are ``untrained``.
        curves: a row per run, epoch and metric.
        untyped: of the keys, those that nobody typed and that make panels.
        named: keys whose settings are part of the arms' names; they have a column in ``listed``.
        listed: the rows of all runs, also of those that repeat another.

    With :func:`with_times` runs and arms also have their ``target``, and when they reach it.
    """

    keys: list[str]
    metric: str
    direction: str
    runs: pd.DataFrame
    arms: pd.DataFrame
    curves: pd.DataFrame
    untyped: tuple[str, ...]
    named: tuple[str, ...]
    listed: pd.DataFrame

    @property
    def repeated(self) -> int:
        """The number of runs that repeat the configuration and the seed of another."""
        return len(self.listed) - len(self.runs)


def overview(records: Sequence[Record], compare: str | None = None) -> Overview:
    """Return the runs, arms and curves of at least one record.

    Args:
        records: of the runs.
        compare: the key whose settings are the arms, by default ``model``.
    """
    results = [record.result for record in records]
    curves = read_curves(records)
    metric, direction = objective(results)
    measured = curves[curves["metric"] == metric]
    factors = find_factors(results, lambda: [read_written(record.folder) for record in records], compare)
    keys = factors.keys
    listed = factors.settings.assign(
        arm=arm_labels(results, factors), **outcomes(results, metric, direction, measured)
    )
    listed = listed.loc[sorted(listed.index, key=lambda number: place(listed.loc[number, [*keys, SEED]]))]
    runs = listed[~listed.index.isin(repeats(results, listed))]
    arms = runs.drop_duplicates("arm").set_index("arm")[keys].join(summarize(runs))
    arms["untrained"] = runs.groupby("arm")["untrained"].mean() > 0.5
    return Overview(keys, metric, direction, runs, arms, curves, factors.untyped, factors.named, listed)


def repeats(results: Sequence[Result], listed: pd.DataFrame) -> list[int]:
    """Return the runs whose resolved configuration and seed equal those of another run.

    The first of equal runs counts. A run that did not come to its end repeats one that did, but a finished run
    does not repeat one that diverged: both count.
    """
    found, seen = [], set()
    ordered = sorted(listed.index, key=lambda number: not results[number].status.done)
    for number in ordered:
        result = results[number]
        config = {key: value for key, value in leaves(result.config) if not is_without_effect(key)}
        own = json.dumps([listed.loc[number, "arm"], result.config.get(SEED), config], sort_keys=True, default=str)
        kinds = [result.status] if result.status.done else list(Status)
        if result.config and any((own, kind) in seen for kind in kinds):
            found.append(number)
        seen.add((own, result.status))
    return found


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


def arm_labels(results: Sequence[Result], factors: Factors) -> list[str]:
    """Return the name of each run's arm: its settings of all factors, or the model where nothing varies."""
    if factors.keys:
        rows = factors.settings[factors.keys].to_numpy().tolist()
        return [label(factors.keys, row) for row in rows]
    chosen = next((result.choices[MODEL] for result in results if MODEL in result.choices), UNKNOWN)
    return [label([MODEL], [chosen])] * len(results)


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
    return {
        "status": [result.status.value for result in results],
        SEED: seed_column(results),
        "best": [reached(result, value, worst) for result, value in zip(results, best, strict=True)],
        "last": [reached(result, value, worst) for result, value in zip(results, last, strict=True)],
        "untrained": [is_untrained(result) for result in results],
        "epochs": [result.epochs for result in results],
        "seconds": [result.seconds for result in results],
    }


def seed_column(results: Sequence[Result]) -> pd.Series:
    """Return the seed of each run, missing where it is not known."""
    seeds = [result.config.get(SEED) for result in results]
    return pd.Series([seed if isinstance(seed, int) else None for seed in seeds], dtype="Int64")


def is_untrained(result: Result) -> bool:
    """Return whether a run ended with a training loss that a net which looks at nothing has, within 1 %."""
    loss = result.last.metrics.get("train/loss") if result.last else None
    return loss is not None and result.chance is not None and loss >= 0.99 * result.chance


def reached(result: Result, value: float | None, worst: float) -> float:
    """Return the value that a run counts with: NaN if it did not come to its end, or has none."""
    if result.status == Status.DIVERGED:
        return worst
    return value if result.status == Status.FINISHED and value is not None else math.nan
