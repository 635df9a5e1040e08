"""The grid of a sweep, its runs by configuration and seed, and the use of seeds; see :func:`grid_of`."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from normlab.stats.design import SEED, Design, Metric, Scope, configuration_label, natural
from normlab.stats.estimates import Numbers

Columns = NDArray[np.intp]
Panel = tuple[str, ...]
TUNING_SHARE, LEAST_TUNING = 3, 4
"""One seed in three chooses settings, but at least four."""
TABLES = ("validation", "best", "untrained", "shortened", "train_rows", "test_rows")


class Configuration(NamedTuple):
    """A configuration: the settings of the panel's keys, the arm, and the settings of the tuned keys."""

    panel: Panel
    arm: str
    tuned: tuple[str, ...]


@dataclass(frozen=True)
class Use:
    """The use of the replicates of a panel: for tuning, for the report, or for both.

    Attributes:
        scope: the source of variation between the replicates.
        tuning: the grid columns of the replicates that choose settings; empty if no arm has a choice.
        report: the grid columns of the reported replicates.
        within: whether each replicate chooses its own setting. That is so for splits of one table: the validation
            rows of one replicate are test rows of another, so no replicate may choose for another.
        train, test: the numbers of training and test samples; 0 if unknown.
    """

    scope: Scope
    tuning: Columns
    report: Columns
    within: bool = False
    train: int = 0
    test: int = 0

    @property
    def is_disjoint(self) -> bool:
        """True if the reported replicates took no part in tuning for other replicates; a verdict needs this."""
        return self.within or not np.isin(self.report, self.tuning).any()


@dataclass(frozen=True)
class Grid:
    """A grid with S rows, one per configuration, and N columns, one per seed.

    Attributes:
        design: the design of the sweep.
        configurations: the configuration of each row, in natural order.
        seeds: the seed of each column.
        row, column: the cell of each run, ``(runs,)``; column −1 if its seed is unknown.
        status: the status of each run.
        tables: a table ``(S, N)`` for each metric and each column in ``TABLES``; NaN if unknown.
        uses: the use of the replicates of each panel.
        rates: the learning rate of each row, as text.
    """

    design: Design
    configurations: list[Configuration]
    seeds: list[int]
    row: Columns
    column: Columns
    status: NDArray[np.object_]
    tables: Mapping[str, Numbers]
    uses: dict[Panel, Use]
    rates: list[str]

    @property
    def panels(self) -> list[Panel]:
        """The panels in natural order."""
        return list(dict.fromkeys(configuration.panel for configuration in self.configurations))

    @property
    def values(self) -> Numbers:
        """The primary metric, ``(S, N)``."""
        return self.tables[self.design.primary.name]

    @property
    def choice(self) -> Numbers:
        """The validation loss that settings are chosen by, ``(S, N)``; small values are good."""
        return self.design.choice.sign * self.tables["validation"]

    @property
    def failed(self) -> Numbers:
        """1 for each run that diverged or is untrained, else 0, ``(S, N)``; NaN if unknown."""
        known, lost = ~np.isnan(self.tables["validation"]), np.isinf(self.tables["validation"])
        return np.where(known, lost | (self.tables["untrained"] > 0.5), np.nan)

    def lacks(self, metric: Metric, panels: Collection[Panel]) -> bool:
        """Return True if runs of other panels have the metric, but none of these: regression has no accuracy."""
        rows = [k for k, configuration in enumerate(self.configurations) if configuration.panel in panels]
        known = ~np.isnan(self.tables[metric.name])
        return bool(known.any() and not known[rows].any() and not np.isnan(self.tables["validation"][rows]).all())

    def losses(self, metric: Metric) -> Numbers:
        """Return a metric, negated if large values are good, ``(S, N)``."""
        return metric.sign * self.tables[metric.name]

    def groups(self) -> Iterator[tuple[Panel, str, list[int]]]:
        """Yield each panel and arm with the rows of its configurations, in natural order."""
        groups: dict[tuple[Panel, str], list[int]] = {}
        for row, configuration in enumerate(self.configurations):
            groups.setdefault((configuration.panel, configuration.arm), []).append(row)
        for (panel, arm), rows in groups.items():
            yield panel, arm, rows

    def arrange(self, numbers: Numbers) -> Numbers:
        """Return per-run values ``(runs,)`` as a table ``(S, N)``; runs in the same cell are averaged."""
        return mean_by_cell(numbers, self.row, self.column, (len(self.configurations), len(self.seeds)))

    def panel_name(self, panel: Panel) -> str:
        """Return the name of a panel; empty if the design has a single panel."""
        return configuration_label(self.design.panels, panel)


def grid_of(runs: pd.DataFrame, design: Design, tuning_seeds: Sequence[int] | None = None) -> Grid:
    """Arrange the runs of a sweep in a grid, and decide how each panel uses its seeds.

    Args:
        runs: a row per run, with the columns that the module ``design`` lists.
        design: the design of the sweep.
        tuning_seeds: the seeds that choose settings, if an earlier verdict fixed them.
    """
    arms = runs[design.compare].tolist() if design.compare else [""] * len(runs)
    panels, tuned = (settings_of_runs(runs, keys) for keys in (design.panels, design.tuned))
    run_configurations = [Configuration(*parts) for parts in zip(panels, arms, tuned, strict=True)]
    configurations = sorted(set(run_configurations), key=sort_key)
    row_of = {configuration: row for row, configuration in enumerate(configurations)}
    row = np.array([row_of[configuration] for configuration in run_configurations], dtype=np.intp)
    run_seeds = runs[SEED].to_numpy(dtype=float, na_value=np.nan)
    seeds = sorted({int(seed) for seed in run_seeds[~np.isnan(run_seeds)].tolist()})
    column_of = {seed: column for column, seed in enumerate(seeds)}
    column = np.array([column_of.get(seed, -1) for seed in run_seeds.tolist()], dtype=np.intp)
    shape = (len(configurations), len(seeds))
    names = dict.fromkeys([*(metric.name for metric in design.metrics), *TABLES])
    tables = {
        name: mean_by_cell(runs[name].to_numpy(dtype=float), row, column, shape)
        if name in runs
        else np.full(shape, np.nan)
        for name in names
    }
    first_rates = pd.Series(runs["lr"].tolist() if "lr" in runs else "", index=row).groupby(level=0).first()
    rates = [str(first_rates[k]) for k in range(len(configurations))]
    status = np.array(runs["status"].tolist(), dtype=object)
    grid = Grid(design, configurations, seeds, row, column, status, tables, {}, rates)
    scopes = runs["scope"].tolist() if "scope" in runs else [Scope.SEED] * len(runs)
    grid.uses.update(uses_of(grid, dict(zip(panels, scopes, strict=True)), tuning_seeds))
    return grid


def uses_of(
    grid: Grid, scopes: Mapping[Panel, str], tuning_seeds: Sequence[int] | None
) -> Iterator[tuple[Panel, Use]]:
    """Yield each panel with the use of its replicates.

    - No arm has more than one configuration: all replicates report, none tune.
    - Splits of one table: each replicate chooses its own setting, and all report.
    - Else the first third of the seeds shared by all arms, but at least four, tune, and the others report. With
      too few seeds all do both. Arms with too few seeds do not limit the shared seeds.
    """
    known = ~np.isnan(grid.tables["validation"])
    arm_rows: dict[Panel, list[list[int]]] = {}
    for panel, _, rows in grid.groups():
        arm_rows.setdefault(panel, []).append([row for row in rows if known[row].any()])
    for panel, arms in arm_rows.items():
        scope = Scope(scopes[panel])
        known_seeds = [np.asarray(known[rows].any(axis=0)) for rows in arms if rows]
        columns = np.flatnonzero(np.logical_or.reduce(known_seeds)) if known_seeds else np.array([], dtype=np.intp)
        train, test = (sample_count(grid.tables[name], arms) for name in ("train_rows", "test_rows"))
        if not any(len(rows) > 1 for rows in arms):
            tuning, report = columns[:0], columns
        elif scope == Scope.SPLIT:
            tuning = report = columns
        else:
            tuning = tuning_columns(known_seeds, np.isin(grid.seeds, list(tuning_seeds or ())))
            report = np.setdiff1d(columns, tuning)
            report = report if len(report) else tuning
        yield panel, Use(scope, tuning, report, scope == Scope.SPLIT and len(tuning) > 0, train, test)


def tuning_columns(known_seeds: Sequence[NDArray[Any]], fixed: NDArray[np.bool_]) -> Columns:
    """Return the columns of a panel that choose settings.

    Args:
        known_seeds: for each arm, whether it has a known run of each seed, ``(N,)``.
        fixed: whether each seed chose settings at an earlier verdict, ``(N,)``.
    """
    earlier = np.flatnonzero(fixed & np.logical_or.reduce(known_seeds))
    if len(earlier):
        return earlier
    large = [known for known in known_seeds if known.sum() > LEAST_TUNING] or known_seeds
    shared = np.flatnonzero(np.logical_and.reduce(large))
    if len(shared):
        return first_third(shared)
    return np.unique(np.concatenate([first_third(np.flatnonzero(known)) for known in large]))


def first_third(seeds: Columns) -> Columns:
    """Return the first third of the seeds, but at least four; all seeds if none would be left to report.

    >>> first_third(np.arange(12)).tolist(), first_third(np.arange(3)).tolist()
    ([0, 1, 2, 3], [0, 1, 2])
    """
    tuning = max(LEAST_TUNING, math.ceil(len(seeds) / TUNING_SHARE))
    return seeds[:tuning] if len(seeds) > tuning else seeds


def sample_count(table: Numbers, arms: Sequence[Sequence[int]]) -> int:
    """Return the median number of samples over the runs of a panel; 0 if unknown."""
    counts = table[[row for rows in arms for row in rows]]
    return int(np.nanmedian(counts)) if (~np.isnan(counts)).any() else 0


def settings_of_runs(runs: pd.DataFrame, keys: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return a tuple of the settings of the given keys for each run."""
    return list(zip(*(runs[key].tolist() for key in keys), strict=True)) if keys else [()] * len(runs)


def sort_key(configuration: Configuration) -> list[list[tuple]]:
    """Return a natural sort key: by panel, then arm, then tuned settings."""
    panel, arm, tuned = configuration
    return [[natural(text) for text in part] for part in (panel, (arm,), tuned)]


def mean_by_cell(numbers: Numbers, row: Columns, column: Columns, shape: tuple[int, int]) -> Numbers:
    """Return a table with the mean of the known numbers in each cell; NaN in an empty cell."""
    known = (column >= 0) & ~np.isnan(numbers)
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (row[known], column[known]), numbers[known])
    np.add.at(count, (row[known], column[known]), 1.0)
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)
