"""Decides which runs can share a population, by their configurations and by a check of their net."""

import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from normlab.data.datamodule import InMemoryData
from normlab.population.optim import StackedOptimizer
from normlab.population.population import initial_nets
from normlab.population.resources import Footprint, threads, threads_for
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
    """Return a text that is equal for runs whose configurations allow them to share a population."""
    return population_key_of_values(plain(config))


def population_key_of_values(values: Mapping[str, Any]) -> str:
    """Return the population key of a plain configuration: its JSON without seeds and stackable numbers."""
    data = {key: value for key, value in values["data"].items() if key != "seed"}
    masked = {**values, "seed": "#", "data": data}
    for name, base in (("optimizer", StackedOptimizer), ("scheduler", Scheduler)):
        if is_stacked(masked[name], base):
            masked[name] = mask_numbers(masked[name])
    return json.dumps(masked, sort_keys=True)


def single_run_reason(config: DictConfig) -> str:
    """Return the reason a configuration cannot train in a population; empty if it can."""
    for group in ("callbacks", "logger"):
        if config[group].extra:
            return f"{group}.extra: a Lightning {group.rstrip('s')} handles a single run"
    stacked = is_stacked(config.optimizer, StackedOptimizer)
    return "" if stacked else f"{config.optimizer._target_} trains a single run; use optimizer=adam, adamw or sgd"


_stackings: dict[str, Stacking] = {}


def stacking_of(config: DictConfig, key: str) -> Stacking:
    """Return the stacking of runs with one population key; each key is checked once.

    Args:
        config: of one of the runs.
        key: their population key, followed by the input shape if that depends on the split.
    """
    if key not in _stackings:
        _stackings[key] = check_stacking_of(config, make_data(config))
    return _stackings[key]


def check_stacking_of(config: DictConfig, data: InMemoryData) -> Stacking:
    """Run :func:`check_stacking` on the net, the loss and the first minibatches of a configuration."""
    split = data.split(0)
    minibatches = list(islice(data.minibatches((split.x, split.y), CHECK_SEEDS, 0), CHECK_STEPS))
    make_net = net_maker(config, data)

    def make_nets(dtype: torch.dtype) -> list[nn.Module]:
        # A deepcopy would not copy objects that hooks and functions refer to.
        return [net.to(dtype) for net in initial_nets(make_net, CHECK_SEEDS)]

    with threads(threads_for(footprint_of(config), len(CHECK_SEEDS))):
        return check_stacking(make_nets, make_task(data, config.loss), minibatches, precision_of(config))


def footprint_of(config: DictConfig) -> Footprint:
    """Measure the footprint of a run by passing a minibatch through its net; cached for all seeds."""
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
