"""The training loss of arms after equally many optimizer steps. The entry is :func:`at_fixed_steps`."""

import numpy as np
import pandas as pd

from normlab.stats.comparison import (
    PooledPanels,
    effect_of,
    estimate_columns,
    replicate_effects,
    shown_estimate,
    sides_of,
)
from normlab.stats.design import Metric
from normlab.stats.estimates import Numbers
from normlab.stats.grid import Grid
from normlab.stats.signed_rank import pseudomedian
from normlab.stats.tuning import Tuning

STEP_SHARES = (0.1, 0.2, 0.5, 1.0)
"""Shares of the budget of steps; by default the loss is measured after every tenth of it."""
METRIC = Metric("train_eval/loss", "min")


def at_fixed_steps(runs: pd.Index, grid: Grid, tuning: Tuning, curves: pd.DataFrame) -> pd.DataFrame:
    """Compare the training loss in evaluation mode after fixed shares of the steps; nothing is declared.

    A run counts with its last measurement by then, a diverged run as infinite from its last measurement on.

    Args:
        runs: the index of the runs.
        grid, tuning: the sweep, and the settings that were chosen.
        curves: of ``train_eval/loss``, with the columns ``run`` (in the index), ``step`` and ``value``.

    Returns:
        A row per panel, share of the steps, and arm with its baseline: ``step``, the medians of ``arm_loss`` and
        ``baseline_loss``, ``replicates``, and the paired ``effect`` (ratio or difference): ``estimate``, the
        Hodges–Lehmann estimate with its 95 % interval.
    """
    columns = [*grid.design.panels, "panel", "share", "step", "arm", "baseline", "arm_loss", "baseline_loss"]
    columns += ["replicates", "effect", "estimate", "estimate_low", "estimate_high"]
    rows = []
    for panel in dict.fromkeys(setting.panel for setting in grid.settings):
        place = PooledPanels(grid, (panel,))
        of_panel = [grid.settings[row].panel == panel for row in grid.row]
        own = curves[curves["run"].isin(runs[of_panel])]
        budget = float(own["step"].max()) if len(own) else np.nan
        for share in STEP_SHARES if np.isfinite(budget) else ():
            table = grid.arrange(losses_by(runs, grid, own, share * budget))
            for arm, baseline in grid.design.comparisons:
                sides = [sides_of(tuning, (panel,), name) for name in (arm, baseline)]
                if sides[0] is None or sides[1] is None:
                    continue
                a, b = (place.pick(table, side) for side in sides if side is not None)
                effect = effect_of(METRIC, a, b)
                effects, seeds = replicate_effects(effect, a, b)
                about = dict(zip(grid.design.panels, panel, strict=True)) | {"panel": grid.panel(panel)}
                medians = [float(np.median(values[seeds])) if len(seeds) else np.nan for values in (a, b)]
                rows.append(
                    {
                        **about,
                        "share": share,
                        "step": int(share * budget),
                        "arm": arm,
                        "baseline": baseline,
                        **dict(zip(("arm_loss", "baseline_loss"), medians, strict=True)),
                        "replicates": len(effects),
                        "effect": effect,
                        **estimate_columns("estimate", shown_estimate(effect, pseudomedian(effects))),
                    }
                )
    return pd.DataFrame(rows, columns=columns)


def losses_by(runs: pd.Index, grid: Grid, curves: pd.DataFrame, step: float) -> Numbers:
    """Return the last loss of each run that was measured by a step, ``(runs,)``; NaN without any.

    That of a diverged run is infinite where it was not measured after the step.
    """
    known = curves[curves["step"] <= step].sort_values("step").drop_duplicates("run", keep="last")
    found = known.set_index("run")["value"].reindex(runs).to_numpy(dtype=float)
    last = curves.groupby("run")["step"].max().reindex(runs).to_numpy(dtype=float)
    return np.where((grid.status == "diverged") & ~(last > step), np.inf, found)
