"""Plan of the seeds of a sweep, printed before training; the entry is :func:`seed_plan`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from normlab.errors import ConfigError
from normlab.report.factors import find_factors, short_names
from normlab.report.report_data import CLASSIFICATION_METRICS, read_history
from normlab.report.sweep_summary import replicate_scopes, seed_column
from normlab.results.result import Result, Status
from normlab.results.sweep import Record, read_sweep
from normlab.stats.design import GENERALIZATION, SEED, Design, Metric, design_of, natural
from normlab.stats.replicate_plan import SUGGESTED, ReplicatePlan, plan_replicates, suggested_seeds
from normlab.stats.sentences import with_noun

KEY_NAMES = {"optimizer.lr": "the learning rate"}
ALLOWS = "would allow a verdict"


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep before training.

    Attributes:
        written: its configuration with unresolved interpolations.
        result: a record with its resolved configuration.
        folder: its output folder.
        classes: True for classification, where accuracy is compared beside the loss.
    """

    written: Mapping[str, Any]
    result: Result
    folder: Path
    classes: bool = False


def seed_plan(runs: Sequence[PlannedRun], folder: Path) -> list[str]:
    """Describe which seeds tune and which are reported, and the effect that they detect with 80 % power.

    Finished and diverged runs that the folder already holds count with the planned runs. The plan is empty if no
    run trains (``trainer.max_epochs=0``).

    Args:
        runs: the planned runs.
        folder: the folder of the sweep.

    Raises:
        ConfigError: if ``baseline`` is not an arm, or ``verdicts.json`` is damaged.
    """
    if all(run.result.config["trainer"]["max_epochs"] == 0 for run in runs):
        return []
    existing, planned = read_sweep(folder), {run.folder.resolve() for run in runs}
    earlier = [
        record for record in existing if record.folder.resolve() not in planned and record.result.status.done
    ]
    results = [*(run.result for run in runs), *(record.result for record in earlier)]

    def written() -> list[Any]:
        return [*(run.written for run in runs), *(record.unresolved() for record in earlier)]

    factors = find_factors(results, written)
    frame = factors.settings.assign(**{SEED: seed_column(results)}, validation=0.0, status=Status.FINISHED.value)
    frame["scope"] = replicate_scopes(results)
    names = CLASSIFICATION_METRICS if any(run.classes for run in runs) else CLASSIFICATION_METRICS[:1]
    metrics = [Metric(name, "min", GENERALIZATION) for name in names]
    config = runs[0].result.config
    baseline, pairs = config.get("baseline"), bool(config.get("pairs"))
    try:
        design = design_of(frame, factors.keys, metrics, metrics[0], None, baseline, factors.implicit, pairs)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    records = [*existing, *(Record(run.folder, run.result) for run in runs)]
    plan = plan_replicates(frame, design, read_history(folder, records))
    lines = panel_warning(frame.iloc[: len(runs)], frame.iloc[len(runs) :], design.panels)
    return [*lines, *(plan_lines(plan, design) if plan else [])]


def panel_warning(new: pd.DataFrame, earlier: pd.DataFrame, panels: Sequence[str]) -> list[str]:
    """Return a warning if all new runs differ from all earlier runs of the folder in keys that form panels."""
    keys = [key for key in panels if len(earlier) and set(new[key]).isdisjoint(earlier[key])]
    if not keys:
        return []
    values = ", ".join(f"{key}={' and '.join(sorted(set(earlier[key]), key=natural))}" for key in keys)
    count = with_noun(len(earlier), "run")
    return [
        f"warning: the folder holds {count} with {values}: these and the new runs are not compared with each other"
    ]


def plan_lines(plan: ReplicatePlan, design: Design) -> list[str]:
    """Format the plan in one line; empty if the sweep neither compares nor tunes."""
    if not plan.comparisons and not plan.tuning:
        return []
    seeds = sorted({*plan.tuning, *plan.report})
    tuned = " and ".join(
        KEY_NAMES.get(key, name) for key, name in zip(design.tuned, short_names(design.tuned), strict=True)
    )
    if len(seeds) == 1:
        return [f"1 seed: no verdict possible{seed_suggestion(plan, seeds, ALLOWS)}"] if plan.comparisons else []
    verb = "is" if len(plan.report) == 1 else "are"
    reported = f"seed{'s' * (len(plan.report) != 1)} {format_seeds(plan.report)} {verb} reported"
    if plan.within:
        uses = (
            f"{tuned} is tuned in each of the {len(plan.report)} splits, on its validation rows; all are reported"
        )
    elif plan.tuning:
        uses = f"seeds {format_seeds(plan.tuning)} tune {tuned}"
        uses += f", {reported}" if plan.disjoint else " and are reported"
    else:
        uses = reported
    if not plan.comparisons:
        return [uses]
    several = f"{plan.comparisons} comparisons, " if plan.comparisons > 1 else ""
    names = " and ".join(f"test/{metric.name}" for metric in design.metrics)
    if math.isinf(plan.detectable):
        more = seed_suggestion(plan, seeds, ALLOWS)
        return [f"{uses}; no verdict possible on {names} ({several}look {plan.look}){more}"]
    effect = f"an effect of {plan.detectable:.2g} standard deviations of the paired differences in {names}"
    few = f"; {plan.too_few} of them have too few replicates for a verdict" * (plan.too_few > 0)
    more = seed_suggestion(plan, seeds, "would detect smaller effects") if len(seeds) < SUGGESTED else ""
    return [f"{uses}; 80 % power for {effect} ({several}look {plan.look}){few}{more}"]


def seed_suggestion(plan: ReplicatePlan, seeds: Sequence[int], purpose: str) -> str:
    """Return a clause that suggests an override with more seeds, or explains that ``max_replicates`` prevents one.

    Args:
        plan: the plan.
        seeds: the seeds of the sweep, sorted.
        purpose: the verb phrase after the override.
    """
    total = suggested_seeds(plan)
    if total is None:
        return "; no number of seeds within max_replicates allows a verdict" if math.isinf(plan.detectable) else ""
    first = seeds[0] if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) else 0
    seeds_in = f"{first},{first + total}" if first else str(total)
    return f"; 'seed=range({seeds_in})' {purpose}"


def format_seeds(seeds: Sequence[int]) -> str:
    """Format sorted seeds, three or more consecutive ones as a range.

    >>> format_seeds([0, 1, 2, 3]), format_seeds([1, 5]), format_seeds([7])
    ('0 to 3', '1, 5', '7')
    """
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
