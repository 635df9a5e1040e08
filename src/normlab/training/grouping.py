"""Which runs of a sweep can be trained as one population."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from normlab.config import first_line
from normlab.probes.slots import normalizers
from normlab.records.folder import plain
from normlab.training.build import is_stacked, make_data, make_module
from normlab.training.module import NormModule
from normlab.training.optim import StackedOptimizer
from normlab.training.run_folders import Run
from normlab.training.schedulers import Scheduler
from normlab.training.size import members_at_once


@dataclass(frozen=True)
class Group:
    """Runs that train as one population, by their places in the sweep; alone for the reason given.

    Where layers draw from torch's global generator, a member draws other numbers than the run alone.
    """

    places: list[int]
    reason: str | None = None
    draws_globally: bool = False


def blank(node: Any) -> Any:
    """Return a node with its numbers left out: what is left must be equal for numbers to be stacked.

    >>> blank({"lr": 0.1, "betas": [0.9, 0.99], "nesterov": True, "_target_": "x"})
    {'lr': '#', 'betas': '##', 'nesterov': True, '_target_': 'x'}
    """
    if isinstance(node, dict):
        return {key: blank(value) for key, value in node.items()}
    if isinstance(node, list) and all(isinstance(blank(value), str) for value in node):
        return "".join(blank(value) for value in node)
    return "#" if isinstance(node, int | float) and not isinstance(node, bool) else node


def shape_of(config: DictConfig) -> str:
    """Return what runs must have in common to share a population."""
    shape = plain(config) | {"seed": "#"}
    for name, base in (("optimizer", StackedOptimizer), ("scheduler", Scheduler)):
        if is_stacked(config[name], base):
            shape[name] = blank(shape[name])
    return json.dumps(shape, sort_keys=True)


def trial(config: DictConfig) -> tuple[str | None, bool]:
    """Try runs like this one as a population.

    Returns:
        Why they cannot share one, or None if they can; and whether they draw from torch's global generator.
    """
    if not is_stacked(config.optimizer, StackedOptimizer):
        return f"{config.optimizer._target_} knows one run", False
    data = make_data(config)
    table = data.parts[0]
    try:
        module = make_module([config, config], data)
        x = table.x[None, : data.batch_size].expand(2, -1, *table.input_shape)
        x = x.to(module.dtype)
        with torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            outputs = module(x.contiguous())
            draws_globally = not torch.equal(torch.get_rng_state(), before)
            lost = lost_buffers(module, make_module([config], data), x)
        if lost:
            return f"{lost[0]} is assigned anew in training, not changed in place", draws_globally
        outputs.sum().backward()
        with torch.no_grad():
            population = module.eval().population
            population.observe(x, normalizers(population.net))
    except Exception as error:  # whatever a net or a layer from anywhere may raise under vmap
        return first_line(error), False
    return None, draws_globally


@torch.no_grad()
def lost_buffers(together: NormModule, alone: NormModule, x: Tensor) -> list[str]:
    """Return the buffers that a minibatch moves in a net alone, but did not move in a population of its like."""
    before = {name: tensor.clone() for name, tensor in alone.population.state().items()}
    alone(x[:1])
    after, stacked = alone.population.state(), together.population.state()
    return [
        name
        for name, tensor in before.items()
        if not torch.equal(after[name], tensor) and torch.equal(stacked[name][:1], tensor)
    ]


def groups(configs: Sequence[DictConfig], chunk: int | None, n_jobs: int = 1) -> list[Group]:
    """Return the populations that the runs of a sweep make, each of at most ``chunk`` members, in equal parts."""
    shapes: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        shapes.setdefault(shape_of(config), []).append(place)
    found = []
    for places in shapes.values():
        reason, draws_globally = trial(configs[places[0]]) if len(places) > 1 else (None, False)
        most = 1 if reason or len(places) == 1 else chunk or members_at_once(configs[places[0]], n_jobs)
        for part in np.array_split(places, -(-len(places) // most)):
            found.append(Group(part.tolist(), reason, draws_globally))
    return found


def plan(found: Sequence[Group], runs: Sequence[Run]) -> list[str]:
    """Return what is going to be trained, in words."""
    alone = sum(len(group.places) == 1 for group in found)
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    stacked = len(found) - alone
    parts = [f"{stacked} population{'s' * (stacked > 1)}"] * (stacked > 0) + [f"{alone} alone"] * (alone > 0)
    lines = [f"{count} in {', '.join(parts)}" if stacked else f"{count}, one by one"]
    for group in {group.reason: group for group in found if group.reason}.values():
        lines.append(f"{runs[group.places[0]].name} and its like are trained one by one: {group.reason}")
    drawing = [runs[group.places[0]].name for group in found if group.draws_globally and len(group.places) > 1]
    if drawing:
        law = "draw from torch's global generator: equal in law only to runs trained alone"
        lines.append(f"{drawing[0]} and its like {law}")
    return lines
