"""How large a population is, and what follows: its threads, how many members at once, and whether it is compiled.

The figures are measured on two cores, with benchmarks/population.py.
"""

import torch
from omegaconf import DictConfig

from normlab.training.build import make_data, make_module
from normlab.training.population import Population

NUMBERS_AT_ONCE = 32_000_000
"""How many activations a population holds at most, which bounds its memory."""

SAVED_PER_STEP, SAVED_PER_NUMBER = 4e-4, 2e-9
"""Seconds that a compiled step saves: of calls from Python, and for each activation."""

COMPILING = 15.0
"""Seconds that compiling must save to be begun: it takes up to 13, and a third of it where its cache is warm."""


def activations(config: DictConfig) -> int:
    """Return how many numbers a net's layers put out for one minibatch."""
    data = make_data(config)
    module = make_module([config], data)
    sizes: list[int] = []
    for layer in module.population.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, inputs, y: sizes.append(y.numel()))
    with torch.no_grad():
        module(data.parts[0].x[None, : data.batch_size].to(module.dtype))
    return sum(sizes)


def members_at_once(config: DictConfig) -> int:
    """Return how many members are trained at once, by the size of what they keep for the backward pass."""
    return max(16, min(4096, NUMBERS_AT_ONCE // activations(config)))


def compiling_pays(config: DictConfig, members: int) -> bool:
    """Return whether compiling the steps of a population takes less time than it saves."""
    steps = config.trainer.max_epochs * -(-config.data.train // config.data.batch_size)
    return steps * (SAVED_PER_STEP + SAVED_PER_NUMBER * members * activations(config)) > COMPILING


def threads_for(population: Population, batch_size: int) -> int:
    """Return how many threads are fastest: all from 32,000 activations in a layer of all members on, one below.

    A second thread made steps of MLPs take 1.02 times as long at 8,000, and 0.75 times at 32,000.
    """
    widest = max((parameter.shape[-1] for parameter in population.parameters() if parameter.dim()), default=1)
    return torch.get_num_threads() if population.members * batch_size * widest >= 32_000 else 1
