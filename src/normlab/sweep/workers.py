"""Populations one after the other, or side by side in processes of their own."""

import gc
import logging
import multiprocessing
import os
import signal
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from logging.handlers import QueueHandler, QueueListener
from typing import Any

import torch

from normlab.errors import first_line
from normlab.population.hardware import is_out_of_memory
from normlab.results.result import Result, Status
from normlab.training.progress import Progress, Remote
from normlab.training.run import train
from normlab.training.run_folders import Run
from normlab.training.session import unfinished
from normlab.training.stackability import population_key

log = logging.getLogger("normlab")
KILLED = "the process that trained it was killed, as happens where memory runs out"
Groups = Sequence[Sequence[Run]]
Outcomes = Iterator[tuple[int, list[Any]]]


def train_groups(groups: Groups, n_jobs: int) -> Outcomes:
    """Train groups of runs, each as a population; yield their places with what each of their runs came to.

    A run comes to its objective; where a group failed, each of its runs comes to the exception, and the other
    groups go on. Where Ctrl-C ends it all, the runs that had not begun are stopped as well.
    """
    number = sum(map(len, groups))
    # What is there now stays: the search for what a population has left need not look through it.
    gc.freeze()
    ended = False
    try:
        with Progress(f"{number} runs", sum(map(epochs, groups)), number) as progress:
            if n_jobs == 1 or len(groups) == 1:
                yield from train_sequentially(groups, progress)
            else:
                yield from train_in_parallel(groups, n_jobs, progress)
        ended = True
    finally:
        for runs in groups if not ended else ():
            end_without_result(runs, Status.STOPPED)


def end_without_result(runs: Sequence[Run], status: Status, error: str | None = None) -> None:
    """Write how those runs ended that left no result."""
    for run in runs:
        if Result.read(run.folder) is None:
            unfinished(run, status, error).write(run.folder)


def epochs(runs: Sequence[Run]) -> int:
    """Return how many epochs the runs of a group have together."""
    return len(runs) * runs[0].config.trainer.max_epochs


def alike(groups: Groups) -> list[int]:
    """Return how many groups have the shape of each."""
    shapes = [population_key(runs[0].config) for runs in groups]
    counts = Counter(shapes)
    return [counts[shape] for shape in shapes]


def train_sequentially(groups: Groups, progress: Progress) -> Outcomes:
    """Train one group after the other."""
    done = 0
    for place, (runs, populations) in enumerate(zip(groups, alike(groups), strict=True)):
        progress.part = f"population {place + 1} of {len(groups)}" if len(groups) > 1 else ""
        yield place, outcome(runs, populations, progress)
        done += epochs(runs)
        progress.reach(done)


def train_in_parallel(groups: Groups, n_jobs: int, progress: Progress) -> Outcomes:
    """Train so many groups at a time, each in a process of its own, which takes one after the other.

    What is logged there is said here. Ctrl-C is for this process alone, which has the others stop. Where a process
    is killed its group has failed, and another process takes its place.
    """
    context = multiprocessing.get_context("spawn")
    n_jobs = min(n_jobs, len(groups))
    done, stop, words = context.Array("q", len(groups), lock=False), context.Event(), context.Queue()
    shared = (max(1, (os.cpu_count() or 1) // n_jobs), words, done, stop)
    listener = QueueListener(words, *logging.getLogger().handlers)
    listener.start()
    idle: list[ProcessPoolExecutor | None] = [None] * n_jobs
    busy: dict[Future, tuple[int, ProcessPoolExecutor]] = {}
    waiting = list(enumerate(alike(groups)))
    try:
        while waiting or busy:
            while waiting and idle:
                place, populations = waiting.pop(0)
                worker = idle.pop() or ProcessPoolExecutor(1, context, begin_worker, shared)
                busy[submit(worker, place, groups[place], populations)] = place, worker
            for future in wait(busy, timeout=0.2, return_when="FIRST_COMPLETED").done:
                place, worker = busy.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    error = RuntimeError(KILLED)
                if error is not None:
                    end_without_result(groups[place], Status.FAILED, first_line(error))
                    worker.shutdown()
                idle.append(None if error else worker)
                done[place] = epochs(groups[place])
                yield place, [error] * len(groups[place]) if error else future.result()
            progress.reach(sum(done))
    except KeyboardInterrupt:
        log.info("stopping: each population ends its epoch first")
        raise
    finally:
        stop.set()
        for worker in (*filter(None, idle), *(worker for _, worker in busy.values())):
            worker.shutdown()
        listener.stop()


def submit(worker: ProcessPoolExecutor, place: int, runs: Sequence[Run], populations: int) -> Future:
    """Give a worker a group to train; its process, which this begins, ignores Ctrl-C from its first moment on."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return worker.submit(work, place, runs, populations)
    finally:
        signal.signal(signal.SIGINT, handler)


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
    gc.freeze()


def work(place: int, runs: Sequence[Run], populations: int) -> list[Any]:
    """Train a group in a worker."""
    assert _worker is not None
    done, stop = _worker
    if stop.is_set():
        return []
    return [portable(value) for value in outcome(runs, populations, Remote(done, place, stop))]


def portable(value: Any) -> Any:
    """Return an exception as one that any process can read, its traceback as a note; anything else as it is."""
    if not isinstance(value, Exception):
        return value
    found = RuntimeError(first_line(value))
    found.add_note("".join(traceback.format_exception(value)))
    return found


def outcome(runs: Sequence[Run], populations: int, progress: Progress) -> list[Any]:
    """Return each run's objective, or the exception that their training ended with.

    Where the memory does not hold a population, its halves are trained one after the other.
    """
    try:
        return [result.objective.value for result in train(runs, progress, populations)]
    except Exception as error:
        # The frames hold the population, and whoever gets the exception would hold them.
        traceback.clear_frames(error.__traceback__)
        if len(runs) == 1 or not is_out_of_memory(error):
            return [error] * len(runs)
    finally:
        # A module and its trainer refer to each other.
        gc.collect()
    log.warning("out of memory with %d runs at once: going on with half as many", len(runs))
    for run in runs:
        result = Result.read(run.folder)
        if result is not None and not result.status.done:
            unfinished(run, Status.STOPPED).write(run.folder)
    half = len(runs) // 2
    return [value for part in (runs[:half], runs[half:]) for value in outcome(part, 2 * populations, progress)]
