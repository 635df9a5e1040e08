"""The plan of a sweep's seeds, printed before it trains. The entry is :func:`seed_plan`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from normlab.analysis.arms import SEED
from normlab.analysis.design import Design, design_of
from normlab.analysis.seed_plan import SeedPlan, plan_seeds
from normlab.records.folder import plain
from normlab.records.hparams import group_choices
from normlab.records.result import Objective, Result, Status
from normlab.records.sweep import read_sweep, read_written
from normlab.report.factors import find_factors
from normlab.report.overview import seed_column
from normlab.report.tables import short_names

NAMES = {"optimizer.lr": "the learning rate"}


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep that has not been trained: its configuration as written and resolved, and its folder."""

    written: DictConfig
    result: Result
    folder: Path

    @classmethod
    def of(cls, composed: DictConfig, task: DictConfig) -> "PlannedRun":
        """Return a job, given its configuration with Hydra's part and without it."""
        hydra = composed.hydra
        choices, words = group_choices(hydra.runtime.choices), list(hydra.overrides.task)
        result = Result("", Status.FINISHED, plain(task), choices, words, Objective("", "", 0.0))
        return cls(task, result, Path(hydra.runtime.output_dir))


def seed_plan(runs: Sequence[PlannedRun], folder: Path) -> list[str]:
    """Return how many seeds of a sweep choose settings, how many are reported, and what a verdict needs.

    The runs that the sweep's folder holds already count with those that are planned, as when the sweep is closed.
    """
    own = {run.folder.resolve() for run in runs}
    earlier = [record for record in read_sweep(folder) if record.folder.resolve() not in own]
    earlier = [record for record in earlier if record.result.status.done]
    results = [*(run.result for run in runs), *(record.result for record in earlier)]

    def written() -> list[Any]:
        tasks = [OmegaConf.to_container(run.written) for run in runs]
        return [*tasks, *(read_written(record.folder) for record in earlier)]

    factors = find_factors(results, written)
    frame = factors.settings.assign(**{SEED: seed_column(results)}, value=0.0, status=Status.FINISHED.value)
    design = design_of(frame, factors.keys, "", "min", untyped=factors.untyped)
    seeds = sorted({*design.tuning_seeds, *design.report_seeds})
    return plan_lines(plan_seeds(frame, design), design, seeds)


def plan_lines(plan: SeedPlan, design: Design, seeds: Sequence[int]) -> list[str]:
    """Return the plan in words; nothing where there is neither a comparison nor a choice to make."""
    if not seeds or not (plan.comparisons or plan.tuning):
        return []
    first = seeds[0] if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) else 0
    wanted = f"seed=range({first},{first + plan.total})" if first else f"seed=range({plan.total})"
    if plan.comparisons and len(seeds) == 1:
        return [f"1 seed: no verdict; {wanted} gives one"]
    chosen = " and ".join(
        NAMES.get(key, name) for key, name in zip(design.tuned, short_names(design.tuned), strict=True)
    )
    if not plan.tuning:
        uses = f"{plan.report} report"
    elif plan.apart:
        uses = f"{plan.tuning} choose {chosen}, {plan.report} report"
    elif len(seeds) == 1:
        return [f"1 seed chooses {chosen} and is reported"]
    else:
        uses = f"the same {plan.report} choose {chosen} and report"
    if plan.comparisons and plan.smallest < plan.report:
        uses += f", {plan.smallest} of them in the smallest comparison"
    several = f" in {plan.comparisons} comparisons" if plan.needed > plan.smallest and plan.comparisons > 1 else ""
    short = f"; a verdict{several} needs {plan.needed} that report: {wanted}"
    return [f"seeds: {uses}" + short * (plan.comparisons > 0 and not plan.is_enough)]
