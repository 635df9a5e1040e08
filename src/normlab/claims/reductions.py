"""Numbers of runs from their curves and probes, by the name of a quantity; the entry is :func:`run_values`.

=============================  ================================================================================
``split/metric``               mean over the last tenth of the epochs, as in ``test/loss``
``probe/<name>/<mode>/<of>``   last value of a number of a probe, also of a layer
``first/<series>``             first value of such a curve or probe
``mean/<series>``              mean over all its measurements
``last_third/<series>``        mean over the last third of its measurements
``at/<epoch>/<series>``        value at an epoch
``steps/<series>/<target>``    optimizer steps until a curve reaches a target; infinite if it never does
=============================  ================================================================================
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from normlab.errors import ConfigError, require
from normlab.report.report_data import ReportData
from normlab.report.sweep_summary import final_values
from normlab.results.result import worst_value
from normlab.stats.design import is_number
from normlab.stats.learning_speed import times_to

STEPS, PROBE, AT = "steps", "probe", "at"
REDUCTIONS = ("first", "mean", "last_third", AT, STEPS)


@dataclass(frozen=True)
class Quantity:
    """A number of each run.

    Attributes:
        series: the name of a curve, ``split/metric``, or of a probe's numbers, ``probe/<name>/<mode>/<of>``.
        reduction: one of ``REDUCTIONS``; empty for the last value of a probe and the final mean of a curve.
        argument: the epoch of ``at``, the target of ``steps``; else 0.
    """

    series: str
    reduction: str = ""
    argument: float = 0.0

    @classmethod
    def parse(cls, name: str) -> "Quantity":
        """Parse the name of a quantity.

        Raises:
            ConfigError: if the epoch or the target is missing.

        >>> Quantity.parse("steps/val/loss/0.1")
        Quantity(series='val/loss', reduction='steps', argument=0.1)
        >>> Quantity.parse("at/20/train/loss").argument, Quantity.parse("first/probe/graph/batch/nodes").series
        (20.0, 'probe/graph/batch/nodes')
        """
        reduction, _, rest = name.partition("/")
        if reduction not in REDUCTIONS:
            return cls(name)
        if reduction not in (AT, STEPS):
            return cls(rest, reduction)
        (number, _, series), form = rest.partition("/"), f"{AT}/<epoch>/<series>, such as {AT}/20/val/loss"
        if reduction == STEPS:
            (series, _, number), form = (
                rest.rpartition("/"),
                f"{STEPS}/<metric>/<target>, such as {STEPS}/val/loss/0.1",
            )
        require(is_number(number) and "/" in series, "metric", form, name)
        return cls(series, reduction, float(number))

    @property
    def is_probe(self) -> bool:
        """True if the series is measured by a probe."""
        return self.series.startswith(f"{PROBE}/")


def run_values(data: ReportData, quantity: Quantity, direction: str) -> pd.Series:
    """Return a quantity of each run, indexed like ``data.runs``; NaN if unknown.

    A diverged run has the worst value, ±∞, except the first value of a series and values before it diverged.

    Args:
        data: the runs of the sweep.
        quantity: the quantity.
        direction: ``min`` if small values are good, ``max`` if large ones are.
    """
    summary, runs = data.summary, data.runs
    if not quantity.reduction and not quantity.is_probe:
        results = [record.result for record in summary.records]
        return pd.Series(final_values(results, quantity.series, direction, summary.curves)).reindex(runs.index)
    rows = series_rows(data, quantity)
    rows = rows[rows["run"].isin(runs.index)]
    diverged = runs["status"] == "diverged"
    if quantity.reduction == STEPS:
        return steps_to(data, rows, quantity, direction)
    values = reduced(rows, quantity).reindex(runs.index)
    kept = values.notna() if quantity.reduction in ("first", AT) else pd.Series(False, index=runs.index)
    values = values.mask(diverged & ~kept, worst_value(direction))
    return values.where(runs["status"].isin(["finished", "diverged"]))


def series_rows(data: ReportData, quantity: Quantity) -> pd.DataFrame:
    """Return the rows of a series: ``run``, ``epoch``, ``step`` and ``value``, in the order of measurement."""
    if not quantity.is_probe:
        rows = data.summary.curves[data.summary.curves["metric"] == quantity.series]
        return rows[["run", "epoch", "step", "value"]].drop_duplicates(["run", "step"], keep="last")
    parts = quantity.series.split("/", 3)
    if len(parts) != 4:
        raise ConfigError(f"metric must be probe/<name>/<mode>/<quantity> for a probe, got {quantity.series}")
    _, probe, mode, name = parts
    rows = data.summary.probes
    rows = rows[(rows["probe"] == probe) & (rows["mode"] == mode) & (rows["quantity"] == name)]
    return rows[["run", "epoch", "step", "value"]]


def reduced(rows: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """Reduce the rows of a series to one value per run."""
    if quantity.reduction == AT:
        return rows[rows["epoch"] == quantity.argument].groupby("run")["value"].last()
    by_run = rows.groupby("run")["value"]
    if quantity.reduction == "first":
        return by_run.first()
    if quantity.reduction == "mean":
        return by_run.mean()
    if quantity.reduction == "last_third":
        return by_run.agg(lambda values: float(np.mean(values.to_numpy()[-math.ceil(len(values) / 3) :])))
    return by_run.last()


def steps_to(data: ReportData, curves: pd.DataFrame, quantity: Quantity, direction: str) -> pd.Series:
    """Return the steps of each run to the target; infinite if the run diverged or does not reach it."""
    runs = data.runs
    targets = pd.Series(quantity.argument, index=runs.index)
    steps = times_to(curves.assign(seconds=np.nan), targets, direction)["steps"].reindex(runs.index)
    known = runs["validation"].notna() & runs.index.isin(curves["run"])
    return steps.mask(runs["status"] == "diverged", np.inf).where(known, np.nan)
