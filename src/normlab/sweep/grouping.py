"""Which runs of a sweep can be trained as one population."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from omegaconf import DictConfig

from normlab.population.hardware import device
from normlab.population.resources import members_at_once
from normlab.population.stacking_check import Stacking
from normlab.training.build import data_seed, make_data
from normlab.training.run_folders import Run
from normlab.training.stackability import footprint_of, population_key, stacking_of, why_alone


@dataclass(frozen=True)
class Group:
    """Runs that train as one population, by their places in the sweep, and how they are stacked."""

    places: list[int]
    stacking: Stacking = field(default_factory=Stacking)


def group_runs(configs: Sequence[DictConfig], chunk: int | None, n_jobs: int = 1) -> list[Group]:
    """Return the populations that the runs of a sweep make, each of at most ``chunk`` members, in equal parts."""
    shapes: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        shapes.setdefault(population_key(config), []).append(place)
    found = []
    for shape, places in split_by_input_shape(configs, shapes):
        config = configs[places[0]]
        alone = "" if len(places) == 1 else why_alone(config)
        stacking = Stacking(alone or None) if alone or len(places) == 1 else stacking_of(config, shape)
        if stacking.refused or len(places) == 1:
            most = 1
        else:
            several = len(data_seeds(configs, places)) > 1
            where = device(config.trainer.get("accelerator", "auto"))
            most = chunk or members_at_once(footprint_of(config), where, n_jobs, own_samples=several)
        for part in np.array_split(places, -(-len(places) // most)):
            found.append(Group(part.tolist(), stacking))
    return found


def split_by_input_shape(
    configs: Sequence[DictConfig], shapes: Mapping[str, list[int]]
) -> Iterator[tuple[str, list[int]]]:
    """Yield the runs of each shape, apart where an input has another shape with another split.

    A word of a table that the training samples lack has no input; see ``InMemoryData.shape_is_fitted``.
    """
    for shape, places in shapes.items():
        if len(data_seeds(configs, places)) == 1 or not make_data(configs[places[0]]).shape_is_fitted:
            yield shape, places
            continue
        by_input: dict[tuple[int, ...], list[int]] = {}
        for place in places:
            by_input.setdefault(make_data(configs[place]).parts[0].input_shape, []).append(place)
        for input_shape, own in by_input.items():
            yield f"{shape} {input_shape}", own


def data_seeds(configs: Sequence[DictConfig], places: Iterable[int]) -> set[int]:
    """Return the seeds that the data of some runs are drawn and split with."""
    return {data_seed(configs[place]) for place in places}


def plan(found: Sequence[Group], runs: Sequence[Run]) -> list[str]:
    """Return the plan of the training in words: runs, populations, and why some are trained alone."""
    alone = sum(len(group.places) == 1 for group in found)
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    stacked = len(found) - alone
    parts = [f"{stacked} population{'s' * (stacked > 1)}"] * (stacked > 0) + [f"{alone} alone"] * (alone > 0)
    lines = [f"{count} in {', '.join(parts)}" if stacked else f"{count}, one by one"]
    for reason, run in first_by_reason(found, runs, "refused"):
        lines.append(f"{run.name} and its like are trained one by one: {reason}")
    for reason, run in first_by_reason(found, runs, "whole"):
        lines.append(f"{run.name} and its like are vmapped as a whole, not stacked layer by layer: {reason}")
    drawing = [runs[group.places[0]].name for group in found if group.stacking.draws_globally]
    if drawing and stacked:
        law = "draw from torch's global generator: equal in law only to runs trained alone"
        lines.append(f"{drawing[0]} and its like {law}")
    return lines


def first_by_reason(found: Sequence[Group], runs: Sequence[Run], name: str) -> Iterator[tuple[str, Run]]:
    """Yield each reason under a name of the stacking, with the first run that it applies to."""
    said: set[str] = set()
    for group in found:
        reason = getattr(group.stacking, name)
        if reason is not None and reason not in said:
            said.add(reason)
            yield reason, runs[group.places[0]]
