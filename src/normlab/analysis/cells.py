"""Runs arranged by what was set and by seed: a table that all statistics read from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from normlab.analysis.arms import SEED, label, natural
from normlab.analysis.design import Design

Numbers = NDArray[np.float64]


class Setting(NamedTuple):
    """What runs that differ in their seed alone have in common: settings of the panel, the arm, what is tuned."""

    panel: tuple[str, ...]
    arm: str
    tuned: tuple[str, ...]


@dataclass(frozen=True)
class Cells:
    """A table with a row per setting and a column per seed.

    Attributes:
        design: the sweep's.
        settings: of each of the S rows, in natural order.
        seeds: of each of the N columns.
        row, column: where each run belongs, ``(runs,)``; column −1 where its seed is not known.
        status: of each run.
        values: the metric, ``(S, N)``; NaN where it is not known, the worst infinity where a run diverged.
        tuning, report: the columns of the seeds that are for this.
    """

    design: Design
    settings: list[Setting]
    seeds: list[int]
    row: NDArray[np.intp]
    column: NDArray[np.intp]
    status: NDArray[np.object_]
    values: Numbers
    tuning: NDArray[np.intp]
    report: NDArray[np.intp]

    @property
    def losses(self) -> Numbers:
        """The metric with its sign so that small is good, ``(S, N)``."""
        return self.design.sign * self.values

    def groups(self) -> Iterator[tuple[tuple[str, ...], str, list[int]]]:
        """Yield each panel and arm with its rows, in natural order."""
        rows: dict[tuple[tuple[str, ...], str], list[int]] = {}
        for row, setting in enumerate(self.settings):
            rows.setdefault((setting.panel, setting.arm), []).append(row)
        for (panel, arm), found in rows.items():
            yield panel, arm, found

    def arrange(self, numbers: Numbers) -> Numbers:
        """Return a number of each run as a table ``(S, N)``; of runs that repeat a seed, their mean."""
        return arranged(numbers, self.row, self.column, (len(self.settings), len(self.seeds)))

    def panel(self, panel: tuple[str, ...]) -> str:
        """Return a panel's name, empty where there is but one."""
        return label(self.design.panels, panel)


def cells_of(runs: pd.DataFrame, design: Design) -> Cells:
    """Return the runs of a sweep as a table.

    Args:
        runs: as ``design`` describes them.
        design: what they were found to compare.
    """
    arm = runs[design.compare].tolist() if design.compare else [""] * len(runs)
    panels, tuned = (columns(runs, keys) for keys in (design.panels, design.tuned))
    of_runs = [Setting(*parts) for parts in zip(panels, arm, tuned, strict=True)]
    settings = sorted(set(of_runs), key=place)
    number = {setting: row for row, setting in enumerate(settings)}
    seeds = sorted({*design.tuning_seeds, *design.report_seeds})
    at = {seed: column for column, seed in enumerate(seeds)}
    row = np.array([number[setting] for setting in of_runs], dtype=np.intp)
    of_seeds = runs[SEED].to_numpy(dtype=float, na_value=np.nan)
    column = np.array([at.get(seed, -1) for seed in of_seeds.tolist()], dtype=np.intp)
    values = arranged(runs["value"].to_numpy(dtype=float), row, column, (len(settings), len(seeds)))
    tuning, report = (
        np.array([at[seed] for seed in some], dtype=np.intp) for some in (design.tuning_seeds, design.report_seeds)
    )
    status = np.array(runs["status"].tolist(), dtype=object)
    return Cells(design, settings, seeds, row, column, status, values, tuning, report)


def columns(runs: pd.DataFrame, keys: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the settings of some keys in each run."""
    return list(zip(*(runs[key].tolist() for key in keys), strict=True)) if keys else [()] * len(runs)


def place(setting: Setting) -> list[list[tuple]]:
    """Return what to sort settings by."""
    return [[natural(text) for text in part] for part in (setting.panel, (setting.arm,), setting.tuned)]


def arranged(numbers: Numbers, row: NDArray[np.intp], column: NDArray[np.intp], shape: tuple[int, int]) -> Numbers:
    """Return the mean of the known numbers at each place of a table, NaN where there is none."""
    known = (column >= 0) & ~np.isnan(numbers)
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (row[known], column[known]), numbers[known])
    np.add.at(count, (row[known], column[known]), 1.0)
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)
