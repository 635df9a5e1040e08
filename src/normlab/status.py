"""Shows the progress of a sweep from its files alone: ``normlab status FOLDER``.

The sweep may train on this machine, on others, or no longer.
"""

import argparse
import json
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from normlab.execution.state import (
    BEAT_SECONDS,
    DRIVER,
    PLAN,
    PlannedPopulation,
    SweepState,
    TrainingProgress,
)
from normlab.results.packed import packed_run
from normlab.results.result import RESULT_FILE, Status
from normlab.results.sweep import run_folders
from normlab.training.progress import rounded_time

HEAD = 512
"""Bytes at the start of result.json that hold name and status."""
STATUS = re.compile(rb'"status": "(\w+)"')
SILENT_SECONDS = 12 * BEAT_SECONDS
"""Time without news after which a population does not count as running."""
MAX_FAILURES = 5
"""Largest number of failed runs that are named."""


@dataclass(frozen=True)
class RunRecord:
    """Status of a run in its record, and the time at which that was written."""

    status: str
    written: float

    @property
    def is_done(self) -> bool:
        """True if the run needs no further training."""
        return self.status in (Status.FINISHED, Status.DIVERGED, Status.PRUNED)


@dataclass
class SweepProgress:
    """Progress of a sweep.

    Attributes:
        runs: number of runs by status: finished, diverged, stopped, failed, running, queued, interrupted.
        populations: number of unfinished populations by status: running, queued, interrupted.
        per_minute: runs that finish per minute; None if unknown.
        seconds_left: estimated time until the end; None if unknown.
        silent_seconds: time since an interrupted population was heard of.
        failed: paths of failed runs.
    """

    runs: Counter[str] = field(default_factory=Counter)
    populations: Counter[str] = field(default_factory=Counter)
    per_minute: float | None = None
    seconds_left: float | None = None
    silent_seconds: float = 0.0
    failed: list[str] = field(default_factory=list)


def read_records(folder: Path) -> dict[str, RunRecord | None]:
    """Return the record of each run in a sweep's folder by path, None for a run without one."""
    records: dict[str, RunRecord | None] = {}
    for path in run_folders(folder):
        try:
            with (path / RESULT_FILE).open("rb") as file:
                head = file.read(HEAD)
            found: RunRecord | None = read_record(head, path / RESULT_FILE)
        except OSError:
            packed = packed_run(path)
            text = packed.pack.results[packed.row] if packed else ""
            found = read_record(text[:HEAD].encode(), packed.pack.path) if packed else None
        records[path.relative_to(folder).as_posix()] = found
    return records


def read_record(head: bytes, file: Path) -> RunRecord:
    """Return the status at the start of a record, and the time of its file."""
    match = STATUS.search(head)
    return RunRecord(match[1].decode() if match else Status.FAILED, file.stat().st_mtime)


def read_progress(folder: Path) -> SweepProgress:
    """Return the progress of the sweep in a folder."""
    state, records = SweepState(folder), read_records(folder)
    result, planned = SweepProgress(), state.populations()
    progress = {population.id: state.progress(population.id) for population in planned}
    times = [each.modified for each in progress.values() if each]
    now = max([time.time(), *times])  # the clock of the file system may differ
    result.runs.update(record.status for record in records.values() if record)
    result.failed = [path for path, record in records.items() if record and record.status == Status.FAILED]
    left = []
    for population in planned:
        open_runs = [run for run in population.runs if not ((record := records.get(run)) and record.is_done)]
        beat = progress[population.id]
        kind = population_status(beat, now)
        if kind == "running" and beat and beat.host == socket.gethostname() and not state.is_locked(population.id):
            kind = "interrupted"  # its process has ended
        if not open_runs or (kind == "ended" and all(records.get(run) for run in open_runs)):
            continue
        kind = "interrupted" if kind == "ended" else kind
        left.append(population)
        result.populations[kind] += 1
        result.runs[kind] += len(open_runs)
        result.runs.subtract(record.status for run in open_runs if (record := records.get(run)))
        if kind == "interrupted":
            heard = progress[population.id]
            result.silent_seconds = max(result.silent_seconds, now - heard.modified if heard else 0.0)
    unplanned = set(records).difference(*(population.runs for population in planned))
    result.runs["unfinished"] = sum(records[path] is None for path in unplanned)
    if result.populations["running"]:
        estimate(result, state, planned, left, progress, records, now)
    return result


def population_status(progress: TrainingProgress | None, now: float) -> str:
    """Return the status of a population with unfinished runs: queued, running, interrupted or ended."""
    if progress is None:
        return "queued"
    if progress.ended:
        return "ended"
    return "running" if now - progress.modified < SILENT_SECONDS else "interrupted"


def estimate(
    result: SweepProgress,
    state: SweepState,
    planned: Sequence[PlannedPopulation],
    left: Sequence[PlannedPopulation],
    progress: Mapping[str, TrainingProgress | None],
    records: Mapping[str, RunRecord | None],
    now: float,
) -> None:
    """Estimate runs per minute and the time left, by the speed since the driver was started."""
    started = (state.folder / PLAN).stat().st_mtime
    elapsed = max(now - started, 1.0)
    recent = {path for path, record in records.items() if record and record.is_done and record.written >= started}
    share = {
        population.id: min(1.0, each.epochs / max(1, population.epochs))
        for population in left
        if (each := progress[population.id])
    }
    worked = sum(
        population.seconds
        for population in planned
        if population not in left and recent.issuperset(population.runs)
    )
    now_training = [each for each in left if (beat := progress[each.id]) and beat.modified >= started]
    worked += sum(population.seconds * share[population.id] for population in now_training)
    ahead = sum(population.seconds * (1 - share.get(population.id, 0.0)) for population in left)
    result.per_minute = 60 * len(recent) / elapsed if recent else None
    result.seconds_left = ahead * elapsed / worked if worked > 0 else None


def describe(folder: Path, progress: SweepProgress, driver: str | None) -> list[str]:
    """Return the lines that the command prints.

    Args:
        folder: of the sweep.
        progress: of the sweep.
        driver: process that trains it on this machine, if there is one.
    """
    runs, populations = progress.runs, progress.populations
    done = runs["finished"] + runs["diverged"]
    lines = [f"{folder}: {sum(runs.values())} runs"]
    diverged = f", {runs['diverged']} of them diverged" if runs["diverged"] else ""
    rows = [("done", done, diverged)]
    for kind in ("running", "queued"):
        count = populations[kind]
        rows.append((kind, runs[kind], f" in {count} population{'s' * (count > 1)}" if count else ""))
    if runs["interrupted"]:
        heard = f", last heard of {rounded_time(progress.silent_seconds)} ago"
        rows.append(("interrupted", runs["interrupted"], f"{heard}; the same command continues them"))
    rows += [(kind, runs[kind], "") for kind in ("stopped", "failed", "unfinished") if runs[kind]]
    lines += [f"  {kind:<12}{count:>7}{text}" for kind, count, text in rows]
    if progress.per_minute is not None:
        lines.append(f"{progress.per_minute:.3g} runs per minute")
    if progress.seconds_left is not None:
        lines.append(f"about {rounded_time(progress.seconds_left)} left")
    lines += [f"failed: {path}" for path in progress.failed[:MAX_FAILURES]]
    if len(progress.failed) > MAX_FAILURES:
        lines.append(f"failed: {len(progress.failed) - MAX_FAILURES} more")
    lines.append(f"driver: {driver}" if driver else "driver: none on this machine")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and print the progress; errors exit with a message of one line."""
    parser = argparse.ArgumentParser(prog="normlab status", description="Show the progress of a sweep.")
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of a sweep")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args(arguments)
    folder: Path = options.path
    if not folder.is_dir():
        sys.exit(f"error: {folder}: no such folder")
    progress, state = read_progress(folder), SweepState(folder)
    if not progress.runs.total():
        sys.exit(f"error: {folder} holds no sweep")
    if options.json:
        print(json.dumps(vars(progress)))
        return
    driver = state.holder(DRIVER) if state.is_locked(DRIVER) else None
    print("\n".join(describe(folder, progress, driver)))


if __name__ == "__main__":
    main()
