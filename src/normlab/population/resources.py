"""The memory of a population's members, and the choices that depend on it: threads, members at once, compiling.

The constants are measured on two cores, with benchmarks/population.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from normlab.population import hardware
from normlab.population.population import Population

FEW_MEMBERS = 16
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
class Footprint:
    """The numbers that one member holds while a minibatch passes through its net.

    Attributes:
        activations: of all layers.
        largest_layer: activations of the largest layer.
        parameters: of the net.
        samples: inputs and targets of all splits.
        bytes_each: bytes of one number.
    """

    activations: int
    largest_layer: int
    parameters: int
    samples: int
    bytes_each: int

    @classmethod
    def measure(cls, population: Population, x: Tensor, samples: int, bytes_each: int) -> "Footprint":
        """Measure a population of one by passing a minibatch ``(1, B, …)`` through its net."""
        sizes = [x.numel()]
        for layer in population.modules():
            if not list(layer.children()):
                layer.register_forward_hook(lambda _, inputs, y: sizes.extend(numels(y)))
        with torch.no_grad():
            population(x)
        parameters = sum(parameter.numel() for parameter in population.parameters())
        return cls(sum(sizes), max(sizes), parameters, samples, bytes_each)


def numels(outputs: Any) -> Iterator[int]:
    """Yield the sizes of all tensors among what a layer puts out; some, such as a GRU, put out several."""
    yield from (leaf.numel() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))


def members_at_once(
    footprint: Footprint, device: torch.device, n_jobs: int = 1, *, own_samples: bool = False
) -> int:
    """Return how many members are trained at once: as many as fit into memory and, on the CPU, into the cache.

    Args:
        footprint: of one member.
        device: that the population is trained on.
        n_jobs: how many populations share memory and cache.
        own_samples: whether members have samples of their own, rather than all the same.
    """
    numbers = KEPT_ACTIVATIONS * footprint.activations + KEPT_PARAMETERS * footprint.parameters
    numbers += KEPT_SAMPLES * footprint.samples * own_samples
    each = footprint.bytes_each * numbers
    fitting = int(hardware.memory(device) * OF_MEMORY / n_jobs / each)
    if device.type == "cpu":
        cached = int(hardware.cache_size() * OF_CACHE / n_jobs / (footprint.bytes_each * footprint.activations))
        fitting = min(fitting, max(FEW_MEMBERS, cached))
    return max(1, fitting)


def compiling_pays(
    footprint: Footprint, batch_sizes: Sequence[int], epochs: int, members: int, populations: int = 1
) -> bool:
    """Return whether compiling the steps of these populations takes less time than it saves.

    Args:
        footprint: of one member.
        batch_sizes: of the minibatches of an epoch.
        epochs: of the training.
        members: of each population.
        populations: how many of them there are, all of one shape.
    """
    saved = epochs * len(batch_sizes) * (SAVED_PER_STEP + SAVED_PER_NUMBER * members * footprint.activations)
    needed = len(set(batch_sizes)) * (COMPILING + COMPILING_AGAIN * (populations - 1))
    return populations * saved > needed


def threads_for(footprint: Footprint, members: int) -> int:
    """Return the fastest number of threads: all from 32,000 activations in a layer of all members on, else one.

    A second thread made steps of MLPs take 1.02 times as long at 8,000, and 0.75 times at 32,000.
    """
    return torch.get_num_threads() if members * footprint.largest_layer >= 32_000 else 1
