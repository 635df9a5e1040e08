"""The folders of a population's runs: what is in them at the start, and what is left in them at the end."""

import logging
import re
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from normlab.population.stacking import State
from normlab.results import curves, events, probes, result
from normlab.results.events import EVENT_FILES, EventFile
from normlab.results.folder import group_choices, plain, require_writable, run_name, to_yaml, without_folder_keys
from normlab.results.result import EpochMetrics, Result, Status

ERROR = "error.txt"
# A sweep writes an interpolation of the command line with escaped braces.
NUMBER = re.compile(r"\$\\?\{\s*hydra\\?:job\.(?:num|id)\\?\}")


@dataclass(frozen=True)
class Run:
    """A configuration, and the folder that its run is to leave."""

    config: DictConfig
    folder: Path
    name: str
    choices: dict[str, str]
    overrides: list[str]

    @classmethod
    def composed(cls, config: DictConfig, hydra: HydraConf) -> "Run":
        """Return the run that Hydra composed ``config`` for."""
        folder = Path(hydra.runtime.output_dir)
        # As written: an interpolation in an override is resolved in the config, not here.
        written: Any = OmegaConf.to_container(hydra.overrides.task)
        overrides = [str(word) for word in written]
        if hydra.mode == RunMode.MULTIRUN:  # the command that repeats the run alone has no number of its own
            overrides = [NUMBER.sub(str(hydra.job.num), word) for word in overrides]
        choices = group_choices(hydra.runtime.choices)
        model = [f"model={choices['model']}"] if "model" in choices else []
        own = [*model, *(word for word in overrides if not word.startswith("model="))] or ["run"]
        name = folder.name if hydra.mode == RunMode.MULTIRUN else run_name(own)
        return cls(config, folder, name, choices, overrides)

    def write_hydra(self, composed: DictConfig) -> None:
        """Write the three files that Hydra's own launchers leave, from the config with Hydra's part.

        With ``hydra.output_subdir=null`` none is written, as by Hydra.
        """
        if composed.hydra.output_subdir is None:
            return
        folder = self.folder / composed.hydra.output_subdir
        folder.mkdir(parents=True, exist_ok=True)
        hydra = {"hydra": OmegaConf.to_container(composed.hydra, enum_to_str=True)}
        overrides = composed.hydra.overrides.task
        for name, node in (("config", self.config), ("hydra", hydra), ("overrides", overrides)):
            (folder / f"{name}.yaml").write_text(to_yaml(node))


class RunFolders:
    """A folder for each run, with its event file; whatever stops a training, they are left in order."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.started = datetime.now(UTC)
        for run in runs:
            clear(run.folder)
        self.events = [begin_events(run) for run in runs if run.config.logger.tensorboard]

    def save(self, k: int, name: str, state_dict: State, moment: EpochMetrics | None) -> None:
        """Write a checkpoint of run k: plain tensors and numbers, which ``weights_only=True`` loads."""
        path = self.runs[k].folder / "checkpoints" / f"{name}.pt"
        path.parent.mkdir(exist_ok=True)
        reached = moment or EpochMetrics(0, 0, {})
        beside = path.with_suffix(".tmp")
        torch.save({"state_dict": state_dict, **asdict(reached)}, beside)
        beside.replace(path)

    def end(self, results: Sequence[Result], words: Sequence[str], error: BaseException | None) -> None:
        """Close each run: its event file, the traceback of what went wrong, and ``result.json`` last.

        Where Hydra does not log into a run's folder, as it does for one that it started alone, the run's own words
        are written there.
        """
        for file, outcome in zip(self.events, results, strict=bool(self.events)):
            file.end(succeeded=outcome.status == Status.FINISHED)
        for run, outcome, line in zip(self.runs, results, words, strict=True):
            if not is_logged(run.folder):
                with (run.folder / "train.log").open("a") as log:
                    log.write(f"{outcome.ended} INFO normlab: {line}\n")
            if error is not None and outcome.status == Status.FAILED:
                (run.folder / ERROR).write_text("".join(traceback.format_exception(error)))
            outcome.write(run.folder)


def is_logged(folder: Path) -> bool:
    """Return whether what is logged goes into a file in this folder."""
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    return any(Path(handler.baseFilename).parent == folder.absolute() for handler in files)


def begin_events(run: Run) -> EventFile:
    """Return the run's event file, with its hyperparameters and its configuration as text."""
    config, file = plain(run.config), EventFile(run.folder)
    written = without_folder_keys(OmegaConf.to_container(run.config))
    file.start(events.flatten_hparams(config, run.choices), events.hparam_group(written, run.choices))
    file.text("config", "\n".join(f"    {line}" for line in to_yaml(config).splitlines()))
    return file


def clear(folder: Path) -> None:
    """Remove what a run of the same configuration left that did not come to its end: it is trained again."""
    require_writable(folder)
    for pattern in (EVENT_FILES, "probe_*.png", "probe_*.svg", "graph*.dot", "graph*.svg"):
        for path in folder.glob(pattern):
            path.unlink()
    files = curves.CURVES_FILE, probes.PROBES_FILE, probes.ARRAYS, ERROR, result.RESULT_FILE
    for name in (*files, "checkpoints/best.pt", "checkpoints/last.pt"):
        (folder / name).unlink(missing_ok=True)
