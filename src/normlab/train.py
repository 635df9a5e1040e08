"""Trains with the configuration in the package: the command ``normlab train``, and :func:`train_sweep` for Python.

A project's own ``train.py`` calls :func:`main`. The options in its folder ``conf`` are added to those of normlab.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import unwrap
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from normlab.cli import WANTS_TRACEBACK, called_as, compose_and_run, run_cli
from normlab.error_messages import format_error
from normlab.errors import ConfigError, require
from normlab.interrupts import interrupts
from normlab.option_folders import MAIN_CONFIG, PACKAGED_CONF

COMMAND = "normlab train"


@hydra.main(version_base="1.3", config_path=str(PACKAGED_CONF), config_name=MAIN_CONFIG)
def hydra_main(config: DictConfig) -> float:
    """Train one run and return its objective."""
    from normlab.training.run import train
    from normlab.training.run_folders import Run

    return train([Run.composed(config, HydraConfig.get())])[0].objective.value


def main() -> None:
    """Train what the command line describes."""
    run_cli(hydra_main)


def train_sweep(overrides: Sequence[str]) -> Path:
    """Train a sweep in this process, as ``normlab train -m`` does, and return its folder.

    Raises:
        ConfigError: for a mistake in the overrides, with one line.
    """
    for word in overrides:
        require(isinstance(word, str), "an override", "a text such as 'model=bn,nobn'", repr(word))
        if word.startswith("-"):
            raise ConfigError(f"{word}: options belong to the command line; give overrides such as model=bn,nobn")
    with called_as(COMMAND, ["-m", *overrides]), restored_state():
        try:
            with interrupts.remembered():
                return compose_and_run(multirun, PACKAGED_CONF)
        except SystemExit as error:  # Hydra's callbacks end the process after an error
            raise ConfigError(str(error.code).removeprefix("error: ")) from None
        except Exception as error:
            if WANTS_TRACEBACK:
                raise
            raise ConfigError(format_error(error, PACKAGED_CONF)) from None


class SweepHydra(Hydra):
    """Hydra, which keeps the configuration of the sweep.

    Attributes:
        config: of the sweep, with the folder that was chosen for it.
    """

    config: DictConfig

    def compose_config(self, *args: Any, **kwargs: Any) -> DictConfig:
        """Compose the configuration and keep it."""
        self.config = super().compose_config(*args, **kwargs)
        return self.config


def multirun() -> Path:
    """Train the sweep of the command line and return its folder."""
    GlobalHydra.instance().clear()
    sweeps = SweepHydra.create_main_hydra2("train", create_config_search_path(str(PACKAGED_CONF)))
    assert isinstance(sweeps, SweepHydra)
    try:
        sweeps.multirun(MAIN_CONFIG, unwrap(hydra_main), [*sys.argv[2:], "hydra.mode=MULTIRUN"])
    finally:
        GlobalHydra.instance().clear()
    return Path(sweeps.config.hydra.sweep.dir)


@contextmanager
def restored_state() -> Iterator[None]:
    """Context manager that restores the loggers and the state of Hydra that a sweep sets."""
    root, hydra_state, config = logging.getLogger(), GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra_state, config
