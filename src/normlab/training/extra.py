"""Lightning's callbacks and loggers of a run: ``callbacks.extra`` and ``logger.extra``."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
)
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch import Tensor
from torchmetrics import Metric

from normlab.config.frozen import FrozenConfig, is_population, recorded, replaced
from normlab.config.schema import LIGHTNING
from normlab.config.validation import parameters_of
from normlab.errors import ConfigError
from normlab.results.events import RUN_SUFFIX
from normlab.results.result import Result
from normlab.training.instantiate import make_instance, require_target
from normlab.training.run_folders import Run

# MLflow reports each table that it creates.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
LOGGER_ARGUMENTS = {
    "name": "{run}",
    "run_name": "{run}",
    "save_dir": "{folder}",
    "group": "{sweep}",
    "experiment_name": "{sweep}",
}
"""Arguments that a logger gets unless its node has them: the names of run and sweep, and the run's folder."""

SUPPORTED = (EarlyStopping, ModelCheckpoint, LearningRateMonitor, ModelSummary, DeviceStatsMonitor, LambdaCallback)
"""Lightning's own callbacks that act on each member of a population."""
BATCH_HOOKS = (
    *(f"on_{split}_batch_{end}" for split in ("train", "validation", "test") for end in ("start", "end")),
    *("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"),
)
"""Hooks that a population does not call for each batch."""


class MemberLogger(Logger):
    """The first logger of a member's Trainer; its numbers are recorded with the epoch, like the run's metrics.

    Args:
        folder: of the run, where callbacks such as ModelCheckpoint save.

    Attributes:
        numbers: logged since the epoch began, by name.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.numbers: dict[str, float] = {}

    @property
    def name(self) -> str:
        """An empty name, so that files are saved in the run's folder itself."""
        return ""

    @property
    def version(self) -> str:
        """An empty version, for the same reason."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.folder)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Keep numbers for the record of the epoch."""
        self.numbers |= {name: as_number(value) for name, value in metrics.items()}

    def log_hyperparams(self, *params: Any, **keywords: Any) -> None:
        """Do nothing: the hyperparameters of a run are in its files already."""


class TensorBoardFile(TensorBoardLogger):
    """Lightning's TensorBoardLogger of a run that trains alone, on the event file that normlab also writes.

    Args:
        folder: of the run.
        flush_seconds: the interval at which the file is written.
    """

    def __init__(self, folder: Path, flush_seconds: float) -> None:
        suffix = f".{RUN_SUFFIX}"
        self.folder = folder
        super().__init__(folder, "", "", default_hp_metric=False, filename_suffix=suffix, flush_secs=flush_seconds)

    @property
    def writer(self) -> EventFileWriter:
        """The writer of a new event file; made in a later second than those of the folder.

        TensorBoard reads the files of a folder in the order of their names, which begin with the second.
        """
        while any(self.folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
            time.sleep(0.01)
        writer: EventFileWriter = self.experiment.file_writer.event_writer
        return writer

    def save(self) -> None:
        """Leave the file to its interval: Lightning calls this after every number."""

    def finalize(self, status: str) -> None:
        """Keep the file open: Lightning calls this after the training, and the end of the run is written later."""


def tensorboard_logger(config: FrozenConfig, folder: Path) -> TensorBoardFile | None:
    """Return the logger of a run that trains alone, None in a population or without TensorBoard."""
    alone = not is_population(config)
    return TensorBoardFile(folder, config.logger.flush_seconds) if alone and config.logger.tensorboard else None


@contextmanager
def without_loggers(trainer: pl.Trainer) -> Iterator[None]:
    """Context manager in which a Trainer logs nothing."""
    loggers, trainer.loggers = trainer.loggers, []
    try:
        yield
    finally:
        trainer.loggers = loggers


def as_number(value: Any) -> float:
    """Return a logged number, tensor or metric as a float."""
    if isinstance(value, Metric):
        value = value.compute()
    return float(value.detach() if isinstance(value, Tensor) else value)


def make_loggers(run: Run) -> list[Logger]:
    """Return the loggers of ``logger.extra`` for a run, named after it.

    In their arguments, ``{run}`` is the run's name, ``{folder}`` its folder, and ``{sweep}`` the sweep's folder.

    Raises:
        ConfigError: if a logger cannot be made.
    """
    loggers = []
    for name, node in run.config.logger.extra.items():
        key = f"logger.extra.{name}"
        taken = parameters_of(key, require_target(key, node))
        defaults = {key: value for key, value in LOGGER_ARGUMENTS.items() if key in taken}
        loggers.append(make_instance(key, filled(defaults | node, run), Logger))
    return loggers


def make_callbacks(run: Run) -> list[pl.Callback]:
    """Return the callbacks of ``callbacks.extra`` for a run; their arguments may have the names of loggers'.

    Raises:
        ConfigError: if a callback cannot be made.
    """
    nodes = run.config.callbacks.extra.items()
    return [make_instance(f"callbacks.extra.{name}", filled(node, run), pl.Callback) for name, node in nodes]


def filled(node: Any, run: Run) -> Any:
    """Replace ``{run}``, ``{folder}`` and ``{sweep}`` in the texts of a node."""
    if isinstance(node, Mapping):
        return {key: filled(value, run) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, run) for value in node]
    if not isinstance(node, str):
        return node
    for name, value in (("run", run.name), ("folder", run.folder), ("sweep", run.sweep)):
        node = node.replace(f"{{{name}}}", str(value))
    return node


def begin_loggers(runs: Sequence[Run], loggers: Sequence[Sequence[Logger]]) -> None:
    """Log the configuration of each run to its loggers.

    Raises:
        ConfigError: if two runs would log to the same run of a tracking service.
    """
    for number, name in enumerate(runs[0].config.logger.extra):
        experiments = [getattr(own[number], "experiment", own[number]) for own in loggers]
        if len({id(experiment) for experiment in experiments}) < len(experiments):
            raise ConfigError(
                f"logger.extra.{name} gives {len(runs)} runs one experiment; use logger=wandb, or add "
                f"+logger.extra.{name}.reinit=create_new"
            )
    for run, own in zip(runs, loggers, strict=True):
        for logger in own:
            logger.log_hyperparams(recorded(run.config))


class EpochLogger(pl.Callback):
    """Logs the metrics of an epoch of each member to its loggers.

    Args:
        loggers: of each member.
    """

    def __init__(self, loggers: Sequence[Sequence[Logger]]) -> None:
        self.loggers = loggers

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log the metrics of members that still train, with Lightning's ``epoch``, counted from 0."""
        for k in pl_module.active.nonzero().flatten().tolist():
            numbers = {name: values[k].item() for name, values in pl_module.metrics.items()}
            for logger in self.loggers[k]:
                logger.log_metrics({**numbers, "epoch": int(pl_module.epochs[k]) - 1}, int(pl_module.steps[k]))


def end_loggers(loggers: Sequence[Logger], result: Result, test: dict[str, float]) -> None:
    """Log the test metrics of a run that Lightning has not logged, and close its loggers.

    A run of W&B would otherwise stay open, and get the numbers of the next one.
    """
    for logger in loggers:
        if test:
            logger.log_metrics(test, result.steps)
        logger.finalize("success" if result.status.done else "failed")
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if callable(finish):
            finish()


def single_run_callback(config: FrozenConfig) -> str:
    """Return the reason that a callback of ``callbacks.extra`` needs single runs; empty if none does."""
    for name, node in config.callbacks.extra.items():
        callback = make_instance(f"callbacks.extra.{name}", node, pl.Callback)
        if reason := batch_reason(callback):
            return f"callbacks.extra.{name}: {type(callback).__name__} {reason}"
    return ""


def batch_reason(callback: pl.Callback) -> str:
    """Return the reason that a callback cannot act on a member of a population; empty if it can."""
    for base in type(callback).__mro__:
        own = base.__module__.startswith("pytorch_lightning.") and base not in (pl.Callback, Checkpoint)
        if own and issubclass(base, pl.Callback) and base not in SUPPORTED:
            return "works on the loops and optimizers of a single run"
    if isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps:
        return "saves within an epoch"
    overridden = [hook for hook in BATCH_HOOKS if overrides(callback, hook)]
    return f"overrides {overridden[0]}" if overridden else ""


def overrides(callback: pl.Callback, hook: str) -> bool:
    """Return True if a callback has a hook of its own, not one of the supported callbacks."""
    inherited = {getattr(base, hook) for base in (pl.Callback, *SUPPORTED)}
    return hook in vars(callback) or getattr(type(callback), hook) not in inherited


def as_trained(config: FrozenConfig) -> FrozenConfig:
    """Return the configuration a run is trained by: with ``module=lightning`` if a callback needs single runs."""
    if not (is_population(config) and config.callbacks.extra and single_run_callback(config)):
        return config
    return FrozenConfig.of(replaced(config, {("module",): FrozenConfig.of({"_target_": LIGHTNING})}))
