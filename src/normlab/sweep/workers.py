"""Trains populations sequentially or in worker processes; the entry is :func:`train_groups`."""

import gc
import logging
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from logging.handlers import QueueHandler, QueueListener
from typing import Any

import torch

from normlab.errors import first_line
from normlab.population.resources import is_out_of_memory
from normlab.results.packed import stored_result
from normlab.results.result import Status
from normlab.sweep.grouping import Group
from normlab.training.packed_runs import store_results
from normlab.training.progress import Progress, WorkerProgress
from normlab.training.run import train
from normlab.training.run_folders import Run, result_without_metrics

log = logging.getLogger("normlab")
KILLED = "the worker process was killed, possibly because memory ran out"
Groups = Sequence[Group]
Outcomes = Iterator[tuple[int, list[Any]]]
"""Index of a group, with the objective of each run or the exception that ended its training."""


def train_groups(groups: Groups, n_jobs: int) -> Outcomes:
    """Train groups of runs, each as a population; yield group indices with outcomes as they finish.

    The outcome of a run is its objective, or the exception if its group failed; other groups continue. On Ctrl-C
    the runs that had not begun are recorded as stopped, too.
    """
    number = sum(len(group.runs) for group in groups)
    # Garbage collection after each population need not scan the objects that exist already.
    gc.freeze()
    completed = False
    try:
        with Progress(f"{number} runs", sum(group.epochs for group in groups), number) as progress:
            if n_jobs == 1 or len(groups) == 1:
                yield from train_sequentially(groups, progress)
            else:
                yield from train_in_parallel(groups, n_jobs, progress)
        completed = True
    finally:
        for group in groups if not completed else ():
            write_missing_results(group.runs, Status.STOPPED)


def write_missing_results(runs: Sequence[Run], status: Status, error: str | None = None) -> None:
    """Write a result with this status for runs that have none."""
    missing = [run for run in runs if stored_result(run.folder) is None]
    store_results(missing, [result_without_metrics(run, status, error) for run in missing])


def train_sequentially(groups: Groups, progress: Progress) -> Outcomes:
    """Train the groups in order, in this process."""
    done = 0
    for index, group in enumerate(groups):
        progress.population_label = f"population {index + 1} of {len(groups)}" if len(groups) > 1 else ""
        yield index, train_group(group, progress)
        done += group.epochs
        progress.advance_to(done)


def train_in_parallel(groups: Groups, n_jobs: int, progress: Progress) -> Outcomes:
    """Train ``n_jobs`` groups at a time, each in a worker process that is reused.

    Workers send their log records to this process. They ignore Ctrl-C, and stop when this process sets an event.
    If a worker is killed, its group has failed, and a new worker replaces it.
    """
    context = multiprocessing.get_context("spawn")
    n_jobs = min(n_jobs, len(groups))
    done, stop, log_queue = context.Array("q", len(groups), lock=False), context.Event(), context.Queue()
    shared = (max(1, (os.cpu_count() or 1) // n_jobs), log_queue, done, stop)
    listener = QueueListener(log_queue, *logging.getLogger().handlers)
    listener.start()
    idle: list[ProcessPoolExecutor | None] = [None] * n_jobs
    busy: dict[Future, tuple[int, ProcessPoolExecutor]] = {}
    waiting = list(range(len(groups)))
    try:
        while waiting or busy:
            while waiting and idle:
                index = waiting.pop(0)
                worker = idle.pop() or ProcessPoolExecutor(1, context, start_worker, shared)
                busy[submit(worker, index, groups[index])] = index, worker
            for future in wait(busy, timeout=0.2, return_when="FIRST_COMPLETED").done:
                index, worker = busy.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    error = RuntimeError(KILLED)
                if error is not None:
                    write_missing_results(groups[index].runs, Status.FAILED, first_line(error))
                    worker.shutdown()
                idle.append(None if error else worker)
                done[index] = groups[index].epochs
                yield index, [error] * len(groups[index].runs) if error else future.result()
            progress.advance_to(sum(done))
    except KeyboardInterrupt:
        log.info("stopping after the current epoch of each population")
        raise
    finally:
        stop.set()
        for worker in (*filter(None, idle), *(worker for _, worker in busy.values())):
            worker.shutdown()
        listener.stop()


def submit(worker: ProcessPoolExecutor, index: int, group: Group) -> Future:
    """Submit a group to a worker; Ctrl-C is ignored meanwhile, and a process started here inherits this."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return worker.submit(train_in_worker, index, group)
    finally:
        signal.signal(signal.SIGINT, handler)


_worker: tuple[Any, Any] | None = None
"""In a worker: the array of epochs done by group and the stop event, shared with the main process."""


def start_worker(threads: int, log_queue: Any, done: Any, stop: Any) -> None:
    """Initialize a worker process: shared state, Ctrl-C, threads and logging."""
    global _worker  # noqa: PLW0603 - an initializer can pass state only through globals
    _worker = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    logging.getLogger().addHandler(QueueHandler(log_queue))
    logging.getLogger().setLevel(logging.INFO)
    gc.freeze()


def train_in_worker(index: int, group: Group) -> list[Any]:
    """Train a group in a worker; return no outcomes if the sweep is stopping."""
    assert _worker is not None
    done, stop = _worker
    if stop.is_set():
        return []
    return [picklable(value) for value in train_group(group, WorkerProgress(done, index, stop))]


def picklable(value: Any) -> Any:
    """Convert an exception to a RuntimeError that can be unpickled anywhere, with its traceback as a note."""
    if not isinstance(value, Exception):
        return value
    error = RuntimeError(first_line(value))
    error.add_note("".join(traceback.format_exception(value)))
    return error


def train_group(group: Group, progress: Progress) -> list[Any]:
    """Train a group; return each run's objective, or the exception that ended the training.

    If memory runs out, the halves of the group are trained one after the other.
    """
    runs = group.runs
    try:
        return [result.objective.value for result in train(runs, progress, group.trial, group.populations)]
    except Exception as error:
        # The frames in the traceback would keep the population in memory.
        traceback.clear_frames(error.__traceback__)
        if len(runs) == 1 or not is_out_of_memory(error):
            return [error] * len(runs)
    finally:
        # Module and Trainer form a reference cycle.
        gc.collect()
    log.warning("out of memory with %d runs at once; continuing with half as many", len(runs))
    results = [stored_result(run.folder) for run in runs]
    again = [run for run, result in zip(runs, results, strict=True) if result and not result.status.done]
    store_results(again, [result_without_metrics(run, Status.STOPPED) for run in again])
    half = len(runs) // 2
    parts = [replace(group, runs=part, populations=2 * group.populations) for part in (runs[:half], runs[half:])]
    return [value for part in parts for value in train_group(part, progress)]
