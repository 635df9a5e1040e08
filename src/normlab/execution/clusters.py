"""Executors of clusters: :class:`SlurmExecutor`, by submitit, and :class:`RayExecutor`."""

import logging
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from normlab.errors import ConfigError, first_line
from normlab.execution.job_training import JobExecutor
from normlab.execution.task import GroupTask

log = logging.getLogger("normlab")
NAMESPACE = "normlab"
CONNECT_SECONDS = 10.0


def require_package(name: str, launcher: str) -> Any:
    """Import a package of an extra.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        return __import__(name)
    except ImportError as error:
        raise ConfigError(
            f"hydra/launcher={launcher} needs {name}, which is not installed; pip install 'normlab[{launcher}]'"
        ) from error


class SlurmExecutor(JobExecutor):
    """Submits groups as an array of jobs of SLURM, by submitit.

    Args:
        parameters: of submitit's SlurmExecutor; None: its default.
        max_num_timeout: number of times that a job which reached its time limit is put into the queue again.
        retries, extra_environment: as of a :class:`~normlab.execution.job_training.JobExecutor`.

    Raises:
        ConfigError: if submitit or SLURM's commands are missing, or submitit rejects a parameter.
    """

    name, ends_at_ctrl_c = "slurm", False

    def __init__(
        self,
        parameters: Mapping[str, Any],
        max_num_timeout: int,
        retries: int,
        extra_environment: dict[str, str],
    ) -> None:
        super().__init__(retries, extra_environment)
        self.submitit = require_package("submitit", "slurm")
        self.parameters = {key: value for key, value in parameters.items() if value is not None}
        self.max_num_timeout = max_num_timeout
        self.cores = self.parameters.get("cpus_per_task")
        self.n_jobs = self.parameters.get("array_parallelism", 1)
        try:
            self.submitit.SlurmExecutor(os.devnull).update_parameters(**self.parameters)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConfigError(f"hydra.launcher: {first_line(error)}") from error

    def submit(self, tasks: Sequence[GroupTask], names: Sequence[str], folder: Path) -> list[str]:
        """Submit tasks as one array, and return the ids of its jobs."""
        executor = self.submitit.SlurmExecutor(folder, self.max_num_timeout)
        executor.update_parameters(**{"job_name": NAMESPACE, **self.parameters})
        try:
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except self.submitit.core.utils.FailedJobError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(f"hydra/launcher=slurm: sbatch failed: {reason}") from error
        return [job.job_id for job in jobs]

    def known(self, jobs: Collection[str]) -> set[str] | None:
        """Return the jobs that squeue lists; None if it fails."""
        command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.CalledProcessError):
            return None
        return set(jobs).intersection(listed)

    def interrupt(self, jobs: Sequence[str]) -> None:
        """Log the command that cancels the jobs, which go on."""
        command = " ".join(["scancel", *dict.fromkeys(job.partition("_")[0] for job in jobs)])
        log.info("the jobs go on: the same command waits for them, and %s cancels them", command)


class RayExecutor(JobExecutor):
    """Trains groups in a Ray cluster, each in a detached actor, which goes on if the driver ends.

    Tasks of Ray end with the driver that submitted them. The actor trains the group when it is made, and then ends
    itself.

    Args:
        address: of the cluster; None starts one on this machine that ends with the driver.
        num_cpus, num_gpus: of a group.
        retries, extra_environment: as of a :class:`~normlab.execution.job_training.JobExecutor`.

    Raises:
        ConfigError: if Ray is missing, or the cluster does not answer.
    """

    name = "ray"

    def __init__(
        self,
        address: str | None,
        num_cpus: int,
        num_gpus: float,
        retries: int,
        extra_environment: dict[str, str],
    ) -> None:
        super().__init__(retries, extra_environment)
        self.ray = require_package("ray", "ray")
        self.cores, self.options = num_cpus, {"num_cpus": num_cpus, "num_gpus": num_gpus}
        if not self.ray.is_initialized():
            require_reachable(address)
            options = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
            if address is None:
                options |= {"include_dashboard": False}
            try:
                self.ray.init(address=address, namespace=NAMESPACE, **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(f"hydra.launcher.address={address}: {first_line(error)}") from error

    def submit(self, tasks: Sequence[GroupTask], names: Sequence[str], folder: Path) -> list[str]:
        """Make an actor for each task, named by its submission, and return the names."""
        folder.mkdir(parents=True, exist_ok=True)
        actor = self.ray.remote(TrainingActor)
        for task, name in zip(tasks, names, strict=True):
            options = {"name": name, "lifetime": "detached", "max_restarts": 0, **self.options}
            actor.options(**options).remote(task, str(folder / f"{name}.log"))
        return list(names)

    def known(self, jobs: Collection[str]) -> set[str] | None:
        """Return the actors that live or wait for resources."""
        return set(jobs).intersection(self.ray.util.list_named_actors())

    def interrupt(self, jobs: Sequence[str]) -> None:
        """End the actors, for which Ray has no command."""
        for job in self.known(jobs) or ():
            self.ray.kill(self.ray.get_actor(job))
        log.info("the jobs were ended; the same command trains what is missing")


def require_reachable(address: str | None) -> None:
    """Raise ConfigError if nothing listens at an address ``host:port``; Ray would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"hydra.launcher.address={address}: no Ray cluster answers: {first_line(error)}"
        ) from error


class TrainingActor:
    """Trains the group of a task, with its output in a file, and ends its process."""

    def __init__(self, task: GroupTask, log_file: str) -> None:
        with open(log_file, "a") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        try:
            task()
        except BaseException:
            traceback.print_exc()
        sys.exit(0)  # an actor that is left would keep its cores
