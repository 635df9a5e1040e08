"""Groups the runs of a sweep into populations; the entry is :func:`group_runs`."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from normlab.execution.state import PlannedPopulation
from normlab.population.resources import FEW_MEMBERS
from normlab.population.stacking_check import Stacking
from normlab.results.folder import population_id
from normlab.training.build import data_seed, make_data
from normlab.training.dry_run import dry_run_once
from normlab.training.progress import rounded_time
from normlab.training.run_folders import Run
from normlab.training.stackability import DryRun, population_key

MANY_RUNS = 10_000
"""Number of runs from which on the plan names ``records=packed``."""
SHOWN_SECONDS = 10.0
"""Shortest estimated time that the plan names."""


@dataclass(frozen=True)
class Group:
    """Runs that train as one population.

    Attributes:
        indices: indices of the runs in the sweep.
        runs: the runs.
        trial: the dry run of their population key.
        stacking: of their net; unknown, and so the default, where no other run has their key and input shape.
        populations: number of groups with their population key.
    """

    indices: list[int]
    runs: list[Run]
    trial: DryRun
    stacking: Stacking = field(default_factory=Stacking)
    populations: int = 1

    @property
    def id(self) -> str:
        """Id of the population."""
        return population_id(run.path for run in self.runs)

    @property
    def epochs(self) -> int:
        """Total number of epochs of the runs."""
        return len(self.runs) * int(self.runs[0].config.trainer.max_epochs)

    @property
    def seconds(self) -> float:
        """Estimated seconds of the training."""
        return self.trial.expected_seconds(len(self.runs), self.populations)

    @property
    def planned(self) -> PlannedPopulation:
        """The group as an entry of the sweep's plan."""
        runs = [run.path for run in self.runs]
        return PlannedPopulation(self.id, runs, self.populations, self.epochs, self.seconds)


def group_runs(
    runs: Sequence[Run],
    chunk: int | None,
    n_jobs: int = 1,
    earlier: Iterable[PlannedPopulation] = (),
    done: Iterable[int] = (),
) -> list[Group]:
    """Split the runs of a sweep into populations of nearly equal size; finished runs are left out.

    A population of an earlier plan with unfinished runs is kept as it was, because a member may have other bits in
    a population of another size.

    Args:
        runs: of the sweep.
        chunk: largest number of members, by default as many as fit into memory and cache.
        n_jobs: number of populations that train at the same time; large ones are split until there are as many.
        earlier: populations of earlier plans.
        done: indices of finished runs.
    """
    finished = set(done)
    fitting = [each for each in earlier if chunk is None or len(each.runs) <= chunk]
    groups = kept_groups(runs, fitting, finished)
    grouped = finished | {index for group in groups for index in group.indices}
    by_key: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        if index not in grouped:
            by_key.setdefault(population_key(run.config), []).append(index)
    for indices in by_key.values():
        trial, parts = dry_run_once(runs[indices[0]].config), list[tuple[list[int], Stacking]]()
        for same in split_by_input_shape(runs, indices, trial):
            stacking = trial.stacking_in_sweep if len(same) > 1 else Stacking()
            own_samples = len({data_seed(runs[index].config) for index in same}) > 1
            largest = 1 if stacking.unstackable_reason else chunk or trial.members_at_once(n_jobs, own_samples)
            at_once = min(n_jobs * len(same) // len(runs), len(same) // FEW_MEMBERS)
            number = max(-(-len(same) // largest), at_once if chunk is None else 0)
            parts += [(part.tolist(), stacking) for part in np.array_split(same, number)]
        groups += [Group(part, [runs[k] for k in part], trial, how, len(parts)) for part, how in parts]
    return groups


def kept_groups(runs: Sequence[Run], earlier: Iterable[PlannedPopulation], done: set[int]) -> list[Group]:
    """Return the groups of earlier populations that have unfinished runs, all of which are in this sweep."""
    places: Mapping[str, int] = {run.path: index for index, run in enumerate(runs)}
    groups = []
    for population in earlier:
        indices = [places[path] for path in population.runs if path in places]
        if len(indices) < len(population.runs) or done.issuperset(indices):
            continue
        trial = dry_run_once(runs[indices[0]].config)
        stacking = trial.stacking_in_sweep if len(indices) > 1 else Stacking()
        groups.append(Group(indices, [runs[k] for k in indices], trial, stacking, population.same_key))
    return groups


def split_by_input_shape(runs: Sequence[Run], indices: list[int], trial: DryRun) -> list[list[int]]:
    """Divide runs by input shape where that depends on the split.

    Categories that are missing from the training samples have no input; see ``InMemoryData.shape_is_fitted``.
    """
    if not trial.shape_is_fitted:
        return [indices]
    data = make_data(*(runs[index].config for index in indices))
    members = [data.members[k % len(data.members)] for k in range(len(indices))]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, member in zip(indices, members, strict=True):
        by_shape.setdefault(tuple(member.parts[0].input_shape), []).append(index)
    return list(by_shape.values())


def plan(groups: Sequence[Group], n_jobs: int = 1) -> list[str]:
    """Return log lines: numbers of runs and populations, their time, and why some are not stacked layer by layer.

    Args:
        groups: of the sweep.
        n_jobs: number of groups that train at the same time.
    """
    runs, alone = sum(len(group.runs) for group in groups), sum(len(group.runs) == 1 for group in groups)
    count, stacked = f"{runs} run{'s' * (runs > 1)}", len(groups) - alone
    parts = [f"{stacked} population{'s' * (stacked > 1)}"] * (stacked > 0) + [f"{alone} alone"] * (alone > 0)
    total = total_seconds([group.seconds for group in groups], n_jobs)
    duration = f", about {rounded_time(total)}" if total >= SHOWN_SECONDS else ""
    lines = [(f"{count} in {', '.join(parts)}" if stacked else f"{count}, one by one") + duration]
    ways = {
        "unstackable_reason": "trained one by one",
        "vmap_reason": "vmapped as a whole, not stacked layer by layer",
    }
    for name, way in ways.items():
        first: dict[str | None, str] = {}
        for group in groups:
            first.setdefault(getattr(group.stacking, name), group.runs[0].name)
        lines += [f"runs such as {run} are {way}: {reason}" for reason, run in first.items() if reason is not None]
    if runs >= MANY_RUNS and groups[0].runs[0].config.get("records") == "folders":
        lines.append(f"{runs} runs leave about 10 files each; records=packed leaves two for each population")
    drawing = [group.runs[0].name for group in groups if group.stacking.draws_globally]
    if drawing and stacked:
        consequence = "and so draw different numbers from runs trained alone"
        lines.append(f"runs such as {drawing[0]} draw from torch's global generator, {consequence}")
    return lines


def total_seconds(seconds: Iterable[float], n_jobs: int) -> float:
    """Return the time of groups that ``n_jobs`` workers train, each taking the longest that is left.

    >>> total_seconds([3.0, 1.0, 1.0, 1.0], 2)
    3.0
    """
    workers = [0.0] * n_jobs
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(workers, workers[0] + each)
    return max(workers)
