"""A grid sweep whose jobs are all checked before the first one trains, and that is always closed."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict, read_write

from hydra_plugins.normlab.callback import was_given
from hydra_plugins.normlab.composer import Composer
from hydra_plugins.normlab.launcher import PopulationLauncher
from normlab.config import ConfigError, require
from normlab.records.folder import free_folder, require_own, require_sweep, require_writable
from normlab.records.names import run_names

log = logging.getLogger("normlab")


@dataclass
class NormlabSweeperConfig:
    """The arguments of :class:`NormlabSweeper`: those of Hydra's basic sweeper, and grids to join."""

    _target_: str = "hydra_plugins.normlab.sweeper.NormlabSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None
    grids: Any = None


ConfigStore.instance().store(group="hydra/sweeper", name="normlab", node=NormlabSweeperConfig, provider="normlab")


class NormlabSweeper(BasicSweeper):
    """Hydra's grid, with four things that it lacks.

    Every job is composed and rehearsed before the first one trains; each gets a folder named by what makes it
    different; the sweep's table and figures are written also when a job failed or Ctrl-C came; and a sweep may be
    several grids, for arms that are not a product.

    Args:
        max_batch_size, params: as in Hydra's basic sweeper.
        grids: further values by key, a mapping for each grid, which are combined with ``params``. What is given on
            the command line stands in every grid.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        grids: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.grids: Sequence[Mapping[str, Any]] = grids or [{}]
        self.typed: set[str] = set()

    def sweep(self, arguments: list[str]) -> Any:
        """Train every combination of the arguments."""
        from normlab.report.close import close_sweep
        from normlab.report.plan import seed_plan

        assert self.config is not None
        self.typed = {override.get_key_element().lstrip("+~") for override in self.parsed(arguments)}
        jobs = self.jobs([*self._parse_config(), *arguments])
        require(len(jobs) > 0, "a sweep", "at least one combination of values", "none")
        self.check(jobs)
        folder = self.make_folder()
        for line in seed_plan([(self.composer.jobs[tuple(job)], self.composer.task(job)) for job in jobs], folder):
            log.info(line)
        try:
            return super().sweep(arguments)
        finally:
            close_sweep(folder)

    def parsed(self, arguments: list[str]) -> list[Override]:
        """Return what Hydra reads in words of the command line."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        return parser.parse_overrides(arguments)

    def jobs(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of each job."""
        return list(
            itertools.chain.from_iterable(self.split_arguments(self.parsed(arguments), self.max_batch_size))
        )

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:  # type: ignore[override]
        """Return the overrides of each job, in batches, each with the name of its folder among them."""
        assert self.config is not None
        found: dict[tuple[str, ...], None] = {}
        for grid in self.grids:
            own = self.parsed([f"{key}={value}" for key, value in grid.items() if key not in self.typed])
            for jobs in BasicSweeper.split_arguments([*overrides, *own], None):
                found |= dict.fromkeys(map(tuple, jobs))
        jobs = [list(job) for job in found]
        if not was_given(self.config, "hydra.sweep.subdir"):
            named = zip(jobs, run_names(jobs), strict=True)
            jobs = [[*job, f"hydra.sweep.subdir='{name}'"] for job, name in named]
        return list(BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size)) if jobs else []

    def check(self, jobs: list[list[str]]) -> None:
        """Refuse the sweep if one of its jobs cannot be trained, or its folder holds another run.

        Raises:
            ConfigError: the job's name and the reason.
        """
        from normlab.training.rehearsal import rehearse

        assert self.config is not None
        assert self.hydra_context is not None
        self.composer = composer = Composer(self.hydra_context.config_loader, self.config)
        if isinstance(self.launcher, PopulationLauncher):
            self.launcher.composer = composer
        again = was_given(self.config, "hydra.sweep.dir")
        names = run_names([[word for word in job if not word.startswith("hydra.")] for job in jobs])
        folders: dict[Path, str] = {}
        for number, (overrides, name) in enumerate(zip(jobs, names, strict=True)):
            try:
                composed = composer.compose(overrides, number)
                task, folder = composer.task(overrides), Path(composed.hydra.runtime.output_dir)
                rehearse(task)
                if folder in folders:
                    raise ConfigError(
                        f"hydra.sweep.subdir gives it the folder of {folders[folder]}, {folder.name}"
                    )
                if again:
                    require_own(folder, task)
                folders[folder] = name
            except HydraException:
                raise
            except Exception as error:
                raise ConfigError(f"{name}: {error}" if len(jobs) > 1 else str(error)) from error

    def validate_batch_is_legal(self, batch: Any) -> None:
        """Do nothing: :meth:`check` has composed every job."""

    def make_folder(self) -> Path:
        """Make the sweep's folder, one of its own unless a person named it, and let the jobs know."""
        assert isinstance(self.config, DictConfig)
        folder = Path(self.config.hydra.sweep.dir)
        if was_given(self.config, "hydra.sweep.dir"):
            require_sweep(folder)
            require_writable(folder)
            return folder
        require_writable(folder.parent)
        folder = free_folder(folder)
        with read_write(self.config), open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
            self.config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")
        return folder
