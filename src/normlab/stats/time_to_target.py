"""The target of each panel, and when each run reached it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from normlab.stats.grid import Grid
from normlab.stats.times import best_by, steps_of, target_of, times_to
from normlab.stats.tuning import Tuning

Numbers = NDArray[np.float64]
Panel = tuple[str, ...]
BASELINE = "baseline"
GIVEN, BEST_ARM = "given", "best arm"


@dataclass(frozen=True)
class Reached:
    """When runs reached their target.

    Attributes:
        targets: a row per panel: the ``target``; the ``rule`` it comes from (given, baseline, best arm); the
            ``budget``, which is the most steps of a run, and the ``resolution``, which is the most steps between
            two evaluations: a time is known no better than that.
        runs: a row per run: its ``target`` and the ``steps`` and ``seconds`` to it; infinite if it did not reach
            it or diverged, NaN if that is not known.
        steps, seconds: the same, ``(S, N)``.
    """

    targets: pd.DataFrame
    runs: pd.DataFrame
    steps: Numbers
    seconds: Numbers


def reached(
    runs: pd.DataFrame, curves: pd.DataFrame, grid: Grid, tuning: Tuning, target: float | str | None
) -> Reached:
    """Return the targets and when they were reached.

    By default a panel's target is the median over the tuning seeds of the best value by 75 % of the budget, in
    the arm where that is best; with ``baseline``, in the baseline. Without tuning seeds it is set on the report
    seeds.

    Raises:
        ValueError: if the target is another text than ``baseline``.
    """
    if isinstance(target, str) and target != BASELINE:
        raise ValueError(f"{target!r} cannot be the target: it is a number, or {BASELINE!r} for what that reaches")
    known = runs["validation"].notna()
    curves = curves[curves["run"].isin(runs.index[known])]
    given = target if isinstance(target, float | int) else np.nan
    rule = BEST_ARM if target is None else BASELINE if target == BASELINE else GIVEN
    if curves.empty:
        return without_curves(runs, grid, given, rule)
    panel = pd.Series([grid.settings[row].panel for row in grid.row], index=runs.index, dtype=object)
    budget, gap = most_steps(curves, panel)
    if rule == GIVEN:
        targets = dict.fromkeys(panels_of(grid), given)
    else:
        best = best_values(runs, curves, panel.map(budget), grid)
        targets = {name: target_from(best, name, rule, grid, tuning) for name in panels_of(grid)}
    aims = panel.map(targets).astype(float)
    times = times_to(curves, aims, grid.design.choice.direction).reindex(runs.index)
    diverged = (runs["status"] == "diverged") & aims.notna()
    times = times.mask(diverged, np.inf).where(known, np.nan)
    steps, seconds = (grid.arrange(times[name].to_numpy(dtype=float)) for name in ("steps", "seconds"))
    return Reached(table(grid, targets, rule, budget, gap), times.assign(target=aims), steps, seconds)


def without_curves(runs: pd.DataFrame, grid: Grid, target: float, rule: str) -> Reached:
    """Return the targets of runs of which no curve is known; no time is."""
    times = pd.DataFrame({"steps": np.nan, "seconds": np.nan, "target": target}, index=runs.index)
    unknown = np.full((len(grid.settings), len(grid.seeds)), np.nan)
    return Reached(table(grid, dict.fromkeys(panels_of(grid), target), rule, {}, {}), times, unknown, unknown)


def panels_of(grid: Grid) -> list[Panel]:
    """Return the panels in natural order."""
    return list(dict.fromkeys(setting.panel for setting in grid.settings))


def most_steps(curves: pd.DataFrame, panel: pd.Series) -> tuple[dict[Panel, float], dict[Panel, float]]:
    """Return the most steps of a run in each panel, and the most steps between two evaluations."""
    budget: dict[Panel, float] = {}
    gap: dict[Panel, float] = {}
    steps = steps_of(curves)
    for name, last, between in zip(panel.loc[steps.index], steps["last"], steps["gap"], strict=True):
        budget[name] = max(budget.get(name, 0.0), float(last))
        gap[name] = max(gap.get(name, 0.0), float(between))
    return budget, gap


def best_values(runs: pd.DataFrame, curves: pd.DataFrame, budgets: pd.Series, grid: Grid) -> Numbers:
    """Return the best value of each run by 75 % of its budget, ``(S, N)``; infinite if it diverged."""
    best = best_by(curves, budgets, grid.design.choice.direction).reindex(runs.index)
    worst = grid.design.choice.sign * np.inf
    return grid.arrange(best.mask(runs["status"] == "diverged", worst).to_numpy(dtype=float))


def target_from(best: Numbers, panel: Panel, rule: str, grid: Grid, tuning: Tuning) -> float:
    """Return the target of a panel from the best values of its arms at their chosen settings."""
    design, use = grid.design, grid.uses[panel]
    arms = {}
    for (other, arm), own in tuning.items():
        if other == panel and (rule == BEST_ARM or arm == design.baseline):
            row = own.common
            tunes = len(use.tuning) and not use.within and row is not None
            values = best[row, use.tuning] if tunes else own.pick(best, use)
            arms[arm] = values[~np.isnan(values)]
    return target_of(arms, design.choice.direction)


def table(
    grid: Grid, targets: dict[Panel, float], rule: str, budget: dict[Panel, float], gap: dict[Panel, float]
) -> pd.DataFrame:
    """Return a row per panel with its target."""
    rows = [
        {
            **dict(zip(grid.design.panels, panel, strict=True)),
            "panel": grid.panel(panel),
            "target": target,
            "rule": rule,
            "budget": budget.get(panel, np.nan),
            "resolution": gap.get(panel, np.nan),
        }
        for panel, target in targets.items()
    ]
    return pd.DataFrame(rows, columns=[*grid.design.panels, "panel", "target", "rule", "budget", "resolution"])
