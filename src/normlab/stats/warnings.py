"""Warnings about an analysis, one line each. The entry is :func:`warnings_of`."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from normlab.stats.comparison import (
    ALPHA,
    BETTER,
    NOT_COMPARABLE,
    WORSE,
    ComparisonRow,
    PooledPanels,
    effect_of,
    rank_side,
    replicate_effects,
    shown_estimate,
    sides_of,
)
from normlab.stats.comparisons import replicates_needed
from normlab.stats.design import GENERALIZATION, Metric, Scope
from normlab.stats.estimates import coverage_of
from normlab.stats.grid import Grid, Panel
from normlab.stats.looks import History
from normlab.stats.sentences import p_value, two_digits, with_noun
from normlab.stats.signed_rank import Interval, shift_estimate, signed_rank
from normlab.stats.time_to_target import GIVEN, Reached
from normlab.stats.tuning import Tuning, edges


def warnings_of(
    runs: pd.DataFrame,
    grid: Grid,
    tuning: Tuning,
    times: Reached,
    comparisons: Sequence[ComparisonRow],
    history: History,
) -> list[str]:
    """Return the warnings: about runs that do not count, replicates, the choice of settings, tests and targets."""
    return [
        *of_runs(runs, grid),
        *of_replicates(grid),
        *of_tuning(grid, tuning),
        *of_tests(comparisons),
        *of_looks(comparisons, history),
        *of_targets(grid, times),
    ]


def of_runs(runs: pd.DataFrame, grid: Grid) -> Iterator[str]:
    """Yield warnings about runs that do not count, or not in full."""
    if runs.empty:
        yield "there are no runs"
        return
    for status in ("stopped", "failed"):
        if count := int((grid.status == status).sum()):
            yield f"{status} runs, which count nowhere: {count}"
    known = runs["validation"].notna().to_numpy()
    if count := int(((grid.status == "finished") & ~known).sum()):
        yield f"finished runs without {grid.design.choice.name}, which count nowhere: {count}"
    if not known.any():
        yield "no run came to its end: there is nothing to compare"
    elif (grid.status[known] == "diverged").all():
        yield "every run diverged"
    if count := int((known & (grid.column < 0)).sum()):
        yield f"runs without a seed, which count nowhere: {count}"
    placed = known & (grid.column >= 0)
    repeated = int(placed.sum()) - len(set(zip(grid.row[placed], grid.column[placed], strict=True)))
    if repeated:
        yield f"runs that repeat a seed of their setting, and count once with their mean: {repeated}"


def of_replicates(grid: Grid) -> Iterator[str]:
    """Yield warnings about the number of replicates and their scope, each once for all panels."""
    said = set()
    for use in grid.uses.values():
        lines, seeds = [], len(use.report)
        if not use.is_disjoint:
            lines.append(
                f"the same {with_noun(seeds, 'replicate')} choose settings and report, which flatters tuned arms"
            )
        elif len(use.tuning) and not use.within:
            lines.append(f"replicates that choose settings: {len(use.tuning)}; that are reported: {seeds}")
        if seeds == 1:
            lines.append("one replicate: no spread can be given, and it supports no claim")
        elif (coverage := coverage_of(seeds)) is not None:
            share = f"{100 * coverage:.0f} % of simulations"
            lines.append(
                f"with {seeds} replicates, the 95 % intervals of interquartile means hold the truth in {share}"
            )
        if use.scope == Scope.SEED and len(grid.design.arms) > 1 and seeds > 1:
            lines.append(
                "all seeds have the same data: other splits may differ; replicate=data gives each its own"
            )
        yield from (line for line in lines if line not in said)
        said.update(lines)


def of_tuning(grid: Grid, tuning: Tuning) -> Iterator[str]:
    """Yield warnings about the choice of settings."""
    for (panel, arm), tuned in tuning.items():
        known, columns = ~np.isnan(grid.tables["validation"]), grid.uses[panel].tuning
        counts = {int(known[row, columns].sum()) for row in tuned.rows}
        if len(counts) > 1:
            name = full_name(grid, panel, arm)
            yield f"{name}: settings were chosen on {min(counts)} to {max(counts)} replicates"
    grids = {(panel, len(own.rows)) for (panel, _), own in tuning.items() if grid.uses[panel].within}
    if len(grids) > len({panel for panel, _ in grids}):
        yield (
            "arms have different numbers of settings: where each split chooses for itself, the arm with more of "
            "them is favoured if luck on validation rows comes with luck on test rows; give all arms the same grid"
        )


def at_edges(grid: Grid, tuning: Tuning) -> list[str]:
    """Return a line for each edge of what was tried that is the best setting, with the arms of which it is.

    Where replicates choose for themselves, an edge counts if most of them choose it.
    """
    found: dict[str, dict[str, None]] = {}
    for (panel, arm), tuned in tuning.items():
        tried = [grid.settings[row].tuned for row in tuned.rows]
        rows, taken = np.unique(tuned.chosen[tuned.chosen >= 0], return_counts=True)
        for row in rows[2 * taken > len(tuned.chosen)].tolist():
            for key, end, setting in edges(tried, grid.settings[row].tuned):
                what = f"the {end} {grid.design.tuned[key]} that was tried, {setting}"
                found.setdefault(what, {})[full_name(grid, panel, arm)] = None
    return [
        f"for {', '.join(names)} the best is {what}: a better one may lie beyond" for what, names in found.items()
    ]


def of_tests(comparisons: Sequence[ComparisonRow]) -> Iterator[str]:
    """Yield warnings about the comparisons."""
    said = set()
    for row in comparisons:
        name = ", ".join(filter(None, [row["arm"], row["panel"]]))
        if str(row["verdict"]).startswith(NOT_COMPARABLE):
            line = f"{name}: {row['verdict']}"
        elif row["untested"]:
            line = f"{name}: near-best settings with too few replicates for a test: {row['untested']}"
        else:
            continue
        if line not in said:
            yield line
        said.add(line)
    for question in dict.fromkeys(row["question"] for row in comparisons):
        tested = [row for row in comparisons if row["question"] == question and row["p_adjusted"] >= 0]
        count = len(tested)
        least, factor = min(
            ((row["attainable"] * row["factor"], row["factor"]) for row in tested), default=(0.0, 1.0)
        )
        if least * count > ALPHA >= least:
            needed = replicates_needed(count, factor)
            yield (
                f"{question or 'comparisons'}: nothing can be declared: p is at least {p_value(least)}, and the "
                f"clearest of {count} comparisons needs {p_value(ALPHA / count)}; it takes {needed} replicates"
            )


def of_looks(comparisons: Sequence[ComparisonRow], history: History) -> Iterator[str]:
    """Yield warnings about comparisons that were looked at before."""
    looks = [row["look"] for row in comparisons]
    if looks and max(looks) > 1:
        yield (
            f"looks at these comparisons: {max(looks)}; settings were fixed at the first, and p is multiplied for "
            "the number of looks"
        )
    most = history.max_replicates
    if most is not None and any(row["replicates"] > most for row in comparisons):
        yield f"max_replicates={most} was declared at the first verdict: with more replicates nothing is declared"


def of_targets(grid: Grid, times: Reached) -> Iterator[str]:
    """Yield warnings about the targets, where there are curves."""
    targets = times.targets
    if targets.empty or targets["budget"].isna().all():
        return
    if targets["target"].isna().any():
        yield f"panels without a target, as most runs diverged: {int(targets['target'].isna().sum())}"
    tuned = any(len(use.tuning) and not use.within for use in grid.uses.values())
    if not tuned and (targets["rule"] != GIVEN).any():
        yield "the target was set by the runs whose times to it are told, which favours the arm that set it"


def disagreements(grid: Grid, tuning: Tuning, comparisons: Sequence[ComparisonRow]) -> Iterator[str]:
    """Yield a line for each test comparison that the validation split or the best epoch answers otherwise.

    The best epoch is chosen and judged on the same validation samples, which favours the arm whose curve jumps
    more. A line is due where a verdict was declared and the other estimate points to the other side, or where the
    other test finds a difference that the test of the comparison does not find, both at 0.05 and uncorrected.
    """
    for row in comparisons:
        if row["question"] != GENERALIZATION or np.isnan(row["p_adjusted"]):
            continue
        choice = grid.design.choice
        if row["metric"].replace("test/", "val/") != choice.name:
            continue
        for table, what in (("validation", "validation at the end"), ("best", "the best epoch of validation")):
            found = other_answer(grid, tuning, row, Metric(table, choice.direction))
            if found is None:
                continue
            effect, p, side = found
            declared, opposite = row["verdict"] in (BETTER, WORSE), side == -row["side"] != 0
            if (declared and opposite) or (p <= ALPHA and (opposite or row["p"] > ALPHA)):
                answer = f"is {BETTER if side < 0 else WORSE} than" if p <= ALPHA else "goes the other way against"
                where = f" at {row['panel']}" if row["panel"] else ""
                yield (
                    f"unlike {row['metric']}, {what} says that {row['arm']} {answer} {row['baseline']}{where}: "
                    f"{choice.name}{effect}, p = {p_value(p)} uncorrected"
                )


def other_answer(
    grid: Grid, tuning: Tuning, row: ComparisonRow, metric: Metric
) -> tuple[str, float, float] | None:
    """Return a comparison by another table of the grid: the effect as text, p and side; None without replicates.

    The text is empty where runs that diverged leave no estimate.
    """
    place = PooledPanels(grid, row["of_panels"])
    sides = [sides_of(tuning, row["of_panels"], row[name]) for name in ("arm", "baseline")]
    if sides[0] is None or sides[1] is None:
        return None
    arm, baseline = (place.pick(grid.tables[metric.name], side) for side in sides if side is not None)
    effect = effect_of(metric, arm, baseline)
    effects, _ = replicate_effects(effect, arm, baseline)
    if not len(effects):
        return None
    shift = shift_estimate(effects)
    estimate = shown_estimate(effect, Interval(shift, shift, shift)).value
    text = "" if np.isnan(estimate) else f" {effect} {two_digits(estimate)}"
    return text, float(signed_rank(effects)), rank_side(effects, metric)


def full_name(grid: Grid, panel: Panel, arm: str) -> str:
    """Return an arm's name with its panel's."""
    return " at ".join(filter(None, [arm or "all runs", grid.panel(panel)]))
