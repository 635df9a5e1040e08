"""Lightning's TensorBoardLogger for a run that trains alone, :class:`RunLogger`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from normlab.config.frozen import FrozenConfig, is_population
from normlab.results.events import RUN_SUFFIX


class RunLogger(TensorBoardLogger):
    """Writes to the event file in a run's folder that normlab also writes to.

    Args:
        folder: of the run.
        flush_seconds: the interval at which the file is written.
    """

    def __init__(self, folder: Path, flush_seconds: float) -> None:
        suffix = f".{RUN_SUFFIX}"
        super().__init__(folder, "", "", default_hp_metric=False, filename_suffix=suffix, flush_secs=flush_seconds)

    @property
    def writer(self) -> EventFileWriter:
        """The writer of the event file."""
        writer: EventFileWriter = self.experiment.file_writer.event_writer
        return writer

    def save(self) -> None:
        """Leave the file to its interval: Lightning calls this after every number."""

    def finalize(self, status: str) -> None:
        """Keep the file open: Lightning calls this after the training, and the end of the run is written later."""


def run_logger(config: FrozenConfig, folder: Path) -> RunLogger | None:
    """Return the logger of a run that trains alone, None in a population or without TensorBoard."""
    alone = not is_population(config)
    return RunLogger(folder, config.logger.flush_seconds) if alone and config.logger.tensorboard else None


@contextmanager
def without_loggers(trainer: pl.Trainer) -> Iterator[None]:
    """Context manager in which a Trainer logs nothing."""
    loggers, trainer.loggers = trainer.loggers, []
    try:
        yield
    finally:
        trainer.loggers = loggers
