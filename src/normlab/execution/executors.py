"""Executors, which train the groups of a sweep and yield their outcomes; the entry is :func:`train_groups`.

There are four: :class:`InProcess`, worker processes of this machine
(:class:`~normlab.execution.workers.WorkerProcesses`), and jobs of SLURM or Ray
(:mod:`normlab.execution.clusters`).
"""

import gc
import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from normlab.errors import ConfigError
from normlab.execution.group_training import train_group, write_missing_results
from normlab.execution.grouping import Group, group_runs, plan
from normlab.execution.state import SweepState
from normlab.interrupts import Preempted, interrupts
from normlab.results.result import Status
from normlab.training.progress import Progress, rounded_time
from normlab.training.run_folders import Run

log = logging.getLogger("normlab")
Groups = Sequence[Group]
Outcomes = Iterator[tuple[int, list[Any]]]
"""Index of a group, with the objective of each run or the exception that ended its training."""


class Executor:
    """Base class of executors.

    Attributes:
        n_jobs: number of groups that train at the same time.
        ends_at_ctrl_c: whether Ctrl-C in this process ends the trainings.
    """

    n_jobs = 1
    ends_at_ctrl_c = True

    def outcomes(self, groups: Groups, progress: Progress) -> Outcomes:
        """Train groups; yield their indices with their outcomes as they finish."""
        raise NotImplementedError

    def running(self, state: SweepState) -> Collection[str]:
        """Return the ids of populations that jobs of an earlier driver train."""
        return ()

    def describe(self, groups: Groups) -> list[str]:
        """Return log lines about the jobs, after those about the groups."""
        return []


class InProcess(Executor):
    """Trains the groups in order, in this process."""

    def outcomes(self, groups: Groups, progress: Progress) -> Outcomes:
        """Train the groups."""
        done = 0
        for index, group in enumerate(groups):
            interrupts.check()
            progress.population_label = f"population {index + 1} of {len(groups)}" if len(groups) > 1 else ""
            yield index, train_group(group, progress)
            done += group.epochs
            progress.advance_to(done)


def plan_groups(runs: Sequence[Run], done: Collection[int], chunk: int | None, executor: Executor) -> list[Group]:
    """Divide the unfinished runs of a sweep into groups, write the plan to its folder, and log it.

    Args:
        runs: of the sweep.
        done: indices of finished runs.
        chunk: largest number of members of a population.
        executor: that will train the groups.

    Raises:
        ConfigError: if a job of an earlier driver trains runs together with others that are not in this sweep.
    """
    state = SweepState(runs[0].sweep)
    running, paths = executor.running(state), {run.path for run in runs}
    for population in state.populations():
        if population.id in running and not paths.issuperset(population.runs):
            raise ConfigError(
                f"{state.sweep}: a job trains {population.runs[0]} with runs that this command leaves out; "
                "repeat the command that submitted it, or cancel the job"
            )
    kept = [
        population
        for population in state.populations()
        if chunk is None or len(population.runs) <= chunk or population.id in running
    ]
    groups = group_runs(runs, chunk, executor.n_jobs, kept, done)
    state.plan([group.planned for group in groups])
    for line in (*plan(groups, executor.n_jobs), *executor.describe(groups)) if groups else ():
        log.info(line)
    return groups


def train_groups(groups: Groups, executor: Executor) -> Outcomes:
    """Train groups of runs, each as a population; yield group indices with outcomes as they finish.

    The outcome of a run is its objective, or the exception if its group failed; other groups continue. On Ctrl-C
    the runs that had not begun are recorded as stopped, too.
    """
    number = sum(len(group.runs) for group in groups)
    # Garbage collection after each population need not scan the objects that exist already.
    gc.freeze()
    unfinished = set(range(len(groups)))
    try:
        with Progress(f"{number} runs", sum(group.epochs for group in groups), number) as progress:
            for index, values in executor.outcomes(groups, progress):
                unfinished.discard(index)
                yield index, values
    except Preempted:
        raise
    except BaseException:
        for index in unfinished if executor.ends_at_ctrl_c else ():
            write_missing_results(groups[index].runs, Status.STOPPED)
        raise


def job_times(groups: Groups) -> str:
    """Return the range of the estimated times of groups, such as ``20 s to 2 min``."""
    shortest, *_, longest = sorted([group.seconds for group in groups] * 2)
    texts = dict.fromkeys((rounded_time(shortest), rounded_time(longest)))
    return " to ".join(texts)
