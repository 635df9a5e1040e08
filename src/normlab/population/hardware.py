"""The machine that trains: its threads, its memory and its cache."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""The numbers of two settings in glibc's malloc.h."""

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
"""Where Linux tells of the caches of a processor."""

USUAL_CACHE, USUAL_MEMORY = 32 * 2**20, 8 * 2**30
"""Bytes, where the machine does not tell."""


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute on this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device(accelerator: str) -> torch.device:
    """Return where a Trainer with this accelerator computes, as far as it makes a difference here."""
    gpu = accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def memory(device: torch.device) -> int:
    """Return how many bytes a device has; of a GPU, how many are free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return USUAL_MEMORY
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def cache_size() -> int:
    """Return the bytes of the processor's largest cache, as Linux tells them, or what is usual."""
    sizes = []
    for path in CACHES.glob("index*/size"):
        size = path.read_text().strip()
        sizes.append(int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]])
    return max(sizes, default=USUAL_CACHE)


@cache
def tune_malloc() -> None:
    """Have the C library keep up to 256 MB that was freed, as the next step needs it again.

    By default glibc gives large blocks back at once, and the operating system hands each page out anew, filled
    with zeros: a step of 96 nets took 1.5 times as long. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it accepts
        libc.mallopt(M_TRIM_THRESHOLD, 256 * 2**20)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a device or the machine had no memory left; on the CPU torch has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
