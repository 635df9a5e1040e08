"""Hydra callback: prepares a run's folder before Hydra writes to it, and closes a sweep of another sweeper."""

import logging
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydra_plugins.normlab.composer import current_job, environment_of, place_of, resolve_in_place, task_config
from hydra_plugins.normlab.typed import require_effective, was_typed
from normlab.cli import WANTS_TRACEBACK
from normlab.config.schema import direction_of
from normlab.errors import first_line
from normlab.report.finalize import finalize_sweep
from normlab.results.folder import free_folder, require_own, require_writable, run_name
from normlab.results.provenance import remember_command

log = logging.getLogger("normlab")
# With Optuna's sweeper they say seven lines about the plugins of a database tool, and the name of the study, which
# the sweeper has said, in colors and into stderr.
CHATTER = ("alembic.runtime.plugins", "optuna.storages")


@contextmanager
def closing(folder: Path, config: DictConfig) -> Iterator[None]:
    """Context manager of a sweep: afterwards times its arms if ``timing=true``, and closes it however it ended.

    The arms are timed also if a run failed, but not after Ctrl-C.
    """
    is_timed = config.get("timing") is True
    try:
        try:
            yield
        except KeyboardInterrupt:
            is_timed = False
            raise
        finally:
            if is_timed:
                from normlab.sweep.timing import time_arms

                with environment_of(config):
                    time_arms(folder)
    finally:
        finalize_sweep(folder)


# For sweepers that do not name their jobs' folders themselves.
OmegaConf.register_new_resolver(
    "run_name", lambda number, overrides: f"{number}_{run_name(overrides)}", replace=True
)


def set_run_folder(config: DictConfig, folder: Path) -> None:
    """Set the folder of a single run, also as the value ``${hydra:runtime.output_dir}``."""
    with read_write(config), open_dict(config):
        config.hydra.run.dir = str(folder)
        config.hydra.runtime.output_dir = str(folder.absolute())


def is_our_sweep(config: DictConfig) -> bool:
    """Return whether the sweep is our own sweeper's, which checks every job and closes the sweep itself."""
    return config.hydra.sweeper._target_.startswith("hydra_plugins.normlab.")


class NormlabCallback(Callback):
    """Refuses a single run that cannot be trained, and has the sweeps of other sweepers closed."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration, then find the run a folder of its own."""
        from normlab.training.dry_run import dry_run_once

        remember_command()
        try:
            require_effective(config, is_sweep=False)
            with current_job(config):
                folder = Path(config.hydra.run.dir)
            set_run_folder(config, folder)
            task = task_config(config)
            with current_job(config):
                dry_run_once(task)
                if was_typed(config, "hydra.run.dir"):
                    require_own(folder, task)
            if was_typed(config, "hydra.run.dir"):
                require_writable(folder)
            else:
                require_writable(folder.parent)
                set_run_folder(config, free_folder(folder))
            resolve_in_place(config)
        except Exception as error:  # Hydra would turn it into a warning and go on
            refuse(error, place_of(error, config))

    def on_run_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Draw what the probes found, and say where the run's files are."""
        from normlab.report.finalize import finalize_run

        if job_return.status == JobStatus.COMPLETED:
            if config.probes:
                finalize_run(Path(config.hydra.run.dir))
            folder = config.hydra.run.dir
            curves = f"   curves: tensorboard --logdir {shlex.quote(folder)}" if config.logger.tensorboard else ""
            log.info("files: %s%s", folder, curves)
            if config.timing:
                log.info("timing=true has no effect on a run alone: there is nothing to compare; a sweep needs -m")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check what was typed, tell a sweeper that is not ours which way is better, and have its sweep closed."""
        remember_command()
        try:
            require_effective(config, is_sweep=True)
            if is_our_sweep(config):
                return
            for name in CHATTER:
                logging.getLogger(name).setLevel(logging.WARNING)
            better = f"{direction_of(config.optimized_metric, config.direction)}imize"
        except Exception as error:  # Hydra would turn it into a warning and go on
            refuse(error)
        sweeper = config.hydra.sweeper
        with read_write(config), open_dict(config):
            if "direction" in sweeper and not was_typed(config, "hydra.sweeper.direction"):
                sweeper.direction = better
            target = f"{ClosingSweeper.__module__}.{ClosingSweeper.__name__}"
            config.hydra.sweeper = {"_target_": target, "_recursive_": False, "sweeper": sweeper}


class ClosingSweeper(Sweeper):
    """A sweeper of another package, whose sweep is closed however it ends.

    Hydra itself tells no callback of a sweep that ended with an error.
    """

    def __init__(self, sweeper: DictConfig) -> None:
        self.settings = sweeper

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the other sweeper, which finds the configuration as if it had been called by Hydra."""
        with read_write(config), open_dict(config):
            config.hydra.sweeper = self.settings
        self.folder, self.composed = Path(config.hydra.sweep.dir), config
        self.sweeper = Plugins.instance().instantiate_sweeper(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Let it sweep, and close what it leaves."""
        with closing(self.folder, self.composed):
            return self.sweeper.sweep(arguments)


def refuse(error: Exception, place: str = "") -> NoReturn:
    """End the program with one line."""
    if WANTS_TRACEBACK:
        traceback.print_exception(error)
    sys.exit(f"error: {place}{first_line(error)}")
