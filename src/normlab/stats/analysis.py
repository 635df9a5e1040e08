"""The analysis of a sweep: choose the settings of each arm, compare the arms; see :func:`analyze`."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from normlab.stats import tables
from normlab.stats.design import Design
from normlab.stats.estimates import RESAMPLES, Resampler
from normlab.stats.fixed_steps import at_fixed_steps
from normlab.stats.grid import Grid, grid_of
from normlab.stats.looks import History
from normlab.stats.multiple_comparisons import comparisons_of, interactions_of
from normlab.stats.tables import StepTimes
from normlab.stats.time_to_target import times_to_target
from normlab.stats.tuning import Tuning, choose_settings
from normlab.stats.warnings import disagreement_warnings, edge_warnings, warnings_of


@dataclass(frozen=True)
class Analysis:
    """The result of an analysis. Each table has columns for the panel (if there are several) and the arm.

    Attributes:
        design: the compared key, the tuned keys, the panels and the metrics.
        grid: the runs by configuration and seed, and the use of the seeds.
        tuning: the chosen settings of each arm.
        settings: a row per configuration.
        arms: a row per panel and arm at its chosen settings, over the reported replicates.
        comparisons: a row per metric, panel and compared pair of arms; see ``comparisons_of``.
        interactions: a row per pair of panels and compared pair of arms; see ``interactions_of``.
        targets: a row per panel: the target value of the time to target.
        times: a row per run: its ``target``, and the ``steps`` and ``seconds`` to it.
        fixed_steps: the training loss in evaluation mode after equally many steps; see ``at_fixed_steps``.
        time_ratios: a row per panel and compared pair of arms.
        ranges: a row per arm and tuned key: the range of near-optimal settings.
        batch_sizes: a row per arm, if the batch size makes panels: the ratio between batch sizes.
        edges: warnings about best settings at an edge of the tuned grid.
        ends: warnings about comparisons in which validation or the best epoch contradicts the test split.
        warnings: all warnings, one line each, including ``edges`` and ``ends``.
    """

    design: Design
    grid: Grid
    tuning: Tuning
    settings: pd.DataFrame
    arms: pd.DataFrame
    comparisons: pd.DataFrame
    interactions: pd.DataFrame
    targets: pd.DataFrame
    times: pd.DataFrame
    fixed_steps: pd.DataFrame
    time_ratios: pd.DataFrame
    ranges: pd.DataFrame
    batch_sizes: pd.DataFrame
    edges: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def analyze(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    design: Design,
    generator: np.random.Generator,
    target: float | str | None = None,
    resamples: int = RESAMPLES,
    history: History | None = None,
    timed: StepTimes | None = None,
    train_curves: pd.DataFrame | None = None,
) -> Analysis:
    """Analyse a sweep.

    Settings are chosen on validation. Verdicts depend only on the exact signed-rank test, corrected for all
    comparisons of a question and for the number of looks; the intervals do not affect them.

    Args:
        runs: a row per run, with the columns that the module ``design`` lists.
        curves: curves of the metric that settings are chosen by, with the columns that the module
            ``time_to_target`` lists; ``run`` refers to the index of ``runs``. May be empty.
        design: from ``design_of``.
        generator: generator of the bootstrap.
        target: the target value; ``baseline`` for the value that the baseline reaches; by default the value that
            the best arm reaches.
        resamples: number of bootstrap resamples for interquartile means and time ratios; 0: no intervals.
        history: earlier verdicts of the folder; this analysis is added to it. If None, p is not multiplied for
            looks.
        timed: seconds per step of each arm of a panel, from interleaved timing.
        train_curves: curves of the training loss in evaluation mode, with the same columns as ``curves``.

    Raises:
        ValueError: the target is a text other than ``baseline``.
    """
    history, is_kept = (History(), False) if history is None else (history, True)
    grid = grid_of(runs, design, history.tuning_seeds)
    resampler, tuning = Resampler(generator, resamples), choose_settings(grid, history.settings)
    times = times_to_target(runs, curves, grid, tuning, target)
    arms = tables.arm_table(grid, tuning, times, resampler)
    rows = comparisons_of(grid, tuning, history if is_kept else None)
    edges = edge_warnings(grid, tuning)
    ends = list(disagreement_warnings(grid, tuning, rows))
    analysis = Analysis(
        design,
        grid,
        tuning,
        tables.settings_table(grid, tuning, resampler),
        arms,
        pd.DataFrame(rows),
        interactions_of(grid, tuning),
        times.targets,
        times.runs,
        at_fixed_steps(runs.index, grid, tuning, curves.iloc[:0] if train_curves is None else train_curves),
        tables.time_ratios(grid, tuning, times, timed or {}, resampler),
        tables.near_best_ranges(grid, tuning),
        tables.batch_size_ratios(arms, design),
        edges,
        ends,
        [*edges, *ends, *warnings_of(runs, grid, tuning, times, rows, history)],
    )
    history.add(grid, tuning, rows)
    return analysis
