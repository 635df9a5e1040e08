"""The analysis of a sweep and its tables; the entry is :func:`analyze`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from normlab.stats.comparison import ComparisonRow, PooledPanels, estimate_columns, tuned_arm
from normlab.stats.design import STATUSES, Design, is_number
from normlab.stats.estimates import RESAMPLES, UNKNOWN_ESTIMATE, Numbers, Resampler, iqm_estimate, share_estimate
from normlab.stats.grid import Grid, Panel, grid_of
from normlab.stats.learning_speed import (
    TargetTimes,
    at_fixed_steps,
    median,
    time_per_step_ratio,
    time_ratio,
    times_to_target,
)
from normlab.stats.looks import History
from normlab.stats.multiple_comparisons import comparisons_of, interactions_of
from normlab.stats.tuning import (
    BATCH_SIZE,
    WITHIN,
    Tuned,
    Tuning,
    arms_in,
    choose_settings,
    good_range,
    largest_ratio,
    scores,
)
from normlab.stats.warnings import disagreement_warnings, edge_warnings, warnings_of

StepTimes = Mapping[tuple[Panel, str], Sequence[float]]
"""Seconds per optimizer step of each arm of a panel, one per round of interleaved timing, ``(R,)``."""


def known_values(values: Numbers) -> Numbers:
    """Return the values that are not NaN."""
    return values[~np.isnan(values)]


def arm_columns(grid: Grid, panel: Panel, arm: str) -> ComparisonRow:
    """Return the columns that identify an arm of a panel."""
    return {**dict(zip(grid.design.panels, panel, strict=True)), "panel": grid.panel_name(panel), "arm": arm}


def to_frame(rows: Sequence[ComparisonRow], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return rows as a data frame; None among texts stays None."""
    values = {name: [row[name] for row in rows] for name in columns or (rows[0] if rows else ())}
    return pd.DataFrame(
        {name: pd.Series(cells, dtype=object if None in cells else None) for name, cells in values.items()}
    )


def settings_table(grid: Grid, tuning: Tuning, resampler: Resampler) -> pd.DataFrame:
    """Return a row per configuration.

    Columns: ``tuning_iqm``, the IQM of the validation metric over the tuning replicates; ``iqm`` with its
        interval, that of the primary metric over the reported replicates; ``diverged`` and ``untrained``, shares
        of all runs; ``chosen``, the share of the reported replicates that take this configuration;
        ``near_best``, whether it is near-best, see ``near_best_of``.
    """
    design, values, validation = grid.design, grid.values, grid.tables["validation"]
    counts, lost = (~np.isnan(validation)).sum(axis=1), np.isinf(validation).sum(axis=1)
    untrained = (grid.tables["untrained"] > 0.5).sum(axis=1)
    rows = []
    for row, (panel, arm, settings) in enumerate(grid.configurations):
        use, tuned = grid.uses[panel], tuning[panel, arm]
        reported = known_values(values[row, use.report])
        score = float(scores(grid.choice[[row]][:, use.tuning])[0]) if len(use.tuning) else np.nan
        rows.append(
            {
                **arm_columns(grid, panel, arm),
                **dict(zip(design.tuned, settings, strict=True)),
                "tuning_seeds": len(known_values(validation[row, use.tuning])),
                "report_seeds": len(reported),
                "tuning_iqm": np.nan if np.isinf(score) else design.choice.sign * score + 0.0,  # no −0
                **estimate_columns("iqm", iqm_estimate(reported, resampler)),
                "diverged": lost[row] / counts[row] if counts[row] else np.nan,
                "untrained": untrained[row] / counts[row] if counts[row] else np.nan,
                "chosen": float((tuned.chosen == row).mean()) if len(tuned.chosen) else 0.0,
                "near_best": row in tuned.near_best,
            }
        )
    return to_frame(rows)


def arm_table(grid: Grid, tuning: Tuning, times: TargetTimes, resampler: Resampler) -> pd.DataFrame:
    """Return a row per panel and arm at its chosen settings, over the reported replicates.

    Columns: the settings, None if replicates take different ones; the number of ``runs`` and of each status;
    ``tuning_seeds`` and ``seeds``; ``iqm`` of the primary metric with its interval, and the IQM of each metric and
    of the ``best`` validation by name; ``diverged_share`` and ``untrained_share``; the median ``steps`` and
    ``seconds`` to the target, and the share that ``reached`` it.
    """
    has_status = {status: grid.status == status for status in STATUSES}
    rows = []
    for panel, arm, members in grid.groups():
        of_arm = np.isin(grid.row, members)
        counts = {status: int((of_arm & mask).sum()) for status, mask in has_status.items()}
        outcomes = arm_outcomes(grid, panel, tuning[panel, arm], times, resampler)
        rows.append({**arm_columns(grid, panel, arm), **outcomes, "runs": int(of_arm.sum()), **counts})
    return to_frame(rows)


def arm_outcomes(
    grid: Grid, panel: Panel, tuned: Tuned, times: TargetTimes, resampler: Resampler
) -> ComparisonRow:
    """Return the settings and outcomes of an arm, the columns of ``arm_table`` without the counts of runs."""
    use, keys, common = grid.uses[panel], grid.design.tuned, tuned.common
    settings = [None] * len(keys) if common is None else grid.configurations[common].tuned

    def picked(table: Numbers) -> Numbers:
        return known_values(tuned.pick(table, use))

    values, steps, seconds = picked(grid.values), picked(times.steps), picked(times.seconds)
    validation, untrained = picked(grid.tables["validation"]), picked(grid.tables["untrained"])
    others = [*(metric.name for metric in grid.design.metrics), "best", "validation"]
    return {
        **dict(zip(keys, settings, strict=True)),
        "tuning_seeds": 0 if common is None else len(known_values(grid.tables["validation"][common, use.tuning])),
        "seeds": len(values),
        **estimate_columns("iqm", iqm_estimate(values, resampler)),
        **{name: iqm_estimate(picked(grid.tables[name]), resampler).value for name in others},
        "diverged_share": float(np.isinf(validation).mean()) if len(validation) else np.nan,
        "untrained_share": float((untrained > 0.5).mean()) if len(untrained) else np.nan,
        "steps": median(steps),
        "seconds": median(seconds),
        **estimate_columns("reached", share_estimate(int(np.isfinite(steps).sum()), len(steps))),
    }


def time_ratios(
    grid: Grid, tuning: Tuning, times: TargetTimes, timed: StepTimes, resampler: Resampler
) -> pd.DataFrame:
    """Return the ratios of each arm's steps and seconds to the target to those of its baseline.

    Columns: ``steps_ratio`` with its bootstrap interval; ``step_time_ratio``, the ratio of seconds per step, with
        the interval over the rounds of interleaved timing; ``seconds_ratio``, their product, with the intervals
        combined on the log scale: ``√(a² + b²)`` for half widths a and b on each side. NaN for untimed arms.
    """
    rows = []
    for panel in grid.panels:
        pooled = PooledPanels(grid, (panel,))
        for arm, baseline in grid.design.comparisons_among(arms_in(tuning, [panel])):
            pair = [tuned_arm(tuning, (panel,), name) for name in (arm, baseline)]
            if pair[0] is None or pair[1] is None:
                continue
            a, b = (pooled.pick(times.steps, member)[:, 0] for member in pair if member is not None)
            both = ~(np.isnan(a) | np.isnan(b))
            steps = time_ratio(a[both], b[both], resampler)
            rounds = [timed.get((panel, name)) for name in (arm, baseline)]
            step = (
                UNKNOWN_ESTIMATE
                if rounds[0] is None or rounds[1] is None
                else time_per_step_ratio(rounds[0], rounds[1])
            )
            with np.errstate(divide="ignore"):  # an end may be 0 or infinite
                half_widths = [
                    np.hypot(np.log(steps[end] / steps.value), np.log(step[end] / step.value)) for end in (1, 2)
                ]
            low, high = np.exp(-half_widths[0]), np.exp(half_widths[1])
            seconds = steps.value * step.value
            rows.append(
                {
                    **arm_columns(grid, panel, arm),
                    "baseline": baseline,
                    **estimate_columns("steps_ratio", steps),
                    **estimate_columns("step_time_ratio", step),
                    **{
                        "seconds_ratio": seconds,
                        "seconds_ratio_low": seconds * low,
                        "seconds_ratio_high": seconds * high,
                    },
                }
            )
    columns = [*grid.design.panels, "panel", "arm", "baseline"]
    columns += [
        *estimate_columns("steps_ratio", UNKNOWN_ESTIMATE),
        *estimate_columns("step_time_ratio", UNKNOWN_ESTIMATE),
        *estimate_columns("seconds_ratio", UNKNOWN_ESTIMATE),
    ]
    return to_frame(rows, columns)


def near_best_ranges(grid: Grid, tuning: Tuning) -> pd.DataFrame:
    """Return the range of settings within 10 % of the best validation loss, for each arm and tuned key.

    The loss is the IQM over all seeds; runs that failed to train count as diverged. If several keys are tuned, a
    setting of one counts with the best settings of the others.
    """
    losses, rows = scores(np.where(grid.failed > 0.5, np.inf, grid.choice)), []
    for (panel, arm), tuned in tuning.items():
        arm_losses = losses[tuned.rows].tolist()
        for position, key in enumerate(grid.design.tuned):
            settings = [grid.configurations[row].tuned[position] for row in tuned.rows]
            if all(is_number(setting) for setting in settings):
                good = good_range([float(setting) for setting in settings], arm_losses)
                if good is not None:
                    rows.append({**arm_columns(grid, panel, arm), "key": key, "within": WITHIN, **good._asdict()})
    columns = [*grid.design.panels, "panel", "arm", "key", "within", "smallest", "largest", "decades", "open"]
    return to_frame(rows, columns)


def batch_size_ratios(table: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Return the largest over the smallest IQM among batch sizes, by arm; empty unless they vary.

    Args:
        table: the table of the arms, from ``arm_table``.
        design: the design of the sweep.
    """
    others = [key for key in design.panels if key != BATCH_SIZE]
    columns = [*others, "arm", "batch_sizes", "ratio"]
    if BATCH_SIZE not in design.panels:
        return pd.DataFrame([], columns=columns)
    rows = [
        [*group, len(part), largest_ratio(part["iqm"].to_numpy(dtype=float))]
        for group, part in table.groupby([*others, "arm"], sort=False)
    ]
    return pd.DataFrame(rows, columns=columns)


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
    arms = arm_table(grid, tuning, times, resampler)
    rows = comparisons_of(grid, tuning, history if is_kept else None)
    edges = edge_warnings(grid, tuning)
    ends = list(disagreement_warnings(grid, tuning, rows))
    analysis = Analysis(
        design,
        grid,
        tuning,
        settings_table(grid, tuning, resampler),
        arms,
        pd.DataFrame(rows),
        interactions_of(grid, tuning),
        times.targets,
        times.runs,
        at_fixed_steps(runs.index, grid, tuning, curves.iloc[:0] if train_curves is None else train_curves),
        time_ratios(grid, tuning, times, timed or {}, resampler),
        near_best_ranges(grid, tuning),
        batch_size_ratios(arms, design),
        edges,
        ends,
        [*edges, *ends, *warnings_of(runs, grid, tuning, times, rows, history)],
    )
    history.add(grid, tuning, rows)
    return analysis
