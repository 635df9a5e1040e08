"""How large a population is, and what follows: its threads, how many members at once, and whether it is compiled.

The figures are measured on two cores, with benchmarks/population.py.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils._pytree import tree_leaves

from normlab.data.order import batch_sizes
from normlab.results.folder import plain
from normlab.training import machine
from normlab.training.build import is_stacked, make_data, make_module, precision_of
from normlab.training.optim import StackedOptimizer

FEW = 16
"""A step of fewer members takes as long as one of this many: what is called from Python does not get less."""

OF_CACHE, OF_MEMORY = 1 / 2, 1 / 4
"""The share of the cache that a step's activations may fill, and of the memory that a population may."""

KEPT_ACTIVATIONS, KEPT_PARAMETERS, KEPT_SAMPLES = 4, 10, 2
"""How many times memory is needed for activations, with their gradients, for parameters, with the optimizer's
moments and the best state so far, and for samples, of each member and of all members stacked."""

SAVED_PER_STEP, SAVED_PER_NUMBER = 3e-4, 1e-9
"""Seconds that a compiled step saves: of calls from Python, and for each activation."""

COMPILING, COMPILING_AGAIN = 15.0, 1.5
"""Seconds that compiling for one batch size takes, and that it takes once the compiled code is on disk."""


@dataclass(frozen=True)
class MemberSize:
    """How many numbers a net's layers take and put out for one minibatch, and how many it has as parameters.

    Attributes:
        activations: of all layers; largest: the most of one layer.
        samples: inputs and targets of all splits.
    """

    activations: int
    largest: int
    parameters: int
    samples: int
    bytes_each: int

    @classmethod
    def of(cls, config: DictConfig) -> "MemberSize":
        """Return it for one run, by passing a minibatch through its net."""
        return cls._of(json.dumps(plain(config) | {"seed": 0}))

    @classmethod
    @lru_cache(maxsize=1024)
    def _of(cls, text: str) -> "MemberSize":
        config = OmegaConf.create(json.loads(text))
        data = make_data(config)
        module = make_module([config], data)
        table = data.parts[0]
        x, _ = module.cast((table.x[None, : data.batch_size], table.y))
        sizes = [x.numel()]
        for layer in module.population.modules():
            if not list(layer.children()):
                layer.register_forward_hook(lambda _, inputs, y: sizes.extend(numels(y)))
        with torch.no_grad():
            module(x)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        samples = sum(part.x.numel() + part.y.numel() for part in data.parts)
        return cls(sum(sizes), max(sizes), parameters, samples, precision_of(config).itemsize)


def numels(outputs: Any) -> Iterator[int]:
    """Yield the sizes of all tensors among what a layer puts out; some, such as a GRU, put out several."""
    yield from (leaf.numel() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))


def members_at_once(config: DictConfig, n_jobs: int = 1, *, own_samples: bool = False) -> int:
    """Return how many members are trained at once: as many as the memory holds and, on the CPU, the cache.

    Args:
        config: of one of the members.
        n_jobs: how many populations share memory and cache.
        own_samples: whether members have samples of their own, rather than all the same.
    """
    size = MemberSize.of(config)
    device = machine.device(config.trainer.get("accelerator", "auto"))
    numbers = KEPT_ACTIVATIONS * size.activations + KEPT_PARAMETERS * size.parameters
    numbers += KEPT_SAMPLES * size.samples * own_samples
    each = size.bytes_each * numbers
    held = int(machine.memory(device) * OF_MEMORY / n_jobs / each)
    if device.type == "cpu":
        cached = int(machine.cache_size() * OF_CACHE / n_jobs / (size.bytes_each * size.activations))
        held = min(held, max(FEW, cached))
    return max(1, held)


def compiling_pays(config: DictConfig, members: int, populations: int = 1) -> bool:
    """Return whether compiling the steps of so many populations of one shape takes less time than it saves."""
    if config.trainer.get("fast_dev_run") or not is_stacked(config.optimizer, StackedOptimizer):
        return False
    sizes = batch_sizes(config.data.train, config.data.batch_size)
    steps = config.trainer.max_epochs * len(sizes)
    saved = steps * (SAVED_PER_STEP + SAVED_PER_NUMBER * members * MemberSize.of(config).activations)
    takes = len(set(sizes)) * (COMPILING + COMPILING_AGAIN * (populations - 1))
    return populations * saved > takes


def threads_for(config: DictConfig, members: int) -> int:
    """Return how many threads are fastest: all from 32,000 activations in a layer of all members on, one below.

    A second thread made steps of MLPs take 1.02 times as long at 8,000, and 0.75 times at 32,000.
    """
    return torch.get_num_threads() if members * MemberSize.of(config).largest >= 32_000 else 1
