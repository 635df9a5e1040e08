"""The training loss of the arms after the same number of optimizer steps; see :func:`at_fixed_steps`."""

import numpy as np
import pandas as pd

from normlab.stats.comparison import (
    PooledPanels,
    effect_of,
    estimate_columns,
    replicate_effects,
    shown_estimate,
    tuned_arm,
)
from normlab.stats.design import Metric
from normlab.stats.estimates import Numbers
from normlab.stats.grid import Grid
from normlab.stats.signed_rank import pseudomedian
from normlab.stats.tuning import Tuning

STEP_SHARES = (0.1, 0.2, 0.5, 1.0)
"""Shares of the step budget at which losses are compared; by default a run measures every tenth of it."""
METRIC = Metric("train_eval/loss", "min")


def at_fixed_steps(runs: pd.Index, grid: Grid, tuning: Tuning, curves: pd.DataFrame) -> pd.DataFrame:
    """Compare the training loss in evaluation mode after fixed shares of the steps, without a verdict.

    A run counts with its last measurement up to that step; a diverged run is infinite after its last measurement.

    Args:
        runs: the index of the runs.
        grid, tuning: the sweep and the chosen settings.
        curves: curves of ``train_eval/loss``, with the columns ``run`` (in the index), ``step`` and ``value``.

    Returns:
        A row per panel, share of the steps and compared pair of arms: ``step``, the medians ``arm_loss`` and
        ``baseline_loss``, the number of ``replicates``, the kind of the paired ``effect`` (ratio or difference)
        and its Hodges–Lehmann ``estimate`` with the 95 % interval.
    """
    columns = [*grid.design.panels, "panel", "share", "step", "arm", "baseline", "arm_loss", "baseline_loss"]
    columns += ["replicates", "effect", "estimate", "estimate_low", "estimate_high"]
    rows = []
    for panel in grid.panels:
        pooled = PooledPanels(grid, (panel,))
        of_panel = [grid.configurations[row].panel == panel for row in grid.row]
        panel_curves = curves[curves["run"].isin(runs[of_panel])]
        budget = float(panel_curves["step"].max()) if len(panel_curves) else np.nan
        for share in STEP_SHARES if np.isfinite(budget) else ():
            table = grid.arrange(losses_at(runs, grid, panel_curves, share * budget))
            for arm, baseline in grid.design.comparisons:
                pair = [tuned_arm(tuning, (panel,), name) for name in (arm, baseline)]
                if pair[0] is None or pair[1] is None:
                    continue
                a, b = (pooled.pick(table, member) for member in pair if member is not None)
                effect = effect_of(METRIC, a, b)
                effects, seeds = replicate_effects(effect, a, b)
                medians = [float(np.median(values[seeds])) if len(seeds) else np.nan for values in (a, b)]
                rows.append(
                    {
                        **dict(zip(grid.design.panels, panel, strict=True)),
                        "panel": grid.panel_name(panel),
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


def losses_at(runs: pd.Index, grid: Grid, curves: pd.DataFrame, step: float) -> Numbers:
    """Return the last loss of each run measured up to a step, ``(runs,)``; NaN without a measurement.

    Infinite for a diverged run without a measurement after the step.
    """
    known = curves[curves["step"] <= step].sort_values("step").drop_duplicates("run", keep="last")
    losses = known.set_index("run")["value"].reindex(runs).to_numpy(dtype=float)
    last = curves.groupby("run")["step"].max().reindex(runs).to_numpy(dtype=float)
    return np.where((grid.status == "diverged") & ~(last > step), np.inf, losses)
