"""Learning curves of configurations: quartiles over the seeds at each step; see :func:`configuration_curves`.

In the shapes below, n is the number of pairs of a metric and a step.
"""

import math
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd

from normlab.config.schema import MAXIMIZED, MINIMIZED
from normlab.report.sweep_summary import SweepSummary
from normlab.results.result import Status
from normlab.results.series import CURVE_COLUMNS, Point
from normlab.stats.configurations import SEED
from normlab.stats.estimates import quartiles

BANDS = ("lower", "median", "upper")
QUARTILES, AT_ITS_BEST = "quartiles/", ("best/", "test/")


def configuration_curves(sweep: SweepSummary) -> dict[str, list[Point]]:
    """Return the median and quartile points of each configuration that has any.

    The median has the name of its metric, the quartiles the names of :func:`bands`. For losses and other metrics
    with a direction, quartiles are over the seeds whose runs finished or diverged; a diverged run has the worst
    value from its divergence on, and the curve ends with the shortest run. For other quantities they are over the
    finished seeds, at steps where at least half of them have a value.
    """
    headline = {name for record in sweep.records for name in record.result.probes}
    ended = sweep.runs[sweep.runs["status"].isin([Status.FINISHED, Status.DIVERGED])]
    ended = ended.drop_duplicates(["configuration", SEED])
    rows = curve_rows(sweep)
    points: dict[str, list[Point]] = {}
    for configuration, part in rows.groupby(rows["run"].map(ended["configuration"]), sort=False):
        wide = part.pivot(index=["metric", "epoch", "step"], columns="run", values="value")
        runs = ended[ended["configuration"] == configuration]
        metrics = wide.index.get_level_values("metric")
        worst = metrics.map({name: worst_of(name, sweep) for name in metrics.unique()}).to_numpy(dtype=float)
        by_run = wide.reindex(columns=runs.index).to_numpy(dtype=float)
        over_seeds = configuration_quartiles(by_run, worst, (runs["status"] == Status.DIVERGED).to_numpy())
        is_banded = ~np.isnan(worst) | metrics.isin(headline)
        points[str(configuration)] = list(quartile_points(wide.index, over_seeds, is_banded))
    return {name: points[name] for name in sweep.configurations.index if points.get(name)}


def curve_rows(sweep: SweepSummary) -> pd.DataFrame:
    """Return the training curves and the headline numbers of probes, a row per run, metric and step."""
    names = [name for name in sweep.curves["metric"].unique() if not name.startswith(AT_ITS_BEST)]
    curves = sweep.curves[sweep.curves["metric"].isin(names)]
    rows = pd.concat([curves, *probe_rows(sweep.probes)], ignore_index=True).astype({"metric": "category"})
    return rows.drop_duplicates(["run", "metric", "step"], keep="last")


def probe_rows(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the numbers of probes with the columns of curves, if there are any."""
    if len(rows):
        source = ["probe", "mode", "quantity"]
        groups, distinct = rows.groupby(source, observed=True).ngroup(), rows[source].drop_duplicates()
        tags = "probe/" + distinct.astype(str).agg("/".join, axis=1)
        yield rows.assign(metric=groups.map(tags.set_axis(groups[tags.index])))[list(CURVE_COLUMNS)]


def worst_of(name: str, sweep: SweepSummary) -> float:
    """Return the worst possible value of a metric, ±∞; NaN for a quantity without a direction."""
    split, _, metric = name.partition("/")
    if name == sweep.metric:
        return math.inf if sweep.direction == "min" else -math.inf
    if split not in ("train", "val", "test") or metric not in MINIMIZED + MAXIMIZED:
        return math.nan
    return math.inf if metric in MINIMIZED else -math.inf


def configuration_quartiles(values: np.ndarray, worst: np.ndarray, diverged: np.ndarray) -> np.ndarray:
    """Return the quartiles over the seeds of a configuration, ``(3, n)``.

    Args:
        values: the values of its runs, ``(n x seeds)``.
        worst: the worst value of each metric, ``(n,)``; NaN for quantities without a direction.
        diverged: True for diverged runs, ``(seeds,)``.
    """
    has_worst, nonfinite = ~np.isnan(worst)[:, None], ~np.isfinite(values)
    counted = np.where(has_worst & diverged & nonfinite, worst[:, None], values)
    counted[~has_worst & (nonfinite | diverged)] = np.nan
    required = np.where(has_worst[:, 0], len(diverged), np.maximum(1, np.ceil((~diverged).sum() / 2)))
    return quartiles(counted, required)


def quartile_points(index: pd.Index, over_seeds: np.ndarray, banded: np.ndarray) -> Iterator[Point]:
    """Yield the curve points of a configuration.

    Args:
        index: metric, epoch and step of each value, ``(n,)``.
        over_seeds: quartiles over the seeds, ``(3, n)``.
        banded: True where a point has the outer quartiles beside the median, ``(n,)``.
    """
    points: dict[tuple[int, int], dict[str, float]] = {}
    known = ~np.isnan(over_seeds[1])
    for (metric, epoch, step), three, has_band in zip(
        index[known], over_seeds.T[known].tolist(), banded[known], strict=True
    ):
        metrics = points.setdefault((epoch, step), {})
        metrics[metric] = three[1]
        if has_band:
            metrics |= dict(zip(bands(metric), three, strict=True))
    now = time.time()
    return (Point(epoch, step, now, points[epoch, step]) for epoch, step in sorted(points))


def bands(metric: str) -> list[str]:
    """Return the TensorBoard tags of the quartiles of a metric.

    >>> bands("val/loss")
    ['quartiles/val/loss/lower', 'quartiles/val/loss/median', 'quartiles/val/loss/upper']
    """
    # Runs must lack these tags: TensorBoard warns about each run that has only some tags of a chart with a band.
    return [f"{QUARTILES}{metric}/{name}" for name in BANDS]
