"""Groups the runs of a sweep into populations; the entry is :func:`group_runs`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from omegaconf import DictConfig

from normlab.population.resources import device, members_at_once
from normlab.population.stacking_check import Stacking
from normlab.training.build import data_seed, make_data
from normlab.training.run_folders import Run
from normlab.training.stackability import footprint_of, population_key, single_run_reason, stacking_of


@dataclass(frozen=True)
class Group:
    """Runs that train as one population.

    Attributes:
        indices: indices of the runs in the sweep.
        stacking: of their net.
    """

    indices: list[int]
    stacking: Stacking = field(default_factory=Stacking)


def group_runs(configs: Sequence[DictConfig], chunk: int | None, n_jobs: int = 1) -> list[Group]:
    """Split the runs of a sweep into populations of nearly equal size.

    Args:
        configs: of the runs.
        chunk: largest number of members, by default as many as fit into memory and cache.
        n_jobs: number of populations that train at the same time.
    """
    by_key: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        by_key.setdefault(population_key(config), []).append(index)
    groups = []
    for key, indices in split_by_input_shape(configs, by_key):
        config = configs[indices[0]]
        reason = "" if len(indices) == 1 else single_run_reason(config)
        stacking = Stacking(reason or None) if reason or len(indices) == 1 else stacking_of(config, key)
        if stacking.unstackable_reason or len(indices) == 1:
            largest = 1
        else:
            several = len(data_seeds(configs, indices)) > 1
            on = device(config.trainer.get("accelerator", "auto"))
            largest = chunk or members_at_once(footprint_of(config), on, n_jobs, own_samples=several)
        for part in np.array_split(indices, -(-len(indices) // largest)):
            groups.append(Group(part.tolist(), stacking))
    return groups


def split_by_input_shape(
    configs: Sequence[DictConfig], by_key: Mapping[str, list[int]]
) -> Iterator[tuple[str, list[int]]]:
    """Yield population keys and run indices, divided by input shape where that depends on the split.

    Categories that are missing from the training samples have no input; see ``InMemoryData.shape_is_fitted``.
    """
    for key, indices in by_key.items():
        if len(data_seeds(configs, indices)) == 1 or not make_data(configs[indices[0]]).shape_is_fitted:
            yield key, indices
            continue
        by_input: dict[tuple[int, ...], list[int]] = {}
        for index in indices:
            by_input.setdefault(make_data(configs[index]).parts[0].input_shape, []).append(index)
        for input_shape, same_shape in by_input.items():
            yield f"{key} {input_shape}", same_shape


def data_seeds(configs: Sequence[DictConfig], indices: Iterable[int]) -> set[int]:
    """Return the distinct seeds for drawing and splitting the data of these runs."""
    return {data_seed(configs[index]) for index in indices}


def plan(groups: Sequence[Group], runs: Sequence[Run]) -> list[str]:
    """Return log lines: the number of runs and populations, and why some runs are not stacked layer by layer."""
    alone = sum(len(group.indices) == 1 for group in groups)
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    stacked = len(groups) - alone
    parts = [f"{stacked} population{'s' * (stacked > 1)}"] * (stacked > 0) + [f"{alone} alone"] * (alone > 0)
    lines = [f"{count} in {', '.join(parts)}" if stacked else f"{count}, one by one"]
    for reason, run in first_by_reason(groups, runs, "unstackable_reason"):
        lines.append(f"runs such as {run.name} are trained one by one: {reason}")
    for reason, run in first_by_reason(groups, runs, "vmap_reason"):
        lines.append(f"runs such as {run.name} are vmapped as a whole, not stacked layer by layer: {reason}")
    drawing = [runs[group.indices[0]].name for group in groups if group.stacking.draws_globally]
    if drawing and stacked:
        consequence = "and so draw different numbers from runs trained alone"
        lines.append(f"runs such as {drawing[0]} draw from torch's global generator, {consequence}")
    return lines


def first_by_reason(groups: Sequence[Group], runs: Sequence[Run], name: str) -> Iterator[tuple[str, Run]]:
    """Yield each distinct reason in this attribute of the stackings, with the first run it applies to."""
    seen: set[str] = set()
    for group in groups:
        reason = getattr(group.stacking, name)
        if reason is not None and reason not in seen:
            seen.add(reason)
            yield reason, runs[group.indices[0]]
