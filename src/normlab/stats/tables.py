"""The tables of an analysis: settings, arms, times to the target, and ranges of nearly equal settings."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from normlab.stats.comparison import ComparisonRow, PooledPanels, estimate_columns, sides_of
from normlab.stats.configurations import STATUSES
from normlab.stats.design import Design, is_number
from normlab.stats.estimates import UNKNOWN_ESTIMATE, Draws, Numbers, iqm_estimate, share_estimate
from normlab.stats.grid import Grid, Panel
from normlab.stats.ranges import BATCH_SIZE, WITHIN, good_range, largest_ratio
from normlab.stats.time_to_target import Reached, median, time_per_step_ratio, time_ratio
from normlab.stats.tuning import Tuned, Tuning, scores

StepTimes = Mapping[tuple[Panel, str], Sequence[float]]
"""Seconds per optimizer step of each arm of a panel, one for each round of interleaved timing, ``(R,)``."""


def known_values(values: Numbers) -> Numbers:
    """Return the values that are known."""
    return values[~np.isnan(values)]


def about(grid: Grid, panel: Panel, arm: str) -> ComparisonRow:
    """Return the columns that name an arm of a panel."""
    return {**dict(zip(grid.design.panels, panel, strict=True)), "panel": grid.panel(panel), "arm": arm}


def frame(rows: Sequence[ComparisonRow], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return rows as a table, with the columns of the first unless they are given; None stays None beside text."""
    values = {name: [row[name] for row in rows] for name in columns or (rows[0] if rows else ())}
    return pd.DataFrame(
        {name: pd.Series(own, dtype=object if None in own else None) for name, own in values.items()}
    )


def settings(grid: Grid, tuning: Tuning, draws: Draws) -> pd.DataFrame:
    """Return a row per setting.

    Columns: ``tuning_iqm``, the validation metric on the replicates that choose; ``iqm`` with its interval, the
        primary metric on the replicates that report; ``diverged`` and ``untrained``, shares of all runs;
        ``chosen``, the share of the reported replicates that take the setting; ``near_best``, whether it may as
        well be the best.
    """
    design, values, validation = grid.design, grid.values, grid.tables["validation"]
    counts, lost = (~np.isnan(validation)).sum(axis=1), np.isinf(validation).sum(axis=1)
    untrained = (grid.tables["untrained"] > 0.5).sum(axis=1)
    rows = []
    for row, setting in enumerate(grid.settings):
        use, own = grid.uses[setting.panel], tuning[setting.panel, setting.arm]
        reported = known_values(values[row, use.report])
        score = float(scores(grid.choice[[row]][:, use.tuning])[0]) if len(use.tuning) else np.nan
        rows.append(
            {
                **about(grid, setting.panel, setting.arm),
                **dict(zip(design.tuned, setting.tuned, strict=True)),
                "tuning_seeds": len(known_values(validation[row, use.tuning])),
                "report_seeds": len(reported),
                "tuning_iqm": np.nan if np.isinf(score) else design.choice.sign * score + 0.0,  # no −0
                **estimate_columns("iqm", iqm_estimate(reported, draws)),
                "diverged": lost[row] / counts[row] if counts[row] else np.nan,
                "untrained": untrained[row] / counts[row] if counts[row] else np.nan,
                "chosen": float((own.chosen == row).mean()) if len(own.chosen) else 0.0,
                "near_best": row in own.near_best,
            }
        )
    return frame(rows)


def arms(runs: pd.DataFrame, grid: Grid, tuning: Tuning, times: Reached, draws: Draws) -> pd.DataFrame:
    """Return a row per arm at its chosen settings, over the reported replicates.

    Columns: the setting, None where replicates take different ones; how many ``runs`` the arm has, and how they
    ended; ``tuning_seeds`` and ``seeds``; ``iqm`` of the primary metric with its interval, and the IQM of each
    metric and of the ``best`` validation by name; the shares that ``diverged`` and are ``untrained``; the median
    ``steps`` and ``seconds`` to the target, and the share that ``reached`` it.
    """
    ended = {status: grid.status == status for status in STATUSES}
    rows = []
    for panel, arm, members in grid.groups():
        own = np.isin(grid.row, members)
        counts = {"runs": int(own.sum()), **{status: int((own & of).sum()) for status, of in ended.items()}}
        rows.append(
            {**about(grid, panel, arm), **arm_row(grid, panel, tuning[panel, arm], times, draws), **counts}
        )
    return frame(rows)


def arm_row(grid: Grid, panel: Panel, tuned: Tuned, times: Reached, draws: Draws) -> ComparisonRow:
    """Return the numbers of an arm at its chosen settings."""
    use, keys, common = grid.uses[panel], grid.design.tuned, tuned.common
    setting = [None] * len(keys) if common is None else grid.settings[common].tuned

    def picked(table: Numbers) -> Numbers:
        return known_values(tuned.pick(table, use))

    values, steps, seconds = picked(grid.values), picked(times.steps), picked(times.seconds)
    validation, untrained = picked(grid.tables["validation"]), picked(grid.tables["untrained"])
    others = [*(metric.name for metric in grid.design.metrics), "best", "validation"]
    return {
        **dict(zip(keys, setting, strict=True)),
        "tuning_seeds": 0 if common is None else len(known_values(grid.tables["validation"][common, use.tuning])),
        "seeds": len(values),
        **estimate_columns("iqm", iqm_estimate(values, draws)),
        **{name: iqm_estimate(picked(grid.tables[name]), draws).value for name in others},
        "diverged_share": float(np.isinf(validation).mean()) if len(validation) else np.nan,
        "untrained_share": float((untrained > 0.5).mean()) if len(untrained) else np.nan,
        "steps": median(steps),
        "seconds": median(seconds),
        **estimate_columns("reached", share_estimate(int(np.isfinite(steps).sum()), len(steps))),
    }


def time_ratios(grid: Grid, tuning: Tuning, times: Reached, timed: StepTimes, draws: Draws) -> pd.DataFrame:
    """Return how many times the baseline's steps and seconds each arm takes to the target.

    Columns: ``steps_ratio`` with its bootstrap interval; ``step_time_ratio``, of the seconds of one step, with
        the interval of the rounds in which the arms were timed in turn; ``seconds_ratio``, their product, with
        the intervals combined on the log scale: ``√(a² + b²)`` for half widths a and b on either side; NaN for
        arms that were not timed.
    """
    rows = []
    for panel in dict.fromkeys(setting.panel for setting in grid.settings):
        place = PooledPanels(grid, (panel,))
        for arm, baseline in grid.design.comparisons:
            sides = [sides_of(tuning, (panel,), name) for name in (arm, baseline)]
            if sides[0] is None or sides[1] is None:
                continue
            a, b = (place.pick(times.steps, side)[:, 0] for side in sides if side is not None)
            both = ~(np.isnan(a) | np.isnan(b))
            steps = time_ratio(a[both], b[both], draws)
            rounds = [timed.get((panel, name)) for name in (arm, baseline)]
            step = (
                UNKNOWN_ESTIMATE
                if rounds[0] is None or rounds[1] is None
                else time_per_step_ratio(rounds[0], rounds[1])
            )
            with np.errstate(divide="ignore"):  # an end may be 0 or infinite
                reach = [
                    np.hypot(np.log(steps[end] / steps.value), np.log(step[end] / step.value)) for end in (1, 2)
                ]
            low, high = np.exp(-reach[0]), np.exp(reach[1])
            seconds = steps.value * step.value
            rows.append(
                {
                    **about(grid, panel, arm),
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
    return frame(rows, columns)


def near_best_ranges(grid: Grid, tuning: Tuning) -> pd.DataFrame:
    """Return the settings within 10 % of the best validation loss, of each tuned key of an arm, over all seeds.

    A run that failed to train counts as diverged. Where several keys are tuned, each setting of one counts with
    the best setting of the others.
    """
    losses, rows = scores(np.where(grid.failed > 0.5, np.inf, grid.choice)), []
    for (panel, arm), tuned in tuning.items():
        found = losses[tuned.rows].tolist()
        for place, key in enumerate(grid.design.tuned):
            texts = [grid.settings[row].tuned[place] for row in tuned.rows]
            if all(is_number(text) for text in texts):
                good = good_range([float(text) for text in texts], found)
                if good is not None:
                    rows.append({**about(grid, panel, arm), "key": key, "within": WITHIN, **good._asdict()})
    columns = [*grid.design.panels, "panel", "arm", "key", "within", "smallest", "largest", "decades", "open"]
    return frame(rows, columns)


def batch_size_ratios(table: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Return the largest over the smallest IQM among batch sizes, of each arm, where batch sizes are panels.

    Args:
        table: that of the arms.
        design: the sweep's.
    """
    others = [key for key in design.panels if key != BATCH_SIZE]
    columns = [*others, "arm", "batch_sizes", "ratio"]
    if BATCH_SIZE not in design.panels:
        return pd.DataFrame([], columns=columns)
    rows = [
        [*group, len(own), largest_ratio(own["iqm"].to_numpy(dtype=float))]
        for group, own in table.groupby([*others, "arm"], sort=False)
    ]
    return pd.DataFrame(rows, columns=columns)
