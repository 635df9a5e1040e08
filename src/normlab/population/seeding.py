"""Seeds the global generators of torch, NumPy and Python, from which user code may draw."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_globally(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python.

    NumPy's generator gets the lower 32 bits of the seed, the most it accepts.
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - user code draws from the global generator
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context manager that seeds the global generators, and restores them on exit."""
    numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        seed_globally(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)
