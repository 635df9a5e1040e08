"""Populations one after the other, or side by side in processes of their own."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from normlab.training.run import train
from normlab.training.run_folders import Run


def outcomes(groups: Sequence[Sequence[Run]], n_jobs: int) -> Iterator[tuple[int, list[Any]]]:
    """Train groups of runs, each as a population; yield their places with what each of their runs came to.

    A run comes to its objective; where a group failed, each of its runs comes to the exception, and the other
    groups go on.
    """
    if n_jobs == 1 or len(groups) == 1:
        for place, runs in enumerate(groups):
            yield place, outcome(runs)
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // n_jobs)
    with ProcessPoolExecutor(n_jobs, context, torch.set_num_threads, (threads,)) as workers:
        begun = {workers.submit(outcome, runs): place for place, runs in enumerate(groups)}
        for ended in as_completed(begun):
            yield begun[ended], ended.result()


def outcome(runs: Sequence[Run]) -> list[Any]:
    """Return each run's objective, or the exception that their training ended with."""
    try:
        return [result.objective.value for result in train(runs)]
    except Exception as error:
        return [error] * len(runs)
