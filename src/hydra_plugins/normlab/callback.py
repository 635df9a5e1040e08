"""Hydra callback: validates runs, prepares their folders, and finalizes other sweepers' sweeps.

The entry is :class:`NormlabCallback`.
"""

import logging
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydra_plugins.normlab.composer import (
    current_job,
    job_environment,
    resolve_hydra_values,
    task_config,
)
from hydra_plugins.normlab.override_checks import is_overridden, require_effective
from normlab.cli import STARTED, WANTS_TRACEBACK
from normlab.config.schema import direction_of
from normlab.config.validation import validate
from normlab.error_messages import source_location
from normlab.errors import ConfigError, first_line
from normlab.execution.state import DRIVER, SweepState
from normlab.option_folders import program
from normlab.report import finalize_sweep
from normlab.results.folder import free_folder, require_run_folder, require_writable, run_name
from normlab.results.provenance import remember_command

if TYPE_CHECKING:
    from normlab.report.report_data import ReportData

log = logging.getLogger("normlab")


@contextmanager
def finalizing(folder: Path, config: DictConfig) -> Iterator[None]:
    """Context manager around a sweep: on exit, write its tables and report, even after an error or Ctrl-C.

    With ``timing=true`` it first times the arms, even if a run failed, but not after Ctrl-C.

    Raises:
        ConfigError: if another process trains the sweep.
    """
    lock = SweepState(folder).locked(DRIVER, partial(refuse_second_driver, folder))
    with lock, finalizing_locked(folder, config):
        yield


def refuse_second_driver(folder: Path, holder: str) -> NoReturn:
    """Raise ConfigError: a sweep is trained by one process at a time."""
    raise ConfigError(
        f"{folder}: {holder} trains this sweep already; normlab status {shlex.quote(str(folder))} shows "
        "its progress"
    )


@contextmanager
def finalizing_locked(folder: Path, config: DictConfig) -> Iterator[None]:
    """Context manager as :func:`finalizing`, without the lock."""
    is_timed, is_interrupted = config.get("timing") is True, False
    try:
        try:
            yield
        except KeyboardInterrupt:
            is_timed, is_interrupted = False, True
            raise
        finally:
            if is_timed:
                from normlab.execution.timing import time_configurations

                with job_environment(config):
                    time_configurations(folder)
    finally:
        data = finalize_sweep(folder)
        if is_interrupted:
            log.info("interrupted; repeat the command to go on")
        if data is not None and config.get("claim"):
            judge(folder, config, data)


def judge(folder: Path, config: DictConfig, data: "ReportData") -> None:
    """Judge the claim of a sweep; errors are logged and not raised, like those of the report."""
    from normlab.claims.judge import judge_sweep

    try:
        values: Any = OmegaConf.to_container(config)
        judge_sweep(folder, values, data, time.time() - STARTED)
    except (ConfigError, OSError) as error:
        log.error("claim %s could not be judged: %s", config.claim.get("name"), first_line(error))


# Used by the text of --help.
OmegaConf.register_new_resolver("program", program, replace=True)
# Used by conf for sweepers that do not set the names of their jobs' folders.
OmegaConf.register_new_resolver(
    "run_name", lambda number, overrides: f"{number}_{run_name(overrides)}", replace=True
)


def set_run_folder(config: DictConfig, folder: Path) -> None:
    """Set the output folder of a single run, including ``hydra.runtime.output_dir``."""
    with read_write(config), open_dict(config):
        config.hydra.run.dir = str(folder)
        config.hydra.runtime.output_dir = str(folder.absolute())


def is_our_sweep(config: DictConfig) -> bool:
    """Return True for normlab's sweeper, which validates its jobs and finalizes the sweep itself."""
    return config.hydra.sweeper._target_.startswith("hydra_plugins.normlab.")


class NormlabCallback(Callback):
    """Validates single runs before training, and wraps other sweepers in :class:`FinalizingSweeper`."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Validate the configuration with a dry run, then reserve the run's folder; exit on an error."""
        remember_command()
        try:
            require_effective(config, is_sweep=False)
            if config.get("records") == "packed":
                raise ConfigError("records=packed has no effect in a single run; a sweep needs -m")
            with current_job(config):
                folder = Path(config.hydra.run.dir)
            set_run_folder(config, folder)
            with current_job(config):
                task = validate(task_config(config))
                from normlab.training.dry_run import dry_run_once  # imports torch

                dry_run_once(task)
                if is_overridden(config, "hydra.run.dir"):
                    require_run_folder(folder, task)
            if is_overridden(config, "hydra.run.dir"):
                require_writable(folder)
            else:
                require_writable(folder.parent)
                set_run_folder(config, free_folder(folder))
            resolve_hydra_values(config, config)
        except Exception as error:  # Hydra would only warn and continue
            exit_with_error(error, source_location(error, config))

    def on_run_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Draw the probe figures of a completed run and log the path of its folder."""
        from normlab.report import finalize_run

        if job_return.status == JobStatus.COMPLETED:
            if config.probes:
                finalize_run(Path(config.hydra.run.dir))
            folder = config.hydra.run.dir
            curves = f"   curves: tensorboard --logdir {shlex.quote(folder)}" if config.logger.tensorboard else ""
            log.info("files: %s%s", folder, curves)
            if config.timing:
                log.info("timing=true has no effect in a single run: no arms to compare; a sweep needs -m")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Validate the overrides; for another package's sweeper, set its direction and wrap it."""
        remember_command()
        try:
            require_effective(config, is_sweep=True)
            require_packing_launcher(config)
            if is_our_sweep(config):
                return
            direction = f"{direction_of(config.optimized_metric, config.direction)}imize"
        except Exception as error:  # Hydra would only warn and continue
            exit_with_error(error)
        sweeper = config.hydra.sweeper
        with read_write(config), open_dict(config):
            if "direction" in sweeper and not is_overridden(config, "hydra.sweeper.direction"):
                sweeper.direction = direction
            target = f"{FinalizingSweeper.__module__}.{FinalizingSweeper.__name__}"
            config.hydra.sweeper = {"_target_": target, "_recursive_": False, "sweeper": sweeper}


def require_packing_launcher(config: DictConfig) -> None:
    """Raise :class:`ConfigError` if records are packed with a launcher that trains each run by itself."""
    from hydra_plugins.normlab.launcher import PopulationLauncher  # imports this module

    launcher = get_object(config.hydra.launcher._target_)
    trains_populations = isinstance(launcher, type) and issubclass(launcher, PopulationLauncher)
    if config.get("records") == "packed" and not trains_populations:
        choice = config.hydra.runtime.choices["hydra/launcher"]
        raise ConfigError(
            f"records must be folders with hydra/launcher={choice}, whose runs do not train in populations, "
            "got packed; leave out one of the two"
        )


class FinalizingSweeper(Sweeper):
    """Wraps another package's sweeper and finalizes its sweep, even after an error.

    Hydra calls no callback at the end of a sweep that raised an error.
    """

    def __init__(self, sweeper: DictConfig) -> None:
        self.settings = sweeper

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Instantiate the wrapped sweeper with the configuration that Hydra would pass to it."""
        with read_write(config), open_dict(config):
            config.hydra.sweeper = self.settings
        self.folder, self.composed = Path(config.hydra.sweep.dir), config
        self.sweeper = Plugins.instance().instantiate_sweeper(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the wrapped sweeper, then finalize the sweep."""
        with finalizing(self.folder, self.composed):
            return self.sweeper.sweep(arguments)


def exit_with_error(error: Exception, location: str = "") -> NoReturn:
    """Exit with a one-line error message, after the traceback if ``HYDRA_FULL_ERROR=1``."""
    if WANTS_TRACEBACK:
        traceback.print_exception(error)
    sys.exit(f"error: {location}{first_line(error)}")
