"""Trains groups in worker processes of this machine; the entry is :class:`WorkerProcesses`."""

import gc
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from logging.handlers import QueueHandler, QueueListener
from typing import Any

import torch

from normlab.errors import first_line
from normlab.execution.executors import Executor, Groups, Outcomes
from normlab.execution.group_training import train_group, write_missing_results
from normlab.execution.grouping import Group, total_seconds
from normlab.interrupts import Preempted, blocked_ctrl_c, interrupts
from normlab.results.result import Status
from normlab.training.processes import exit_with_parent
from normlab.training.progress import Progress, WorkerProgress

log = logging.getLogger("normlab")
KILLED = "the worker process was killed, possibly because memory ran out"
START_SECONDS = 4.0
"""Time that a worker process needs to start and to import torch and Lightning."""


def available_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def best_n_jobs(seconds: Sequence[float], cores: int) -> int:
    """Return the number of workers with which groups are estimated to take the least time.

    >>> best_n_jobs([10.0] * 8, 4), best_n_jobs([0.5] * 8, 4), best_n_jobs([100.0], 4)
    (4, 1, 1)
    """
    most = min(cores, len(seconds))
    times = {n: total_seconds(seconds, n) + (START_SECONDS if n > 1 else 0) for n in range(1, most + 1)}
    return min(times, key=lambda n: times[n])


class WorkerProcesses(Executor):
    """Trains ``n_jobs`` groups at a time, each in a worker process of its own; the longest group begins first.

    A worker is used for many groups, and has an equal share of the cores to itself. Workers send their log records
    to this process. They ignore Ctrl-C, and stop when this process sets an event; they end with this process. If a
    worker is killed, its group has failed, and a new worker replaces it.
    """

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs

    def outcomes(self, groups: Groups, progress: Progress) -> Outcomes:
        """Train the groups; a single one in this process."""
        n_jobs, cores = min(self.n_jobs, len(groups)), available_cores()
        context = multiprocessing.get_context("spawn")
        done, stop, log_queue = context.Array("q", len(groups), lock=False), context.Event(), context.Queue()
        listener = QueueListener(log_queue, *logging.getLogger().handlers)
        listener.start()
        pools: list[ProcessPoolExecutor | None] = [None] * n_jobs
        idle = list(range(n_jobs))
        busy: dict[Future, tuple[int, int]] = {}
        waiting = sorted(range(len(groups)), key=lambda index: groups[index].seconds)
        try:
            with interrupts.recorded():
                while waiting or busy:
                    while waiting and idle:
                        slot, index = idle.pop(), waiting.pop()
                        shared = cores_of(slot, n_jobs, cores), log_queue, done, stop
                        pool = pools[slot] or ProcessPoolExecutor(1, context, start_worker, shared)
                        pools[slot] = pool
                        with blocked_ctrl_c():  # for a process that is started here
                            busy[pool.submit(train_in_worker, index, groups[index])] = index, slot
                    for future in wait(busy, timeout=0.2, return_when="FIRST_COMPLETED").done:
                        index, slot = busy.pop(future)
                        error = future.exception()
                        if isinstance(error, Preempted):
                            raise error
                        if isinstance(error, BrokenProcessPool):
                            error = RuntimeError(KILLED)
                        if error is not None:
                            write_missing_results(groups[index].runs, Status.FAILED, error)
                            end(pools[slot])
                            pools[slot] = None
                        idle.append(slot)
                        done[index] = groups[index].epochs
                        yield index, [error] * len(groups[index].runs) if error else future.result()
                    progress.advance_to(sum(done))
                    interrupts.check()
        except (KeyboardInterrupt, Preempted):
            log.info("stopping after the current step of each population")
            raise
        finally:
            stop.set()
            for each in pools:
                end(each)
            listener.stop()


def end(pool: ProcessPoolExecutor | None) -> None:
    """Wait for the process of a pool to end."""
    if pool is not None:
        pool.shutdown()


def cores_of(slot: int, n_jobs: int, cores: Sequence[int]) -> list[int]:
    """Return the cores of a worker, an equal share; several workers share a core if there are not enough.

    >>> [cores_of(slot, 2, [0, 1, 2, 3]) for slot in (0, 1)], cores_of(3, 4, [0, 1])
    ([[0, 1], [2, 3]], [1])
    """
    share = max(1, len(cores) // n_jobs)
    first = slot * share % len(cores)
    return list(cores[first : first + share])


_worker: tuple[Any, Any] | None = None
"""In a worker: the array of epochs done by group and the stop event, shared with the main process."""


def start_worker(cores: list[int], log_queue: Any, done: Any, stop: Any) -> None:
    """Initialize a worker process: its cores, shared state, Ctrl-C and logging."""
    global _worker  # noqa: PLW0603 - an initializer can pass state only through globals
    _worker = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
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
