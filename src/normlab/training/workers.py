"""Populations one after the other, or side by side in processes of their own."""

import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from normlab.training.progress import Progress
from normlab.training.run import train
from normlab.training.run_folders import Run

log = logging.getLogger("normlab")


def outcomes(groups: Sequence[Sequence[Run]], n_jobs: int) -> Iterator[tuple[int, list[Any]]]:
    """Train groups of runs, each as a population; yield their places with what each of their runs came to.

    A run comes to its objective; where a group failed, each of its runs comes to the exception, and the other
    groups go on.
    """
    epochs = [len(runs) * runs[0].config.trainer.max_epochs for runs in groups]
    count, number, done = len(groups), sum(map(len, groups)), 0
    with Progress(f"{number} runs", sum(epochs), number) as progress:
        if n_jobs == 1 or count == 1:
            for place, runs in enumerate(groups):
                progress.part = f"population {place + 1} of {count}" if count > 1 else ""
                yield place, outcome(runs, progress)
                done += epochs[place]
                progress.reach(done)
            return
        context = multiprocessing.get_context("spawn")
        threads = max(1, (os.cpu_count() or 1) // n_jobs)
        with ProcessPoolExecutor(n_jobs, context, torch.set_num_threads, (threads,)) as workers:
            begun = {workers.submit(outcome, runs): place for place, runs in enumerate(groups)}
            for ended in as_completed(begun):
                yield begun[ended], ended.result()
                done += epochs[begun[ended]]
                progress.reach(done)


def outcome(runs: Sequence[Run], progress: Progress | None = None) -> list[Any]:
    """Return each run's objective, or the exception that their training ended with.

    Where the memory does not hold a population, its halves are trained one after the other.
    """
    try:
        return [result.objective.value for result in train(runs, progress)]
    except Exception as error:
        if len(runs) == 1 or not is_out_of_memory(error):
            return [error] * len(runs)
    # Only here, where the exception and with it the population's memory are gone.
    log.warning("out of memory with %d runs at once: going on with half as many", len(runs))
    half = len(runs) // 2
    return outcome(runs[:half], progress) + outcome(runs[half:], progress)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a device or the machine had no memory left; on the CPU torch has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
