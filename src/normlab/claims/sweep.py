"""The numbers of a sweep that criteria use: the interface :class:`Sweep`, and :class:`ReportSweep` of runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd

from normlab.config.schema import MAXIMIZED, MINIMIZED
from normlab.errors import ConfigError, nearest, require
from normlab.report.report_data import ReportData
from normlab.report.sweep_summary import final_values
from normlab.stats.comparison import PooledPanels, TunedArm, near_best_arms
from normlab.stats.design import Metric, Scope, is_number
from normlab.stats.estimates import Numbers
from normlab.stats.grid import Grid, Panel
from normlab.stats.learning_speed import times_to
from normlab.stats.regions import Rows
from normlab.stats.tuning import Tuned

Settings = Mapping[str, Any]
"""The settings that choose a panel, by key; a tuned key among them replaces the tuned setting of each arm."""
STEPS = "steps/"
"""Prefix of the number of steps to a target: ``steps/train_eval/loss/0.1``; infinite if it is never reached."""
PROBE = "probe/"


class Sweep(Protocol):
    """The values of arms in the panels of a sweep, one for each reported replicate."""

    def metric(self, name: str) -> Metric:
        """Return a metric with its direction."""
        ...

    def values(self, metric: str, arm: str, panel: Settings) -> pd.Series:
        """Return the values of an arm at its tuned setting, indexed by replicate.

        Replicates that chose settings for others are left out. A diverged run is infinite.
        """
        ...

    def near_best(self, metric: str, arm: str, panel: Settings) -> list[pd.Series]:
        """Return the values of an arm at each of its near-best settings, indexed by replicate."""
        ...

    def rows(self, metric: str, panel: Settings) -> Rows | None:
        """Return the rows of each split if a metric is measured on overlapping test splits of one table."""
        ...


@dataclass(frozen=True)
class ReportSweep:
    """A :class:`Sweep` of trained runs.

    Metrics are those of the records (``test/loss``; means over the last tenth of the epochs), numbers of probes by
    their name in the record (``probe/…``), and steps to a target (``steps/train_eval/loss/0.1``).

    Args:
        data: the analysed sweep, from :func:`normlab.report.report_data.build_report_data`.
    """

    data: ReportData

    @property
    def grid(self) -> Grid:
        """The grid of the sweep."""
        return self.data.analysis.grid

    def metric(self, name: str) -> Metric:
        """Return a metric with its direction; small values of probes and steps are good."""
        known = {metric.name: metric for metric in (*self.grid.design.metrics, self.grid.design.choice)}
        if name in known:
            return known[name]
        kind, optimized = name.rpartition("/")[2], self.grid.design.choice
        if name.startswith((STEPS, PROBE)) or kind in MINIMIZED:
            return Metric(name, "min")
        if kind == optimized.name.rpartition("/")[2]:
            return Metric(name, optimized.direction)
        require(kind in MAXIMIZED, "metric", f"one of {', '.join(MINIMIZED + MAXIMIZED)} on a split", name)
        return Metric(name, "max")

    def values(self, metric: str, arm: str, panel: Settings) -> pd.Series:
        """Return the values of an arm at its tuned setting, or at the setting that ``panel`` names."""
        member, tuned = self.panel_of(panel), self.tuned_of(arm, panel)
        return self.picked(metric, member, TunedArm(arm, (tuned,)))

    def near_best(self, metric: str, arm: str, panel: Settings) -> list[pd.Series]:
        """Return the values of an arm at each of its near-best settings."""
        member, tuned = self.panel_of(panel), self.tuned_of(arm, panel)
        return [self.picked(metric, member, other) for other in near_best_arms(TunedArm(arm, (tuned,)))]

    def rows(self, metric: str, panel: Settings) -> Rows | None:
        """Return the training and test rows of a split for test metrics on splits of one table."""
        use = self.grid.uses[self.panel_of(panel)]
        if use.scope != Scope.SPLIT or not metric.startswith("test/") or not use.train or not use.test:
            return None
        return use.train, use.test

    def picked(self, metric: str, panel: Panel, arm: TunedArm) -> pd.Series:
        """Return the values of an arm in a panel, indexed by the seeds of the reported replicates."""
        pooled = PooledPanels(self.grid, (panel,))
        values = pooled.pick(self.table(metric), arm)[:, 0]
        if not pooled.is_disjoint:
            values = np.full_like(values, np.nan)
        return pd.Series(values, index=self.grid.seeds).dropna()

    def panel_of(self, settings: Settings) -> Panel:
        """Return the panel with some settings.

        Raises:
            ConfigError: no panel or several panels have them, or a key is neither of panels nor tuned.
        """
        design = self.grid.design
        keys = (*design.panels, *design.tuned)
        for key in settings:
            if key not in keys:
                remedy = f"; did you mean {nearest(key, keys)}?" if keys else ""
                raise ConfigError(f"panel must have keys that the sweep varies, got {key}{remedy}")
        found = [
            panel
            for panel in self.grid.panels
            if all(
                same_setting(text, settings[key])
                for key, text in zip(design.panels, panel, strict=True)
                if key in settings
            )
        ]
        if len(found) != 1:
            listing = "; ".join(self.grid.panel_name(panel) for panel in self.grid.panels)
            raise ConfigError(f"panel must match one of the panels ({listing}), got {dict(settings)}")
        return found[0]

    def tuned_of(self, arm: str, settings: Settings) -> Tuned:
        """Return the tuned settings of an arm in a panel, or the settings that ``settings`` names."""
        design, panel = self.grid.design, self.panel_of(settings)
        tuned = self.data.analysis.tuning.get((panel, arm))
        if tuned is None:
            raise ConfigError(f"arm must be one of {', '.join(design.arms)} with runs in the panel, got {arm}")
        given = {key: settings[key] for key in design.tuned if key in settings}
        if not given:
            return tuned
        rows = [row for row in tuned.rows if self.has_settings(row, given)]
        require(len(rows) == 1, "panel", f"one configuration of {arm}", f"{given}, which {len(rows)} have")
        return Tuned(tuned.rows, np.full(len(self.grid.uses[panel].report), rows[0]), [])

    def has_settings(self, row: int, given: Settings) -> bool:
        """Return True if the configuration of a row of the grid has some tuned settings."""
        settings = dict(zip(self.grid.design.tuned, self.grid.configurations[row].tuned, strict=True))
        return all(same_setting(settings[key], value) for key, value in given.items())

    def table(self, metric: str) -> Numbers:
        """Return a metric by configuration and seed, ``(S, N)``.

        Raises:
            ConfigError: no run has the metric.
        """
        if metric not in self.tables:
            self.tables[metric] = self.grid.arrange(self.run_values(metric).to_numpy(dtype=float))
        table = self.tables[metric]
        require(not np.isnan(table).all(), "metric", "a metric of the runs", f"{metric}, which no run has")
        return table

    @cached_property
    def tables(self) -> dict[str, Numbers]:
        """The tables of metrics so far."""
        return dict(self.grid.tables)

    def run_values(self, metric: str) -> pd.Series:
        """Return a metric of each run."""
        summary, runs = self.data.summary, self.data.runs
        if metric.startswith(STEPS):
            return self.steps_to(metric)
        if metric.startswith(PROBE):
            absent = pd.Series(np.nan, index=summary.probe_numbers.index)
            return summary.probe_numbers.get(metric, absent).reindex(runs.index)
        results = [record.result for record in summary.records]
        finals = final_values(results, metric, self.metric(metric).direction, summary.curves)
        return pd.Series(finals).reindex(runs.index)

    def steps_to(self, metric: str) -> pd.Series:
        """Return the steps of each run to a target; infinite if the run diverged or does not reach it."""
        name, _, target = metric.removeprefix(STEPS).rpartition("/")
        require(is_number(target), "metric", f"{STEPS}<metric>/<target>, such as {STEPS}val/loss/0.1", metric)
        summary, runs = self.data.summary, self.data.runs
        curves = summary.curves[summary.curves["metric"] == name][["run", "epoch", "step", "value"]]
        curves = curves[curves["run"].isin(runs.index)].assign(seconds=np.nan)
        targets = pd.Series(float(target), index=runs.index)
        steps = times_to(curves, targets, self.metric(name).direction)["steps"].reindex(runs.index)
        known = runs["validation"].notna() & runs.index.isin(curves["run"])
        return steps.mask(runs["status"] == "diverged", np.inf).where(known, np.nan)


def same_setting(text: str, value: object) -> bool:
    """Return True if the text of a setting is a given value.

    >>> same_setting("0.10", 0.1), same_setting("[100]", [100]), same_setting("bn", "gn")
    (True, True, False)
    """
    if is_number(text) and is_number(str(value)):
        return float(text) == float(str(value))
    return text == str(value)
