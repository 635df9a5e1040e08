"""What a reader has to know so that nobody reads more into the numbers than is there: a line each."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from normlab.analysis.cells import Cells
from normlab.analysis.comparing import NOT_COMPARABLE, Row
from normlab.analysis.coverage import coverage_of
from normlab.analysis.planning import ALPHA, ENOUGH, seeds_for, smallest_p
from normlab.analysis.reaching import BASELINE, GIVEN, Reached
from normlab.analysis.tuning import Tuning, edges


def cautions(
    runs: pd.DataFrame, cells: Cells, tuning: Tuning, times: Reached, comparisons: Sequence[Row]
) -> list[str]:
    """Return the warnings: of runs that do not count, seeds, the choice of settings, tests and targets."""
    return [
        *of_runs(runs, cells),
        *of_seeds(cells),
        *of_tuning(cells, tuning),
        *of_tests(comparisons),
        *of_targets(cells, times),
    ]


def of_runs(runs: pd.DataFrame, cells: Cells) -> Iterator[str]:
    """Yield what is to be said of runs that do not count, or not in full."""
    metric = cells.design.metric
    if runs.empty:
        yield "there are no runs"
        return
    for status in ("stopped", "failed"):
        if count := int((cells.status == status).sum()):
            yield f"{status} runs, which count nowhere: {count}"
    known = runs["value"].notna().to_numpy()
    if count := int(((cells.status == "finished") & ~known).sum()):
        yield f"finished runs without {metric}, which count nowhere: {count}"
    if not known.any():
        yield "no run came to its end: there is nothing to compare"
    elif (cells.status[known] == "diverged").all():
        yield "every run diverged"
    if count := int((known & (cells.column < 0)).sum()):
        yield f"runs without a seed, which count nowhere: {count}"
    placed = known & (cells.column >= 0)
    repeated = int(placed.sum()) - len(set(zip(cells.row[placed], cells.column[placed], strict=True)))
    if repeated:
        yield f"runs that repeat a seed of their setting, and count once with their mean: {repeated}"


def of_seeds(cells: Cells) -> Iterator[str]:
    """Yield what the numbers of seeds allow."""
    design = cells.design
    seeds = len(design.report_seeds)
    if not seeds:
        return
    if not design.apart:
        yield f"the same seeds tune and report, as there are but {seeds}: the numbers flatter what was tuned"
    elif design.tuning_seeds:
        yield f"seeds that settings were chosen on: {len(design.tuning_seeds)}; that are reported: {seeds}"
    if seeds == 1:
        yield "one seed: no spread can be given, and it supports no claim"
    elif (coverage := coverage_of(seeds)) is not None:
        yield f"with {seeds} seeds, the 95 % intervals hold the truth in {100 * coverage:.0f} % of simulations"
    if seeds < ENOUGH and len(design.arms) > 1:
        yield f"seeds that are reported: {seeds}; a verdict needs {ENOUGH}"


def of_tuning(cells: Cells, tuning: Tuning) -> Iterator[str]:
    """Yield what is to be said of the choice of settings."""
    design = cells.design
    for (panel, arm), tuned in tuning.items() if design.tuning_seeds else ():
        name = full_name(cells, panel, arm)
        if len(tuned.rows) == 1:
            yield f"{name}: not tuned, one setting alone was run"
        if tuned.chosen is None or len(tuned.rows) < 2:
            continue
        tried = [cells.settings[row].tuned for row in tuned.rows]
        for key, end, setting in edges(tried, cells.settings[tuned.chosen].tuned):
            yield f"{name}: the best {design.tuned[key]} is the {end} that was tried, {setting}; it may lie beyond"
        counts = {int((~np.isnan(cells.values[row, cells.tuning])).sum()) for row in tuned.rows}
        if len(counts) > 1:
            yield f"{name}: settings were tuned on {min(counts)} to {max(counts)} seeds"


def of_tests(comparisons: Sequence[Row]) -> Iterator[str]:
    """Yield what is to be said of the comparisons."""
    for row in comparisons:
        name = ", ".join(filter(None, [row["arm"], row["panel"]]))
        if str(row["verdict"]).startswith(NOT_COMPARABLE):
            yield f"{name}: {row['verdict']}"
        elif row["untested"]:
            yield (
                f"{name}: settings that may as well be the best one of the other arm, but were not run on "
                f"{ENOUGH} seeds that are reported: {row['untested']}"
            )
    if unpaired := sum(row["seeds"] > 0 and not row["paired"] for row in comparisons):
        yield f"comparisons of arms that share too few seeds, and are not paired: {unpaired}"
    tested = [row for row in comparisons if not np.isnan(row["p"])]
    least, count = min((smallest_p(row["seeds"], row["paired"]) for row in tested), default=0.0), len(tested)
    if least * count > ALPHA:
        yield (
            f"nothing can be declared: with so few seeds p is at least {least:.2g}, and the clearest of {count} "
            f"comparisons needs {ALPHA / count:.2g}; it takes {seeds_for(count)} seeds"
        )


def of_targets(cells: Cells, times: Reached) -> Iterator[str]:
    """Yield what is to be said of the targets, where there are curves."""
    targets = times.targets
    if targets.empty or targets["budget"].isna().all():
        return
    if targets["target"].isna().any():
        yield f"panels without a target, as most runs diverged: {int(targets['target'].isna().sum())}"
    if not cells.design.tuning_seeds and (targets["rule"] != GIVEN).any():
        whose = "the baseline's" if (targets["rule"] == BASELINE).any() else "the best arm's"
        yield f"the target is {whose} on the seeds that are reported, as nothing was tuned"


def full_name(cells: Cells, panel: tuple[str, ...], arm: str) -> str:
    """Return an arm's name with its panel's."""
    return ", ".join(filter(None, [arm or "all runs", cells.panel(panel)]))
