"""State of a sweep's training in the folder ``.normlab``: populations, jobs, progress and locks.

The folder is the only channel between the driver, which the user starts, and the jobs that train the populations.
Nothing here imports torch, so that ``normlab status`` starts at once.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from normlab.results.folder import STATE_FOLDER
from normlab.results.result import known_fields, write_atomically

PLAN, JOBS, DRIVER = "populations.json", "jobs.jsonl", "driver"
BEAT_SECONDS = 5.0
"""Interval at which a population that trains writes its progress."""


@dataclass(frozen=True)
class PlannedPopulation:
    """A population of a sweep's plan.

    Attributes:
        id: digest of its runs' folders, the name of its files.
        runs: folders of its runs, relative to that of the sweep.
        same_key: number of populations of the sweep with its population key, on which compiling depends.
        epochs: number of epochs of all of its runs.
        seconds: estimated time of its training.
    """

    id: str
    runs: list[str]
    same_key: int
    epochs: int
    seconds: float


@dataclass(frozen=True)
class SubmittedJob:
    """A job of a cluster that was submitted to train a population.

    Attributes:
        population: id of the population.
        job: id or name under which the cluster knows the job.
        token: unique name of the submission, which the job writes with its progress.
        cluster: name of the cluster's software.
    """

    population: str
    job: str
    token: str
    cluster: str


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a population's training.

    Attributes:
        token: of the submission that trains it; empty in the driver's own processes.
        epochs: number of epochs done, over all of its runs.
        host, process: that train it.
        started: Unix time of the start.
        ended: whether all results have been written.
        modified: time of the file system at which this was written.
    """

    token: str
    epochs: int
    host: str
    process: int
    started: float
    ended: bool = False
    modified: float = 0.0


class SweepState:
    """Reads and writes the state in a sweep's folder.

    Args:
        folder: of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.sweep, self.folder = folder, folder / STATE_FOLDER

    def populations(self) -> list[PlannedPopulation]:
        """Return the planned populations; none if the plan is missing or damaged."""
        try:
            entries = json.loads((self.folder / PLAN).read_text())["populations"]
            return [PlannedPopulation(**known_fields(PlannedPopulation, entry)) for entry in entries]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []

    def plan(self, populations: Sequence[PlannedPopulation]) -> None:
        """Add populations to the plan; those that share a run with a new one are replaced."""
        runs = {run for population in populations for run in population.runs}
        kept = [population for population in self.populations() if runs.isdisjoint(population.runs)]
        self.folder.mkdir(exist_ok=True)
        entries = [asdict(population) for population in (*kept, *populations)]
        write_atomically(self.folder / PLAN, json.dumps({"populations": entries}, indent=1) + "\n")

    def record(self, jobs: Sequence[SubmittedJob]) -> None:
        """Append submitted jobs to the record."""
        with (self.folder / JOBS).open("a") as file:
            file.write("".join(json.dumps(asdict(job)) + "\n" for job in jobs))
            file.flush()
            os.fsync(file.fileno())

    def jobs(self) -> dict[str, SubmittedJob]:
        """Return the last job submitted for each population, by the population's id."""
        found = {}
        try:
            for line in (self.folder / JOBS).read_text().splitlines():
                job = SubmittedJob(**json.loads(line))
                found[job.population] = job
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError):
            return found  # the last line of a driver that was killed while it wrote
        return found

    def progress_file(self, population: str) -> Path:
        """Return the file with the progress of a population."""
        return self.folder / f"{population}.progress"

    def progress(self, population: str) -> TrainingProgress | None:
        """Return the progress of a population; None if it has not begun."""
        path = self.progress_file(population)
        try:
            values = json.loads(path.read_text())
            return TrainingProgress(**{**values, "modified": path.stat().st_mtime})
        except (OSError, ValueError, TypeError):
            return None

    @contextmanager
    def locked(self, name: str, waits: Callable[[str], None]) -> Iterator[None]:
        """Context manager that holds a lock of the sweep; the operating system releases that of a killed process.

        Args:
            name: of the lock.
            waits: called with the text "process 12 on host" if another process holds the lock, before this one
                waits for it; it may raise an exception instead.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waits(self.holder(name))
            lock.acquire(poll_interval=1.0)
        try:
            values = {"process": os.getpid(), "host": socket.gethostname(), "started": time.time()}
            write_atomically(self.folder / f"{name}.json", json.dumps(values) + "\n")
            yield
        finally:
            lock.release()

    def holder(self, name: str) -> str:
        """Return the text "process 12 on host" of a lock's holder."""
        try:
            values = json.loads((self.folder / f"{name}.json").read_text())
            return f"process {values['process']} on {values['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def is_locked(self, name: str) -> bool:
        """Return True if a process on this machine, or on one that shares locks with it, holds a lock."""
        path = self.folder / f"{name}.lock"
        if not path.exists() or not os.access(path, os.W_OK):
            return False
        lock = FileLock(path, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            return True
        lock.release()
        return False


class Heartbeat:
    """Writes the progress of a population every few seconds while it trains; a context manager.

    Args:
        path: of the progress file.
        epochs: returns the number of epochs done.
        token: of the submission.
    """

    def __init__(self, path: Path, epochs: Callable[[], int], token: str = "") -> None:
        self.path, self.epochs, self.token = path, epochs, token
        self.started = time.time()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.beat, daemon=True)

    def __enter__(self) -> Self:
        """Write the start, and begin to write regularly."""
        self.write()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Write the end; that of a training that an exception ended leaves the population unfinished."""
        self.stopped.set()
        self.thread.join()
        self.write(ended=error[0] is None)

    def beat(self) -> None:
        """Write the progress until the training ends."""
        while not self.stopped.wait(BEAT_SECONDS):
            self.write()

    def write(self, ended: bool = False) -> None:
        """Write the progress; a full disk does not end the training."""
        values: dict[str, Any] = asdict(
            TrainingProgress(self.token, self.epochs(), socket.gethostname(), os.getpid(), self.started, ended)
        )
        try:
            write_atomically(self.path, json.dumps(values) + "\n")
        except OSError:
            if ended:
                raise
