"""The runs, configurations and curves of a sweep as data frames, for its tables and figures."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from normlab.report.factors import (
    UNKNOWN_SETTING,
    Factors,
    config_leaves,
    find_factors,
    is_without_effect,
    short_names,
)
from normlab.results.result import Result, Status, worst_value
from normlab.results.sweep import Record, read_curves, read_unresolved, setting
from normlab.stats.configurations import ENDS, SEED, configuration_label, natural, summarize, target_summary
from normlab.stats.design import LR, MODEL, Scope
from normlab.stats.outcomes import final_mean

OPTIMIZER_KEYS = ("optimizer.", "scheduler.")

UNTRAINED = 0.9
"""The share of the loss of the best constant predictor above which a run counts as untrained."""


@dataclass(frozen=True)
class SweepSummary:
    """A sweep at a glance.

    Attributes:
        keys: what varies from arm to arm; see ``factors``.
        metric, direction: what was optimized, and whether ``min`` or ``max`` is good.
        runs: a row per run, sorted by arm and seed, indexed by the number of its record; see ``run_columns``.
            Runs that repeat the configuration and the seed of another are left out.
        arms: a row per arm, indexed by its name: what varies, what ``stats.arms.summarize`` found, and whether
            most of its runs are untrained.
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
    configurations: pd.DataFrame
    curves: pd.DataFrame
    untyped: tuple[str, ...]
    named: tuple[str, ...]
    listed: pd.DataFrame

    @property
    def repeated(self) -> int:
        """The number of runs that repeat the configuration and the seed of another."""
        return len(self.listed) - len(self.runs)


def summarize_sweep(records: Sequence[Record], compare: str | None = None) -> SweepSummary:
    """Return the runs, arms and curves of at least one record.

    Args:
        records: of the runs.
        compare: the key whose settings are the arms, by default ``model``.
    """
    results = [record.result for record in records]
    curves = read_curves(records)
    metric, direction = objective(results)
    factors = find_factors(results, lambda: [read_unresolved(record.folder) for record in records], compare)
    keys = factors.keys
    listed = factors.settings.assign(
        arm=arm_labels(results, factors), **run_columns(results, metric, direction, curves)
    )
    listed = listed.loc[
        sorted(listed.index, key=lambda number: setting_sort_key(listed.loc[number, [*keys, SEED]]))
    ]
    runs = listed[~listed.index.isin(repeats(results, listed))]
    arms = runs.drop_duplicates("arm").set_index("arm")[keys].join(summarize(runs))
    arms["mostly_untrained"] = runs.groupby("arm")["untrained"].mean() > 0.5
    return SweepSummary(keys, metric, direction, runs, arms, curves, factors.untyped, factors.named, listed)


def repeats(results: Sequence[Result], listed: pd.DataFrame) -> list[int]:
    """Return the runs whose resolved configuration and seed equal those of another run.

    The first of equal runs counts. A run that did not come to its end repeats one that did, but a finished run
    does not repeat one that diverged: both count.
    """
    found, seen = [], set()
    ordered = sorted(listed.index, key=lambda number: not results[number].status.done)
    for number in ordered:
        result = results[number]
        config = {key: value for key, value in config_leaves(result.config) if not is_without_effect(key)}
        own = json.dumps([listed.loc[number, "arm"], result.config.get(SEED), config], sort_keys=True, default=str)
        kinds = [result.status] if result.status.done else list(Status)
        if result.config and any((own, kind) in seen for kind in kinds):
            found.append(number)
        seen.add((own, result.status))
    return found


def with_times(sweep: SweepSummary, times: pd.DataFrame, curves: pd.DataFrame) -> SweepSummary:
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
    return replace(sweep, runs=runs, configurations=sweep.configurations.join(target_summary(runs)).join(target))


def setting_sort_key(settings: Iterable[object]) -> list[tuple]:
    """Return a sort key of a run, given its settings and seed."""
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
        return [configuration_label(factors.keys, row) for row in rows]
    chosen = next((result.choices[MODEL] for result in results if MODEL in result.choices), UNKNOWN_SETTING)
    return [configuration_label([MODEL], [chosen])] * len(results)


def run_columns(
    results: Sequence[Result], metric: str, direction: str, curves: pd.DataFrame
) -> dict[str, pd.Series | list]:
    """Return the columns of each run: its end, its outcomes, and what a verdict has to name.

    ``best`` is the best value of the metric, ``last`` that of the last validation. ``train_eval``, ``val`` and
    ``test`` are its means over the last tenth of the run's epochs, the first of the training split in evaluation
    mode. ``untrained`` and ``shortened`` (stopped early) are flags; ``scope``, ``train_rows``, ``test_rows`` and
    ``lr`` are those of ``stats.design``.
    """
    best = [r.best.metrics.get(metric) if r.best and r.objective.metric == metric else None for r in results]
    latest = curves[curves["metric"] == metric].groupby("run")["value"].last()
    last = [r.last.metrics.get(metric, latest.get(k)) if r.last else None for k, r in enumerate(results)]
    name = metric.partition("/")[2]
    sizes = [result.data for result in results]
    return {
        "status": [result.status.value for result in results],
        SEED: seed_column(results),
        "best": [counted_value(r, value, worst_value(direction)) for r, value in zip(results, best, strict=True)],
        "last": [counted_value(r, value, worst_value(direction)) for r, value in zip(results, last, strict=True)],
        **{end: final(results, f"{end}/{name}", direction, curves) for end in ENDS},
        "untrained": [is_untrained(result) for result in results],
        "shortened": [is_shortened(result) for result in results],
        "scope": scopes_of(results),
        "train_rows": [data.get("train", math.nan) for data in sizes],
        "test_rows": [data.get("test", math.nan) for data in sizes],
        "lr": [setting(result, LR) or "" for result in results],
        "epochs": [result.epochs for result in results],
        "seconds": [result.seconds for result in results],
    }


def final(results: Sequence[Result], metric: str, direction: str, curves: pd.DataFrame) -> list[float]:
    """Return the mean of a metric over the last tenth of each run's epochs.

    Taken from the record, or else from the curve; infinite if the run diverged, NaN where it is not known.
    """
    own = curves[curves["metric"] == metric]
    known = {int(str(run)): rows for run, rows in own.groupby("run")}
    found = []
    for number, result in enumerate(results):
        value = result.final.get(metric)
        if value is None and number in known and result.epochs:
            by_epoch = known[number].set_index("epoch")["value"]
            values = by_epoch[~by_epoch.index.duplicated()].reindex(range(1, result.epochs + 1))
            value = float(final_mean(values.to_numpy(dtype=float), result.epochs))
        found.append(counted_value(result, value, worst_value(direction)))
    return found


def scopes_of(results: Sequence[Result]) -> list[str]:
    """Return the scope of each run: the difference between it and its replicates.

    Without ``replicate=data`` all replicates have one dataset, unless ``data.seed`` is set to the seed of the
    run.
    """
    pairs = [(result.config.get(SEED), (result.config.get("data") or {}).get(SEED)) for result in results]
    follows = len({seed for seed, _ in pairs}) > 1 and all(seed == of_data for seed, of_data in pairs)
    replicated = [follows or result.config.get("replicate") == "data" for result in results]
    own = [Scope.DRAW if result.data.get("generated") else Scope.SPLIT for result in results]
    return [(scope if differs else Scope.SEED).value for scope, differs in zip(own, replicated, strict=True)]


def is_shortened(result: Result) -> bool:
    """Return whether a run ended before its budget of epochs although it did not diverge."""
    budget = (result.config.get("trainer") or {}).get("max_epochs")
    return result.status == Status.FINISHED and isinstance(budget, int) and result.epochs < budget


def seed_column(results: Sequence[Result]) -> pd.Series:
    """Return the seed of each run, missing where it is not known."""
    seeds = [result.config.get(SEED) for result in results]
    return pd.Series([seed if isinstance(seed, int) else None for seed in seeds], dtype="Int64")


def is_untrained(result: Result) -> bool:
    """Return whether the final training loss is not at least 10 % below that of the best constant predictor."""
    loss = result.final.get("train_eval/loss")
    if loss is None and result.last:
        loss = result.last.metrics.get("train/loss")
    finished = result.status == Status.FINISHED and result.epochs > 0
    return finished and loss is not None and result.chance is not None and loss > UNTRAINED * result.chance


def counted_value(result: Result, value: float | None, worst: float) -> float:
    """Return the value that a run counts with: NaN if it did not come to its end, or has none."""
    if result.status == Status.DIVERGED:
        return worst
    return value if result.status == Status.FINISHED and value is not None else math.nan


def split_by_panel(sweep: SweepSummary) -> dict[str, SweepSummary]:
    """Return the parts of a sweep by what they have in common, such as ``init=kaiming``.

    In each, arms are told apart by their normalizer, the first of the keys, and by numbers of the optimizer. A
    sweep that does not vary the normalizer, or nothing else than these, is one part without a name.
    """
    own = [
        key for key in sweep.keys if key == MODEL or (key.startswith(OPTIMIZER_KEYS) and key not in sweep.untyped)
    ]
    others = [key for key in sweep.keys if key not in own]
    if MODEL not in own or not others:
        return {"": sweep}
    own.sort(key=lambda key: key != MODEL)
    groups = sorted(
        set(sweep.configurations[others].itertuples(index=False, name=None)), key=lambda row: [*map(natural, row)]
    )
    names = short_names(others)
    return {
        configuration_label(names, group): part(sweep, own, dict(zip(others, group, strict=True)))
        for group in groups
    }


def part(sweep: SweepSummary, own: list[str], common: dict[str, str]) -> SweepSummary:
    """Return the arms of a sweep with these settings in common, named by their ``own``."""
    arms = sweep.configurations[(sweep.configurations[list(common)] == list(common.values())).all(axis=1)]
    names = {
        arm: configuration_label(own, row)
        for arm, row in zip(arms.index, arms[own].to_numpy().tolist(), strict=True)
    }
    runs = sweep.runs[sweep.runs["arm"].isin(names)]
    return replace(
        sweep, keys=own, configurations=arms.rename(index=names), runs=runs.assign(arm=runs["arm"].map(names))
    )
