"""Estimates the memory of a population and reads that of the machine; chooses size, threads and compilation.

Constants were measured on two cores with benchmarks/population.py.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from normlab.population.population import Population

FEW_MEMBERS = 16
"""Steps of fewer members take as long as steps of this many, since Python calls dominate."""

CACHE_SHARE, MEMORY_SHARE = 1 / 2, 1 / 4
"""Share of the cache for the activations of a step, and share of the memory for a population."""

ACTIVATION_COPIES, PARAMETER_COPIES, SAMPLE_COPIES = 4, 10, 2
"""Copies in memory: of activations, with gradients; of parameters, with optimizer state and best state; and of
samples, of each member and stacked."""

SAVED_PER_STEP, SAVED_PER_ACTIVATION = 3e-4, 1e-9
"""Seconds saved by a compiled step: for each step, and for each activation."""

COMPILE_SECONDS, RECOMPILE_SECONDS = 15.0, 1.5
"""Seconds to compile for one batch size: the first time, and with the code cached on disk."""

STEP_SECONDS, SECONDS_PER_ACTIVATION, SECONDS_PER_PRODUCT = 4.5e-4, 1.4e-9, 3e-11
"""Seconds of an uncompiled step: of any, for each activation, and for each multiplication of a linear map."""

EPOCH_SECONDS, MEMBER_EPOCH_SECONDS = 1.5e-3, 6e-5
"""Seconds of an epoch besides its steps: of any, and for each member."""

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
"""Directory in which Linux describes the caches of the first core."""

USUAL_CACHE, USUAL_MEMORY = 32 * 2**20, 8 * 2**30
"""Bytes assumed if the machine does not report them."""


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Context manager that sets the number of torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device(accelerator: str) -> torch.device:
    """Return the type of device, CUDA or CPU, on which a Trainer with this accelerator computes."""
    gpu = accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def memory(device: torch.device) -> int:
    """Return the memory of the machine, or the free memory of a GPU, in bytes."""
    if device.type == "cuda":
        # What torch has kept of freed memory is free for the next population.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return USUAL_MEMORY
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def cache_size() -> int:
    """Return the size of the processor's largest cache in bytes, 32 MiB where Linux does not report it."""
    sizes = []
    for path in CACHES.glob("index*/size"):
        size = path.read_text().strip()
        sizes.append(int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]])
    return max(sizes, default=USUAL_CACHE)


NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
"""Parts of the messages of plain RuntimeErrors of exhausted memory: of the CPU, of CUDA, and of its libraries."""


def is_out_of_memory(error: Exception) -> bool:
    """Return True for errors of exhausted memory."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(part in str(error) for part in NO_MEMORY)


def finished_time(device: torch.device) -> float:
    """Return ``time.perf_counter()`` once the device has finished the work that was launched on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Footprint:
    """Number of tensor entries and of multiplications that one member needs for a minibatch.

    Attributes:
        activations: of all layers, and the inputs.
        largest_layer: activations of the largest layer.
        parameters: of the net.
        samples: inputs and targets of all splits.
        bytes_each: bytes of one number.
        products: multiplications of linear maps and convolutions in a forward pass, for each sample.
    """

    activations: int
    largest_layer: int
    parameters: int
    samples: int
    bytes_each: int
    products: float = 0.0

    @classmethod
    def measure(cls, population: Population, x: Tensor, samples: int, bytes_each: int) -> "Footprint":
        """Measure a population with one member, by passing a minibatch ``(1, B, …)`` through its net."""
        sizes = [x.numel()]
        handles = [
            layer.register_forward_hook(lambda _, inputs, y: sizes.extend(tensor_sizes(y)))
            for layer in population.modules()
            if not list(layer.children())
        ]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            population(x)
        for handle in handles:
            handle.remove()
        parameters = sum(parameter.numel() for parameter in population.parameters())
        products = counter.get_total_flops() / (2 * x.shape[1])
        return cls(sum(sizes), max(sizes), parameters, samples, bytes_each, products)


def tensor_sizes(outputs: Any) -> Iterator[int]:
    """Yield the number of entries of each tensor in a layer's output, which may be nested."""
    yield from (leaf.numel() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))


def members_at_once(
    footprint: Footprint, device: torch.device, n_jobs: int = 1, *, own_samples: bool = False
) -> int:
    """Return the number of members that fit into memory and, on the CPU, into the cache.

    Args:
        footprint: of one member.
        device: of the training.
        n_jobs: number of populations that share memory and cache.
        own_samples: whether members have different samples.
    """
    numbers = ACTIVATION_COPIES * footprint.activations + PARAMETER_COPIES * footprint.parameters
    numbers += SAMPLE_COPIES * footprint.samples * own_samples
    each = footprint.bytes_each * numbers
    fitting = int(memory(device) * MEMORY_SHARE / n_jobs / each)
    if device.type == "cpu":
        cached = int(cache_size() * CACHE_SHARE / n_jobs / (footprint.bytes_each * footprint.activations))
        fitting = min(fitting, max(FEW_MEMBERS, cached))
    return max(1, fitting)


def compiling_pays(
    footprint: Footprint, batch_sizes: Sequence[int], epochs: int, members: int, populations: int = 1
) -> bool:
    """Return True if compiling the step of these populations is estimated to save time.

    Args:
        footprint: of one member.
        batch_sizes: of the minibatches of an epoch.
        epochs: of the training.
        members: of each population.
        populations: number of populations with this shape.
    """
    saved = epochs * len(batch_sizes) * (SAVED_PER_STEP + SAVED_PER_ACTIVATION * members * footprint.activations)
    needed = len(set(batch_sizes)) * (COMPILE_SECONDS + RECOMPILE_SECONDS * (populations - 1))
    return populations * saved > needed


def expected_seconds(
    footprint: Footprint, batch_sizes: Sequence[int], epochs: int, members: int, compiled: bool
) -> float:
    """Return a rough estimate of the seconds that a population trains on a CPU.

    Args:
        footprint: of one member.
        batch_sizes: of the minibatches of an epoch.
        epochs: of the training.
        members: of the population.
        compiled: whether its step is compiled, with the code cached on disk.
    """
    activations = members * footprint.activations
    step = STEP_SECONDS + activations * SECONDS_PER_ACTIVATION
    if compiled:
        step -= SAVED_PER_STEP + activations * SAVED_PER_ACTIVATION
    products = 3 * members * footprint.products * sum(batch_sizes) * SECONDS_PER_PRODUCT
    epoch = len(batch_sizes) * step + products + EPOCH_SECONDS + members * MEMBER_EPOCH_SECONDS
    return epochs * epoch + compiled * len(set(batch_sizes)) * RECOMPILE_SECONDS


def threads_for(footprint: Footprint, members: int) -> int:
    """Return all threads if a layer of all members has at least 32,000 activations, otherwise 1.

    With a second thread, steps of MLPs took 1.02 times as long at 8,000 activations, and 0.75 times at 32,000.
    """
    return torch.get_num_threads() if members * footprint.largest_layer >= 32_000 else 1
