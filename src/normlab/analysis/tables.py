"""The tables of what was found: settings, arms, comparisons, and how much it matters what was set."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from normlab.analysis.arms import STATUSES
from normlab.analysis.cells import Cells
from normlab.analysis.comparing import (
    NOT_COMPARABLE,
    Row,
    compared,
    detectable_difference,
    named,
    pair,
    timed,
    verdict,
)
from normlab.analysis.design import Design, is_number
from normlab.analysis.estimates import UNKNOWN, diverged, mean, share
from normlab.analysis.planning import ALPHA
from normlab.analysis.ranges import BATCH_SIZE, WITHIN, good_range, largest_ratio
from normlab.analysis.reaching import Reached
from normlab.analysis.resampling import Draws
from normlab.analysis.significance import holm
from normlab.analysis.times import median
from normlab.analysis.tuning import Tuned, Tuning, scores

Numbers = NDArray[np.float64]
NOTHING: Row = {
    **{"seeds": 0, "paired": False, "p": np.nan, "rivals": 0, "p_rivals": np.nan, "side": np.nan, "untested": 0},
    **{"spread": np.nan, "detectable": np.nan, "p_holm": np.nan, "declared": False},
    **named("difference", UNKNOWN),
    **named("ratio", UNKNOWN),
    **named("improvement", UNKNOWN),
    **named("steps_ratio", UNKNOWN),
    **named("seconds_ratio", UNKNOWN),
    **named("reached", UNKNOWN),
    **named("baseline_reached", UNKNOWN),
}
"""A comparison that cannot be made."""


def known(values: Numbers) -> Numbers:
    """Return the values that are known."""
    return values[~np.isnan(values)]


def about(cells: Cells, panel: tuple[str, ...], arm: str) -> Row:
    """Return the columns that name an arm of a panel."""
    return {**dict(zip(cells.design.panels, panel, strict=True)), "panel": cells.panel(panel), "arm": arm}


def frame(rows: Sequence[Row], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return rows as a table, with the columns of the first unless they are given."""
    return pd.DataFrame({name: [row[name] for row in rows] for name in columns or (rows[0] if rows else ())})


def settings(cells: Cells, tuning: Tuning, draws: Draws) -> pd.DataFrame:
    """Return a row per setting: what the tuning seeds gave, what the report seeds gave, and whether it was chosen.

    ``tuning_iqm`` is what the choice went by; ``iqm`` with its interval is over the report seeds; ``diverged``
    is the share among all seeds. A ``rival`` may as well be the best.
    """
    design, values = cells.design, cells.values
    on_tuning, on_report = scores(cells.losses[:, cells.tuning]), scores(cells.losses[:, cells.report])
    ends = [mean(known(row), draws)[1:] if draws.resamples else UNKNOWN[1:] for row in values[:, cells.report]]
    counts, lost = (~np.isnan(values)).sum(axis=1), np.isinf(values).sum(axis=1)
    found = [tuning[setting.panel, setting.arm] for setting in cells.settings]
    names = [[*panel, cells.panel(panel), arm, *tuned] for panel, arm, tuned in cells.settings]
    keys = [*design.panels, "panel", "arm", *design.tuned]
    columns = {key: [name[place] for name in names] for place, key in enumerate(keys)} | {
        "tuning_seeds": (~np.isnan(values[:, cells.tuning])).sum(axis=1),
        "report_seeds": (~np.isnan(values[:, cells.report])).sum(axis=1),
        "tuning_iqm": np.where(np.isinf(on_tuning), np.nan, design.sign * on_tuning + 0.0),
        "iqm": np.where(np.isinf(on_report), np.nan, design.sign * on_report + 0.0),  # no −0
        "iqm_low": [low for low, _ in ends],
        "iqm_high": [high for _, high in ends],
        "diverged": np.divide(lost, counts, out=np.full(len(counts), np.nan), where=counts > 0),
        "chosen": [row == tuned.chosen for row, tuned in enumerate(found)],
        "rival": [row in tuned.rivals for row, tuned in enumerate(found)],
    }
    return pd.DataFrame(columns)


def arms(runs: pd.DataFrame, cells: Cells, tuning: Tuning, times: Reached, draws: Draws) -> pd.DataFrame:
    """Return a row per arm at its best setting, over the report seeds.

    Columns: the setting; how many ``runs`` the arm has, and how they ended; ``tuning_seeds`` and ``seeds``;
    ``iqm`` with its interval, the share that ``diverged``; the median ``steps`` and ``seconds`` to the target,
    and the share that ``reached`` it; the ``gap`` of validation and training, positive where validation is
    worse.
    """
    gaps = None
    if "train_value" in runs:
        gap = cells.design.sign * (runs["value"] - runs["train_value"]).to_numpy(dtype=float)
        gaps = cells.arrange(np.where(np.isfinite(gap), gap, np.nan))
    ended = {status: cells.status == status for status in STATUSES}
    rows = []
    for panel, arm, members in cells.groups():
        own = np.isin(cells.row, members)
        counts = {"runs": int(own.sum()), **{status: int((own & of).sum()) for status, of in ended.items()}}
        found = at_best(cells, tuning[panel, arm], times, gaps, draws)
        rows.append({**about(cells, panel, arm), **found, **counts})
    return frame(rows)


def at_best(cells: Cells, tuned: Tuned, times: Reached, gaps: Numbers | None, draws: Draws) -> Row:
    """Return what the report seeds gave for an arm at its best setting."""
    nothing = np.array([])
    best, keys = tuned.chosen, cells.design.tuned
    values, steps, seconds, gap = (
        nothing if best is None or table is None else known(table[best, cells.report])
        for table in (cells.values, times.steps, times.seconds, gaps)
    )
    return {
        **dict(zip(keys, [None] * len(keys) if best is None else cells.settings[best].tuned, strict=True)),
        "tuning_seeds": 0 if best is None else len(known(cells.values[best, cells.tuning])),
        "seeds": len(values),
        **named("iqm", mean(values, draws)),
        "diverged_share": diverged(values),
        "steps": median(steps),
        "seconds": median(seconds),
        **named("reached", share(int(np.isfinite(steps).sum()), len(steps))),
        **named("gap", mean(gap, draws)),
    }


def comparisons(cells: Cells, tuning: Tuning, times: Reached, draws: Draws) -> list[Row]:
    """Return a row per panel and arm but the baseline.

    Columns: see ``comparing``; ``p_holm`` is ``p_rivals`` corrected for all rows that are tested, ``declared``
    whether it is at most 0.05, ``detectable`` the true difference that is then declared with 80 % power.
    """
    rows = [{**NOTHING, **row} for row in pairs(cells, tuning, times, draws)]
    corrected = holm(np.array([row["p_rivals"] for row in rows]))
    tested = int((~np.isnan(corrected)).sum())
    for row, p in zip(rows, corrected, strict=True):
        row |= {"p_holm": float(p), "declared": bool(p <= ALPHA)}
        if "verdict" not in row:
            row["verdict"] = verdict(row, cells.design.apart, cells.design.sign)
            row["detectable"] = detectable_difference(row, max(tested, 1))
    return rows


def pairs(cells: Cells, tuning: Tuning, times: Reached, draws: Draws) -> Iterator[Row]:
    """Yield each arm against the baseline of its panel; what cannot be compared has a verdict that says why."""
    baseline = cells.design.baseline
    for (panel, arm), ours in tuning.items():
        if arm == baseline:
            continue
        row = {**about(cells, panel, arm), "baseline": baseline}
        theirs = tuning.get((panel, baseline))
        if theirs is None:
            keys = ", ".join(nearest_difference(cells, panel, [own for own, name in tuning if name == baseline]))
            yield {**row, "verdict": f"{NOT_COMPARABLE}: {baseline} differs in {keys}"}
            continue
        missing = [name for name, tuned in ((baseline, theirs), (arm, ours)) if not reported(cells, tuned)]
        if missing:
            yield {**row, "verdict": f"{NOT_COMPARABLE}: {missing[0]} has no run to report"}
            continue
        steps, seconds = (
            pair(table[ours.chosen, cells.report], table[theirs.chosen, cells.report])
            for table in (times.steps, times.seconds)
        )
        yield {**row, **compared(cells, ours, theirs, draws), **timed(steps, seconds, draws)}


def nearest_difference(cells: Cells, panel: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the keys in which a panel differs from the one of the ``others`` that is most like it."""
    differences = [
        [key for key, ours, theirs in zip(cells.design.panels, panel, other, strict=True) if ours != theirs]
        for other in others
    ]
    return min(differences, key=len)


def reported(cells: Cells, tuned: Tuned | None) -> bool:
    """Return whether an arm has a run on a report seed, at its best setting."""
    if tuned is None or tuned.chosen is None:
        return False
    return not np.isnan(cells.values[tuned.chosen, cells.report]).all()


def ranges(cells: Cells, tuning: Tuning) -> pd.DataFrame:
    """Return the settings within 10 % of the best, of each tuned key of an arm, over all seeds.

    Where several keys are tuned, each setting of one counts with the best setting of the others.
    """
    losses, rows = scores(cells.losses), []
    for (panel, arm), tuned in tuning.items():
        found = losses[tuned.rows].tolist()
        for place, key in enumerate(cells.design.tuned):
            texts = [cells.settings[row].tuned[place] for row in tuned.rows]
            if all(is_number(text) for text in texts):
                good = good_range([float(text) for text in texts], found)
                if good is not None:
                    rows.append({**about(cells, panel, arm), "key": key, "within": WITHIN, **good._asdict()})
    columns = [*cells.design.panels, "panel", "arm", "key", "within", "smallest", "largest", "decades", "open"]
    return frame(rows, columns)


def batch_sizes(table: pd.DataFrame, design: Design) -> pd.DataFrame:
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
