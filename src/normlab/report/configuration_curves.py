"""The curves of a sweep's arms: the quartiles over an arm's seeds at each step.

n is the number of values of all metrics and steps.
"""

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from normlab.config.schema import MAXIMIZED, MINIMIZED
from normlab.report.sweep_summary import SweepSummary
from normlab.results.curves import Point
from normlab.results.probes import read_probes
from normlab.results.result import Status
from normlab.results.sweep import CURVE_COLUMNS, Record
from normlab.stats.configurations import SEED

QUARTILE_SHARES = {"lower": 0.25, "median": 0.5, "upper": 0.75}
QUARTILES, AT_ITS_BEST = "quartiles/", ("best/", "test/")


def configuration_curves(sweep: SweepSummary, records: Sequence[Record]) -> dict[str, list[Point]]:
    """Return the points of each arm that has any: a median by its metric's name, and quartiles beside it.

    Of a metric that can be good or bad the median is over all seeds whose runs finished or diverged, as long as
    none has stopped; a run that diverged has the worst value from then on. Of other numbers it is over the seeds
    whose runs finished, where half of them or more have one.
    """
    headline = {name for record in records for name in record.result.probes}
    ended = sweep.runs[sweep.runs["status"].isin([Status.FINISHED, Status.DIVERGED])]
    ended = ended.drop_duplicates(["configuration", SEED])
    rows = values(sweep, records)
    found: dict[str, list[Point]] = {}
    for arm, part in rows.groupby(rows["run"].map(ended["configuration"]), sort=False):
        wide = part.pivot(index=["metric", "epoch", "step"], columns="run", values="value")
        runs = ended[ended["configuration"] == arm]
        metrics = wide.index.get_level_values("metric")
        worst = metrics.map({name: worst_of(name, sweep) for name in metrics.unique()}).to_numpy(dtype=float)
        taken = wide.reindex(columns=runs.index).to_numpy(dtype=float)
        over = configuration_quartiles(taken, worst, (runs["status"] == Status.DIVERGED).to_numpy())
        found[str(arm)] = list(over_time(wide.index, over, ~np.isnan(worst) | metrics.isin(headline)))
    return {arm: found[arm] for arm in sweep.configurations.index if found.get(arm)}


def values(sweep: SweepSummary, records: Sequence[Record]) -> pd.DataFrame:
    """Return the curves, and what probes found as if it were of them: a row per run, metric and step."""
    names = [name for name in sweep.curves["metric"].unique() if not name.startswith(AT_ITS_BEST)]
    curves = sweep.curves[sweep.curves["metric"].isin(names)]
    rows = pd.concat([curves, *probed(records)], ignore_index=True).astype({"metric": "category"})
    return rows.drop_duplicates(["run", "metric", "step"], keep="last")


def probed(records: Sequence[Record]) -> Iterator[pd.DataFrame]:
    """Yield the headline numbers of probes as rows of curves."""
    rows = read_probes(records)
    if len(rows):
        source = ["probe", "mode", "quantity"]
        of, found = rows.groupby(source, observed=True).ngroup(), rows[source].drop_duplicates()
        tags = "probe/" + found.astype(str).agg("/".join, axis=1)
        yield rows.assign(metric=of.map(tags.set_axis(of[tags.index])))[list(CURVE_COLUMNS)]


def worst_of(name: str, sweep: SweepSummary) -> float:
    """Return the value of a metric that every other is better than; NaN if none is good or bad."""
    split, _, metric = name.partition("/")
    if name == sweep.metric:
        return math.inf if sweep.direction == "min" else -math.inf
    if split not in ("train", "val", "test") or metric not in MINIMIZED + MAXIMIZED:
        return math.nan
    return math.inf if metric in MINIMIZED else -math.inf


def configuration_quartiles(taken: np.ndarray, worst: np.ndarray, diverged: np.ndarray) -> np.ndarray:
    """Return the quartiles ``(3, n)`` of an arm.

    Args:
        taken: what its runs came to, ``(n x seeds)``.
        worst: the worst value of each metric, ``(n,)``; NaN where there is none.
        diverged: which of the runs did, ``(seeds,)``.
    """
    judged, lost = ~np.isnan(worst)[:, None], ~np.isfinite(taken)
    known = np.where(judged & diverged & lost, worst[:, None], taken)
    known[~judged & (lost | diverged)] = np.nan
    least = np.where(judged[:, 0], len(diverged), np.maximum(1, np.ceil((~diverged).sum() / 2)))
    return quartiles(known, least)


def quartiles(values: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Return the quartiles ``(3, n)`` of ``(n x seeds)``, NaN where fewer than ``least``, ``(n,)``, are known.

    >>> x = np.array([[1.0, 3.0, 2.0], [1.0, np.inf, 2.0], [5.0, np.nan, 3.0], [5.0, np.nan, np.nan]])
    >>> quartiles(x, np.array([3, 3, 2, 2])).T.tolist()
    [[1.5, 2.0, 2.5], [1.5, 2.0, inf], [3.5, 4.0, 4.5], [nan, nan, nan]]
    """
    known = (~np.isnan(values)).sum(axis=1)
    ordered = np.sort(values, axis=1)
    place = np.maximum(known - 1, 0) * np.array([list(QUARTILE_SHARES.values())]).T
    below, above = (np.take_along_axis(ordered, at(place).astype(int).T, axis=1).T for at in (np.floor, np.ceil))
    with np.errstate(invalid="ignore"):
        share = place % 1
        found = np.where(below == above, below, (1 - share) * below + share * above)
    found[:, known < least] = np.nan
    return found


def over_time(moments: pd.Index, over: np.ndarray, banded: np.ndarray) -> Iterator[Point]:
    """Yield the points of an arm's quartiles, ``(3, n)``: the outer ones where it is ``banded``, ``(n,)``."""
    points: dict[tuple[int, int], dict[str, float]] = {}
    known = ~np.isnan(over[1])
    for (metric, epoch, step), three, band in zip(
        moments[known], over.T[known].tolist(), banded[known], strict=True
    ):
        metrics = points.setdefault((epoch, step), {})
        metrics[metric] = three[1]
        if band:
            metrics |= dict(zip(bands(metric), three, strict=True))
    now = time.time()
    return (Point(epoch, step, now, points[epoch, step]) for epoch, step in sorted(points))


def bands(metric: str) -> list[str]:
    """Return the names of the quartiles of a metric.

    >>> bands("val/loss")
    ['quartiles/val/loss/lower', 'quartiles/val/loss/median', 'quartiles/val/loss/upper']
    """
    # A chart with a band takes all three from tags that runs do not have, or complains about every run.
    return [f"{QUARTILES}{metric}/{name}" for name in QUARTILE_SHARES]
