"""The target of each panel, the steps and seconds until each run reaches it, and the time of a step.

Curves are of one metric, with the columns ``run``, ``step``, ``seconds`` and ``value``: a row each time a run was
evaluated. ``direction`` is ``min`` or ``max``, whichever is good.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from normlab.stats.estimates import UNKNOWN_ESTIMATE, Draws, Estimate, Numbers, percentile_interval
from normlab.stats.grid import Grid, Panel
from normlab.stats.signed_rank import paired_test
from normlab.stats.tuning import Tuning

BASELINE = "baseline"
GIVEN, BEST_ARM = "given", "best arm"
BUDGET = 0.75
"""The share of the steps after which the target is to have been reached."""


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


def times_to_target(
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
    return best_arm_median(arms, design.choice.direction)


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


def times_to(curves: pd.DataFrame, targets: pd.Series, direction: str) -> pd.DataFrame:
    """Return ``steps`` and ``seconds`` of each run that has curves to its first value as good as its target.

    Infinite if there is none, NaN if the run has no target. NaN among the values is never good enough.

    Args:
        curves: as this module describes them.
        targets: of each run.
        direction: which values are good.
    """
    target = curves["run"].map(targets)
    good = curves["value"] <= target if direction == "min" else curves["value"] >= target
    first = curves[good].sort_values("step").drop_duplicates("run").set_index("run")
    found = first[["step", "seconds"]].astype(float).rename(columns={"step": "steps"})
    runs = pd.Index(curves["run"].unique())
    found = found.reindex(runs, fill_value=np.inf)
    return found.where(targets.reindex(runs).notna(), np.nan, axis=0)


def best_by(curves: pd.DataFrame, budgets: pd.Series, direction: str) -> pd.Series:
    """Return the best value of each run by 75 % of its budget, in steps; a run without one by then is left out."""
    early = curves[curves["step"] <= BUDGET * curves["run"].map(budgets)]
    return early.groupby("run")["value"].agg(direction)


def steps_of(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the ``last`` step at which each run was evaluated and the largest ``gap`` between two such steps."""
    ordered = curves[["run", "step"]].drop_duplicates().sort_values(["run", "step"])
    before = ordered.groupby("run")["step"].shift(fill_value=0)
    gaps = ordered.assign(gap=ordered["step"] - before)
    return gaps.groupby("run").agg(last=("step", "max"), gap=("gap", "max"))


def best_arm_median(best: dict[str, Numbers], direction: str) -> float:
    """Return the median over seeds of the best values of that arm where it is best; NaN if none is finite.

    The best of an arm's own whole training would be reached by half of its runs only, and late.

    Args:
        best: of each arm, the best value of each seed by 75 % of the budget, ``(n,)``; infinite if it diverged.
        direction: which values are good.
    """
    medians = [float(np.median(values)) for values in best.values() if len(values)]
    finite = [median for median in medians if np.isfinite(median)]
    return (min if direction == "min" else max)(finite, default=np.nan)


def median(times: Numbers) -> float:
    """Return the median of ``(n,)`` times, infinite where half of them or more are; NaN of none."""
    return float(np.median(times)) if len(times) else np.nan


def time_ratio(arm: Numbers, baseline: Numbers, draws: Draws) -> Estimate:
    """Return the ratio of two arms' median times, with its percentile-bootstrap interval.

    NaN where half of an arm never reaches the target: then the shares that do tell more.

    Args:
        arm, baseline: times, ``(n,)``, seed by seed; infinite where the target was not reached.
        draws: the resamples, in which the seeds of both arms are drawn jointly.
    """
    ours, theirs = median(arm), median(baseline)
    if not (np.isfinite(ours) and np.isfinite(theirs) and theirs > 0):
        return UNKNOWN_ESTIMATE
    if len(arm) < 2 or not draws.resamples:
        return Estimate(ours / theirs, np.nan, np.nan)
    a, b = (np.median(values[draws.seeds(len(arm))], axis=0) for values in (arm, baseline))
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = percentile_interval(a / b)
    return Estimate(ours / theirs, max(low, 0.0), high)


def time_per_step_ratio(arm: ArrayLike, baseline: ArrayLike, level: float = 0.95) -> Estimate:
    r"""Return the ratio of two arms' seconds per step, estimated from rounds in which both were timed.

    .. math::
        \exp(\hat\theta), \qquad \hat\theta = \mathrm{median}_{q \le r}\, \frac{d_q + d_r}{2}, \qquad
        d_r = \log \frac{t_r^{\text{arm}}}{t_r^{\text{baseline}}}

    with the interval of the signed-rank test of d, :func:`~normlab.stats.signed_rank.paired_test`. The
    rounds are interleaved, so that a machine that slows down slows both arms of a pair.

    The interval is about the noise of repeated timing in one process on one machine. It covers no other process,
    version or machine. Rounds that other work disturbs together are not independent, and make it too narrow.

    Args:
        arm: t of the arm, seconds per step of each round, ``(R,)``.
        baseline: t of the baseline in the same rounds, ``(R,)``.
        level: the confidence, between 0 and 1.

    Raises:
        ValueError: if the rounds are not the same, or a time is not positive.
    """
    ours, theirs = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"both arms must have the same rounds (R,), got {ours.shape} and {theirs.shape}")
    if not (ours > 0).all() or not (theirs > 0).all():
        raise ValueError("times must be positive")
    shift = paired_test(np.log(ours / theirs), level).shift
    return Estimate(*(float(np.exp(end)) for end in (shift.value, shift.low, shift.high)))
