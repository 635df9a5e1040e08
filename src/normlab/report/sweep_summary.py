"""The runs, configurations, curves and probes of a sweep as data frames; the entry is :func:`summarize_sweep`."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from normlab.config.frozen import config_leaves
from normlab.config.schema import MAXIMIZED, MINIMIZED
from normlab.report.factors import (
    UNKNOWN_SETTING,
    Factors,
    find_factors,
    is_without_effect,
)
from normlab.results.reading import read_curves, read_probes, warn_of_missing_epochs
from normlab.results.result import Result, Status, worst_value
from normlab.results.sweep import Record, setting
from normlab.stats.design import (
    ENDS,
    LR,
    MODEL,
    SEED,
    Scope,
    configuration_label,
    natural,
    summarize,
    target_summary,
)
from normlab.stats.estimates import final_mean, quartiles

UNTRAINED_SHARE = 0.9
"""A run is untrained if its loss exceeds this share of the loss of the best constant predictor."""


@dataclass(frozen=True)
class SweepSummary:
    """A sweep, read once: its records, and its runs and configurations as data frames.

    Attributes:
        records: the records of the runs; their numbers are the index of ``runs``.
        keys: the keys that vary between configurations; see :mod:`normlab.report.factors`.
        metric, direction: the optimized metric, and its direction ``min`` or ``max``.
        runs: a row per run without repeated runs, sorted by configuration and seed, indexed by record number; see
            :func:`run_columns`.
        configurations: a row per configuration, indexed by its name: its settings, the columns of
            :func:`normlab.stats.design.summarize`, and ``mostly_untrained``, True if more than half of its
            runs are untrained.
        curves: a row per run, epoch and metric.
        probes: a row per run, step, probe, mode and quantity.
        probe_numbers: a row per record, a column ``probe/<probe>/<mode>/<quantity>`` per headline number.
        implicit: those of ``keys`` that differ without an override; they form panels.
        named: further keys whose settings are part of the name of an arm; they have a column in ``listed``.
        listed: like ``runs``, including repeated runs.

    :func:`with_times` adds the columns ``target`` and ``epochs_to_target``.
    """

    records: Sequence[Record]
    keys: list[str]
    metric: str
    direction: str
    runs: pd.DataFrame
    configurations: pd.DataFrame
    curves: pd.DataFrame
    probes: pd.DataFrame
    probe_numbers: pd.DataFrame
    implicit: tuple[str, ...]
    named: tuple[str, ...]
    listed: pd.DataFrame

    @property
    def repeated(self) -> int:
        """The number of runs that repeat the configuration and seed of another run."""
        return len(self.listed) - len(self.runs)


def summarize_sweep(records: Sequence[Record], compare: str | None = None) -> SweepSummary:
    """Build the summary of a sweep.

    Args:
        records: at least one record.
        compare: the compared factor, by default ``model``.
    """
    results = [record.result for record in records]
    curves = read_curves(records)
    warn_of_missing_epochs(records, curves)
    metric, direction = common_objective(results)
    factors = find_factors(results, lambda: [record.unresolved() for record in records], compare)
    keys = factors.keys
    listed = factors.settings.assign(
        configuration=configuration_labels(results, factors), **run_columns(results, metric, direction, curves)
    )
    settings_and_seeds = zip(*(listed[key].tolist() for key in (*keys, SEED)), strict=True)
    sort_keys = [setting_sort_key(row) for row in settings_and_seeds]
    listed = listed.iloc[sorted(range(len(listed)), key=sort_keys.__getitem__)]
    runs = listed[~listed.index.isin(repeated_runs(results, listed))]
    settings = runs.drop_duplicates("configuration").set_index("configuration")[keys]
    configurations = settings.join(summarize(runs))
    configurations["mostly_untrained"] = runs.groupby("configuration")["untrained"].mean() > 0.5
    return SweepSummary(
        records=records,
        keys=keys,
        metric=metric,
        direction=direction,
        runs=runs,
        configurations=configurations,
        curves=curves,
        probes=read_probes(records).drop_duplicates(["run", "probe", "mode", "quantity", "step"], keep="last"),
        probe_numbers=pd.DataFrame([result.probes for result in results], range(len(results)), dtype=float),
        implicit=factors.implicit,
        named=factors.named,
        listed=listed,
    )


def repeated_runs(results: Sequence[Result], listed: pd.DataFrame) -> list[int]:
    """Return the runs whose resolved configuration and seed equal those of an earlier run.

    A stopped or failed run repeats a finished or diverged one. A finished and a diverged run do not repeat each
    other: both count.
    """
    repeated, seen = [], set()
    ordered = sorted(listed.index, key=lambda number: not results[number].status.done)
    names = dict(zip(listed.index, listed["configuration"], strict=True))
    for number in ordered:
        result = results[number]
        config = {key: value for key, value in config_leaves(result.config) if not is_without_effect(key)}
        key = json.dumps([names[number], result.config.get(SEED), config], sort_keys=True, default=str)
        statuses = [result.status] if result.status.done else list(Status)
        if result.config and any((key, status) in seen for status in statuses):
            repeated.append(number)
        seen.add((key, result.status))
    return repeated


def with_times(sweep: SweepSummary, times: pd.DataFrame, curves: pd.DataFrame) -> SweepSummary:
    """Add the ``target`` and the ``epochs_to_target`` of each run and configuration.

    Args:
        sweep: the sweep.
        times: a row per run with the columns ``target`` and ``steps``, the steps to the target.
        curves: a row per run and evaluation with the columns ``run``, ``epoch`` and ``step``.
    """
    at = times["steps"].rename("step").rename_axis("run").reset_index()
    known = curves[["run", "step", "epoch"]].drop_duplicates(["run", "step"])
    # Infinite and unknown times have no epoch in the curves and stay infinite or unknown.
    epochs = at.merge(known.astype({"step": float}), how="left")["epoch"].fillna(at["step"]).set_axis(times.index)
    runs = sweep.runs.assign(target=times["target"], epochs_to_target=epochs.astype(float))
    target = runs.groupby("configuration")["target"].first()
    return replace(sweep, runs=runs, configurations=sweep.configurations.join(target_summary(runs)).join(target))


def setting_sort_key(settings: Iterable[object]) -> list[tuple]:
    """Return the sort key of a run from its settings and its seed."""
    return [natural(str(setting)) for setting in settings]


def common_objective(results: Sequence[Result]) -> tuple[str, str]:
    """Return the metric and direction that most runs optimized."""
    counts = Counter((result.objective.metric, result.objective.direction) for result in results)
    known = sorted(pair for pair in counts if all(pair))
    return max(known, key=counts.__getitem__, default=("val/loss", "min"))


def configuration_labels(results: Sequence[Result], factors: Factors) -> list[str]:
    """Return the name of each run's configuration: its settings of all factors, or the model if nothing varies."""
    if factors.keys:
        rows = factors.settings[factors.keys].to_numpy().tolist()
        return [configuration_label(factors.keys, row) for row in rows]
    model = next((result.choices[MODEL] for result in results if MODEL in result.choices), UNKNOWN_SETTING)
    return [configuration_label([MODEL], [model])] * len(results)


def run_columns(
    results: Sequence[Result], metric: str, direction: str, curves: pd.DataFrame
) -> dict[str, pd.Series | list]:
    """Return the columns that describe each run.

    ``best`` is the best value of the metric, ``last`` that of the last validation. ``train_eval``, ``val`` and
    ``test`` are means of the metric over the last tenth of the epochs; ``train_eval`` is the training split in
    evaluation mode. ``untrained`` and ``shortened`` (stopped early) are flags. ``scope``, ``train_rows``,
    ``test_rows`` and ``lr`` are described in :mod:`normlab.stats.design`.
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
        **{end: final_values(results, f"{end}/{name}", direction, curves) for end in ENDS},
        "untrained": [is_untrained(result) for result in results],
        "shortened": [is_shortened(result) for result in results],
        "scope": replicate_scopes(results),
        "train_rows": [data.get("train", math.nan) for data in sizes],
        "test_rows": [data.get("test", math.nan) for data in sizes],
        "lr": [setting(result, LR) or "" for result in results],
        "epochs": [result.epochs for result in results],
        "seconds": [result.seconds for result in results],
    }


def final_values(results: Sequence[Result], metric: str, direction: str, curves: pd.DataFrame) -> list[float]:
    """Return the mean of a metric over the last tenth of each run's epochs.

    It comes from the record, or else from the curve. It is infinite for a diverged run and NaN if unknown.
    """
    unrecorded = [
        number for number, result in enumerate(results) if result.final.get(metric) is None and result.epochs
    ]
    rows = curves[(curves["metric"] == metric) & curves["run"].isin(unrecorded)] if unrecorded else curves.iloc[:0]
    known = {int(str(run)): of_run for run, of_run in rows.groupby("run")}
    finals = []
    for number, result in enumerate(results):
        value = result.final.get(metric)
        if value is None and number in known and result.epochs:
            by_epoch = known[number].set_index("epoch")["value"]
            values = by_epoch[~by_epoch.index.duplicated()].reindex(range(1, result.epochs + 1))
            value = float(final_mean(values.to_numpy(dtype=float), result.epochs))
        finals.append(counted_value(result, value, worst_value(direction)))
    return finals


def replicate_scopes(results: Sequence[Result]) -> list[str]:
    """Return the kind of replicate of each run: ``draw``, ``split`` or ``seed``.

    Without ``replicate=data`` all replicates share one dataset, unless ``data.seed`` equals the seed of each run.
    """
    pairs = [(result.config.get(SEED), (result.config.get("data") or {}).get(SEED)) for result in results]
    follows = len({seed for seed, _ in pairs}) > 1 and all(seed == data_seed for seed, data_seed in pairs)
    replicated = [follows or result.config.get("replicate") == "data" for result in results]
    scopes = [Scope.DRAW if result.data.get("generated") else Scope.SPLIT for result in results]
    return [(scope if differs else Scope.SEED).value for scope, differs in zip(scopes, replicated, strict=True)]


def is_shortened(result: Result) -> bool:
    """Return True if a run finished before using up its budget of epochs (early stopping)."""
    budget = (result.config.get("trainer") or {}).get("max_epochs")
    return result.status == Status.FINISHED and isinstance(budget, int) and result.epochs < budget


def seed_column(results: Sequence[Result]) -> pd.Series:
    """Return the seed of each run, or a missing value if it is unknown."""
    seeds = [result.config.get(SEED) for result in results]
    return pd.Series([seed if isinstance(seed, int) else None for seed in seeds], dtype="Int64")


def is_untrained(result: Result) -> bool:
    """Return True if a finished run's training loss exceeds 90 % of the best constant predictor's loss."""
    loss = result.final.get("train_eval/loss")
    if loss is None and result.last:
        loss = result.last.metrics.get("train/loss")
    finished = result.status == Status.FINISHED and result.epochs > 0
    return finished and loss is not None and result.chance is not None and loss > UNTRAINED_SHARE * result.chance


def counted_value(result: Result, value: float | None, worst: float) -> float:
    """Return ``value`` for a finished run, ``worst`` for a diverged run, NaN otherwise or if it is None."""
    if result.status == Status.DIVERGED:
        return worst
    return value if result.status == Status.FINISHED and value is not None else math.nan


BANDS = ("lower", "median", "upper")


def quartile_curves(sweep: SweepSummary, rows: pd.DataFrame, names: pd.Series | None = None) -> pd.DataFrame:
    """Return the quartiles over the runs of each name at each step.

    For losses and other metrics with a direction, they are over all runs: a diverged run has the worst value from
    its divergence on, and the curve ends with the shortest run. For other quantities they are over the runs that
    did not diverge, at steps where at least half of them have a value.

    Args:
        sweep: the sweep.
        rows: values with the columns ``CURVE_COLUMNS``.
        names: the name of each run; by default its configuration, for one run per seed that finished or diverged,
            or else stopped or failed.

    Returns:
        The columns ``name``, ``metric``, ``epoch``, ``step`` and ``BANDS``, in the order of ``names``.
    """
    names = counted_runs(sweep) if names is None else names
    rows = rows[rows["run"].isin(names.index)].drop_duplicates(["run", "metric", "step"], keep="last")
    diverged = sweep.runs["status"].reindex(names.index) == Status.DIVERGED
    worst = {metric: worst_of(str(metric), sweep) for metric in rows["metric"].unique()}
    frames = []
    parts = dict(list(rows.groupby(rows["run"].map(names))))
    for name in filter(parts.__contains__, names.unique()):
        wide = parts[name].pivot(index=["metric", "epoch", "step"], columns="run", values="value")
        wide = wide.reindex(columns=names.index[names == name])
        of_metric = wide.index.get_level_values("metric").map(worst).to_numpy(dtype=float)
        three = counted_quartiles(wide.to_numpy(dtype=float), of_metric, diverged[wide.columns].to_numpy())
        frames.append(wide.index.to_frame(index=False).assign(name=name, **dict(zip(BANDS, three, strict=True))))
    columns = ["name", "metric", "epoch", "step", *BANDS]
    curves = pd.concat(frames)[columns] if frames else pd.DataFrame(columns=columns)
    return curves[curves["median"].notna()].sort_values("step", kind="stable")


def counted_runs(sweep: SweepSummary) -> pd.Series:
    """Return the configuration of one run per seed: a finished or diverged one, if the configuration has any."""
    is_done = sweep.runs["status"].isin([Status.FINISHED, Status.DIVERGED])
    counted = sweep.runs[is_done | ~is_done.groupby(sweep.runs["configuration"]).transform("any")]
    return counted.drop_duplicates(["configuration", SEED])["configuration"]


def counted_quartiles(values: np.ndarray, worst: np.ndarray, diverged: np.ndarray) -> np.ndarray:
    """Return the quartiles over runs, ``(3, n)``.

    Args:
        values: the values of the runs, ``(n x runs)``.
        worst: the worst value of each metric, ``(n,)``; NaN for quantities without a direction.
        diverged: True for diverged runs, ``(runs,)``.
    """
    has_worst, nonfinite = ~np.isnan(worst)[:, None], ~np.isfinite(values)
    counted = np.where(has_worst & diverged & nonfinite, worst[:, None], values)
    counted[~has_worst & (nonfinite | diverged)] = np.nan
    required = np.where(has_worst[:, 0], len(diverged), np.maximum(1, np.ceil((~diverged).sum() / 2)))
    return quartiles(counted, required)


def worst_of(name: str, sweep: SweepSummary) -> float:
    """Return the worst possible value of a metric, ±∞; NaN for a quantity without a direction."""
    split, _, metric = name.partition("/")
    if name == sweep.metric:
        return math.inf if sweep.direction == "min" else -math.inf
    if split not in ("train", "train_eval", "val", "test") or metric not in MINIMIZED + MAXIMIZED:
        return math.nan
    return math.inf if metric in MINIMIZED else -math.inf
