"""A run of a population: folder, result and log line. :class:`RunFolders` prepares and completes the folders."""

import io
import logging
import os
import re
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from textwrap import indent
from typing import Any

import torch
from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from normlab.config.frozen import FrozenConfig, recorded, without_folder_keys
from normlab.config.schema import direction_of
from normlab.config.validation import validate
from normlab.population import State
from normlab.results import events, result, series
from normlab.results.events import EVENT_FILES, BatchWriter, EventWriter
from normlab.results.folder import group_choices, require_writable, run_name, to_yaml
from normlab.results.provenance import remembered_command
from normlab.results.result import EpochMetrics, Objective, Result, Status, worst_value, write_atomically
from normlab.training.run_series import SeriesInFolder

ERROR, CHECKPOINTS = "error.txt", "checkpoints"
# Sweeps escape the braces of interpolations.
JOB_NUMBER = re.compile(r"\$\\?\{\s*hydra\\?:job\.(?:num|id)\\?\}")


@dataclass(frozen=True)
class KeptFiles:
    """The files of a run that a resumed training continues or keeps, as they were when its state was saved.

    Attributes:
        sizes: in bytes, of the files that grow while it trains, by name; they may have grown since.
        checkpoints: names of the checkpoints that callbacks had written; there may be others since.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    checkpoints: Sequence[str] = ()

    @classmethod
    def of(cls, folder: Path) -> "KeptFiles":
        """Return the files of a run at this time."""
        with os.scandir(folder) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries if is_continued(entry.name)}
        return cls(sizes, [path.name for path in (folder / CHECKPOINTS).glob("*.ckpt")])


def is_continued(name: str) -> bool:
    """Return True for the files that grow while a run trains: curves, probes and events."""
    prefix, suffix = EVENT_FILES.split("*")
    return name in (series.CURVES_FILE, series.PROBES_FILE) or (name.startswith(prefix) and name.endswith(suffix))


@dataclass(frozen=True)
class Run:
    """A configuration with its output folder, name, group choices and overrides.

    Attributes:
        written: the configuration as Hydra writes it, with unresolved interpolations; by default ``config``.
        sweep_folder: of the sweep; None for a single run.
        hydra: the texts of the files that Hydra would write, by name, for packed records.
    """

    config: FrozenConfig
    folder: Path
    name: str
    choices: dict[str, str]
    overrides: list[str]
    written: Mapping[str, Any] | None = None
    sweep_folder: Path | None = None
    hydra: Mapping[str, str] = field(default_factory=dict)

    @property
    def sweep(self) -> Path:
        """The folder of the sweep; of the run, if it is alone."""
        return self.sweep_folder or self.folder

    @property
    def path(self) -> str:
        """Path of the folder relative to that of the sweep."""
        return Path(os.path.relpath(self.folder, self.sweep)).as_posix()

    def require_sweep(self) -> None:
        """Raise FileNotFoundError if the sweep's folder was removed; a new one would hold no sweep."""
        if self.sweep_folder is not None and not self.sweep_folder.is_dir():
            raise FileNotFoundError(f"the folder {self.sweep_folder} was removed while its sweep was running")

    @classmethod
    def composed(cls, config: DictConfig, hydra: HydraConf) -> "Run":
        """Return the run of a configuration that Hydra has composed."""
        written: Any = OmegaConf.to_container(config)
        # Overrides keep their interpolations unresolved.
        node: Any = OmegaConf.to_container(hydra, enum_to_str=True)
        return cls.of_job(validate(config), written, FrozenConfig.of(node))

    @classmethod
    def of_job(cls, config: FrozenConfig, written: Mapping[str, Any], hydra: FrozenConfig) -> "Run":
        """Return the run of a job, from its resolved and its unresolved configuration and the node ``hydra``."""
        folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
        in_sweep = hydra.mode == RunMode.MULTIRUN.name
        if in_sweep:  # a command that repeats this run alone has no job number
            overrides = [JOB_NUMBER.sub(str(hydra.job.num), word) for word in overrides]
        choices = group_choices(hydra.runtime.choices)
        model = [f"model={choices['model']}"] if "model" in choices else []
        words = [*model, *(word for word in overrides if not word.startswith("model="))] or ["run"]
        name, sweep = (folder.name, Path(hydra.sweep.dir)) if in_sweep else (run_name(words), None)
        return cls(config, folder, name, choices, overrides, written, sweep)


class RunFolders:
    """Clears the run folders at the start, and completes them however the training ends.

    Args:
        runs: of the population.
        kept: the files of each run that a resumed training continues; empty for a training from the start.
    """

    error_file = f"{ERROR} in its folder"

    def __init__(self, runs: Sequence[Run], kept: Sequence[KeptFiles] = ()) -> None:
        self.runs = runs
        self.kept: list[KeptFiles | None] = [*kept] or [None] * len(runs)
        self.started = datetime.now(UTC)
        for run, files in zip(runs, self.kept, strict=True):
            remove_unfinished_run(run.folder, files)
        self.events: list[EventWriter] = []
        self.series = [SeriesInFolder(run.folder) for run in runs]

    def open_events(self, writers: Sequence[EventWriter] | None = None) -> None:
        """Open the event file of each run; a new one begins with hyperparameters and the configuration as text.

        Args:
            writers: of the runs; by default those of a population.
        """
        for k, run in enumerate(self.runs):
            if not run.config.logger.tensorboard:
                continue
            kept = self.kept[k]
            files = [run.folder / name for name in (kept.sizes if kept else ()) if Path(name).match(EVENT_FILES)]
            self.events.append(writers[k] if writers else BatchWriter(run.folder, files[-1] if files else None))
            if not files:
                write_run_start(run, self.events[-1])

    def files(self) -> list[KeptFiles]:
        """Return the files that each run would continue from its state at this time."""
        return [KeptFiles.of(run.folder) for run in self.runs]

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Context manager that closes the event files if the block fails, also if nothing more can be written."""
        try:
            yield
        except BaseException:
            for writer in self.events:
                with suppress(OSError):
                    writer.close()
            raise

    def save(self, k: int, name: str, state_dict: State, metrics: EpochMetrics | None) -> None:
        """Write a checkpoint of run k, of tensors and numbers that ``weights_only=True`` loads."""
        path = self.runs[k].folder / CHECKPOINTS / f"{name}.pt"
        path.parent.mkdir(exist_ok=True)
        reached = metrics or EpochMetrics(0, 0, {})
        buffer = io.BytesIO()  # torch.save to a file hides the reason if it cannot be written
        torch.save({"state_dict": state_dict, **asdict(reached)}, buffer)
        write_atomically(path, buffer.getvalue())

    def finish(self, results: Sequence[Result], lines: Sequence[str], error: BaseException | None) -> None:
        """Close event files, and write log lines, tracebacks and, last, ``result.json``.

        Args:
            results: of each run.
            lines: log line of each run, written to its ``train.log`` unless Hydra logs into that folder.
            error: written with its traceback to the folders of failed runs.
        """
        for file, outcome in zip(self.events, results, strict=bool(self.events)):
            file.add_event(events.run_end(outcome.status == Status.FINISHED))
            file.close()
        for run, outcome, line in zip(self.runs, results, lines, strict=True):
            if not is_logged(run.folder):
                with (run.folder / "train.log").open("a") as log:
                    log.write(f"{outcome.ended} INFO normlab: {line}\n")
            if error is not None and outcome.status == Status.FAILED:
                (run.folder / ERROR).write_text("".join(traceback.format_exception(error)))
            outcome.write(run.folder)


def is_logged(folder: Path) -> bool:
    """Return True if the root logger writes to a file in this folder."""
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    return any(Path(handler.baseFilename).parent == folder.absolute() for handler in files)


def write_run_start(run: Run, writer: EventWriter) -> None:
    """Write a run's hyperparameters and its configuration as text to its event file."""
    config = recorded(run.config)
    unresolved = without_folder_keys(run.written or config)
    hparams = events.flatten_hparams(config, run.choices)
    writer.add_event(events.run_start(hparams, events.hparam_group(unresolved, run.choices)))
    writer.add_event(events.text("config", indent(to_yaml(config), "    ").rstrip("\n")))
    writer.flush()


def remove_unfinished_run(folder: Path, kept: KeptFiles | None = None) -> None:
    """Remove the files of an unfinished run before it is trained again, or what it wrote after it was saved.

    Files that it was killed while writing are removed, too.

    Args:
        folder: of the run.
        kept: the files that it continues; None if it is trained from the start.
    """
    require_writable(folder)
    sizes = kept.sizes if kept else {}
    for name, size in sizes.items():
        os.truncate(folder / name, size)
    written = series.CURVES_FILE, series.PROBES_FILE, series.ARRAYS, ERROR, result.RESULT_FILE
    patterns = *written, EVENT_FILES, "probe_*.png", "probe_*.svg", "graph*.dot", "graph*.svg", ".*.*.[0-9]*"
    for path in folder.iterdir():
        if path.is_file() and any(path.match(pattern) for pattern in patterns) and path.name not in sizes:
            path.unlink()
    for pattern in ("best.pt", "last.pt", ".*.pt.[0-9]*"):
        for path in folder.glob(f"{CHECKPOINTS}/{pattern}"):
            path.unlink()
    for path in (folder / CHECKPOINTS).glob("*.ckpt"):
        if kept and path.name not in kept.checkpoints:
            path.unlink()


def run_line(result: Result, error_file: str) -> str:
    """Return the log line of a run's end: status, epochs, seconds and metrics.

    Args:
        result: of the run.
        error_file: the place of the traceback of a failed run.
    """
    words = f"{result.name}: {result.status} after {result.epochs} epochs, {result.seconds:.2g} s of training"
    metric, best, last = result.objective.metric, result.best, result.last
    if result.status == Status.FINISHED and best and last:
        words += f"; {metric} best {best.metrics[metric]:.4g} in epoch {best.epoch}"
        words += f", last {last.metrics[metric]:.4g}" if metric in last.metrics else ""
        words += "".join(f"; {name} {value:.4g}" for name, value in result.test.items() if name == "test/loss")
    return f"{words}; {result.error}, see {error_file}" if result.error else words


def population_line(results: Sequence[Result]) -> str:
    """Return the log line of a population's end: number of runs by status, and seconds."""
    counts = Counter(result.status.value for result in results)
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    seconds = sum(result.seconds for result in results)
    return f"{population_name(results)}: {statuses}, {seconds:.2g} s of training"


def population_name(runs: Sequence[Run] | Sequence[Result]) -> str:
    """Return the name of a population in log lines: its models, and the net and data that all runs share."""
    if len(runs) == 1:
        return runs[0].name
    models = "/".join(sorted({run.choices.get("model", "") for run in runs}))
    shared = [word for word in runs[0].overrides if all(word in run.overrides for run in runs[1:])]
    words = [word for word in shared if word.startswith(("model.", "net", "data"))]
    return f"{len(runs)} runs of {', '.join([f'model={models}', *words])}"


def result_without_metrics(run: Run, status: Status, error: str | None = None) -> Result:
    """Return a result with a status and the run's configuration, without measurements."""
    metric = run.config.optimized_metric
    direction = direction_of(metric, run.config.direction)
    return Result(
        name=run.name,
        status=status,
        config=recorded(run.config),
        choices=run.choices,
        overrides=run.overrides,
        objective=Objective(metric, direction, worst_value(direction)),
        error=error,
        command=remembered_command(),
    )
