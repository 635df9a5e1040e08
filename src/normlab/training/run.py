"""Trains the runs of a population: :func:`train`."""

import logging
import tempfile
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

from normlab import lightning  # noqa: F401 - comes before the other imports of Lightning
from normlab.results.folder import reusable_result
from normlab.results.result import Result
from normlab.training.dry_run import dry_run_once
from normlab.training.packed_runs import is_packed
from normlab.training.progress import Progress
from normlab.training.run_folders import Run
from normlab.training.saving import state_path
from normlab.training.session import TrainingSession
from normlab.training.stackability import DryRun

log = logging.getLogger("normlab")


def train(
    runs: Sequence[Run], progress: Progress | None = None, trial: DryRun | None = None, populations: int = 1
) -> list[Result]:
    """Train runs with equal population keys as one population, and return their results in order.

    Runs whose folder holds a finished result keep it.

    Args:
        runs: of the population.
        progress: the bar of a sweep; by default the population shows one.
        trial: the dry run of their population key, by default made here.
        populations: number of populations with this key in the sweep; many of them make compiling worthwhile.

    Raises:
        ConfigError: if a configuration cannot be trained, or a folder belongs to another configuration.
    """
    if progress is None:
        with Progress(runs[0].name, runs[0].config.trainer.max_epochs, len(runs)) as bar:
            return train(runs, bar, trial, populations)
    results = [reusable_result(run.folder, run.config) for run in runs]
    done = {k for k, result in enumerate(results) if result is not None and result.status.done}
    for run in runs if len(done) == len(runs) else ():
        log.info("%s is done already; its result is read from %s", run.name, run.folder)
    if len(done) < len(runs):
        trial = trial or dry_run_once(runs[0].config)
        for notice in trial.warnings:
            progress.warn_once(notice)
        # A tracking service would get the members that are done a second time.
        left = [k for k in range(len(runs)) if not (k in done and runs[0].config.logger.extra)]
        again = {place for place, k in enumerate(left) if k in done}
        trained = train_to_the_end([runs[k] for k in left], again, progress, trial, populations)
        for k, result in zip(left, trained, strict=True):
            results[k] = results[k] if k in done else result
    return [result for result in results if result is not None]


def train_to_the_end(
    runs: Sequence[Run], done: Container[int], progress: Progress, trial: DryRun, populations: int
) -> list[Result]:
    """Train the runs of a population, from its state if there is one, and return their results.

    A member may have other bits in a population of another size. Those that are done are therefore trained once
    more, in temporary folders.
    """
    with tempfile.TemporaryDirectory() as folder:
        members = [
            replace(run, folder=Path(folder) / f"{k}") if k in done and not is_packed(run) else run
            for k, run in enumerate(runs)
        ]
        session = TrainingSession(members, progress, trial, populations, state_file=state_path(runs))
        return session.run()
