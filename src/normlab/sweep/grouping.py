"""Groups the runs of a sweep into populations; the entry is :func:`group_runs`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from normlab.population.stacking_check import Stacking
from normlab.training.build import data_seed, make_data
from normlab.training.run import dry_run_once
from normlab.training.run_folders import Run
from normlab.training.stackability import DryRun, population_key

MANY_RUNS = 10_000
"""Number of runs from which on the plan names ``records=packed``."""


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
    def epochs(self) -> int:
        """Total number of epochs of the runs."""
        return len(self.runs) * int(self.runs[0].config.trainer.max_epochs)


def group_runs(runs: Sequence[Run], chunk: int | None, n_jobs: int = 1) -> list[Group]:
    """Split the runs of a sweep into populations of nearly equal size.

    Args:
        runs: of the sweep.
        chunk: largest number of members, by default as many as fit into memory and cache.
        n_jobs: number of populations that train at the same time.
    """
    by_key: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        by_key.setdefault(population_key(run.config), []).append(index)
    groups = []
    for indices in by_key.values():
        trial, parts = dry_run_once(runs[indices[0]].config), list[tuple[list[int], Stacking]]()
        for same in split_by_input_shape(runs, indices, trial):
            stacking = trial.stacking_in_sweep if len(same) > 1 else Stacking()
            own_samples = len({data_seed(runs[index].config) for index in same}) > 1
            largest = 1 if stacking.unstackable_reason else chunk or trial.members_at_once(n_jobs, own_samples)
            parts += [(part.tolist(), stacking) for part in np.array_split(same, -(-len(same) // largest))]
        groups += [Group(part, [runs[k] for k in part], trial, how, len(parts)) for part, how in parts]
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


def plan(groups: Sequence[Group]) -> list[str]:
    """Return log lines: the number of runs and populations, and why some runs are not stacked layer by layer."""
    runs, alone = sum(len(group.runs) for group in groups), sum(len(group.runs) == 1 for group in groups)
    count, stacked = f"{runs} run{'s' * (runs > 1)}", len(groups) - alone
    parts = [f"{stacked} population{'s' * (stacked > 1)}"] * (stacked > 0) + [f"{alone} alone"] * (alone > 0)
    lines = [f"{count} in {', '.join(parts)}" if stacked else f"{count}, one by one"]
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
