"""The grid of a sweep: its runs by setting and seed, and the use of each panel's seeds; see :func:`grid_of`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from normlab.stats.configurations import SEED, configuration_label, natural
from normlab.stats.design import Design, Metric, Scope
from normlab.stats.estimates import Numbers

Columns = NDArray[np.intp]
Panel = tuple[str, ...]
TUNING_SHARE, LEAST_TUNING = 3, 4
"""One seed in three chooses settings, and at least four of them do."""
TABLES = ("validation", "best", "untrained", "shortened", "train_rows", "test_rows")


class Setting(NamedTuple):
    """The settings of runs that differ in their seed alone: of the panel's keys, the arm, and the tuned keys."""

    panel: Panel
    arm: str
    tuned: tuple[str, ...]


@dataclass(frozen=True)
class Use:
    """The replicates of a panel.

    Attributes:
        scope: what differs between them.
        tuning, report: the columns of those that choose settings and of those that are reported. Without settings
            to choose from, none tune.
        within: whether each replicate chooses its own setting: one replicate's validation rows are another's test
            rows where both split the same table, so that no replicate may choose for another.
        train, test: the number of training and test samples; 0 if unknown.
    """

    scope: Scope
    tuning: Columns
    report: Columns
    within: bool = False
    train: int = 0
    test: int = 0

    @property
    def is_disjoint(self) -> bool:
        """Whether no replicate that is reported chose settings for others; otherwise there is no verdict."""
        return self.within or not np.isin(self.report, self.tuning).any()


@dataclass(frozen=True)
class Grid:
    """A grid with S rows, one per setting, and N columns, one per seed.

    Attributes:
        design: the sweep's.
        settings: of each row, in natural order.
        seeds: of each column.
        row, column: the place of each run, ``(runs,)``; column −1 where its seed is not known.
        status: of each run.
        tables: of each metric and of each column in ``TABLES``, ``(S, N)``; NaN where it is not known.
        uses: of each panel.
        rates: the learning rate of each row, as text.
    """

    design: Design
    settings: list[Setting]
    seeds: list[int]
    row: Columns
    column: Columns
    status: NDArray[np.object_]
    tables: Mapping[str, Numbers]
    uses: dict[Panel, Use]
    rates: list[str]

    @property
    def values(self) -> Numbers:
        """The primary metric, ``(S, N)``."""
        return self.tables[self.design.primary.name]

    @property
    def choice(self) -> Numbers:
        """The loss that settings are chosen by, ``(S, N)``: small is good."""
        return self.design.choice.sign * self.tables["validation"]

    @property
    def failed(self) -> Numbers:
        """Whether each run diverged or is untrained, ``(S, N)``: 1 or 0; NaN where it is not known."""
        known, lost = ~np.isnan(self.tables["validation"]), np.isinf(self.tables["validation"])
        return np.where(known, lost | (self.tables["untrained"] > 0.5), np.nan)

    def losses(self, metric: Metric) -> Numbers:
        """Return a metric with the sign that makes small values good, ``(S, N)``."""
        return metric.sign * self.tables[metric.name]

    def groups(self) -> Iterator[tuple[Panel, str, list[int]]]:
        """Yield each panel and arm with its rows, in natural order."""
        rows: dict[tuple[Panel, str], list[int]] = {}
        for row, setting in enumerate(self.settings):
            rows.setdefault((setting.panel, setting.arm), []).append(row)
        for (panel, arm), found in rows.items():
            yield panel, arm, found

    def arrange(self, numbers: Numbers) -> Numbers:
        """Return a number of each run as a table ``(S, N)``; the mean over runs that repeat a seed."""
        return mean_by_place(numbers, self.row, self.column, (len(self.settings), len(self.seeds)))

    def panel(self, panel: Panel) -> str:
        """Return a panel's name, empty where there is but one."""
        return configuration_label(self.design.panels, panel)


def grid_of(runs: pd.DataFrame, design: Design, tuning_seeds: Sequence[int] | None = None) -> Grid:
    """Arrange the runs of a sweep in a grid, and decide how each panel uses its seeds.

    Args:
        runs: as ``design`` describes them.
        design: the sweep's.
        tuning_seeds: those that choose settings, where an earlier verdict has fixed them.
    """
    arm = runs[design.compare].tolist() if design.compare else [""] * len(runs)
    panels, tuned = (settings_of_runs(runs, keys) for keys in (design.panels, design.tuned))
    of_runs = [Setting(*parts) for parts in zip(panels, arm, tuned, strict=True)]
    settings = sorted(set(of_runs), key=sort_key)
    number = {setting: row for row, setting in enumerate(settings)}
    row = np.array([number[setting] for setting in of_runs], dtype=np.intp)
    of_seeds = runs[SEED].to_numpy(dtype=float, na_value=np.nan)
    seeds = sorted({int(seed) for seed in of_seeds[~np.isnan(of_seeds)].tolist()})
    at = {seed: column for column, seed in enumerate(seeds)}
    column = np.array([at.get(seed, -1) for seed in of_seeds.tolist()], dtype=np.intp)
    shape = (len(settings), len(seeds))
    names = dict.fromkeys([*(metric.name for metric in design.metrics), *TABLES])
    tables = {
        name: mean_by_place(runs[name].to_numpy(dtype=float), row, column, shape)
        if name in runs
        else np.full(shape, np.nan)
        for name in names
    }
    rates = pd.Series(runs["lr"].tolist() if "lr" in runs else "", index=row).groupby(level=0).first()
    status = np.array(runs["status"].tolist(), dtype=object)
    grid = Grid(
        design, settings, seeds, row, column, status, tables, {}, [str(rates[k]) for k in range(len(settings))]
    )
    scopes = runs["scope"].tolist() if "scope" in runs else [Scope.SEED] * len(runs)
    grid.uses.update(uses_of(grid, dict(zip(panels, scopes, strict=True)), tuning_seeds))
    return grid


def uses_of(
    grid: Grid, scopes: Mapping[Panel, str], tuning_seeds: Sequence[int] | None
) -> Iterator[tuple[Panel, Use]]:
    """Yield the use of the seeds of each panel.

    Where settings are to be chosen and the replicates are no splits of one table, the first third of the seeds
    that all arms of the panel share choose them, and at least four. All others report. With too few the same
    seeds do both; an arm that has too few has no say in the seeds of the others.
    """
    known = ~np.isnan(grid.tables["validation"])
    arms: dict[Panel, list[list[int]]] = {}
    for panel, _, rows in grid.groups():
        arms.setdefault(panel, []).append([row for row in rows if known[row].any()])
    for panel, members in arms.items():
        scope = Scope(scopes[panel])
        of_arms = [np.asarray(known[rows].any(axis=0)) for rows in members if rows]
        everyone = np.flatnonzero(np.logical_or.reduce(of_arms)) if of_arms else np.array([], dtype=np.intp)
        train, test = (sample_count(grid.tables[name], members) for name in ("train_rows", "test_rows"))
        if not any(len(rows) > 1 for rows in members):
            tuning, report = everyone[:0], everyone
        elif scope == Scope.SPLIT:
            tuning = report = everyone
        else:
            tuning = tuning_columns(of_arms, np.isin(grid.seeds, list(tuning_seeds or ())))
            report = np.setdiff1d(everyone, tuning)
            report = report if len(report) else tuning
        yield panel, Use(scope, tuning, report, scope == Scope.SPLIT and len(tuning) > 0, train, test)


def tuning_columns(of_arms: Sequence[NDArray[Any]], fixed: NDArray[np.bool_]) -> Columns:
    """Return the columns that choose settings in a panel.

    Args:
        of_arms: for each arm, whether it has a run of each seed, ``(N,)``.
        fixed: whether each seed was one that chooses at an earlier verdict, ``(N,)``.
    """
    earlier = np.flatnonzero(fixed & np.logical_or.reduce(of_arms))
    if len(earlier):
        return earlier
    large = [own for own in of_arms if own.sum() > LEAST_TUNING] or of_arms
    shared = np.flatnonzero(np.logical_and.reduce(large))
    if len(shared):
        return first_third(shared)
    return np.unique(np.concatenate([first_third(np.flatnonzero(own)) for own in large]))


def first_third(seeds: Columns) -> Columns:
    """Return those of some seeds that choose settings; all of them where none would be left to report.

    >>> first_third(np.arange(12)).tolist(), first_third(np.arange(3)).tolist()
    ([0, 1, 2, 3], [0, 1, 2])
    """
    tuning = max(LEAST_TUNING, math.ceil(len(seeds) / TUNING_SHARE))
    return seeds[:tuning] if len(seeds) > tuning else seeds


def sample_count(table: Numbers, members: Sequence[Sequence[int]]) -> int:
    """Return the median number of samples of a panel's runs, 0 if none is known."""
    rows = table[[row for rows in members for row in rows]]
    return int(np.nanmedian(rows)) if (~np.isnan(rows)).any() else 0


def settings_of_runs(runs: pd.DataFrame, keys: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the settings of some keys in each run."""
    return list(zip(*(runs[key].tolist() for key in keys), strict=True)) if keys else [()] * len(runs)


def sort_key(setting: Setting) -> list[list[tuple]]:
    """Return a sort key of settings."""
    return [[natural(text) for text in part] for part in (setting.panel, (setting.arm,), setting.tuned)]


def mean_by_place(numbers: Numbers, row: Columns, column: Columns, shape: tuple[int, int]) -> Numbers:
    """Return the mean of the known numbers at each place of a table, NaN where there is none."""
    known = (column >= 0) & ~np.isnan(numbers)
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (row[known], column[known]), numbers[known])
    np.add.at(count, (row[known], column[known]), 1.0)
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)
