"""Reads the memory and cache size of the machine; sets its threads and its memory allocator."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Constants of glibc's malloc.h."""

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
        return torch.cuda.mem_get_info(device)[0]
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


@cache
def tune_malloc() -> None:
    """Make glibc keep up to 256 MB of freed memory, which the next step needs again.

    By default glibc returns large blocks to the operating system at once, and gets their pages back filled with
    zeros: a step of 96 nets took 1.5 times as long. Other C libraries are not changed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the largest value accepted
        libc.mallopt(M_TRIM_THRESHOLD, 256 * 2**20)


def is_out_of_memory(error: Exception) -> bool:
    """Return True for errors of exhausted memory; on the CPU torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
