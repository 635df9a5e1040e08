"""The state of a run that trains alone, a checkpoint of Lightning: :class:`RunSaver` saves it between batches."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import STEP_OUTPUT

from normlab.interrupts import Preempted, interrupts
from normlab.training import resuming
from normlab.training.extra import as_number
from normlab.training.packed_runs import PackedRuns
from normlab.training.population_state import writers_of
from normlab.training.progress import Progress
from normlab.training.run_folders import RunFolders
from normlab.training.saving import SaveTimer, State, StateFile
from normlab.training.single_run import Observer


class RunSaver(pl.Callback):
    """Ends the training when a signal asks for it, and saves its state then and at an interval.

    It is the last callback, so that those of the run have handled the batch.

    Args:
        file: of the state; None if it is not saved.
        timer: of the interval.
        observer: whose state has the part of normlab.
        folders: of the runs.
        progress: the bar, which may end the training after an epoch.
    """

    def __init__(
        self,
        file: StateFile | None,
        timer: SaveTimer,
        observer: Observer,
        folders: RunFolders | PackedRuns,
        progress: Progress,
    ) -> None:
        self.file, self.timer, self.observer = file, timer, observer
        self.folders, self.progress = folders, progress
        self.writers = writers_of(observer.callbacks)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the first interval."""
        self.timer.restart()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Save the state if it is due, or if a signal ends the training.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Preempted: after another signal.
        """
        if trainer.fit_loop._should_accumulate():  # accumulated gradients are in no checkpoint
            return
        is_last = batch_idx + 1 == trainer.num_training_batches
        try:
            interrupts.check()
            if is_last:
                self.progress.check()
        except (KeyboardInterrupt, Preempted):
            if not self.timer.every.never:
                self.save(trainer)
            raise
        if self.timer.due(trainer.current_epoch, is_last):
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Save a checkpoint, after the files that it counts on."""
        if self.file is None:
            return
        started, run = time.perf_counter(), self.observer.run
        for writer in self.writers:
            writer.flush()
        self.observer.saved = {
            **self.file.header(self.folders, trainer.current_epoch),
            "logged": pending_numbers(trainer),
            "logged_names": [*trainer.logged_metrics],
        }
        self.file.write(trainer.save_checkpoint)
        self.observer.saved = {}
        run.save_seconds += time.perf_counter() - started
        self.timer.restart()


def pending_numbers(trainer: pl.Trainer) -> State:
    """Return the numbers of this batch that Lightning logs after the hooks of its end, and their step."""
    if not (trainer._logger_connector.should_update_logs and trainer._results):
        return {}
    logged = trainer._results.metrics(on_step=True)["log"]
    numbers = {name: as_number(value) for name, value in logged.items()}
    step = numbers.pop("step", trainer.fit_loop.epoch_loop._batches_that_stepped)
    return {"numbers": {**numbers, "epoch": trainer.current_epoch}, "step": int(step)} if numbers else {}


def read_run_state(path: Path) -> State:
    """Read the state of a run that trains alone."""
    return resuming.read_checkpoint(str(path))


def run_header(checkpoint: State) -> State:
    """Return the part of a checkpoint that decides whether it can be used."""
    header: State = checkpoint["callbacks"][resuming.STATE_KEY]["saved"]
    return header
