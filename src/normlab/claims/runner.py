"""Run the sweeps of claims, one after another, each as ``python train.py claim=…``: :func:`run_job`."""

import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from normlab.claims.claim import COMMON, Claim, override_text
from normlab.claims.judge import read_record
from normlab.errors import ConfigError
from normlab.results.provenance import digest
from normlab.results.result import Status
from normlab.stats.design import MODEL


@dataclass(frozen=True)
class Job:
    """One sweep of a claim.

    Attributes:
        claim: the claim.
        file: its YAML.
        overrides: the overrides of its command beside ``claim=…`` and the folder.
        folder: the folder of its sweep.
        arm: the normalizer that is added; None for the claim itself.
    """

    claim: Claim
    file: Path
    overrides: Sequence[str]
    folder: Path
    arm: str | None = None

    @property
    def name(self) -> str:
        """The name of the job, that of its folder."""
        return self.folder.name

    @property
    def words(self) -> list[str]:
        """The arguments of ``train.py``."""
        folder = QuotedString(str(self.folder), Quote.single).with_quotes()
        return ["-m", f"claim={self.claim.name}", *self.overrides, f"hydra.sweep.dir={folder}"]

    @property
    def record(self) -> dict[str, Any] | None:
        """The record of the job if its sweep is complete and its file has not changed since, else None."""
        record = read_record(self.folder)
        if record is None or record["registration"]["sha256"] != digest(self.file):
            return None
        unfinished = {Status.STOPPED.value, Status.FAILED.value} & record["runs"].keys()
        return None if unfinished or record["overrides"] else record


def jobs_of(
    claim: Claim, file: Path, sweep: Mapping[str, Any], out: Path, budget: str, arm: str | None = None
) -> Iterator[Job]:
    """Yield the sweeps of a claim: that of its protocol, and that on the fresh table.

    Args:
        claim: the claim.
        file: its YAML.
        sweep: the parameters of its sweep, ``params`` and ``grids``.
        out: the folder of the claims' sweeps.
        budget: ``quick`` or ``full``.
        arm: a normalizer to add in place of ``claim.replace``; its sweep is that of the protocol alone.
    """
    overrides = claim.protocol_overrides(budget)
    if arm is not None:
        yield Job(claim, file, [*overrides, *with_arms(claim, sweep, arm)], out / claim.name, arm)
        return
    yield Job(claim, file, overrides, out / claim.name)
    if claim.fresh:
        yield Job(claim, file, claim.protocol_overrides(budget, fresh=True), out / f"{claim.name}-fresh")


def with_arms(claim: Claim, sweep: Mapping[str, Any], arm: str) -> list[str]:
    """Return the overrides that add a normalizer and those of ``COMMON`` where ``claim.replace`` is an arm."""
    arms = list(dict.fromkeys([arm, *COMMON]))
    chosen = [f"+claim.arms=[{','.join(arms)}]"]
    grids = sweep.get("grids") or []
    if any(MODEL in grid for grid in grids):
        changed = [
            {**grid, MODEL: extended(str(grid[MODEL]), claim.replace, arms)} if MODEL in grid else grid
            for grid in grids
        ]
        text = ",".join(
            "{" + ",".join(f"{key}:{quoted(value)}" for key, value in grid.items()) + "}" for grid in changed
        )
        return [*chosen, f"hydra.sweeper.grids=[{text}]"]
    models = (sweep.get("params") or {}).get(MODEL, claim.replace)
    return [*chosen, f"{MODEL}={extended(str(models), claim.replace, arms)}"]


def extended(models: str, replaced: str | None, arms: Sequence[str]) -> str:
    """Return the models of a sweep with further arms, if the replaceable one is among them.

    >>> extended("bn,nobn", "bn", ["mine", "ln"]), extended("nobn", "bn", ["mine"])
    ('bn,nobn,mine,ln', 'nobn')
    """
    given = [model.strip() for model in models.split(",")]
    return ",".join(dict.fromkeys([*given, *(arms if replaced in given else [])]))


def quoted(value: Any) -> str:
    """Return a value of a grid as in an override."""
    return QuotedString(override_text(value), Quote.double).with_quotes()


def run_job(job: Job, program: Sequence[str], workers: int) -> dict[str, Any]:
    """Train the sweep of a claim in a process of its own, and return its record.

    The output is appended to a file beside its folder. After Ctrl-C, the process may write the report of the runs
    that it has trained.

    Args:
        job: the sweep.
        program: the arguments of Python that start a training.
        workers: number of processes that train the populations of the sweep.

    Raises:
        ConfigError: with the last line of the output, if the process failed or wrote no record.
    """
    output = job.folder.with_suffix(".log")
    words = [*job.words, f"hydra.launcher.n_jobs={workers}"]
    command = [sys.executable, *program, *words]
    with output.open("a") as file:
        file.write(f"$ {shlex.join(['python', *program, *words])}\n")
        file.flush()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal sends Ctrl-C to this process, too, which writes its report
            process.wait()
            raise
    record = job.record
    if code or record is None:
        lines = [line for line in output.read_text().splitlines() if line.strip()]
        raise ConfigError(f"{job.name} failed: {lines[-1].removeprefix('error: ')}; see {output}")
    return record
