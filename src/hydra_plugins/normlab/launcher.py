"""Trains the jobs of a sweep as populations: runs that differ only in numbers are trained together."""

import gc
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.normlab.callback import is_our_sweep
from hydra_plugins.normlab.composer import Composer, environment_of
from hydra_plugins.normlab.typed import IN_A_POPULATION, refuse_below, typed_overrides
from normlab.errors import ConfigError, require
from normlab.results.folder import computed, configuration_in
from normlab.results.sweep import run_folders

if TYPE_CHECKING:
    from normlab.sweep.grouping import Group
    from normlab.training.run_folders import Run

log = logging.getLogger("normlab")


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """Return a text that is equal for resolved configurations of equal results."""
    return json.dumps(computed(configuration), sort_keys=True, default=str)


def earlier_runs(folder: Path) -> dict[str, list[str]]:
    """Return the folders of the runs below a sweep's folder, relative to it, by their configuration."""
    found: dict[str, list[str]] = {}
    for path in sorted(run_folders(folder)):
        configuration = configuration_in(path)
        if configuration is not None:
            found.setdefault(fingerprint(configuration), []).append(path.relative_to(folder).as_posix())
    return found


def choose_folders(
    names: Sequence[str], fingerprints: Sequence[str], earlier: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return each job's folder: that of its run where there is one, its own name otherwise.

    >>> choose_folders(["bn,seed=0", "bn,seed=1"], ["0", "1"], {"0": ["bn"]})
    ['bn', 'bn,seed=1']
    """
    taken = {name for name, own in zip(names, fingerprints, strict=True) if name in earlier.get(own, ())}
    chosen = []
    for name, own in zip(names, fingerprints, strict=True):
        runs = earlier.get(own, ())
        path = name if name in runs else next((run for run in runs if run not in taken), name)
        taken.add(path)
        chosen.append(path)
    return chosen


@dataclass
class PopulationLauncherConfig:
    """The arguments of :class:`PopulationLauncher`."""

    _target_: str = "hydra_plugins.normlab.launcher.PopulationLauncher"
    chunk: int | None = None
    n_jobs: int = 1


ConfigStore.instance().store(
    group="hydra/launcher", name="population", node=PopulationLauncherConfig, provider="normlab"
)


class PopulationLauncher(Launcher):
    """Trains the jobs that differ in numbers alone as one population, and leaves what each alone would leave.

    Args:
        chunk: the most members that are trained at once; by default what is fastest for the net and the batch.
        n_jobs: how many populations are trained side by side, each in a process of its own.
    """

    def __init__(self, chunk: int | None, n_jobs: int) -> None:
        require(chunk is None or chunk >= 1, "hydra.launcher.chunk", "null or at least 1", chunk)
        require(n_jobs >= 1, "hydra.launcher.n_jobs", "at least 1", n_jobs)
        self.chunk, self.n_jobs = chunk, n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's objects; a population is not trained job by job, so the task is not called.

        Raises:
            ConfigError: for settings of Hydra's that need a process, or a log file, of each job's own.
        """
        # Configs and modules are many objects, and stay: to look for garbage so often takes a tenth of a sweep.
        gc.set_threshold(50_000)
        chdir = config.hydra.job.chdir
        if chdir:
            raise ConfigError(
                f"hydra.job.chdir must be false with hydra/launcher=population, whose runs share a process, "
                f"got {chdir}; add hydra/launcher=basic"
            )
        refuse_below(typed_overrides(config), IN_A_POPULATION)
        require_no_job_start(hydra_context.callbacks)
        self.config, self.callbacks = config, hydra_context.callbacks
        self.composer = Composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train the jobs and return what each reached, in order."""
        from normlab.training.run_folders import Run

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        configs = self.compose(job_overrides, initial_job_idx)
        with environment_of(self.config):
            tasks = [
                self.composer.task(words, config) for words, config in zip(job_overrides, configs, strict=True)
            ]
            runs = [Run.composed(task, config.hydra) for task, config in zip(tasks, configs, strict=True)]
            outcomes = self.train_all(configs, runs)
        returns = [
            job_return(config, run, outcomes[k]) for k, (config, run) in enumerate(zip(configs, runs, strict=True))
        ]
        for config, returned in zip(configs, returns, strict=True):
            self.callbacks.on_job_end(config=config, job_return=returned)
        return returns

    def train_all(self, configs: Sequence[DictConfig], runs: "Sequence[Run]") -> dict[int, Any]:
        """Say what is trained, train it, and return each run's objective or exception by its place."""
        from normlab.sweep.grouping import group_runs, plan

        # What one run of a population may be trained with, another may not; our sweeper has checked every one.
        outcomes = {} if is_our_sweep(self.config) else mistakes(runs)
        sound = [k for k in range(len(runs)) if k not in outcomes]
        to_train = [runs[k] for k in sound]
        found = group_runs([run.config for run in to_train], self.chunk, self.n_jobs)
        for line in plan(found, to_train) if to_train else ():
            log.info(line)
        for config, run in zip(configs, runs, strict=True):
            run.write_hydra(config)
        return outcomes | {sound[place]: outcome for place, outcome in self.train(found, to_train).items()}

    def compose(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[DictConfig]:
        """Return the config of each job; jobs with the same words, as a search may draw them, get one each."""
        count = Counter(map(tuple, job_overrides))
        found = []
        for k, words in enumerate(job_overrides):
            config = self.composer.compose(words, initial_job_idx + k)
            found.append(deepcopy(config) if count[tuple(words)] > 1 else config)
        return found

    def train(self, found: "Sequence[Group]", runs: "Sequence[Run]") -> dict[int, Any]:
        """Return each run's objective, or the exception that its population ended with, by its place."""
        from normlab.sweep.workers import train_groups

        done: dict[int, Any] = {}
        for group, outcome in train_groups([[runs[k] for k in group.indices] for group in found], self.n_jobs):
            for place, value in zip(found[group].indices, outcome, strict=True):
                done[place] = value
        return done


def require_no_job_start(callbacks: Callbacks) -> None:
    """Refuse a callback of Hydra's that prepares for one job at a time: those of a population run together."""
    for callback in callbacks.callbacks:
        if type(callback).on_job_start is not Callback.on_job_start:
            name = type(callback).__name__
            raise ConfigError(
                f"hydra.callbacks: {name}.on_job_start is called before each job, which hydra/launcher=population "
                "does not start one by one; add hydra/launcher=basic"
            )


def mistakes(runs: "Sequence[Run]") -> dict[int, Any]:
    """Return the error of each run that cannot be trained, by its place."""
    from normlab.training.dry_run import dry_run_once

    found: dict[int, Any] = {}
    for place, run in enumerate(runs):
        try:
            dry_run_once(run.config)
        except Exception as error:
            found[place] = error
    return found


def job_return(config: DictConfig, run: "Run", outcome: Any) -> JobReturn:
    """Return the result of a job in the form that Hydra's sweepers expect."""
    failed = isinstance(outcome, Exception)
    return JobReturn(
        overrides=run.overrides,
        cfg=run.config,
        hydra_cfg=config,
        working_dir=str(Path.cwd()),
        task_name=config.hydra.job.name,
        status=JobStatus.FAILED if failed else JobStatus.COMPLETED,
        _return_value=outcome,
    )
