"""Fixtures: the device of the tests marked ``gpu``, which are skipped on a machine without a GPU."""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else os.environ.get("NORMLAB_GPU_TESTS", "")
"""``cuda``; on a machine without it, ``cpu`` if the variable says so, otherwise empty."""


@pytest.fixture
def device() -> str:
    """Return the device, ``cuda`` or ``cpu``."""
    if not DEVICE:
        pytest.skip("needs a GPU; NORMLAB_GPU_TESTS=cpu runs the test on the CPU")
    return DEVICE


@pytest.fixture
def accelerator(device: str) -> str:
    """Return the override that selects the device."""
    return f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}"
