"""Hydra launcher that trains runs differing only in numbers together, as populations."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.normlab.callback import is_our_sweep
from hydra_plugins.normlab.composer import Composer, Job, job_environment, task_config
from hydra_plugins.normlab.override_checks import INEFFECTIVE_IN_POPULATION, command_line_overrides, refuse_below
from normlab.config.frozen import FrozenConfig
from normlab.config.validation import check_values
from normlab.errors import ConfigError, require
from normlab.results.folder import reusable_result

if TYPE_CHECKING:
    from normlab.execution.executors import Executor
    from normlab.training.run_folders import Run

log = logging.getLogger("normlab")
MAX_NAMED = 4
"""Largest number of finished runs that are named in log lines."""


@dataclass
class PopulationLauncherConfig:
    """The arguments of :class:`PopulationLauncher`."""

    _target_: str = "hydra_plugins.normlab.launcher.PopulationLauncher"
    chunk: int | None = None
    n_jobs: Any = 1


@dataclass
class SlurmLauncherConfig:
    """The arguments of :class:`SlurmLauncher`; those that submitit has too have its names, units and defaults."""

    _target_: str = "hydra_plugins.normlab.launcher.SlurmLauncher"
    chunk: int | None = None
    retries: int = 3
    max_num_timeout: int = 100
    partition: str | None = None
    time: int | None = 60
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    gpus_per_task: int | None = None
    mem: str | None = None
    mem_per_cpu: str | None = None
    mem_per_gpu: str | None = None
    array_parallelism: int | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    exclusive: bool | None = None
    comment: str | None = None
    job_name: str | None = None
    setup: list[str] | None = None
    teardown: list[str] | None = None
    srun_args: list[str] | None = None
    signal_delay_s: int | None = None
    additional_parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class RayLauncherConfig:
    """The arguments of :class:`RayLauncher`."""

    _target_: str = "hydra_plugins.normlab.launcher.RayLauncher"
    chunk: int | None = None
    retries: int = 3
    address: str | None = None
    num_cpus: int = 1
    num_gpus: float = 0.0


for _name, _node in (
    ("population", PopulationLauncherConfig),
    ("slurm", SlurmLauncherConfig),
    ("ray", RayLauncherConfig),
):
    ConfigStore.instance().store(group="hydra/launcher", name=_name, node=_node, provider="normlab")


class PopulationLauncher(Launcher):
    """Trains jobs that differ only in numbers as one population; each run gets a single run's files.

    Args:
        chunk: maximum number of members per population; by default the fastest size for the net and the batch.
        n_jobs: number of populations trained in parallel, each in a separate process; ``auto``: by estimate.
    """

    def __init__(self, chunk: int | None, n_jobs: Any = 1) -> None:
        require(chunk is None or chunk >= 1, "hydra.launcher.chunk", "null or at least 1", chunk)
        valid = n_jobs == "auto" or (isinstance(n_jobs, int) and n_jobs >= 1)
        require(valid, "hydra.launcher.n_jobs", "auto or at least 1", n_jobs)
        self.chunk, self.n_jobs = chunk, n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's objects; the task function is not called, as the jobs of a population run together.

        Raises:
            ConfigError: for Hydra settings that need a separate process or log file for each job.
        """
        chdir, launcher = config.hydra.job.chdir, config.hydra.runtime.choices["hydra/launcher"]
        if chdir:
            raise ConfigError(
                f"hydra.job.chdir must be false with hydra/launcher={launcher}, whose runs share a process, "
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
        from normlab.execution.executors import InProcess, plan_groups, train_groups

        runs, outcomes = self.valid_runs(jobs)
        if not runs:
            return outcomes
        indices, done = list(runs), dict[int, float]()
        for place, run in enumerate(runs.values()):
            result = reusable_result(run.folder, run.config)
            if result is not None and result.status.done:
                done[place] = result.objective.value
        outcomes |= {indices[place]: value for place, value in done.items()}
        executor = self.executor(list(runs.values())) if len(done) < len(runs) else InProcess()
        groups = plan_groups(list(runs.values()), done, self.chunk, executor)
        for line in done_lines([run for place, run in enumerate(runs.values()) if place in done]):
            log.info(line)
        for job in jobs if self.config.records == "folders" else ():
            job.write_hydra()
        for group, values in train_groups(groups, executor):
            for place, value in zip(groups[group].indices, values, strict=True):
                outcomes[indices[place]] = value
        return outcomes

    def executor(self, runs: "Sequence[Run]") -> "Executor":
        """Return the executor that trains the groups of these runs."""
        from normlab.execution.executors import InProcess
        from normlab.execution.grouping import group_runs
        from normlab.execution.workers import WorkerProcesses, available_cores, best_n_jobs

        number = self.n_jobs
        if number == "auto":
            seconds = [group.seconds for group in group_runs(runs, self.chunk)]
            number = best_n_jobs(seconds, len(available_cores()))
        return WorkerProcesses(number) if number > 1 and len(runs) > 1 else InProcess()

    def valid_runs(self, jobs: Sequence[Job]) -> "tuple[dict[int, Run], dict[int, Any]]":
        """Return the runs of the valid jobs, and the exceptions of the others, by index.

        Our sweeper has validated every job; with another sweeper, an invalid one must not stop the others.
        """
        from normlab.training.dry_run import dry_run_once
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


class SlurmLauncher(PopulationLauncher):
    """Trains each population as a job of SLURM, all of them as one array.

    Args:
        chunk: maximum number of members per population; by default the fastest size for the net and the batch.
        retries: number of times a population is submitted again if its job is lost.
        max_num_timeout: number of times a job that reaches its time limit is put into the queue again.
        parameters: of submitit's SlurmExecutor.
    """

    def __init__(self, chunk: int | None, retries: int, max_num_timeout: int, **parameters: Any) -> None:
        super().__init__(chunk)
        require(retries >= 0, "hydra.launcher.retries", "at least 0", retries)
        plain = {key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
                 for key, value in parameters.items()}  # fmt: skip
        self.arguments = plain, max_num_timeout, retries

    def executor(self, runs: "Sequence[Run]") -> "Executor":
        """Return the executor of SLURM."""
        from normlab.execution.clusters import SlurmExecutor

        return SlurmExecutor(*self.arguments, job_variables(self.config))


class RayLauncher(PopulationLauncher):
    """Trains each population in a Ray cluster.

    Args:
        chunk: maximum number of members per population; by default the fastest size for the net and the batch.
        retries: number of times a population is submitted again if its worker is lost.
        address: of the cluster; by default one is started on this machine.
        num_cpus, num_gpus: of a population.
    """

    def __init__(
        self, chunk: int | None, retries: int, address: str | None, num_cpus: int, num_gpus: float
    ) -> None:
        super().__init__(chunk)
        require(retries >= 0, "hydra.launcher.retries", "at least 0", retries)
        require(num_cpus >= 1, "hydra.launcher.num_cpus", "at least 1", num_cpus)
        self.arguments = address, num_cpus, num_gpus, retries

    def executor(self, runs: "Sequence[Run]") -> "Executor":
        """Return the executor of Ray."""
        from normlab.execution.clusters import RayExecutor

        return RayExecutor(*self.arguments, job_variables(self.config))


def done_lines(runs: "Sequence[Run]") -> list[str]:
    """Return log lines about finished runs: one for each of a few, one for all of many."""
    if len(runs) > MAX_NAMED:
        return [f"{len(runs)} runs are done already; their results are read from {runs[0].sweep}"]
    return [f"{run.name} is done already; its result is read from {run.folder}" for run in runs]


def job_variables(config: DictConfig) -> dict[str, str]:
    """Return the environment variables that the user sets for jobs."""
    return {str(key): str(value) for key, value in config.hydra.job.env_set.items()}


def require_no_job_start(callbacks: Callbacks) -> None:
    """Raise :class:`ConfigError` for Hydra callbacks with ``on_job_start``, which needs separate jobs."""
    for callback in callbacks.callbacks:
        if type(callback).on_job_start is not Callback.on_job_start:
            name = type(callback).__name__
            raise ConfigError(
                f"hydra.callbacks: {name}.on_job_start needs jobs that start one by one, but "
                "normlab's launchers train them together; add hydra/launcher=basic"
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
