"""Packed records of the runs of a population, ``records=packed``: :class:`PackedRuns` writes them at its end.

It stands in for :class:`normlab.training.run_folders.RunFolders`; :func:`run_records` chooses between the two.
"""

import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from normlab.config.frozen import FrozenConfig, is_population
from normlab.errors import require
from normlab.population import State
from normlab.results.events import EventWriter
from normlab.results.folder import require_writable
from normlab.results.packed import PACKED_FOLDER, PackedRow, import_pyarrow, pack_id, write_pack
from normlab.results.result import EpochMetrics, Result, Status, replacing
from normlab.training.run_folders import ERROR, KeptFiles, Run, RunFolders
from normlab.training.run_series import SeriesInMemory

LOG = "train.log"


def check_packable(config: FrozenConfig) -> None:
    """Check that the records of a configuration can be packed.

    Raises:
        ConfigError: if it needs a folder of its own for each run, or pyarrow is not installed.
    """
    require(is_population(config), "records", "folders unless module=population", config.records)
    for key in ("callbacks", "logger"):
        extra = config[key].get("extra")
        require(not extra, "records", f"folders with {key}.extra, which writes to the folder of a run", "packed")
    import_pyarrow("records=packed")


def run_records(runs: Sequence[Run], kept: Sequence[KeptFiles] = ()) -> "RunFolders | PackedRuns":
    """Return the writer of the records of a population: a folder for each run, or packed.

    Args:
        runs: of the population.
        kept: the files of each run that a resumed training continues.
    """
    return PackedRuns(runs) if is_packed(runs[0]) else RunFolders(runs, kept)


def is_packed(run: Run) -> bool:
    """Return True for a run of a sweep with ``records=packed``."""
    return run.config.get("records") == "packed" and run.sweep_folder is not None


class PackedRuns:
    """Keeps curves, probes and checkpoints of a population in memory, and writes them when the training ends.

    Runs have no folder and no event file. The log lines of their ends are in ``train.log`` of the sweep.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.started = datetime.now(UTC)
        self.events: list[EventWriter] = []
        self.series = [SeriesInMemory() for _ in runs]
        self.names = [run.path for run in runs]
        self.path = runs[0].sweep / PACKED_FOLDER / pack_id(self.names)
        require_writable(self.path.parent)
        self.error_file = f"{PACKED_FOLDER}/{self.path.name}.txt"
        self.checkpoints: dict[str, dict[int, tuple[State, EpochMetrics]]] = {}

    def open_events(self, writers: Sequence[EventWriter] | None = None) -> None:
        """Do nothing: packed runs have no event files."""

    def closed_on_error(self) -> AbstractContextManager[None]:
        """Return a null context manager, as no files are open."""
        return nullcontext()

    def files(self) -> list[KeptFiles]:
        """Return no files, as there are none before the end."""
        return [KeptFiles() for _ in self.runs]

    def resume_state(self) -> dict[str, Any]:
        """Return the curves and probes so far."""
        return {"rows": [series.rows for series in self.series]}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Continue after the curves and probes of a state."""
        for series, rows in zip(self.series, state["rows"], strict=True):
            series.rows.update(rows)

    def save(self, k: int, name: str, state_dict: State, metrics: EpochMetrics | None) -> None:
        """Keep a checkpoint of run k; those of all runs are written at the end."""
        self.checkpoints.setdefault(name, {})[k] = state_dict, metrics or EpochMetrics(0, 0, {})

    def finish(self, results: Sequence[Result], lines: Sequence[str], error: BaseException | None) -> None:
        """Write the checkpoints, log lines, a traceback and, last, the packed records.

        Args:
            results: of each run.
            lines: log line of each run.
            error: written with its traceback beside the records of failed runs.
        """
        with replacing(self.path.with_suffix(".pt")) as temporary:
            torch.save({"runs": self.names, **self.stacked_checkpoints()}, temporary)
        if error is not None and any(result.status == Status.FAILED for result in results):
            self.path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)))
        else:
            self.path.with_suffix(".txt").unlink(missing_ok=True)
        with (self.runs[0].sweep / LOG).open("a") as log:
            pairs = zip(results, lines, strict=True)
            log.write("".join(f"{result.ended} INFO normlab: {line}\n" for result, line in pairs))
        write_records(self.runs, results, self.series)

    def stacked_checkpoints(self) -> dict[str, Any]:
        """Return the checkpoints by name: the tensors of all runs, ``(K, …)`` each, and each run's metrics."""
        stacked = {}
        for name, kept in self.checkpoints.items():
            states = [kept[k][0] for k in range(len(self.runs))]
            tensors = {
                key: torch.stack([state[key] for state in states]) if isinstance(value, Tensor) else value
                for key, value in states[0].items()
            }
            reached = [asdict(kept[k][1]) for k in range(len(self.runs))]
            stacked[name] = {"state_dict": tensors, "reached": reached}
        return stacked


def store_results(runs: Sequence[Run], results: Sequence[Result], error: BaseException | None = None) -> None:
    """Write results without measurements, in the folder of each run or as packed records.

    Args:
        runs: of a population.
        results: of each run.
        error: written with its traceback, if the runs have folders.

    Raises:
        FileNotFoundError: if the sweep's folder was removed.
    """
    for run in runs[:1]:
        run.require_sweep()
    if runs and is_packed(runs[0]):
        write_records(runs, results)
        return
    for run, result in zip(runs, results, strict=True):
        run.folder.mkdir(parents=True, exist_ok=True)
        if error is not None:
            (run.folder / ERROR).write_text("".join(traceback.format_exception(error)))
        result.write(run.folder)


def write_records(
    runs: Sequence[Run], results: Sequence[Result], series: Sequence[SeriesInMemory] | None = None
) -> None:
    """Write the packed records of runs of one sweep.

    Args:
        runs: of a population.
        results: of each run.
        series: of each run; by default empty.
    """
    kept = series or [SeriesInMemory() for _ in runs]
    rows = [
        PackedRow(run.path, result.text(), run.hydra, own.rows, own.files)
        for run, result, own in zip(runs, results, kept, strict=True)
    ]
    write_pack(runs[0].sweep, rows)
