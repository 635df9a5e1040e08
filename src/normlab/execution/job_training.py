"""Trains the group of a job, :func:`train_job`, and watches the jobs of a cluster, :class:`JobExecutor`."""

import logging
import os
import pickle
import sys
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from normlab.execution.executors import Executor, Groups, Outcomes, job_times
from normlab.execution.group_training import train_group, write_missing_results
from normlab.execution.grouping import Group
from normlab.execution.state import SubmittedJob, SweepState
from normlab.execution.task import GroupTask
from normlab.interrupts import interrupts
from normlab.population.kernels import tune_malloc
from normlab.results.packed import stored_result
from normlab.results.provenance import VARIABLE
from normlab.results.result import Result, Status
from normlab.training.progress import Progress
from normlab.training.run_folders import RunFolders, population_line, run_line

log = logging.getLogger("normlab")
INHERITED = (VARIABLE, "GOMP_SPINCOUNT", "TORCHINDUCTOR_CACHE_DIR")
"""Environment variables of the driver that jobs get."""


def train_job(group: Group, token: str, cores: int | None) -> None:
    """Train a group in the job of a cluster; an error is recorded with its runs.

    Args:
        group: of runs.
        token: of the submission.
        cores: number of CPU threads; None: by the environment.
    """
    if cores is not None:
        torch.set_num_threads(cores)
    tune_malloc()
    values = train_group(group, Progress("", 0, shown=False), token)
    errors = [value for value in values if isinstance(value, Exception)]
    if errors:
        write_missing_results(group.runs, Status.FAILED, errors[0])
        logging.getLogger("normlab").error("the training failed", exc_info=errors[0])


@dataclass
class Watched:
    """A submitted group that has not ended.

    Attributes:
        job: that trains it.
        submissions: number of its submissions by this driver.
        missed: time at which the cluster no longer knew the job; None while it does.
    """

    job: SubmittedJob
    submissions: int = 1
    missed: float | None = None


class JobExecutor(Executor):
    """Trains each group as a job of a cluster, which goes on if this process, the driver, ends.

    Files of the sweep's folder are the only channel: the record of submitted jobs, their progress and the
    results. A driver that is started again waits for the jobs of an earlier one, and submits the lost ones again.

    Args:
        retries: number of times a group whose job was lost is submitted again.
        extra_environment: variables that the jobs get.

    Attributes:
        name: of the cluster's software.
        cores: number of CPU threads of a job; None: by the environment.
        poll_seconds: interval at which the files and the cluster are looked at.
        late_seconds: time for which the files of an ended job may not be visible yet.
    """

    name = ""
    cores: int | None = None
    poll_seconds, late_seconds = 1.0, 20.0

    def __init__(self, retries: int, extra_environment: dict[str, str]) -> None:
        self.retries, self.extra_environment = retries, extra_environment

    def submit(self, tasks: Sequence[GroupTask], names: Sequence[str], folder: Path) -> list[str]:
        """Submit tasks, and return the ids of their jobs.

        Args:
            tasks: to submit.
            names: unique names of the submissions.
            folder: for the files of the cluster's software.
        """
        raise NotImplementedError

    def known(self, jobs: Collection[str]) -> set[str] | None:
        """Return those of the jobs that wait or run; None if the cluster does not answer."""
        raise NotImplementedError

    def interrupt(self, jobs: Sequence[str]) -> None:
        """Act on Ctrl-C in the driver, and log what becomes of the jobs."""
        raise NotImplementedError

    def running(self, state: SweepState) -> Collection[str]:
        """Return the ids of populations that jobs of an earlier driver train."""
        recorded = {
            population: job.job
            for population, job in state.jobs().items()
            if job.cluster == self.name and not ended(state, population, job.token)
        }
        known = self.known(recorded.values()) if recorded else set()
        return {population for population, job in recorded.items() if known is None or job in known}

    def describe(self, groups: Groups) -> list[str]:
        """Return the log line about the jobs."""
        each = "" if len(groups) == 1 else " each"
        return [f"{numbered(len(groups), 'job')} of {self.name}, about {job_times(groups)}{each}"]

    def outcomes(self, groups: Groups, progress: Progress) -> Outcomes:
        """Submit the groups that no job trains yet, and yield the outcomes as the jobs end."""
        state = SweepState(groups[0].runs[0].sweep)
        running, jobs = self.running(state), state.jobs()
        watched = {k: Watched(jobs[group.id]) for k, group in enumerate(groups) if group.id in running}
        if watched:
            log.info("waiting for %s, submitted before", numbered(len(watched), "job"))
        new = [k for k in range(len(groups)) if k not in watched]
        ended_since = [k for k in new if all_done(groups[k])]  # since the plan was made
        for index in ended_since:
            yield index, [outcome(result) for result in stored_results(groups[index])]
        self.submit_groups(state, groups, [k for k in new if k not in ended_since], watched)
        try:
            with interrupts.recorded():
                while watched:
                    yield from self.ended_groups(state, groups, watched)
                    self.submit_lost(state, groups, watched)
                    yield from self.failed_groups(state, groups, watched)
                    progress.advance_to(epochs_done(state, groups))
                    interrupts.check()
                    time.sleep(self.poll_seconds if watched else 0)
                    interrupts.check()
        except KeyboardInterrupt:
            self.interrupt([watch.job.job for watch in watched.values()])
            raise

    def submit_groups(
        self, state: SweepState, groups: Groups, indices: Sequence[int], watched: dict[int, Watched]
    ) -> None:
        """Submit groups, record their jobs, and watch them."""
        if not indices:
            return
        tokens = [f"{groups[index].id}-{uuid.uuid4().hex[:8]}" for index in indices]
        tasks = [self.task(groups[index], token) for index, token in zip(indices, tokens, strict=True)]
        ids = self.submit(tasks, tokens, state.folder.absolute() / "jobs")
        jobs = [
            SubmittedJob(groups[index].id, job, token, self.name)
            for index, job, token in zip(indices, ids, tokens, strict=True)
        ]
        state.record(jobs)
        for index, job in zip(indices, jobs, strict=True):
            before = watched[index].submissions if index in watched else 0
            watched[index] = Watched(job, before + 1)

    def task(self, group: Group, token: str) -> GroupTask:
        """Return the task of a group."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        environment = inherited | self.extra_environment
        return GroupTask(pickle.dumps(group), token, self.cores, os.getcwd(), list(sys.path), environment)

    def ended_groups(self, state: SweepState, groups: Groups, watched: dict[int, Watched]) -> Outcomes:
        """Yield the outcomes of groups whose jobs have written the end of the training and all results."""
        for index, watch in list(watched.items()):
            group = groups[index]
            if not ended(state, group.id, watch.job.token):
                continue
            known = stored_results(group)
            if len(known) == len(group.runs):  # otherwise they are not visible on this machine yet
                del watched[index]
                log.info(run_line(known[0], RunFolders.error_file) if len(known) == 1 else population_line(known))
                yield index, [outcome(result) for result in known]

    def submit_lost(self, state: SweepState, groups: Groups, watched: dict[int, Watched]) -> None:
        """Submit groups again whose jobs have ended without results."""
        known = self.known([watch.job.job for watch in watched.values()]) if watched else set()
        lost = [k for k, watch in watched.items() if self.is_lost(watch, known)]
        again = [k for k in lost if watched[k].submissions <= self.retries]
        if again:
            log.warning(
                "jobs that ended without results are submitted again: %s",
                ", ".join(watched[k].job.job for k in again),
            )
            self.submit_groups(state, groups, again, watched)

    def is_lost(self, watch: Watched, known: set[str] | None) -> bool:
        """Return True if the cluster has not known a job for so long that its files would be visible."""
        if known is None or watch.job.job in known:
            watch.missed = None
            return False
        watch.missed = watch.missed or time.monotonic()
        return time.monotonic() - watch.missed > self.late_seconds

    def failed_groups(self, state: SweepState, groups: Groups, watched: dict[int, Watched]) -> Outcomes:
        """Yield the outcomes of groups whose jobs were lost too often."""
        for index, watch in list(watched.items()):
            lost = watch.missed and time.monotonic() - watch.missed > self.late_seconds
            if lost and watch.submissions > self.retries:
                where = f"the output of {watch.job.job} is in {state.folder / 'jobs'}"
                error = RuntimeError(f"its job ended {times(watch.submissions)} without results; {where}")
                write_missing_results(groups[index].runs, Status.FAILED, error)
                del watched[index]
                yield index, [error] * len(groups[index].runs)


def ended(state: SweepState, population: str, token: str) -> bool:
    """Return True if the job of a submission has written the end of its training."""
    progress = state.progress(population)
    return progress is not None and progress.ended and progress.token == token


def stored_results(group: Group) -> list[Result]:
    """Return the results of a group's runs that are stored."""
    results = [stored_result(run.folder) for run in group.runs]
    return [result for result in results if result is not None]


def all_done(group: Group) -> bool:
    """Return True if all runs of a group are finished."""
    results = stored_results(group)
    return len(results) == len(group.runs) and all(result.status.done for result in results)


def epochs_done(state: SweepState, groups: Groups) -> int:
    """Return the number of epochs that jobs have trained, over all runs."""
    return sum(progress.epochs for group in groups if (progress := state.progress(group.id)))


def numbered(count: int, noun: str) -> str:
    """Return a number with its noun, such as ``2 jobs``."""
    return f"{count} {noun}{'s' * (count != 1)}"


def times(count: int) -> str:
    """Return ``once``, or the number of times."""
    return "once" if count == 1 else f"{count} times"


def outcome(result: Result) -> Any:
    """Return the objective of a result, or its error."""
    return result.objective.value if result.status.done else RuntimeError(result.error or "the run was stopped")
