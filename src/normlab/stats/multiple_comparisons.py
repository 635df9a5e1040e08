"""All comparisons of a sweep, corrected for their number and for looks; see :func:`comparisons_of`."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import pandas as pd

from normlab.stats.comparison import (
    ALPHA,
    EMPTY_ROW,
    NOT_COMPARABLE,
    ComparisonRow,
    PooledPanels,
    TunedArm,
    compare,
    effect_of,
    estimate_columns,
    replicate_effects,
    shown_estimate,
    tuned_arm,
    verdict,
)
from normlab.stats.design import DATA_SEED, Metric
from normlab.stats.estimates import Numbers
from normlab.stats.grid import Grid, Panel
from normlab.stats.looks import History, comparison_key
from normlab.stats.paired_tests import detectable_shift, interaction
from normlab.stats.tuning import Tuning, arms_in

PART_OF_POOLED = "part of the pooled comparison"
CORRECTED = {
    "p_near_best": "p_adjusted",
    "new_table_p": "new_table_p_adjusted",
    "equivalence_p": "equivalence_p_adjusted",
    "failure_p": "failure_p_adjusted",
}
"""Columns of p, and the columns of p corrected for the number of comparisons and looks."""


def comparisons_of(grid: Grid, tuning: Tuning, history: History | None) -> list[ComparisonRow]:
    """Compare each arm with its baseline in each panel and by each metric.

    Panels that differ only in ``data.seed`` are pooled into one test: their replicates have the same seeds, so
    each seed counts once. The single panels are then described without a verdict.

    Without a history, p is not corrected for looks.

    Columns: those of ``compare``; the panel's settings, ``panel``, ``arm``, ``baseline``, ``metric``,
        ``question``, ``scope``; ``look``, the number of the look; ``p_adjusted``, which is ``p_near_best`` times
        the factor of the look, Holm-corrected for all comparisons of the question; ``declared``, whether it is at
        most 0.05; ``detectable``, the effect that is declared with 80 % power; ``verdict``; and
        ``new_table_p_adjusted``, ``equivalence_p_adjusted`` and ``failure_p_adjusted``, corrected in the same way.
    """
    rows = [row for metric in grid.design.metrics for row in metric_comparisons(grid, tuning, metric, history)]
    for family in dict.fromkeys(family_of(row) for row in rows):
        correct_and_decide([row for row in rows if family_of(row) == family])
    return rows


def family_of(row: ComparisonRow) -> str:
    """Return the name of the family that p is corrected in: the question, or the metric if it has none."""
    return str(row["question"] or row["metric"])


def metric_comparisons(
    grid: Grid, tuning: Tuning, metric: Metric, history: History | None
) -> Iterator[ComparisonRow]:
    """Yield the comparisons by one metric, without corrected p-values."""
    for pooled, name, tested in pooled_panels(grid):
        if grid.lacks(metric, pooled.panels):
            continue
        settings: ComparisonRow = dict(zip(grid.design.panels, pooled.panels[0], strict=True))
        if len(pooled.panels) > 1:
            settings[DATA_SEED] = pooled_name(pooled)
        for arm, baseline in grid.design.comparisons_among(arms_in(tuning, pooled.panels)):
            key = comparison_key(grid.design.compare, arm, baseline, name)
            row = {**EMPTY_ROW, **settings, "panel": name, "arm": arm, "baseline": baseline, "metric": metric.name}
            row |= {"question": metric.question, "direction": metric.direction, "scope": pooled.scope, "key": key}
            row |= {
                "of_panels": pooled.panels,
                "splits": len(pooled.panels),
                "tested": tested,
                "look": 0,
                "factor": 1.0,
            }
            yield row | comparison_columns(grid, tuning, metric, history, pooled, row)


def comparison_columns(
    grid: Grid, tuning: Tuning, metric: Metric, history: History | None, pooled: PooledPanels, row: ComparisonRow
) -> ComparisonRow:
    """Return the columns of a comparison; if it is impossible, only a verdict with the reason."""
    pair: list[TunedArm] = []
    for name in (row["arm"], row["baseline"]):
        arm = tuned_arm(tuning, pooled.panels, name)
        if arm is None:
            return {"verdict": f"{NOT_COMPARABLE}: {missing_reason(grid, tuning, pooled.panels, name)}"}
        pair.append(arm)
    columns = compare(pooled, metric, *pair)
    if not columns["replicates"]:
        reason = f"{row['arm']} and {row['baseline']} share no seed that is reported"
        for arm in pair:
            if np.isnan(pooled.pick(grid.tables[metric.name], arm)).all():
                reason = f"no reported run of {arm.arm} has {metric.name}"
        return {"verdict": f"{NOT_COMPARABLE}: {reason}"}
    columns |= {"disjoint": pooled.is_disjoint, "margin": grid.design.margin}
    if history is not None:
        key, seeds = row["key"], columns["seeds"]
        columns |= {"look": history.look(key, seeds), "factor": history.factor(key, seeds)}
    return columns


def pooled_panels(grid: Grid) -> Iterator[tuple[PooledPanels, str, bool]]:
    """Yield the panels of each comparison, with their name and whether the comparison is tested.

    Panels that differ only in ``data.seed`` are pooled and tested together, then yielded one by one, untested.
    """
    panels, keys = grid.panels, grid.design.panels
    if DATA_SEED not in keys:
        yield from ((PooledPanels(grid, (panel,)), grid.panel_name(panel), True) for panel in panels)
        return
    position = keys.index(DATA_SEED)
    groups: dict[Panel, list[Panel]] = {}
    for panel in panels:
        groups.setdefault((*panel[:position], *panel[position + 1 :]), []).append(panel)
    for members in groups.values():
        is_pooled = len(members) > 1 and len({grid.uses[panel].scope for panel in members}) == 1
        if is_pooled:
            pooled = PooledPanels(grid, tuple(members))
            rest = [(key, text) for key, text in zip(keys, members[0], strict=True) if key != DATA_SEED]
            yield pooled, ", ".join([*(f"{key}={text}" for key, text in rest), pooled_name(pooled)]), True
        yield from ((PooledPanels(grid, (panel,)), grid.panel_name(panel), not is_pooled) for panel in members)


def pooled_name(pooled: PooledPanels) -> str:
    """Return the name of pooled panels, such as ``all 3 data.seed``."""
    return f"all {len(pooled.panels)} {DATA_SEED}"


def missing_reason(grid: Grid, tuning: Tuning, panels: Sequence[Panel], arm: str) -> str:
    """Return the reason that an arm is missing from some panels: no run, or other keys that differ."""
    others = [panel for panel, name in tuning if name == arm]
    missing = [panel for panel in panels if panel not in others]
    if not missing or not others:
        return f"no run of {arm} is reported"
    different: list[list[str]] = [
        [key for key, a, b in zip(grid.design.panels, missing[0], other, strict=True) if a != b]
        for other in others
    ]
    return f"{arm} differs in {', '.join(sorted(different, key=len)[0])}"


def correct_p(rows: Sequence[ComparisonRow], name: str) -> None:
    """Set the corrected values of a column of p."""
    for row, value in zip(rows, adjusted_p(rows, name).tolist(), strict=True):
        row[CORRECTED[name]] = value


def adjusted_p(rows: Sequence[ComparisonRow], name: str) -> Numbers:
    """Return a column of p times the factor of each row's look, corrected by Holm's method, ``(rows,)``."""
    with np.errstate(invalid="ignore"):  # 0 times an infinite factor is NaN
        return holm(np.minimum(1.0, [row[name] * row["factor"] for row in rows]))


def correct_and_decide(rows: Sequence[ComparisonRow]) -> None:
    """Correct the p-values of one family of comparisons, and set the verdict of each comparison."""
    tested = [row for row in rows if "verdict" not in row and row["tested"]]
    for row in rows:
        row.update(dict.fromkeys(CORRECTED.values(), np.nan))
    for name in ("p_near_best", "new_table_p", "equivalence_p"):
        correct_p(tested, name)
    # Failures do not depend on the metric, so two arms have one test of failures for all metrics.
    failing = {row["key"]: row for row in tested if row["failed"] + row["baseline_failed"]}
    correct_p(list(failing.values()), "failure_p")
    for row in tested:
        if row["key"] in failing:
            row["failure_p_adjusted"] = failing[row["key"]]["failure_p_adjusted"]
    lowest = adjusted_p(tested, "attainable")
    for row, p in zip(tested, lowest.tolist(), strict=True):
        row["verdict"] = verdict(row, row["disjoint"], row["factor"], p)
    for row in rows:
        row["comparisons"] = len(tested)
        row.setdefault("verdict", PART_OF_POOLED)
        row["declared"] = bool(row["tested"] and row["p_adjusted"] <= ALPHA and "disjoint" in row)
        level = ALPHA / (row["factor"] * max(len(tested), 1))
        row["detectable"] = (
            detectable_shift(row["replicates"], level) * row["spread"] if row["replicates"] > 1 else np.nan
        )


def interactions_of(grid: Grid, tuning: Tuning) -> pd.DataFrame:
    """Test whether the effect of each arm on the primary metric changes from panel to panel.

    A panel is compared with the first earlier panel that differs from it in one key only. The test is of the
    differences between the effects of the replicates that both panels have; p is Holm-corrected over all rows.

    Columns: ``arm``, ``baseline``, ``key``, ``panel``, ``other`` (the earlier panel), ``replicates``, ``effect``
    (ratio, points or difference), ``estimate`` with its interval (a ratio of ratios, or a difference of
    differences), ``p``, ``p_adjusted``.
    """
    rows: list[ComparisonRow] = []
    of_panels = (grid.design.comparisons_among(arms_in(tuning, [panel])) for panel in grid.panels)
    for pair in dict.fromkeys(chain.from_iterable(of_panels)):
        for panel, other, key in panel_pairs(grid.panels, grid.design.panels):
            row = interaction_row(grid, tuning, grid.design.primary, (panel, other), pair)
            if row is not None:
                rows.append(row | {"key": key})
    adjusted = holm(np.array([row["p"] for row in rows], dtype=float))
    columns = ["arm", "baseline", "key", "panel", "other", "replicates", "effect"]
    columns += ["estimate", "estimate_low", "estimate_high", "p", "p_adjusted"]
    corrected = [row | {"p_adjusted": float(p)} for row, p in zip(rows, adjusted, strict=True)]
    return pd.DataFrame(corrected, columns=columns)


def panel_pairs(panels: Sequence[Panel], keys: Sequence[str]) -> Iterator[tuple[Panel, Panel, str]]:
    """Yield each panel, the first earlier panel that differs from it in one key only, and that key."""
    for k, panel in enumerate(panels):
        for other in panels[:k]:
            different = [key for key, a, b in zip(keys, panel, other, strict=True) if a != b]
            if len(different) == 1 and different[0] != DATA_SEED:
                yield panel, other, different[0]
                break


def interaction_row(
    grid: Grid, tuning: Tuning, metric: Metric, panels: tuple[Panel, Panel], arms: tuple[str, str]
) -> ComparisonRow | None:
    """Return the test of an interaction of two panels; None without shared, disjointly tuned replicates."""
    values: list[tuple[Numbers, Numbers]] = []
    for panel in panels:
        arm, baseline = (tuned_arm(tuning, (panel,), name) for name in arms)
        if arm is None or baseline is None or not grid.uses[panel].is_disjoint:
            return None
        pooled, table = PooledPanels(grid, (panel,)), grid.tables[metric.name]
        values.append((pooled.pick(table, arm), pooled.pick(table, baseline)))
    effect = effect_of(metric, *chain.from_iterable(values))
    by_seed = []
    for pair in values:
        effects, seeds = replicate_effects(effect, *pair)
        by_seed.append(dict(zip(seeds.tolist(), effects.tolist(), strict=True)))
    shared = [seed for seed in by_seed[0] if seed in by_seed[1]]
    if not shared:
        return None
    first, second = (np.array([effects[seed] for seed in shared]) for effects in by_seed)
    test = interaction(first, second)
    return {
        "arm": arms[0],
        "baseline": arms[1],
        "panel": grid.panel_name(panels[0]),
        "other": grid.panel_name(panels[1]),
        "replicates": len(shared),
        "effect": effect,
        **estimate_columns("estimate", shown_estimate(effect, test.shift)),
        "p": test.p,
    }


def replicates_needed(comparisons: int, factor: float = 1.0) -> int:
    """Return the smallest number of replicates with which all comparisons can be declared different.

    The smallest p of n replicates is ``2 / 2^n``. The number of comparisons and the factor multiply it.

    >>> replicates_needed(1), replicates_needed(1, 2.0), replicates_needed(6, 2.0)
    (6, 7, 9)
    """
    return math.ceil(1 + math.log2(max(comparisons, 1) * factor / ALPHA) - 1e-12)


def holm(p: Numbers) -> Numbers:
    """Return p-values ``(k,)`` corrected by Holm's method (Holm 1979); NaN stays NaN and does not count.

    The i-th smallest becomes ``max over j ≤ i of min(1, (k − j + 1)·p_j)``. Declaring those that are at most α
    keeps the probability of any false declaration at most α.
    """
    p = np.asarray(p, dtype=float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    corrected = np.full(p.shape, np.nan)
    steps = np.arange(len(order), 0, -1) * p[order]
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected
