"""Trains one group of runs, in whichever process; the entry is :func:`train_group`."""

import gc
import logging
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from normlab.errors import first_line
from normlab.execution.grouping import Group
from normlab.execution.state import Heartbeat, SweepState
from normlab.interrupts import interrupts
from normlab.population.resources import is_out_of_memory
from normlab.results.packed import stored_result
from normlab.results.result import Status
from normlab.training.packed_runs import store_results
from normlab.training.progress import Progress
from normlab.training.run import train
from normlab.training.run_folders import Run, population_name, result_without_metrics

log = logging.getLogger("normlab")


def train_group(group: Group, progress: Progress, token: str = "") -> list[Any]:
    """Train a group; return each run's objective, or the exception that ended the training.

    A lock keeps other processes from training the same runs meanwhile; those that had it first are waited for. The
    progress is written for ``normlab status``.

    Args:
        group: of runs.
        progress: the bar.
        token: of the submission, in a job of a cluster.

    Raises:
        FileNotFoundError: if the sweep's folder was removed.
    """
    state, progress.epochs = SweepState(group.runs[0].sweep), 0
    group.runs[0].require_sweep()
    name = population_name(group.runs)
    with (
        state.locked(group.id, lambda holder: log.warning("%s waits for %s, which trains it", name, holder)),
        Heartbeat(state.progress_file(group.id), lambda: progress.epochs, token),
    ):
        return train_or_halve(group, progress)


def train_or_halve(group: Group, progress: Progress) -> list[Any]:
    """Train a group; if memory runs out, train its halves one after the other."""
    runs, epochs = group.runs, progress.epochs
    try:
        return [result.objective.value for result in train(runs, progress, group.trial, group.populations)]
    except Exception as error:
        interrupts.check()  # an error while Ctrl-C is not acted on is its consequence
        # The frames in the traceback would keep the population in memory.
        traceback.clear_frames(error.__traceback__)
        if len(runs) == 1 or not is_out_of_memory(error):
            return [error] * len(runs)
    finally:
        # Module and Trainer form a reference cycle.
        gc.collect()
    if torch.cuda.is_initialized():
        # The parts that torch keeps of freed memory may be too small for the halves.
        torch.cuda.empty_cache()
    log.warning("out of memory with %d runs at once; continuing with half as many", len(runs))
    progress.epochs = epochs
    results = [stored_result(run.folder) for run in runs]
    again = [run for run, result in zip(runs, results, strict=True) if result and not result.status.done]
    store_results(again, [result_without_metrics(run, Status.STOPPED) for run in again])
    half = len(runs) // 2
    parts = [replace(group, runs=part, populations=2 * group.populations) for part in (runs[:half], runs[half:])]
    return [value for part in parts for value in train_or_halve(part, progress)]


def write_missing_results(runs: Sequence[Run], status: Status, error: BaseException | None = None) -> None:
    """Write a result with this status for runs that have none, and the traceback of an error."""
    missing = [run for run in runs if stored_result(run.folder) is None]
    message = first_line(error) if error is not None else None
    store_results(missing, [result_without_metrics(run, status, message) for run in missing], error)
