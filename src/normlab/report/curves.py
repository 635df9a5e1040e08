"""Quartiles of learning curves over the runs of a configuration or an arm; see :func:`quartile_curves`."""

import math
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd

from normlab.config.schema import MAXIMIZED, MINIMIZED
from normlab.report.sweep_summary import SweepSummary
from normlab.results.result import Status
from normlab.results.series import CURVE_COLUMNS, Point
from normlab.stats.design import SEED
from normlab.stats.estimates import quartiles

BANDS = ("lower", "median", "upper")
QUARTILES, AT_ITS_BEST = "quartiles/", ("best/", "test/")


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
    names = run_names(sweep) if names is None else names
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


def run_names(sweep: SweepSummary) -> pd.Series:
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


def configuration_curves(sweep: SweepSummary) -> dict[str, list[Point]]:
    """Return the TensorBoard points of each configuration that has any finished or diverged runs.

    The median has the name of its metric; losses, other metrics with a direction and headline numbers of probes
    have the tags of :func:`bands` too.
    """
    names = run_names(sweep)
    ended = sweep.runs["status"].isin([Status.FINISHED, Status.DIVERGED])
    curves = quartile_curves(sweep, curve_rows(sweep), names[ended.reindex(names.index)])
    headline = {name for record in sweep.records for name in record.result.probes}
    has_band = {
        name: name in headline or not math.isnan(worst_of(name, sweep)) for name in curves["metric"].unique()
    }
    now = time.time()
    points: dict[str, dict[tuple[int, int], dict[str, float]]] = {
        str(name): {} for name in sweep.configurations.index
    }
    for name, metric, epoch, step, *three in curves.itertuples(index=False, name=None):
        metrics = points[name].setdefault((epoch, step), {})
        metrics[metric] = three[1]
        if has_band[metric]:
            metrics |= dict(zip(bands(metric), three, strict=True))
    return {
        name: [Point(epoch, step, now, metrics) for (epoch, step), metrics in sorted(of_name.items())]
        for name, of_name in points.items()
        if of_name
    }


def curve_rows(sweep: SweepSummary) -> pd.DataFrame:
    """Return the training curves and the headline numbers of probes, a row per run, metric and step."""
    names = [name for name in sweep.curves["metric"].unique() if not name.startswith(AT_ITS_BEST)]
    curves = sweep.curves[sweep.curves["metric"].isin(names)]
    return pd.concat([curves, *probe_rows(sweep.probes)], ignore_index=True).astype({"metric": "category"})


def probe_rows(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the numbers of probes with the columns of curves, if there are any."""
    if len(rows):
        source = ["probe", "mode", "quantity"]
        groups, distinct = rows.groupby(source, observed=True).ngroup(), rows[source].drop_duplicates()
        tags = "probe/" + distinct.astype(str).agg("/".join, axis=1)
        yield rows.assign(metric=groups.map(tags.set_axis(groups[tags.index])))[list(CURVE_COLUMNS)]


def bands(metric: str) -> list[str]:
    """Return the TensorBoard tags of the quartiles of a metric.

    >>> bands("val/loss")
    ['quartiles/val/loss/lower', 'quartiles/val/loss/median', 'quartiles/val/loss/upper']
    """
    # Runs must lack these tags: TensorBoard warns about each run that has only some tags of a chart with a band.
    return [f"{QUARTILES}{metric}/{name}" for name in BANDS]
