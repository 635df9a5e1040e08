"""torch's global generators, of the CPU and of a GPU, from which layers such as torch's dropout draw."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def forked_generators(x: Tensor) -> Iterator[None]:
    """Context manager that restores the generators of the CPU and of a tensor's device on exit."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        yield


def generator_states(x: Tensor) -> list[Tensor]:
    """Return the states of the generators of the CPU and of a tensor's device."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(x.device)] if x.is_cuda else states


def set_generator_states(x: Tensor, states: list[Tensor]) -> None:
    """Set the states that :func:`generator_states` returned for a tensor on the same device."""
    torch.set_rng_state(states[0])
    if x.is_cuda:
        torch.cuda.set_rng_state(states[1], x.device)


def seed_generators(x: Tensor, seed: int) -> None:
    """Seed the generators of the CPU and of a tensor's device."""
    torch.default_generator.manual_seed(seed)
    if x.is_cuda:
        torch.cuda.default_generators[x.device.index].manual_seed(seed)
