"""Hydra launcher that trains runs differing only in numbers together, as populations."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from hydra_plugins.normlab.composer import Composer, Job, job_environment, task_config
from hydra_plugins.normlab.override_checks import INEFFECTIVE_IN_POPULATION, command_line_overrides, refuse_below
from normlab.config.frozen import FrozenConfig
from normlab.config.validation import check_values
from normlab.errors import ConfigError, require

if TYPE_CHECKING:
    from normlab.training.run_folders import Run

log = logging.getLogger("normlab")


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
    """Trains jobs that differ only in numbers as one population; each run gets a single run's files.

    Args:
        chunk: maximum number of members per population; by default the fastest size for the net and the batch.
        n_jobs: number of populations trained in parallel, each in a separate process.
    """

    def __init__(self, chunk: int | None, n_jobs: int) -> None:
        require(chunk is None or chunk >= 1, "hydra.launcher.chunk", "null or at least 1", chunk)
        require(n_jobs >= 1, "hydra.launcher.n_jobs", "at least 1", n_jobs)
        self.chunk, self.n_jobs = chunk, n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's objects; the task function is not called, as the jobs of a population run together.

        Raises:
            ConfigError: for Hydra settings that need a separate process or log file for each job.
        """
        chdir = config.hydra.job.chdir
        if chdir:
            raise ConfigError(
                f"hydra.job.chdir must be false with hydra/launcher=population, whose runs share a process, "
                f"got {chdir}; add hydra/launcher=basic"
            )
        refuse_below(command_line_overrides(config), INEFFECTIVE_IN_POPULATION)
        require_no_job_start(hydra_context.callbacks)
        self.config, self.callbacks = config, hydra_context.callbacks
        self.composer = Composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train the jobs and return their objectives or exceptions as JobReturns, in order."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [self.composer.compose(words, k) for k, words in enumerate(job_overrides, initial_job_idx)]
        with job_environment(self.config):
            outcomes = self.train_all(jobs)
        returns = []
        for k, (words, job) in enumerate(zip(job_overrides, jobs, strict=True)):
            config = self.composer.compose_config(words, initial_job_idx + k) if self.passes_configs else None
            returns.append(job_return(config, job, outcomes[k], self.config.hydra.job.name))
            if config is not None:
                self.callbacks.on_job_end(config=config, job_return=returns[-1])
        return returns

    @property
    def passes_configs(self) -> bool:
        """True if a sweeper or callback of another package may read the configurations of the jobs."""
        reads = (type(callback).on_job_end is not Callback.on_job_end for callback in self.callbacks.callbacks)
        return not is_our_sweep(self.config) or any(reads)

    def train_all(self, jobs: Sequence[Job]) -> dict[int, Any]:
        """Log the plan, train the valid jobs, and return each job's objective or exception by index."""
        from normlab.sweep.grouping import group_runs, plan
        from normlab.sweep.workers import train_groups

        runs, outcomes = self.valid_runs(jobs)
        indices = list(runs)
        groups = group_runs(list(runs.values()), self.chunk, self.n_jobs)
        for line in plan(groups) if groups else ():
            log.info(line)
        for job in jobs if self.config.records == "folders" else ():
            job.write_hydra()
        for group, values in train_groups(groups, self.n_jobs):
            for place, value in zip(groups[group].indices, values, strict=True):
                outcomes[indices[place]] = value
        return outcomes

    def valid_runs(self, jobs: Sequence[Job]) -> "tuple[dict[int, Run], dict[int, Any]]":
        """Return the runs of the valid jobs, and the exceptions of the others, by index.

        Our sweeper has validated every job; with another sweeper, an invalid one must not stop the others.
        """
        from normlab.training.run import dry_run_once
        from normlab.training.run_folders import Run

        runs, errors = {}, dict[int, Any]()
        for k, job in enumerate(jobs):
            try:
                if not is_our_sweep(self.config):
                    dry_run_once(check_values(job.values))
                runs[k] = Run.of_job(job.values, job.written, FrozenConfig.of(job.hydra))
                if self.config.records == "packed":
                    runs[k] = replace(runs[k], hydra=job.hydra_texts())
            except Exception as error:
                if is_our_sweep(self.config):
                    raise
                errors[k] = error
        return runs, errors


def require_no_job_start(callbacks: Callbacks) -> None:
    """Raise :class:`ConfigError` for Hydra callbacks with ``on_job_start``, which needs separate jobs."""
    for callback in callbacks.callbacks:
        if type(callback).on_job_start is not Callback.on_job_start:
            name = type(callback).__name__
            raise ConfigError(
                f"hydra.callbacks: {name}.on_job_start needs jobs that start one by one, but "
                "hydra/launcher=population trains them together; add hydra/launcher=basic"
            )


def job_return(config: DictConfig | None, job: Job, outcome: Any, name: str) -> JobReturn:
    """Wrap an objective or exception in the JobReturn that Hydra's sweepers expect."""
    return JobReturn(
        overrides=job.overrides,
        cfg=None if config is None else task_config(config),
        hydra_cfg=config,
        working_dir=str(Path.cwd()),
        task_name=name,
        status=JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED,
        _return_value=outcome,
    )
