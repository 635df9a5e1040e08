"""The analysis of a sweep: settings of each arm are chosen, then arms are compared; see :func:`analyze`."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from normlab.stats import tables
from normlab.stats.comparisons import comparisons_of, interactions_of
from normlab.stats.design import Design
from normlab.stats.estimates import RESAMPLES, Draws
from normlab.stats.fixed_steps import at_fixed_steps
from normlab.stats.grid import Grid, grid_of
from normlab.stats.looks import History
from normlab.stats.tables import StepTimes
from normlab.stats.time_to_target import times_to_target
from normlab.stats.tuning import Tuning, tuned
from normlab.stats.warnings import at_edges, disagreements, warnings_of


@dataclass(frozen=True)
class Analysis:
    """The result of an analysis; tables name the panel and its settings, if there are panels, and the arm.

    Attributes:
        design: what is compared.
        grid: the runs by setting and seed, and the use of the seeds.
        tuning: the settings of each arm.
        settings: a row per setting of an arm.
        arms: a row per arm at its chosen settings, over the reported replicates.
        comparisons: a row per metric, panel, and arm with its baseline; see ``comparisons_of``.
        interactions: a row per pair of panels and arm with its baseline; see ``interactions_of``.
        targets: a row per panel: the value that the times are counted to.
        times: a row per run: its ``target``, and the ``steps`` and ``seconds`` to it.
        fixed_steps: the training loss in evaluation mode after equally many steps; see ``at_fixed_steps``.
        time_ratios: a row per panel, and arm with its baseline.
        ranges: a row per arm and tuned key: the settings that are nearly as good as the best.
        batch_sizes: a row per arm where the batch size varies: how much it matters.
        edges: a line for each edge of what was tried that is the best setting of an arm.
        ends: lines on comparisons that the validation split or the best epoch answers otherwise.
        warnings: a line each, ``edges`` and ``ends`` among them.
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

    Settings are chosen on validation. Differences are declared by the exact signed-rank test, corrected for all
    arms and panels of a question and for the number of looks; no other interval has a part in it.

    Args:
        runs: as ``design`` describes them.
        curves: of the metric that settings are chosen by, as ``times`` describes them, ``run`` being the index of
            the runs; may be empty.
        design: from ``design_of``.
        generator: of the bootstrap.
        target: the value to reach, or ``baseline`` for what the baseline reaches; by default the best arm's.
        resamples: of the intervals of interquartile means and of time ratios; 0 leaves them out.
        history: the earlier verdicts of the folder; changed by this one. Without it p is not multiplied for
            looks.
        train_curves: of the training loss in evaluation mode, likewise.
        timed: seconds per step of each arm of a panel, where arms were timed in turn.

    Raises:
        ValueError: the target is another text than ``baseline``.
    """
    history, is_kept = (History(), False) if history is None else (history, True)
    grid = grid_of(runs, design, history.tuning_seeds)
    draws, tuning = Draws(generator, resamples), tuned(grid, history.settings)
    times = times_to_target(runs, curves, grid, tuning, target)
    arms = tables.arms(runs, grid, tuning, times, draws)
    rows = comparisons_of(grid, tuning, history if is_kept else None)
    edges = at_edges(grid, tuning)
    ends = list(disagreements(grid, tuning, rows))
    found = Analysis(
        design,
        grid,
        tuning,
        tables.settings(grid, tuning, draws),
        arms,
        pd.DataFrame(rows),
        interactions_of(grid, tuning),
        times.targets,
        times.runs,
        at_fixed_steps(runs.index, grid, tuning, curves.iloc[:0] if train_curves is None else train_curves),
        tables.time_ratios(grid, tuning, times, timed or {}, draws),
        tables.near_best_ranges(grid, tuning),
        tables.batch_size_ratios(arms, design),
        edges,
        ends,
        [*edges, *ends, *warnings_of(runs, grid, tuning, times, rows, history)],
    )
    history.add(grid, tuning, rows)
    return found
