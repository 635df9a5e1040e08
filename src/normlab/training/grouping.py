"""Which runs of a sweep can be trained as one population."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from normlab.config import first_line
from normlab.records.folder import plain
from normlab.training.build import is_stacked, make_data, make_module
from normlab.training.optim import StackedOptimizer
from normlab.training.run_folders import Run
from normlab.training.schedulers import Scheduler

NUMBERS_AT_ONCE = 32_000_000
"""How many activations a population holds at most, which bounds its memory."""


@dataclass(frozen=True)
class Group:
    """Runs that train as one population, by their places in the sweep; alone for the reason given."""

    places: list[int]
    reason: str | None = None


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


def why_alone(config: DictConfig) -> str | None:
    """Return why runs like this one cannot share a population, or None if they can: by trying."""
    if not is_stacked(config.optimizer, StackedOptimizer):
        return f"{config.optimizer._target_} knows one run"
    data = make_data(config)
    table = data.parts[0]
    try:
        module = make_module([config, config], data)
        x = table.x[None, : data.batch_size].expand(2, -1, *table.input_shape)
        x = x.to(module.dtype)
        module(x.contiguous()).sum().backward()
        with torch.no_grad():
            module.eval().population.observe(x)
    except Exception as error:  # whatever a net or a layer from anywhere may raise under vmap
        return first_line(error)
    return None


def members_at_once(config: DictConfig) -> int:
    """Return how many members are trained at once, by the size of what they keep for the backward pass."""
    data = make_data(config)
    module = make_module([config], data)
    sizes: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, y: sizes.append(y.numel()))
        for layer in module.modules()
        if not list(layer.children())
    ]
    with torch.no_grad():
        module(data.parts[0].x[None, : data.batch_size].to(module.dtype))
    for hook in hooks:
        hook.remove()
    return max(16, min(4096, NUMBERS_AT_ONCE // sum(sizes)))


def groups(configs: Sequence[DictConfig], chunk: int | None) -> list[Group]:
    """Return the populations that the runs of a sweep make, each of at most ``chunk`` members."""
    shapes: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        shapes.setdefault(shape_of(config), []).append(place)
    found = []
    for places in shapes.values():
        reason = why_alone(configs[places[0]]) if len(places) > 1 else None
        size = 1 if reason else chunk or members_at_once(configs[places[0]])
        found += [Group(places[i : i + size], reason) for i in range(0, len(places), size)]
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
    return lines
