"""The plan of a sweep's seeds, printed before it trains. The entry is :func:`seed_plan`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from normlab.errors import ConfigError
from normlab.report.factors import find_factors, short_names
from normlab.report.report_data import CLASSES, read_history
from normlab.report.sweep_summary import scopes_of, seed_column
from normlab.results.folder import group_choices, plain
from normlab.results.result import Objective, Result, Status
from normlab.results.sweep import Record, read_sweep, read_unresolved
from normlab.stats.configurations import SEED
from normlab.stats.design import GENERALIZATION, Design, Metric, design_of
from normlab.stats.replicate_plan import SUGGESTED, ReplicatePlan, plan_replicates, suggested_seeds

KEY_NAMES = {"optimizer.lr": "the learning rate"}


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep that has not been trained.

    Attributes:
        written: its configuration as written.
        result: a record with its resolved configuration.
        folder: where it will be.
        classes: whether its targets are classes, whose accuracy is compared beside the loss.
    """

    written: DictConfig
    result: Result
    folder: Path
    classes: bool = False

    @classmethod
    def of(
        cls, composed: DictConfig, task: DictConfig, generated: bool = False, classes: bool = False
    ) -> "PlannedRun":
        """Return a job.

        Args:
            composed, task: its configuration with Hydra's part and without it.
            generated: whether its samples are drawn from a seed.
            classes: whether its targets are classes.
        """
        hydra = composed.hydra
        choices, words = group_choices(hydra.runtime.choices), list(hydra.overrides.task)
        result = Result("", Status.FINISHED, plain(task), choices, words, Objective("", "", 0.0))
        result.data["generated"] = generated
        return cls(task, result, Path(hydra.runtime.output_dir), classes)


def seed_plan(runs: Sequence[PlannedRun], folder: Path) -> list[str]:
    """Return the use of a sweep's replicates in words, and the difference that they can show.

    The runs that the sweep's folder holds already count with those that are planned, as when the sweep is closed.

    Nothing is said of a sweep that trains nothing.

    Raises:
        ConfigError: the baseline that was typed is none of the arms, or the folder's verdicts are damaged.
    """
    if all(run.result.config["trainer"]["max_epochs"] == 0 for run in runs):
        return []
    there, own = read_sweep(folder), {run.folder.resolve() for run in runs}
    earlier = [record for record in there if record.folder.resolve() not in own and record.result.status.done]
    results = [*(run.result for run in runs), *(record.result for record in earlier)]

    def written() -> list[Any]:
        tasks = [OmegaConf.to_container(run.written) for run in runs]
        return [*tasks, *(read_unresolved(record.folder) for record in earlier)]

    factors = find_factors(results, written)
    frame = factors.settings.assign(**{SEED: seed_column(results)}, validation=0.0, status=Status.FINISHED.value)
    frame["scope"] = scopes_of(results)
    names = CLASSES if any(run.classes for run in runs) else CLASSES[:1]
    metrics = [Metric(name, "min", GENERALIZATION) for name in names]
    config = runs[0].result.config
    baseline, pairs = config.get("baseline"), bool(config.get("pairs"))
    try:
        design = design_of(frame, factors.keys, metrics, metrics[0], None, baseline, factors.untyped, pairs)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    records = [*there, *(Record(run.folder, run.result) for run in runs)]
    plan = plan_replicates(frame, design, read_history(folder, records))
    return plan_lines(plan, design) if plan else []


def plan_lines(plan: ReplicatePlan, design: Design) -> list[str]:
    """Return the plan in words; nothing where there is neither a comparison nor a choice to make."""
    if not plan.comparisons and not plan.tuning:
        return []
    seeds = sorted({*plan.tuning, *plan.report})
    chosen = " and ".join(
        KEY_NAMES.get(key, name) for key, name in zip(design.tuned, short_names(design.tuned), strict=True)
    )
    if len(seeds) == 1:
        return [f"1 seed: no verdict{wanted(plan, seeds, 'gives one')}"] if plan.comparisons else []
    report = f"{listed_seeds(plan.report)} report"
    if plan.within:
        uses = f"each of the {len(plan.report)} splits chooses {chosen} on its own validation rows and reports"
    elif plan.tuning:
        uses = f"seeds {listed_seeds(plan.tuning)} choose {chosen}" + (
            f", {report}" if plan.disjoint else " and report"
        )
    else:
        uses = f"seeds {report}"
    if not plan.comparisons:
        return [uses]
    several = f"{plan.comparisons} comparisons, " if plan.comparisons > 1 else ""
    if math.isinf(plan.detectable):
        return [f"{uses}; no verdict ({several}look {plan.look}){wanted(plan, seeds, 'gives one')}"]
    effect = f"an effect of {plan.detectable:.2g} standard deviations of the paired differences"
    few = f"; {plan.too_few} of them have too few replicates for a verdict" * (plan.too_few > 0)
    more = wanted(plan, seeds, "finds smaller ones") if len(seeds) < SUGGESTED else ""
    return [f"{uses}; 80 % power for {effect} ({several}look {plan.look}){few}{more}"]


def wanted(plan: ReplicatePlan, seeds: Sequence[int], purpose: str) -> str:
    """Return the clause that suggests an override with more seeds, or that none helps."""
    total = suggested_seeds(plan)
    if total is None:
        return "; no number of seeds gives one within max_replicates" if math.isinf(plan.detectable) else ""
    first = seeds[0] if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) else 0
    seeds_in = f"{first},{first + total}" if first else str(total)
    return f"; 'seed=range({seeds_in})' {purpose}"


def listed_seeds(seeds: Sequence[int]) -> str:
    """Return seeds in short.

    >>> listed_seeds([0, 1, 2, 3]), listed_seeds([1, 5]), listed_seeds([7])
    ('0 to 3', '1, 5', '7')
    """
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
