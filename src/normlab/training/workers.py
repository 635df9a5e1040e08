"""Populations one after the other, or side by side in processes of their own."""

import logging
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from logging.handlers import QueueHandler, QueueListener
from typing import Any

import torch

from normlab.records.result import Result
from normlab.training.grouping import shape_of
from normlab.training.progress import Progress, Remote
from normlab.training.run import not_begun, train
from normlab.training.run_folders import Run

log = logging.getLogger("normlab")
Groups = Sequence[Sequence[Run]]
Outcomes = Iterator[tuple[int, list[Any]]]


def outcomes(groups: Groups, n_jobs: int) -> Outcomes:
    """Train groups of runs, each as a population; yield their places with what each of their runs came to.

    A run comes to its objective; where a group failed, each of its runs comes to the exception, and the other
    groups go on. Where Ctrl-C ends it all, the runs that had not begun are stopped as well.
    """
    number = sum(map(len, groups))
    ended = False
    try:
        with Progress(f"{number} runs", sum(map(epochs, groups)), number) as progress:
            if n_jobs == 1 or len(groups) == 1:
                yield from in_turn(groups, progress)
            else:
                yield from side_by_side(groups, n_jobs, progress)
        ended = True
    finally:
        for run in (run for runs in groups for run in runs if not ended):
            if Result.read(run.folder) is None:
                not_begun(run).write(run.folder)


def epochs(runs: Sequence[Run]) -> int:
    """Return how many epochs the runs of a group have together."""
    return len(runs) * runs[0].config.trainer.max_epochs


def alike(groups: Groups) -> list[int]:
    """Return how many groups have the shape of each."""
    shapes = [shape_of(runs[0].config) for runs in groups]
    counts = Counter(shapes)
    return [counts[shape] for shape in shapes]


def in_turn(groups: Groups, progress: Progress) -> Outcomes:
    """Train one group after the other."""
    done = 0
    for place, (runs, populations) in enumerate(zip(groups, alike(groups), strict=True)):
        progress.part = f"population {place + 1} of {len(groups)}" if len(groups) > 1 else ""
        yield place, outcome(runs, populations, progress)
        done += epochs(runs)
        progress.reach(done)


def side_by_side(groups: Groups, n_jobs: int, progress: Progress) -> Outcomes:
    """Train so many groups at a time, each in a process of its own.

    What is logged there is said here. Ctrl-C is for this process alone, which has the others stop.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // n_jobs)
    done, stop, words = context.Array("q", len(groups)), context.Event(), context.Queue()
    listener = QueueListener(words, *logging.getLogger().handlers)
    listener.start()
    try:
        with ProcessPoolExecutor(n_jobs, context, begin_worker, (threads, words, done, stop)) as workers:
            begun = {
                workers.submit(work, place, runs, populations): place
                for place, (runs, populations) in enumerate(zip(groups, alike(groups), strict=True))
            }
            try:
                while begun:
                    ended, _ = wait(begun, timeout=0.2, return_when="FIRST_COMPLETED")
                    for future in ended:
                        place = begun.pop(future)
                        done[place] = epochs(groups[place])
                        yield place, result_of(future, len(groups[place]))
                    progress.reach(sum(done[:]))
            finally:
                stop.set()
    finally:
        listener.stop()


def result_of(future: Future, runs: int) -> list[Any]:
    """Return what a worker has found out, or the exception that it was killed, as where memory runs out."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        return [error] * runs


_worker: tuple[Any, Any] | None = None
"""In a worker, what it shares with the process that began it: the epochs done by group, and whether to stop."""


def begin_worker(threads: int, words: Any, done: Any, stop: Any) -> None:
    """Prepare a process that trains groups."""
    global _worker  # noqa: PLW0603 - a pool hands its workers nothing else
    _worker = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    logging.getLogger().addHandler(QueueHandler(words))
    logging.getLogger().setLevel(logging.INFO)


def work(place: int, runs: Sequence[Run], populations: int) -> list[Any]:
    """Train a group in a worker."""
    assert _worker is not None
    done, stop = _worker
    return [] if stop.is_set() else outcome(runs, populations, Remote(done, place, stop))


def outcome(runs: Sequence[Run], populations: int, progress: Progress) -> list[Any]:
    """Return each run's objective, or the exception that their training ended with.

    Where the memory does not hold a population, its halves are trained one after the other.
    """
    try:
        return [result.objective.value for result in train(runs, progress, populations)]
    except Exception as error:
        if len(runs) == 1 or not is_out_of_memory(error):
            return [error] * len(runs)
    # Only here, where the exception and with it the population's memory are gone.
    log.warning("out of memory with %d runs at once: going on with half as many", len(runs))
    half = len(runs) // 2
    return [value for part in (runs[:half], runs[half:]) for value in outcome(part, 2 * populations, progress)]


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a device or the machine had no memory left; on the CPU torch has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
