"""Warnings about an analysis, one line each; see :func:`warnings_of`."""

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
    tuned_arm,
)
from normlab.stats.design import GENERALIZATION, Metric, Scope
from normlab.stats.estimates import coverage_of
from normlab.stats.grid import Grid, Panel
from normlab.stats.learning_speed import GIVEN, TargetTimes
from normlab.stats.looks import History
from normlab.stats.sentences import p_value, two_digits, with_noun
from normlab.stats.signed_rank import Interval, shift_estimate, signed_rank
from normlab.stats.tuning import Tuning, grid_edges


def warnings_of(
    runs: pd.DataFrame,
    grid: Grid,
    tuning: Tuning,
    times: TargetTimes,
    comparisons: Sequence[ComparisonRow],
    history: History,
) -> list[str]:
    """Return the warnings about runs, replicates, hyperparameter selection, tests, looks and targets."""
    return [
        *run_warnings(runs, grid),
        *replicate_warnings(grid),
        *tuning_warnings(grid, tuning),
        *test_warnings(comparisons),
        *look_warnings(comparisons, history),
        *target_warnings(grid, times),
    ]


def run_warnings(runs: pd.DataFrame, grid: Grid) -> Iterator[str]:
    """Yield warnings about excluded, diverged and repeated runs."""
    if runs.empty:
        yield "no runs"
        return
    for status in ("stopped", "failed", "pruned"):
        if count := int((grid.status == status).sum()):
            yield f"{status} runs, excluded: {count}"
    known = runs["validation"].notna().to_numpy()
    if count := int(((grid.status == "finished") & ~known).sum()):
        yield f"finished runs without {grid.design.choice.name}, excluded: {count}"
    if not known.any():
        yield "no run finished or diverged: nothing can be compared"
    elif (grid.status[known] == "diverged").all():
        yield "every run diverged"
    if count := int((known & (grid.column < 0)).sum()):
        yield f"runs without a seed, excluded: {count}"
    placed = known & (grid.column >= 0)
    repeated = int(placed.sum()) - len(set(zip(grid.row[placed], grid.column[placed], strict=True)))
    if repeated:
        yield f"runs that repeat a configuration and seed, averaged into one replicate: {repeated}"


def replicate_warnings(grid: Grid) -> Iterator[str]:
    """Yield warnings about the number and scope of the replicates, each only once for all panels."""
    seen = set()
    for use in grid.uses.values():
        lines, seeds = [], len(use.report)
        if not use.is_disjoint:
            lines.append(
                f"the same {with_noun(seeds, 'replicate')} tune and are reported, which favours tuned arms"
            )
        elif len(use.tuning) and not use.within:
            lines.append(f"replicates that choose settings: {len(use.tuning)}; reported replicates: {seeds}")
        if seeds == 1:
            lines.append("one replicate: the spread is unknown, and one replicate supports no claim")
        elif (coverage := coverage_of(seeds)) is not None:
            share = f"{100 * coverage:.0f} % of simulations"
            lines.append(
                f"with {seeds} replicates, 95 % intervals of interquartile means cover the true value in {share}"
            )
        if use.scope == Scope.SEED and len(grid.design.arms) > 1 and seeds > 1:
            lines.append(
                "all seeds share one split: other splits may differ; replicate=data gives each seed its own"
            )
        yield from (line for line in lines if line not in seen)
        seen.update(lines)


def tuning_warnings(grid: Grid, tuning: Tuning) -> Iterator[str]:
    """Yield warnings about hyperparameter selection: unequal numbers of replicates or settings."""
    for (panel, arm), tuned in tuning.items():
        known, columns = ~np.isnan(grid.tables["validation"]), grid.uses[panel].tuning
        counts = {int(known[row, columns].sum()) for row in tuned.rows}
        if len(counts) > 1:
            name = full_name(grid, panel, arm)
            yield f"{name}: settings were tuned on unequal numbers of replicates, {min(counts)} to {max(counts)}"
    sizes = {(panel, len(tuned.rows)) for (panel, _), tuned in tuning.items() if grid.uses[panel].within}
    if len(sizes) > len({panel for panel, _ in sizes}):
        yield (
            "arms have different numbers of settings: where each split chooses its own setting, more settings are "
            "an advantage if validation and test losses of a run are correlated; give all arms the same grid"
        )


def edge_warnings(grid: Grid, tuning: Tuning) -> list[str]:
    """Return a warning for each tuned key whose best value is at an edge of the grid for some arms.

    If each replicate chooses its own setting, most of them must choose the same one.
    """
    arms: dict[str, dict[str, list[str]]] = {}
    for (panel, arm), tuned in tuning.items():
        tried = [grid.configurations[row].tuned for row in tuned.rows]
        rows, counts = np.unique(tuned.chosen[tuned.chosen >= 0], return_counts=True)
        for row in rows[2 * counts > len(tuned.chosen)].tolist():
            for key, end, setting in grid_edges(tried, grid.configurations[row].tuned):
                edges = arms.setdefault(grid.design.tuned[key], {})
                edges.setdefault(f"{setting} (the {end})", []).append(full_name(grid, panel, arm))
    return [
        f"the best {key} is at an edge of the grid: "
        + "; ".join(f"{edge} for {', '.join(names)}" for edge, names in edges.items())
        + ": extend the grid"
        for key, edges in arms.items()
    ]


def test_warnings(comparisons: Sequence[ComparisonRow]) -> Iterator[str]:
    """Yield warnings about comparisons that are impossible or incomplete."""
    seen = set()
    for row in comparisons:
        name = ", ".join(filter(None, [row["arm"], row["panel"]]))
        if str(row["verdict"]).startswith(NOT_COMPARABLE):
            line = f"{name}: {row['verdict']}"
        elif row["untested"]:
            line = f"{name}: near-best settings without a test, too few replicates: {row['untested']}"
        else:
            continue
        if line not in seen:
            yield line
        seen.add(line)


def look_warnings(comparisons: Sequence[ComparisonRow], history: History) -> Iterator[str]:
    """Yield warnings about repeated looks at the same comparisons."""
    looks = [row["look"] for row in comparisons]
    if looks and max(looks) > 1:
        yield (
            f"looks at these comparisons: {max(looks)}; settings were fixed at the first look, and p is corrected "
            "for the number of looks"
        )
    most = history.max_replicates
    if most is not None and any(row["replicates"] > most for row in comparisons):
        yield f"max_replicates={most} was declared at the first verdict: no verdict with more replicates"


def target_warnings(grid: Grid, times: TargetTimes) -> Iterator[str]:
    """Yield warnings about missing targets, and targets set by the reported runs."""
    targets = times.targets
    if targets.empty or targets["budget"].isna().all():
        return
    if targets["target"].isna().any():
        yield f"panels without a target, because most runs diverged: {int(targets['target'].isna().sum())}"
    tuned = any(len(use.tuning) and not use.within for use in grid.uses.values())
    if not tuned and (targets["rule"] != GIVEN).any():
        yield "the target was set by the same runs whose times are reported, which favours the arm that set it"


def disagreement_warnings(grid: Grid, tuning: Tuning, comparisons: Sequence[ComparisonRow]) -> Iterator[str]:
    """Yield a warning about the test comparisons that the validation split or the best epoch contradicts.

    The best epoch is chosen and evaluated on the same validation samples, which favours the arm with the noisier
    curve. It contradicts the comparison if a declared difference has the opposite sign, or if it shows a
    difference that the comparison does not show or shows with the opposite sign, at an uncorrected level of 0.05.
    """
    choice, findings = grid.design.choice, dict[str, list[str]]()
    for row in comparisons:
        if row["question"] != GENERALIZATION or np.isnan(row["p_adjusted"]):
            continue
        if row["metric"].replace("test/", "val/") != choice.name:
            continue
        for table, source in (("validation", "the final validation"), ("best", "the best validation epoch")):
            other = compare_by_table(grid, tuning, row, Metric(table, choice.direction))
            if other is None:
                continue
            effect, p, side = other
            declared, opposite = row["verdict"] in (BETTER, WORSE), side == -row["side"] != 0
            if (declared and opposite) or (p <= ALPHA and (opposite or row["p"] > ALPHA)):
                shows = "shows" if p <= ALPHA else "suggests without significance"
                where = f" at {row['panel']}" if row["panel"] else ""
                findings.setdefault(f"unlike {row['metric']}, {source} {shows} that ", []).append(
                    f"{row['arm']} is {BETTER if side < 0 else WORSE} than {row['baseline']}{where}: "
                    f"{choice.name}{effect}, p = {p_value(p)}"
                )
    for start, of_source in findings.items():
        yield f"{start}{'; '.join(of_source)} (uncorrected)"


def compare_by_table(
    grid: Grid, tuning: Tuning, row: ComparisonRow, metric: Metric
) -> tuple[str, float, float] | None:
    """Compare two arms by another table of the grid: effect as text, p and side.

    None without shared replicates. The text is empty if too many runs diverged for an estimate.
    """
    pooled = PooledPanels(grid, row["of_panels"])
    pair = [tuned_arm(tuning, row["of_panels"], row[name]) for name in ("arm", "baseline")]
    if pair[0] is None or pair[1] is None:
        return None
    arm, baseline = (pooled.pick(grid.tables[metric.name], member) for member in pair if member is not None)
    effect = effect_of(metric, arm, baseline)
    effects, _ = replicate_effects(effect, arm, baseline)
    if not len(effects):
        return None
    shift = shift_estimate(effects)
    estimate = shown_estimate(effect, Interval(shift, shift, shift)).value
    text = "" if np.isnan(estimate) else f" {effect} {two_digits(estimate)}"
    return text, float(signed_rank(effects)), rank_side(effects, metric)


def full_name(grid: Grid, panel: Panel, arm: str) -> str:
    """Return the name of an arm in a panel, such as ``bn at data.batch_size=8``."""
    return " at ".join(filter(None, [arm or "all runs", grid.panel_name(panel)]))
