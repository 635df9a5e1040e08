"""A grid sweep whose jobs are all checked before the first one trains, and that is always closed."""

import itertools
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


@dataclass
class NormlabSweeperConfig:
    """The arguments of :class:`NormlabSweeper`, which are those of Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.normlab.sweeper.NormlabSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="normlab", node=NormlabSweeperConfig, provider="normlab")


class NormlabSweeper(BasicSweeper):
    """Hydra's grid, with three things that it lacks.

    Every job is composed and rehearsed before the first one trains; each gets a folder named by what makes it
    different; and the sweep's table and figures are written also when a job failed or Ctrl-C came.
    """

    def sweep(self, arguments: list[str]) -> Any:
        """Train every combination of the arguments."""
        from normlab.report.close import close_sweep

        assert self.config is not None
        jobs = self.jobs([*self._parse_config(), *arguments])
        require(len(jobs) > 0, "a sweep", "at least one combination of values", "none")
        self.check(jobs)
        folder = self.make_folder()
        try:
            return super().sweep(arguments)
        finally:
            close_sweep(folder)

    def jobs(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of each job."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batches = self.split_arguments(parser.parse_overrides(arguments), self.max_batch_size)
        return list(itertools.chain.from_iterable(batches))

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:  # type: ignore[override]
        """Return the overrides of each job, in batches, each with the name of its folder among them."""
        assert self.config is not None
        batches = BasicSweeper.split_arguments(overrides, max_batch_size)
        if was_given(self.config, "hydra.sweep.subdir"):
            return batches
        names = iter(run_names([job for batch in batches for job in batch]))
        return [[[*job, f"hydra.sweep.subdir='{next(names)}'"] for job in batch] for batch in batches]

    def check(self, jobs: list[list[str]]) -> None:
        """Refuse the sweep if one of its jobs cannot be trained, or its folder holds another run.

        Raises:
            ConfigError: the job's name and the reason.
        """
        from normlab.training.rehearsal import rehearse

        assert self.config is not None
        assert self.hydra_context is not None
        composer = Composer(self.hydra_context.config_loader, self.config)
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
