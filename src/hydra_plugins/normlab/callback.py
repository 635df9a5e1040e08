"""What happens before Hydra writes anything of a run, and after a sweep that is not our sweeper's."""

import logging
import shlex
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from normlab.cli import WANTS_TRACEBACK
from normlab.config import first_line
from normlab.records.folder import free_folder, require_own, require_writable, without_hydra
from normlab.records.names import run_name

log = logging.getLogger("normlab")

# For sweepers that do not name their jobs' folders themselves.
OmegaConf.register_new_resolver(
    "run_name", lambda number, overrides: f"{number}_{run_name(overrides)}", replace=True
)


def was_given(config: DictConfig, key: str) -> bool:
    """Return whether a person set this key of Hydra's on the command line."""
    return any(override.lstrip("+").startswith(f"{key}=") for override in config.hydra.overrides.hydra)


class NormlabCallback(Callback):
    """Refuses a single run that cannot be trained, and closes the sweeps of other sweepers."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration, then find the run a folder of its own."""
        from normlab.training.build import rehearse

        try:
            task = without_hydra(config)
            rehearse(task)
            folder = Path(config.hydra.run.dir)
            if was_given(config, "hydra.run.dir"):
                require_own(folder, task)
                require_writable(folder)
            else:
                require_writable(folder.parent)
                folder = free_folder(folder)
            with read_write(config), open_dict(config):
                config.hydra.run.dir = str(folder)
        except Exception as error:  # Hydra would turn it into a warning and go on
            refuse(error)

    def on_run_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Say where the run's files are."""
        if job_return.status == JobStatus.COMPLETED:
            folder = config.hydra.run.dir
            curves = f"   curves: tensorboard --logdir {shlex.quote(folder)}" if config.logger.tensorboard else ""
            log.info("files: %s%s", folder, curves)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Close a sweep that our sweeper does not close itself."""
        from normlab.report.close import close_sweep

        if not config.hydra.sweeper._target_.startswith("hydra_plugins.normlab."):
            close_sweep(Path(config.hydra.sweep.dir))


def refuse(error: Exception) -> NoReturn:
    """End the program with one line."""
    if WANTS_TRACEBACK:
        traceback.print_exception(error)
    sys.exit(f"error: {first_line(error)}")
