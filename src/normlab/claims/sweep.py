"""The numbers of a sweep that criteria use: the interface :class:`Sweep`, and :class:`ReportSweep` of runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd

from normlab.claims.reductions import STEPS, Quantity, run_values
from normlab.config.schema import MAXIMIZED, MINIMIZED
from normlab.errors import ConfigError, nearest, require
from normlab.report.report_data import ReportData
from normlab.results.sweep import setting
from normlab.stats.comparison import PooledPanels, TunedArm, near_best_arms
from normlab.stats.design import MODEL, Design, Metric, Scope, is_number
from normlab.stats.estimates import Numbers
from normlab.stats.grid import Grid, Panel
from normlab.stats.regions import Rows
from normlab.stats.tuning import Tuned

Settings = Mapping[str, Any]
"""The settings that choose a panel, by key; a tuned key among them replaces the tuned setting of each arm."""
TESTED = ("test/", "probe/fgsm/")
"""Prefixes of series that are measured on the test split."""
LARGEST = "largest/"
"""Prefix of the largest setting of a tuned key with which a replicate trains: ``largest/optimizer.lr``."""


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

    Metrics are the quantities of :mod:`normlab.claims.reductions`, and ``largest/<key>``, see :meth:`largest`.

    Args:
        data: the analysed sweep, from :func:`normlab.report.report_data.build_report_data`.
    """

    data: ReportData

    @property
    def grid(self) -> Grid:
        """The grid of the sweep."""
        return self.data.analysis.grid

    def metric(self, name: str) -> Metric:
        """Return a metric with its direction: ``min`` for probes and steps, ``max`` for ``largest/…``."""
        known = {metric.name: metric for metric in (*self.grid.design.metrics, self.grid.design.choice)}
        if name in known:
            return known[name]
        if name.startswith(LARGEST):
            return Metric(name, "max")
        quantity = Quantity.parse(name)
        kind, optimized = quantity.series.rpartition("/")[2], self.grid.design.choice
        if quantity.is_probe or quantity.reduction == STEPS or kind in MINIMIZED:
            return Metric(name, "min")
        if kind == optimized.name.rpartition("/")[2]:
            return Metric(name, optimized.direction)
        require(kind in MAXIMIZED, "metric", f"one of {', '.join(MINIMIZED + MAXIMIZED)} on a split", name)
        return Metric(name, "max")

    def values(self, metric: str, arm: str, panel: Settings) -> pd.Series:
        """Return the values of an arm at its tuned setting, or at the setting that ``panel`` names."""
        member = self.panel_of(panel)
        if metric.startswith(LARGEST):
            return self.largest(metric.removeprefix(LARGEST), arm, member)
        return self.picked(metric, member, TunedArm(self.grid_arm(arm), (self.tuned_of(arm, panel),)))

    def near_best(self, metric: str, arm: str, panel: Settings) -> list[pd.Series]:
        """Return the values of an arm at each of its near-best settings."""
        if metric.startswith(LARGEST):
            return []
        member, tuned = self.panel_of(panel), self.tuned_of(arm, panel)
        return [
            self.picked(metric, member, other) for other in near_best_arms(TunedArm(self.grid_arm(arm), (tuned,)))
        ]

    def rows(self, metric: str, panel: Settings) -> Rows | None:
        """Return the training and test rows of a split for test metrics on splits of one table."""
        use = self.grid.uses[self.panel_of(panel)]
        tested = not metric.startswith(LARGEST) and Quantity.parse(metric).series.startswith(TESTED)
        return (use.train, use.test) if use.scope == Scope.SPLIT and tested and use.train and use.test else None

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
        for key, value in settings.items():
            if key not in keys and not self.is_constant(key, value):
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
        tuned = self.data.analysis.tuning.get((panel, self.grid_arm(arm)))
        if tuned is None:
            raise ConfigError(f"arm must be one of {listing(design)} with runs in the panel, got {arm}")
        given = {key: settings[key] for key in design.tuned if key in settings}
        if not given:
            return tuned
        rows = [row for row in tuned.rows if self.has_settings(row, given)]
        require(len(rows) == 1, "panel", f"one configuration of {arm}", f"{given}, which {len(rows)} have")
        return Tuned(tuned.rows, np.full(len(self.grid.uses[panel].report), rows[0]), [])

    def grid_arm(self, arm: str) -> str:
        """Return the name of an arm in the grid, which is empty in a sweep of one arm."""
        return "" if not self.grid.design.compare and self.is_constant(MODEL, arm) else arm

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
        return run_values(self.data, Quantity.parse(metric), self.metric(metric).direction)

    def is_constant(self, key: str, value: object) -> bool:
        """Return True if all runs have a setting."""
        texts = {setting(record.result, key) for record in self.data.summary.records}
        return len(texts) == 1 and same_setting(str(texts.pop()), value)

    def largest(self, key: str, arm: str, panel: Panel) -> pd.Series:
        """Return the largest setting of a tuned key with which a replicate trains, indexed by seed.

        A run trains if it finishes with a training loss, in evaluation mode, below half of that of the best
        constant predictor. If no setting trains, the value is the smallest setting.

        Raises:
            ConfigError: the sweep does not tune the key with numbers.
        """
        design, uses = self.grid.design, self.grid.uses[panel]
        require(key in design.tuned, "metric", f"{LARGEST}<key> with a tuned key of the sweep", f"{LARGEST}{key}")
        column = design.tuned.index(key)
        rows = [
            k for k, c in enumerate(self.grid.configurations) if (c.panel, c.arm) == (panel, self.grid_arm(arm))
        ]
        require(len(rows) > 0, "arm", f"one of {listing(design)} with runs in the panel", arm)
        numbers = np.array([float(self.grid.configurations[row].tuned[column]) for row in rows])
        trains = self.grid.arrange(self.trains.to_numpy(dtype=float))[rows][:, uses.report]
        largest = np.where(trains == 1, numbers[:, None], numbers.min()).max(axis=0)
        unknown = np.isnan(trains).any(axis=0)
        return pd.Series(np.where(unknown, np.nan, largest), index=np.array(self.grid.seeds)[uses.report]).dropna()

    @cached_property
    def trains(self) -> pd.Series:
        """1 for each run that trains, 0 for each other, NaN if unknown; see :meth:`largest`."""
        runs, records = self.data.runs, self.data.summary.records
        loss = self.run_values("train_eval/loss")
        chance = pd.Series({run: records[run].result.chance for run in runs.index}, dtype=float)
        return (loss < chance / 2).astype(float).where(loss.notna() & chance.notna())


def listing(design: Design) -> str:
    """Return the names of the arms, for errors."""
    return ", ".join(design.arms) or "the compared arms"


def same_setting(text: str, value: object) -> bool:
    """Return True if the text of a setting is a given value.

    >>> same_setting("0.10", 0.1), same_setting("[100, 10]", [100, 10]), same_setting("[8,8]", "[8, 8]")
    (True, True, True)
    >>> same_setting("false", False), same_setting("bn", "gn")
    (True, False)
    """
    if is_number(text) and is_number(str(value)):
        return float(text) == float(str(value))
    written = value if isinstance(value, str) else json.dumps(value)
    return text.replace(" ", "") == written.replace(" ", "")
