"""A group as the job of a cluster that trains it: :class:`GroupTask`.

The module imports no torch, whose settings are in environment variables that the task sets first.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normlab.interrupts import Preempted


@dataclass(frozen=True)
class GroupTask:
    """A function without arguments that trains a group in a job of a cluster, as the driver would.

    The results are in the files alone; the function returns nothing.

    Attributes:
        group: the pickled group.
        token: of the submission.
        cores: number of CPU threads; None: by the environment.
        folder: working directory of the driver.
        path: Python's search path in the driver.
        environment: variables to set.
    """

    group: bytes
    token: str
    cores: int | None
    folder: str
    path: list[str]
    environment: dict[str, str]

    def __call__(self) -> None:
        """Train the group; a job of SLURM that is preempted submits itself again."""
        os.environ.update(self.environment)
        os.chdir(self.folder)
        sys.path[:] = [*self.path, *(path for path in sys.path if path not in self.path)]
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        from normlab.execution.job_training import train_job
        from normlab.interrupts import Preempted

        try:
            train_job(pickle.loads(self.group), self.token, self.cores)
        except Preempted as error:
            requeue(error)

    def checkpoint(self) -> Any:
        """Return the task after a preemption: this one, which finds its state in the files."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def requeue(error: "Preempted") -> None:
    """Let submitit put the job into SLURM's queue again; outside SLURM, raise the error.

    A job that SLURM ends itself, such as one that the user cancels, is not put into the queue: SIGTERM comes with
    ``scancel`` as well as at the start of a grace time.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        raise error
    if error.signum == signal.SIGTERM and not is_running(os.environ["SLURM_JOB_ID"]):
        raise SystemExit(128 + error.signum) from error
    from submitit import JobEnvironment

    # The training has put back the handlers of signals that submitit had installed.
    signal.raise_signal(JobEnvironment._usr_sig())


def is_running(job: str) -> bool:
    """Return True if SLURM does not end a job at present."""
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "RUNNING"
