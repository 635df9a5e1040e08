"""All comparisons of a sweep, corrected for their number and for earlier looks; see :func:`comparisons_of`."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from normlab.stats.comparison import (
    ALPHA,
    EMPTY_ROW,
    NOT_COMPARABLE,
    ComparisonRow,
    PooledPanels,
    Side,
    compare,
    effect_of,
    estimate_columns,
    replicate_effects,
    shown_estimate,
    sides_of,
    verdict,
)
from normlab.stats.design import DATA_SEED, Metric
from normlab.stats.estimates import Numbers
from normlab.stats.grid import Grid, Panel
from normlab.stats.looks import History, comparison_key
from normlab.stats.paired_tests import detectable_shift, interaction
from normlab.stats.tuning import Tuning

ONE_SPLIT = "part of the pooled comparison"
CORRECTED = {
    "p_near_best": "p_adjusted",
    "new_table_p": "new_table_p_adjusted",
    "equivalence_p": "equivalence_p_adjusted",
    "failure_p": "failure_p_adjusted",
}
"""Columns of p, and of p corrected for the number of comparisons and looks."""


def comparisons_of(grid: Grid, tuning: Tuning, history: History | None) -> list[ComparisonRow]:
    """Compare each arm with its baseline in each panel, by each metric.

    Where panels differ in ``data.seed`` alone, a comparison pooled over them is tested instead of each alone: the
    replicates of all these splits have the same seeds, and count once.

    Without a history the number of looks does not count.

    Columns: those of ``compare``; the panel's settings, ``panel``, ``arm``, ``baseline``, ``metric``,
        ``question``, ``scope``; ``look``; ``p_adjusted``, which is ``p_near_best`` times the factor of the look,
        corrected by Holm for all comparisons of the question; ``declared``, whether it is at most 0.05;
        ``detectable``, the effect that is then declared with 80 % power; ``verdict``; ``new_table_p_adjusted``
        and ``failure_p_adjusted``, corrected likewise.
    """
    rows = [row for metric in grid.design.metrics for row in of_metric(grid, tuning, metric, history)]
    for family in dict.fromkeys(family_of(row) for row in rows):
        adjust([row for row in rows if family_of(row) == family])
    return rows


def family_of(row: ComparisonRow) -> str:
    """Return the comparisons that a row's p is corrected with: all of one question, or of a metric without one."""
    return str(row["question"] or row["metric"])


def of_metric(grid: Grid, tuning: Tuning, metric: Metric, history: History | None) -> Iterator[ComparisonRow]:
    """Yield the comparisons by one metric."""
    for place, name, tested in pooled_panels(grid):
        about: ComparisonRow = dict(zip(grid.design.panels, place.panels[0], strict=True))
        if len(place.panels) > 1:
            about[DATA_SEED] = name_of_splits(place)
        present = {arm for panel, arm in tuning if panel in place.panels}
        for arm, baseline in grid.design.comparisons:
            if arm not in present:
                continue
            key = comparison_key(grid.design.compare, arm, baseline, name)
            row = {**EMPTY_ROW, **about, "panel": name, "arm": arm, "baseline": baseline, "metric": metric.name}
            row |= {"question": metric.question, "direction": metric.direction, "scope": place.scope, "key": key}
            row |= {
                "of_panels": place.panels,
                "splits": len(place.panels),
                "tested": tested,
                "look": 0,
                "factor": 1.0,
            }
            yield row | one_comparison(grid, tuning, metric, history, place, row)


def one_comparison(
    grid: Grid, tuning: Tuning, metric: Metric, history: History | None, place: PooledPanels, row: ComparisonRow
) -> ComparisonRow:
    """Return the columns of a comparison, or the verdict that says why it cannot be made."""
    sides = [sides_of(tuning, place.panels, row[name]) for name in ("arm", "baseline")]
    for name, side in zip(("arm", "baseline"), sides, strict=True):
        if side is None:
            return {"verdict": f"{NOT_COMPARABLE}: {reason(grid, tuning, place.panels, row[name])}"}
    ours, theirs = (side for side in sides if side is not None)
    found = compare(place, metric, ours, theirs)
    if not found["replicates"]:
        known = [not np.isnan(place.pick(grid.tables[metric.name], side)).all() for side in (ours, theirs)]
        why = f"{row['arm']} and {row['baseline']} share no seed that is reported"
        for name, is_known in zip((row["arm"], row["baseline"]), known, strict=True):
            why = why if is_known else f"no reported run of {name} has {metric.name}"
        return {"verdict": f"{NOT_COMPARABLE}: {why}"}
    found |= {"disjoint": place.is_disjoint, "margin": grid.design.margin}
    if history is not None:
        key, seeds = row["key"], found["seeds"]
        found |= {"look": history.look(key, seeds), "factor": history.factor(key, seeds)}
    return found


def pooled_panels(grid: Grid) -> Iterator[tuple[PooledPanels, str, bool]]:
    """Yield where arms are compared, with a name, and whether a verdict is given there.

    Several panels that differ in ``data.seed`` alone are pooled, and described one by one.
    """
    panels = list(dict.fromkeys(setting.panel for setting in grid.settings))
    keys = grid.design.panels
    if DATA_SEED not in keys:
        yield from ((PooledPanels(grid, (panel,)), grid.panel(panel), True) for panel in panels)
        return
    at = keys.index(DATA_SEED)
    groups: dict[Panel, list[Panel]] = {}
    for panel in panels:
        groups.setdefault((*panel[:at], *panel[at + 1 :]), []).append(panel)
    for members in groups.values():
        alike = len(members) > 1 and len({grid.uses[panel].scope for panel in members}) == 1
        if alike:
            pooled = PooledPanels(grid, tuple(members))
            rest = [(key, text) for key, text in zip(keys, members[0], strict=True) if key != DATA_SEED]
            yield pooled, ", ".join([*(f"{key}={text}" for key, text in rest), name_of_splits(pooled)]), True
        yield from ((PooledPanels(grid, (panel,)), grid.panel(panel), not alike) for panel in members)


def name_of_splits(place: PooledPanels) -> str:
    """Return the name of panels that are pooled."""
    return f"all {len(place.panels)} {DATA_SEED}"


def reason(grid: Grid, tuning: Tuning, panels: Sequence[Panel], arm: str) -> str:
    """Return why an arm cannot be compared in some panels: it has no run, or none with these keys."""
    others = [own for own, name in tuning if name == arm]
    missing = [panel for panel in panels if panel not in others]
    if not missing or not others:
        return f"no run of {arm} is reported"
    different: list[list[str]] = [
        [key for key, ours, theirs in zip(grid.design.panels, missing[0], other, strict=True) if ours != theirs]
        for other in others
    ]
    return f"{arm} differs in {', '.join(sorted(different, key=len)[0])}"


def correct_p(rows: Sequence[ComparisonRow], name: str) -> None:
    """Multiply p of some rows by the factor of their look, and correct it by Holm for their number."""
    with np.errstate(invalid="ignore"):  # NaN, or 0 of an infinite factor
        adjusted = holm(np.minimum(1.0, [row[name] * row["factor"] for row in rows]))
    for row, value in zip(rows, adjusted.tolist(), strict=True):
        row[CORRECTED[name]] = value


def adjust(rows: Sequence[ComparisonRow]) -> None:
    """Correct the p-values of comparisons of one question, and give each comparison its verdict."""
    tested = [row for row in rows if "verdict" not in row and row["tested"]]
    for row in rows:
        row.update(dict.fromkeys(CORRECTED.values(), np.nan))
    for name in ("p_near_best", "new_table_p", "equivalence_p"):
        correct_p(tested, name)
    # Runs fail or not, whatever metric is compared: that is one test of two arms.
    failing = {row["key"]: row for row in tested if row["failed"] + row["baseline_failed"]}
    correct_p(list(failing.values()), "failure_p")
    for row in tested:
        if row["key"] in failing:
            row["failure_p_adjusted"] = failing[row["key"]]["failure_p_adjusted"]
    for row in rows:
        row["comparisons"] = len(tested)
        if "verdict" not in row:
            row["verdict"] = verdict(row, row["disjoint"], row["factor"]) if row["tested"] else ONE_SPLIT
        row["declared"] = bool(row["tested"] and row["p_adjusted"] <= ALPHA and "disjoint" in row)
        level = ALPHA / (row["factor"] * max(len(tested), 1))
        row["detectable"] = (
            detectable_shift(row["replicates"], level) * row["spread"] if row["replicates"] > 1 else np.nan
        )


def interactions_of(grid: Grid, tuning: Tuning) -> pd.DataFrame:
    """Return how the effect of each arm changes from panel to panel, of the primary metric.

    A panel is compared with the first panel that differs from it in one key alone. The effect of each replicate
    that both panels have is subtracted, and the differences are tested; p is corrected by Holm over all rows.

    Columns: ``arm``, ``baseline``, ``key``, ``panel``, ``other`` (the panel it is compared with), ``replicates``,
    ``effect`` (ratio, points or difference), ``estimate`` with its interval (a ratio of ratios, or a difference
    of differences), ``p``, ``p_adjusted``.
    """
    metric, panels = grid.design.primary, list(dict.fromkeys(setting.panel for setting in grid.settings))
    rows = [
        found
        for arm, baseline in grid.design.comparisons
        for panel, other, key in panel_pairs(panels, grid.design.panels)
        if (found := one_interaction(grid, tuning, metric, (panel, other), (arm, baseline)))
        for _ in [found.update({"key": key})]
    ]
    adjusted = holm(np.array([row["p"] for row in rows], dtype=float))
    columns = ["arm", "baseline", "key", "panel", "other", "replicates", "effect"]
    columns += ["estimate", "estimate_low", "estimate_high", "p", "p_adjusted"]
    found_rows = [row | {"p_adjusted": float(p)} for row, p in zip(rows, adjusted, strict=True)]
    return pd.DataFrame(found_rows, columns=columns)


def panel_pairs(panels: Sequence[Panel], keys: Sequence[str]) -> Iterator[tuple[Panel, Panel, str]]:
    """Yield each panel with the first one before it that differs in one key alone, and that key."""
    for place, panel in enumerate(panels):
        for other in panels[:place]:
            different = [key for key, a, b in zip(keys, panel, other, strict=True) if a != b]
            if len(different) == 1 and different[0] != DATA_SEED:
                yield panel, other, different[0]
                break


def one_interaction(
    grid: Grid, tuning: Tuning, metric: Metric, panels: tuple[Panel, Panel], arms: tuple[str, str]
) -> ComparisonRow | None:
    """Return the change of an effect between two panels; None where an arm is missing or there is no verdict."""
    places = [PooledPanels(grid, (panel,)) for panel in panels]
    found: list[tuple[Side, Side]] = []
    for panel in panels:
        sides = [sides_of(tuning, (panel,), arm) for arm in arms]
        if sides[0] is None or sides[1] is None or not grid.uses[panel].is_disjoint:
            return None
        found.append((sides[0], sides[1]))
    table = grid.tables[metric.name]
    values = [[place.pick(table, side) for side in sides] for place, sides in zip(places, found, strict=True)]
    effect = effect_of(metric, *(own for pair in values for own in pair))
    effects = [dict(zip(*reversed(replicate_effects(effect, *pair)), strict=True)) for pair in values]
    shared = [seed for seed in effects[0] if seed in effects[1]]
    if not shared:
        return None
    first, second = (np.array([own[seed] for seed in shared]) for own in effects)
    test = interaction(first, second)
    return {
        "arm": arms[0],
        "baseline": arms[1],
        "panel": grid.panel(panels[0]),
        "other": grid.panel(panels[1]),
        "replicates": len(shared),
        "effect": effect,
        **estimate_columns("estimate", shown_estimate(effect, test.shift)),
        "p": test.p,
    }


def replicates_needed(comparisons: int, factor: float = 1.0) -> int:
    """Return the fewest replicates with which a difference can be declared in each of some comparisons.

    The smallest p of n replicates is ``2 / 2^n``; Holm's correction and the look multiply it.

    >>> replicates_needed(1), replicates_needed(1, 2.0), replicates_needed(6, 2.0)
    (6, 7, 9)
    """
    return math.ceil(1 + math.log2(max(comparisons, 1) * factor / ALPHA) - 1e-12)


def holm(p: Numbers) -> Numbers:
    """Return p-values ``(k,)`` corrected for there being k of them; NaN are none and stay.

    Of the i-th smallest, ``max over j ≤ i of min(1, (k − j + 1)·p_j)``: with these at most α, the probability
    of any false declaration is at most α (Holm 1979).
    """
    p = np.asarray(p, dtype=float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    corrected = np.full(p.shape, np.nan)
    steps = np.arange(len(order), 0, -1) * p[order]
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected
