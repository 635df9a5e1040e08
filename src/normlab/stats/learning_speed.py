"""Speed of training: the time to a target, and the training loss after equal numbers of steps.

Curves are of one metric, with a row per evaluation of a run and the columns ``run``, ``step``, ``seconds`` and
``value``. ``direction`` is ``min`` if small values are good, else ``max``.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from normlab.stats.comparison import (
    PooledPanels,
    effect_of,
    estimate_columns,
    replicate_effects,
    shown_estimate,
    tuned_arm,
)
from normlab.stats.design import Metric
from normlab.stats.estimates import UNKNOWN_ESTIMATE, Estimate, Numbers, Resampler, percentile_interval
from normlab.stats.grid import Grid, Panel
from normlab.stats.signed_rank import paired_test, pseudomedian
from normlab.stats.tuning import Tuning, arms_in

BASELINE = "baseline"
GIVEN, BEST_ARM = "given", "best arm"
TARGET_SHARE = 0.75
"""The target is the best value within this share of the steps."""


@dataclass(frozen=True)
class TargetTimes:
    """Targets and the times to reach them.

    Attributes:
        targets: a row per panel: the ``target``; its ``rule`` (given, baseline, best arm); the ``budget``, the
            largest number of steps of a run; the ``resolution``, the largest number of steps between two
            evaluations, which limits the precision of a time.
        runs: a row per run: its ``target`` and the ``steps`` and ``seconds`` to it; infinite if the run diverged
            or did not reach the target, NaN if unknown.
        steps, seconds: the same times as tables ``(S, N)``.
    """

    targets: pd.DataFrame
    runs: pd.DataFrame
    steps: Numbers
    seconds: Numbers


def times_to_target(
    runs: pd.DataFrame, curves: pd.DataFrame, grid: Grid, tuning: Tuning, target: float | str | None
) -> TargetTimes:
    """Return the target of each panel, and the steps and seconds until each run reaches it.

    By default the target is the median over the tuning seeds of the best value within 75 % of the budget, for the
    arm where this median is best; with ``baseline``, for the baseline. Without tuning seeds the reported seeds are
    used.

    Raises:
        ValueError: the target is a text other than ``baseline``.
    """
    if isinstance(target, str) and target != BASELINE:
        raise ValueError(f"target must be a number or {BASELINE!r} (the value that it reaches), got {target!r}")
    known = runs["validation"].notna()
    curves = curves[curves["run"].isin(runs.index[known])]
    given = target if isinstance(target, float | int) else np.nan
    rule = BEST_ARM if target is None else BASELINE if target == BASELINE else GIVEN
    if curves.empty:
        return without_curves(runs, grid, given, rule)
    panel = pd.Series([grid.configurations[row].panel for row in grid.row], index=runs.index, dtype=object)
    budget, gap = step_budgets(curves, panel)
    if rule == GIVEN:
        targets = dict.fromkeys(grid.panels, given)
    else:
        best = best_values(runs, curves, panel.map(budget), grid)
        targets = {name: target_from(best, name, rule, grid, tuning) for name in grid.panels}
    run_targets = panel.map(targets).astype(float)
    times = times_to(curves, run_targets, grid.design.choice.direction).reindex(runs.index)
    diverged = (runs["status"] == "diverged") & run_targets.notna()
    times = times.mask(diverged, np.inf).where(known, np.nan)
    steps, seconds = (grid.arrange(times[name].to_numpy(dtype=float)) for name in ("steps", "seconds"))
    run_times = times.assign(target=run_targets)
    return TargetTimes(target_table(grid, targets, rule, budget, gap), run_times, steps, seconds)


def without_curves(runs: pd.DataFrame, grid: Grid, target: float, rule: str) -> TargetTimes:
    """Return the targets with unknown times, for runs without curves."""
    times = pd.DataFrame({"steps": np.nan, "seconds": np.nan, "target": target}, index=runs.index)
    unknown = np.full((len(grid.configurations), len(grid.seeds)), np.nan)
    targets = target_table(grid, dict.fromkeys(grid.panels, target), rule, {}, {})
    return TargetTimes(targets, times, unknown, unknown)


def step_budgets(curves: pd.DataFrame, panel: pd.Series) -> tuple[dict[Panel, float], dict[Panel, float]]:
    """Return the largest number of steps of a run and the largest gap between evaluations, by panel."""
    budgets: dict[Panel, float] = {}
    gaps: dict[Panel, float] = {}
    steps = evaluation_steps(curves)
    for name, last, gap in zip(panel.loc[steps.index], steps["last"], steps["gap"], strict=True):
        budgets[name] = max(budgets.get(name, 0.0), float(last))
        gaps[name] = max(gaps.get(name, 0.0), float(gap))
    return budgets, gaps


def best_values(runs: pd.DataFrame, curves: pd.DataFrame, budgets: pd.Series, grid: Grid) -> Numbers:
    """Return the best value of each run within 75 % of its budget, ``(S, N)``; infinite if it diverged."""
    best = best_within_budget(curves, budgets, grid.design.choice.direction).reindex(runs.index)
    worst = grid.design.choice.sign * np.inf
    return grid.arrange(best.mask(runs["status"] == "diverged", worst).to_numpy(dtype=float))


def target_from(best: Numbers, panel: Panel, rule: str, grid: Grid, tuning: Tuning) -> float:
    """Return the target of a panel from the best values ``(S, N)`` of its arms at their chosen settings."""
    design, use = grid.design, grid.uses[panel]
    baseline = design.baseline_among(arms_in(tuning, [panel]))
    arms = {}
    for (other, arm), tuned in tuning.items():
        if other == panel and (rule == BEST_ARM or arm == baseline):
            row = tuned.common
            tunes = len(use.tuning) and not use.within and row is not None
            values = best[row, use.tuning] if tunes else tuned.pick(best, use)
            arms[arm] = values[~np.isnan(values)]
    return best_arm_median(arms, design.choice.direction)


def target_table(
    grid: Grid, targets: dict[Panel, float], rule: str, budget: dict[Panel, float], gap: dict[Panel, float]
) -> pd.DataFrame:
    """Return a row per panel with its target, rule, budget and resolution."""
    rows = [
        {
            **dict(zip(grid.design.panels, panel, strict=True)),
            "panel": grid.panel_name(panel),
            "target": target,
            "rule": rule,
            "budget": budget.get(panel, np.nan),
            "resolution": gap.get(panel, np.nan),
        }
        for panel, target in targets.items()
    ]
    return pd.DataFrame(rows, columns=[*grid.design.panels, "panel", "target", "rule", "budget", "resolution"])


def times_to(curves: pd.DataFrame, targets: pd.Series, direction: str) -> pd.DataFrame:
    """Return ``steps`` and ``seconds`` of each run with curves at its first value as good as its target.

    Infinite if no value is, NaN if the run has no target. A NaN value never reaches the target.

    Args:
        curves: evaluations, with the columns that this module lists.
        targets: the target of each run.
        direction: ``min`` or ``max``.
    """
    target = curves["run"].map(targets).astype(float)  # without curves, it has the dtype of the names
    good = curves["value"] <= target if direction == "min" else curves["value"] >= target
    first = curves[good].sort_values("step").drop_duplicates("run").set_index("run")
    times = first[["step", "seconds"]].astype(float).rename(columns={"step": "steps"})
    runs = pd.Index(curves["run"].unique())
    times = times.reindex(runs, fill_value=np.inf)
    return times.where(targets.reindex(runs).notna(), np.nan, axis=0)


def best_within_budget(curves: pd.DataFrame, budgets: pd.Series, direction: str) -> pd.Series:
    """Return the best value of each run within 75 % of its budget of steps, for runs evaluated by then."""
    early = curves[curves["step"] <= TARGET_SHARE * curves["run"].map(budgets)]
    return early.groupby("run")["value"].agg(direction)


def evaluation_steps(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the ``last`` evaluated step of each run and the largest ``gap`` between two evaluated steps."""
    ordered = curves[["run", "step"]].drop_duplicates().sort_values(["run", "step"])
    before = ordered.groupby("run")["step"].shift(fill_value=0)
    gaps = ordered.assign(gap=ordered["step"] - before)
    return gaps.groupby("run").agg(last=("step", "max"), gap=("gap", "max"))


def best_arm_median(best: dict[str, Numbers], direction: str) -> float:
    """Return the best of the arms' medians over seeds; NaN if none is finite.

    The values are from within 75 % of the budget: the best value of the whole training would be reached late, and
    only by half of the runs.

    Args:
        best: the best value of each seed within 75 % of the budget, ``(n,)``, by arm; infinite if diverged.
        direction: ``min`` or ``max``.
    """
    medians = [float(np.median(values)) for values in best.values() if len(values)]
    finite = [median for median in medians if np.isfinite(median)]
    return (min if direction == "min" else max)(finite, default=np.nan)


def median(times: Numbers) -> float:
    """Return the median of ``(n,)`` times, which may be infinite; NaN without times."""
    return float(np.median(times)) if len(times) else np.nan


def time_ratio(arm: Numbers, baseline: Numbers, resampler: Resampler) -> Estimate:
    """Return the ratio of the median times of two arms, with its percentile-bootstrap interval.

    NaN if half of an arm's runs do not reach the target; the shares of runs that reach it are then reported.

    Args:
        arm, baseline: times of the same seeds, ``(n,)``; infinite if the target was not reached.
        resampler: the bootstrap resamples; both arms use the same resampled seeds.
    """
    arm_median, baseline_median = median(arm), median(baseline)
    if not (np.isfinite(arm_median) and np.isfinite(baseline_median) and baseline_median > 0):
        return UNKNOWN_ESTIMATE
    ratio = arm_median / baseline_median
    if len(arm) < 2 or not resampler.resamples:
        return Estimate(ratio, np.nan, np.nan)
    a, b = (np.median(values[resampler.seeds(len(arm))], axis=0) for values in (arm, baseline))
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = percentile_interval(a / b)
    return Estimate(ratio, max(low, 0.0), high)


def time_per_step_ratio(arm: ArrayLike, baseline: ArrayLike, level: float = 0.95) -> Estimate:
    r"""Return the ratio of two arms' seconds per step, estimated from rounds of interleaved timing.

    .. math::
        \exp(\hat\theta), \qquad \hat\theta = \mathrm{median}_{q \le r}\, \frac{d_q + d_r}{2}, \qquad
        d_r = \log \frac{t_r^{\text{arm}}}{t_r^{\text{baseline}}}

    with the interval of the signed-rank test of d, :func:`~normlab.stats.signed_rank.paired_test`. The rounds are
    interleaved, so that a machine that slows down affects both arms of a pair.

    The interval covers the noise of repeated timing in one process on one machine, not other processes, versions
    or machines. It is too narrow if other load disturbs several rounds together, as they are then not independent.

    Args:
        arm: t of the arm, seconds per step of each round, ``(R,)``.
        baseline: t of the baseline in the same rounds, ``(R,)``.
        level: the confidence level, between 0 and 1.

    Raises:
        ValueError: the shapes differ, or a time is not positive.
    """
    a, b = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"both arms must have the same rounds (R,), got {a.shape} and {b.shape}; keep shared ones"
        )
    if not (a > 0).all() or not (b > 0).all():
        raise ValueError(f"times must be positive, got {min(a.min(), b.min())}; leave out rounds without a time")
    shift = paired_test(np.log(a / b), level).shift
    return Estimate(*(float(np.exp(end)) for end in (shift.value, shift.low, shift.high)))


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
            for arm, baseline in grid.design.comparisons_among(arms_in(tuning, [panel])):
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
