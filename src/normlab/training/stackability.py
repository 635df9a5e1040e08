"""Decides which runs can share a population: their configurations differ only in numbers, and their net stacks."""

import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from normlab.data.datamodule import InMemoryData
from normlab.population import hardware
from normlab.population.optim import StackedOptimizer
from normlab.population.population import initial_nets
from normlab.population.resources import Footprint, threads_for
from normlab.population.schedulers import Scheduler
from normlab.population.stacking_check import CHECK_SEEDS, CHECK_STEPS, Stacking, check_stacking
from normlab.results.folder import plain
from normlab.training.build import is_stacked, make_data, make_module, make_task, net_maker, precision_of


def mask_numbers(node: Any) -> Any:
    """Replace the numbers of a node by ``#``; runs can be stacked if the rest is equal.

    >>> mask_numbers({"lr": 0.1, "betas": [0.9, 0.99], "nesterov": True, "_target_": "x"})
    {'lr': '#', 'betas': '##', 'nesterov': True, '_target_': 'x'}
    """
    if isinstance(node, dict):
        return {key: mask_numbers(value) for key, value in node.items()}
    if isinstance(node, list) and all(isinstance(mask_numbers(value), str) for value in node):
        return "".join(mask_numbers(value) for value in node)
    return "#" if isinstance(node, int | float) and not isinstance(node, bool) else node


def population_key(config: DictConfig) -> str:
    """Return the text that is equal for runs whose configurations allow them to share a population."""
    return population_key_of_values(plain(config))


def population_key_of_values(values: Mapping[str, Any]) -> str:
    """Return the text of a plain configuration without its seeds and the numbers that may be stacked."""
    data = {key: value for key, value in values["data"].items() if key != "seed"}
    shape = {**values, "seed": "#", "data": data}
    for name, base in (("optimizer", StackedOptimizer), ("scheduler", Scheduler)):
        if is_stacked(shape[name], base):
            shape[name] = mask_numbers(shape[name])
    return json.dumps(shape, sort_keys=True)


def why_alone(config: DictConfig) -> str:
    """Return the reason why runs of a configuration cannot be stacked, empty if there is none."""
    for group in ("callbacks", "logger"):
        if config[group].extra:
            return f"{group}.extra: Lightning's own {group.rstrip('s')} acts on one run"
    known = is_stacked(config.optimizer, StackedOptimizer)
    return "" if known else f"{config.optimizer._target_} knows one run"


_known: dict[str, Stacking] = {}


def stacking_of(config: DictConfig, shape: str) -> Stacking:
    """Return how runs of one population key can be stacked; each key is checked once.

    Args:
        config: of one of the runs.
        shape: their population key, and the shape of their inputs where that depends on the split.
    """
    if shape not in _known:
        _known[shape] = check_stacking_of(config, make_data(config))
    return _known[shape]


def check_stacking_of(config: DictConfig, data: InMemoryData) -> Stacking:
    """Check with the net, the loss and the data of a configuration how its runs can be stacked."""
    split = data.split(0)
    minibatches = list(islice(data.minibatches((split.x, split.y), CHECK_SEEDS, 0), CHECK_STEPS))
    make_net = net_maker(config, data)

    def make_nets(dtype: torch.dtype) -> list[nn.Module]:
        # A copy would not do: what a hook or a function of an object refers to is not copied with it.
        return [net.to(dtype) for net in initial_nets(make_net, CHECK_SEEDS)]

    with hardware.threads(threads_for(footprint_of(config), len(CHECK_SEEDS))):
        return check_stacking(make_nets, make_task(data, config.loss), minibatches, precision_of(config))


def footprint_of(config: DictConfig) -> Footprint:
    """Measure the footprint of a run, by passing a minibatch through its net; once for all seeds."""
    return _footprint_of(json.dumps(plain(config) | {"seed": 0}))


@lru_cache(maxsize=1024)
def _footprint_of(text: str) -> Footprint:
    config = OmegaConf.create(json.loads(text))
    data = make_data(config)
    module = make_module([config], data)
    table = data.parts[0]
    x, _ = module.cast((table.x[None, : data.batch_size], table.y))
    samples = sum(part.x.numel() + part.y.numel() for part in data.parts)
    return Footprint.measure(module.population, x, samples, precision_of(config).itemsize)
