"""The file with the state of a training, from which the repeated command goes on: :class:`StateFile`.

What the state holds is decided by :mod:`normlab.training.population_state` and, for a run that trains alone, by
Lightning's checkpoints (:mod:`normlab.training.resuming`).
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from normlab.config.frozen import differing_keys, is_population, recorded, without_report_keys
from normlab.config.schema import SaveEvery
from normlab.errors import first_line
from normlab.results.folder import STATE_FOLDER, population_id
from normlab.training.extra import as_trained
from normlab.training.packed_runs import PackedRuns
from normlab.training.progress import rounded_time
from normlab.training.run_folders import KeptFiles, Run, RunFolders, population_name

log = logging.getLogger("normlab")
State = dict[str, Any]
CODE = ("normlab", "torch", "pytorch-lightning")
"""Packages whose version a state is bound to."""
COMMAND_KEYS = ("retrain", "ckpt_path")
"""Keys that are not recorded with a run, but decide how its training begins."""


def state_path(runs: Sequence[Run]) -> Path:
    """Return the path of the state of a population, in the folder of its sweep."""
    suffix = "pt" if is_population(as_trained(runs[0].config)) else "ckpt"
    return runs[0].sweep / STATE_FOLDER / f"{population_id(run.path for run in runs)}.{suffix}"


@dataclass(frozen=True)
class Origin:
    """The code, data and configurations of a training; a state is used for the same ones only.

    Attributes:
        configs: of the members.
        sources: SHA-256 of the files that the configuration names.
        versions: of the packages in :data:`CODE`.
    """

    configs: list[dict[str, Any]]
    sources: Mapping[str, str]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, runs: Sequence[Run], sources: Mapping[str, str]) -> "Origin":
        """Return the origin of a training of these runs."""
        configs = [
            without_report_keys(recorded(run.config)) | {key: run.config.get(key) for key in COMMAND_KEYS}
            for run in runs
        ]
        return cls(configs, sources, {name: version(name) for name in CODE})

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """Return the origin that :meth:`text` has serialized."""
        return cls(**json.loads(text))

    def text(self) -> str:
        """Serialize the origin, as one string, which is saved faster than hundreds of nested configurations."""
        return json.dumps(vars(self), default=str)

    def differences(self, other: "Origin") -> list[str]:
        """Return the keys, sources and packages in which two origins differ."""
        if len(self.configs) != len(other.configs):
            return ["the number of runs"]
        pairs = zip(self.configs, other.configs, strict=True)
        keys = [key for one, two in pairs for key in differing_keys(one, two)]
        sources = [f"the file of {key}" for key in differing_keys(self.sources, other.sources)]
        versions = [f"the version of {key}" for key in differing_keys(self.versions, other.versions)]
        return list(dict.fromkeys([*keys, *sources, *versions]))


class SaveTimer:
    """Tells between two steps whether the state is to be saved.

    Args:
        every: the interval.
    """

    def __init__(self, every: SaveEvery) -> None:
        self.every = every
        self.saved = time.monotonic()

    def due(self, epoch: int, is_last: bool) -> bool:
        """Return True if the interval has passed.

        Args:
            epoch: of the step, counted from 0.
            is_last: whether the step is the last one of its epoch.
        """
        if time.monotonic() - self.saved >= self.every.seconds:
            return True
        return is_last and bool(self.every.epochs) and (epoch + 1) % self.every.epochs == 0

    def restart(self) -> None:
        """Begin the next interval."""
        self.saved = time.monotonic()


class StateFile:
    """The file of a state: read once at the start, replaced at each save, removed at the end.

    Args:
        path: of the file.
        runs: of the population.
        sources: SHA-256 of the files that the configuration names.
        read: reads the file; raises an exception with the reason if it is damaged.
        header: returns the part of a state that :meth:`header` made.

    Attributes:
        found: the state to go on from, None without a usable one.
        kept: the files that each run continues; empty without a usable state.
    """

    def __init__(
        self,
        path: Path,
        runs: Sequence[Run],
        sources: Mapping[str, str],
        read: Callable[[Path], State],
        header: Callable[[State], State] = lambda state: state,
    ) -> None:
        self.path, self.runs, self.read, self.header_of = path, runs, read, header
        self.origin, self.names = Origin.of(runs, sources), [run.path for run in runs]
        self.kept: list[KeptFiles] = []
        self.found = self.find() if path.exists() else None

    def find(self) -> State | None:
        """Return the state if it is of this training and whole; otherwise log the reason."""
        name = population_name(self.runs)
        try:
            state = self.read(self.path)
            header = self.header_of(state)
            if reason := self.unusable_reason(header):
                log.info(
                    "%s: training starts from the first epoch, as the state in %s is %s", name, self.path, reason
                )
                return None
            kept = [KeptFiles(**entry) for entry in header["files"]]
        except Exception as error:  # any, depending on the bytes of the file
            reason = first_line(error)
            log.warning(
                "%s: training starts from the first epoch, as the state in %s is damaged: %s",
                name,
                self.path,
                reason,
            )
            return None
        # The folder of a member that has ended before is a temporary one.
        own = [run.path == name for run, name in zip(self.runs, header["names"], strict=True)]
        self.kept = [files if is_own else KeptFiles() for files, is_own in zip(kept, own, strict=True)]
        return state

    def unusable_reason(self, header: State) -> str:
        """Return the reason that a state cannot be used; empty if it can."""
        differing = Origin.parse(header["origin"]).differences(self.origin)
        if differing:
            return f"of another training (it differs in {', '.join(differing[:3])})"
        for run, name, files in zip(self.runs, header["names"], header["files"], strict=True):
            for file, size in files["sizes"].items() if run.path == name else ():
                path = run.folder / file
                if not path.exists() or path.stat().st_size < size:
                    return f"of a run whose {file} has lost rows since, {path}"
        return ""

    def log_start(self) -> None:
        """Log the epoch that the training goes on from."""
        assert self.found is not None
        header = self.header_of(self.found)
        ago = rounded_time(max(0.0, time.time() - header["time"]))
        name, epochs = population_name(self.runs), self.runs[0].config.trainer.max_epochs
        log.info("%s: training goes on from epoch %d of %d (saved %s ago)", name, header["epoch"] + 1, epochs, ago)

    def header(self, folders: RunFolders | PackedRuns, epoch: int) -> State:
        """Return the part of a state that populations and runs that train alone have in common.

        Args:
            folders: of the runs, whose files are written.
            epoch: that is not complete, counted from 0.
        """
        return {
            "origin": self.origin.text(),
            "names": self.names,
            "files": [vars(kept) for kept in folders.files()],
            "time": time.time(),
            "epoch": epoch,
            "started": folders.started.isoformat(),
            "threads": torch.get_num_threads(),
        }

    def write(self, save: Callable[[Path], None]) -> None:
        """Replace the file by one that ``save`` writes; a failure is logged, and the file before it is kept."""
        temporary = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save(temporary)
            synchronize(temporary)
            temporary.replace(self.path)
            synchronize(self.path.parent)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
            log.warning("the state of %s is not saved: %s", population_name(self.runs), first_line(error))
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the file, and its folder if it is the last one."""
        for path in (self.path, self.path.with_suffix(".tmp")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is missing, or holds other states
            self.path.parent.rmdir()


def read_state(path: Path) -> State:
    """Read the state of a population."""
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state


def synchronize(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
