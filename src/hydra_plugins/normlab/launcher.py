"""Hydra launcher that trains runs differing only in numbers together, as populations."""

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
from hydra_plugins.normlab.composer import Composer, job_environment
from hydra_plugins.normlab.override_checks import INEFFECTIVE_IN_POPULATION, command_line_overrides, refuse_below
from normlab.errors import ConfigError, require
from normlab.results.folder import read_configuration, without_report_keys
from normlab.results.sweep import run_folders

if TYPE_CHECKING:
    from normlab.sweep.grouping import Group
    from normlab.training.run_folders import Run

log = logging.getLogger("normlab")


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """Serialize a resolved configuration without the keys that do not affect training.

    Two runs with equal fingerprints have equal results.
    """
    return json.dumps(without_report_keys(configuration), sort_keys=True, default=str)


def earlier_runs(folder: Path) -> dict[str, list[str]]:
    """Map the fingerprint of each run in a sweep's folder to the run's paths relative to that folder."""
    by_fingerprint: dict[str, list[str]] = {}
    for path in sorted(run_folders(folder)):
        configuration = read_configuration(path)
        if configuration is not None:
            paths = by_fingerprint.setdefault(fingerprint(configuration), [])
            paths.append(path.relative_to(folder).as_posix())
    return by_fingerprint


def choose_folders(
    names: Sequence[str], fingerprints: Sequence[str], earlier: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return each job's folder: that of an earlier run with its fingerprint, otherwise the job's name.

    >>> choose_folders(["bn,seed=0", "bn,seed=1"], ["0", "1"], {"0": ["bn"]})
    ['bn', 'bn,seed=1']
    """
    used = {name for name, mark in zip(names, fingerprints, strict=True) if name in earlier.get(mark, ())}
    folders = []
    for name, mark in zip(names, fingerprints, strict=True):
        runs = earlier.get(mark, ())
        path = name if name in runs else next((run for run in runs if run not in used), name)
        used.add(path)
        folders.append(path)
    return folders


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
        # A sweep creates many long-lived objects; the default threshold would spend a tenth of its time in the GC.
        gc.set_threshold(50_000)
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
        from normlab.training.run_folders import Run

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        configs = self.compose(job_overrides, initial_job_idx)
        with job_environment(self.config):
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
        """Log the plan, train the valid runs, and return each run's objective or exception by index."""
        from normlab.sweep.grouping import group_runs, plan

        # Our sweeper has validated every run; with another sweeper, an invalid run must not stop the valid ones.
        outcomes = {} if is_our_sweep(self.config) else validation_errors(runs)
        valid = [k for k in range(len(runs)) if k not in outcomes]
        to_train = [runs[k] for k in valid]
        groups = group_runs([run.config for run in to_train], self.chunk, self.n_jobs)
        for line in plan(groups, to_train) if to_train else ():
            log.info(line)
        for config, run in zip(configs, runs, strict=True):
            run.write_hydra(config)
        return outcomes | {valid[index]: outcome for index, outcome in self.train(groups, to_train).items()}

    def compose(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[DictConfig]:
        """Return the config of each job; jobs with equal overrides, as in a random search, get copies."""
        count = Counter(map(tuple, job_overrides))
        configs = []
        for k, words in enumerate(job_overrides):
            config = self.composer.compose(words, initial_job_idx + k)
            configs.append(deepcopy(config) if count[tuple(words)] > 1 else config)
        return configs

    def train(self, groups: "Sequence[Group]", runs: "Sequence[Run]") -> dict[int, Any]:
        """Train the groups; return each run's objective, or the exception of its population, by index."""
        from normlab.sweep.workers import train_groups

        done: dict[int, Any] = {}
        for group, outcome in train_groups([[runs[k] for k in group.indices] for group in groups], self.n_jobs):
            for place, value in zip(groups[group].indices, outcome, strict=True):
                done[place] = value
        return done


def require_no_job_start(callbacks: Callbacks) -> None:
    """Raise :class:`ConfigError` for Hydra callbacks with ``on_job_start``, which needs separate jobs."""
    for callback in callbacks.callbacks:
        if type(callback).on_job_start is not Callback.on_job_start:
            name = type(callback).__name__
            raise ConfigError(
                f"hydra.callbacks: {name}.on_job_start needs jobs that start one by one, but "
                "hydra/launcher=population trains them together; add hydra/launcher=basic"
            )


def validation_errors(runs: "Sequence[Run]") -> dict[int, Any]:
    """Dry-run all runs and return the exceptions of the invalid ones, by index."""
    from normlab.training.dry_run import dry_run_once

    errors: dict[int, Any] = {}
    for index, run in enumerate(runs):
        try:
            dry_run_once(run.config)
        except Exception as error:
            errors[index] = error
    return errors


def job_return(config: DictConfig, run: "Run", outcome: Any) -> JobReturn:
    """Wrap an objective or exception in the JobReturn that Hydra's sweepers expect."""
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
