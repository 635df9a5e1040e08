"""Trains the runs of a population; the entry is :func:`train`."""

import logging
from collections.abc import Sequence

from normlab.results.folder import reusable_result
from normlab.results.result import Result
from normlab.training.dry_run import dry_run_once
from normlab.training.progress import Progress
from normlab.training.run_folders import Run
from normlab.training.session import TrainingSession

log = logging.getLogger("normlab")


def train(runs: Sequence[Run], progress: Progress | None = None, populations: int = 1) -> list[Result]:
    """Train runs with equal population keys as one population, and return their results in order.

    Runs whose folder holds a finished result are not trained again.

    Args:
        runs: of the population.
        progress: the bar of a sweep; by default the population shows one.
        populations: number of populations with this key in the sweep; many of them make compiling worthwhile.

    Raises:
        ConfigError: if a configuration cannot be trained, or a folder belongs to another configuration.
    """
    if progress is None:
        with Progress(runs[0].name, runs[0].config.trainer.max_epochs, len(runs)) as bar:
            return train(runs, bar, populations)
    results = [reusable_result(run.folder, run.config) for run in runs]
    to_train = [k for k, result in enumerate(results) if result is None or not result.status.done]
    for run in runs if not to_train else ():
        log.info("%s is done already; its result is read from %s", run.name, run.folder)
    if to_train:
        for notice in dry_run_once(runs[0].config):
            progress.warn_once(notice)
        session = TrainingSession([runs[k] for k in to_train], progress, populations)
        for k, result in zip(to_train, session.run(), strict=True):
            results[k] = result
    return [result for result in results if result is not None]
