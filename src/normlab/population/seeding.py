"""The global generators of torch, NumPy and Python, which nets, layers and datasets of anyone may draw from."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_globally(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python.

    torch's gets the seed as it is, NumPy's its lower 32 bits, which is as many as it takes.
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is the one to be seeded
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context manager in which the global generators begin from a seed; afterwards they are as they were."""
    numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        seed_globally(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)
