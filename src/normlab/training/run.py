"""Training a population: from the configurations of its runs to their results."""

import logging
from collections.abc import Sequence

from normlab.results.folder import earlier_result
from normlab.results.result import Result
from normlab.training.dry_run import dry_run_once
from normlab.training.progress import Progress
from normlab.training.run_folders import Run
from normlab.training.session import TrainingSession

log = logging.getLogger("normlab")


def train(runs: Sequence[Run], progress: Progress | None = None, populations: int = 1) -> list[Result]:
    """Train runs that differ in numbers alone as one population, and return their results in order.

    A run that its folder holds the end of already is not trained again. ``progress`` is a sweep's; a run alone
    has a bar of its own. ``populations`` is how many of this shape a sweep has, which may make compiling pay.

    Raises:
        ConfigError: for a configuration that cannot be trained, or a folder that belongs to another one.
    """
    if progress is None:
        with Progress(runs[0].name, runs[0].config.trainer.max_epochs, len(runs)) as own:
            return train(runs, own, populations)
    results = [earlier_result(run.folder, run.config) for run in runs]
    to_train = [k for k, result in enumerate(results) if result is None or not result.status.done]
    for run in runs if not to_train else ():
        log.info("%s is done already: its result is returned, from %s", run.name, run.folder)
    if to_train:
        for notice in dry_run_once(runs[0].config):
            progress.tell(notice)
        training = TrainingSession([runs[k] for k in to_train], progress, populations)
        for k, result in zip(to_train, training.results(), strict=True):
            results[k] = result
    return [result for result in results if result is not None]
