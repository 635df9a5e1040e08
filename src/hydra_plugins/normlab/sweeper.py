"""Grid sweeper: checks all jobs before the first one trains, and always closes the sweep."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.normlab.callback import closing
from hydra_plugins.normlab.composer import Composer, environment_of, place_of
from hydra_plugins.normlab.launcher import PopulationLauncher, choose_folders, earlier_runs, fingerprint
from hydra_plugins.normlab.typed import is_at_or_below, key_of, parse, require_one_of_each, was_typed
from normlab.errors import ConfigError, require
from normlab.results.folder import free_folder, plain, require_own, require_sweep, require_writable, run_names

log = logging.getLogger("normlab")

if TYPE_CHECKING:
    from normlab.report.plan import PlannedRun

Jobs = Sequence[Sequence[str]]


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
        sized = max_batch_size is None or max_batch_size >= 1
        require(sized, "hydra.sweeper.max_batch_size", "null or at least 1", max_batch_size)
        super().__init__(max_batch_size, params)
        self.grids: Sequence[Mapping[str, Any]] = grids or [{}]
        self.jobs: list[list[str]] = []

    def sweep(self, arguments: list[str]) -> Any:
        """Train every combination of the arguments."""
        from normlab.report.plan import seed_plan

        composer = self.make_composer()
        jobs, sentences = applicable(self.combinations(arguments), composer)
        require(len(jobs) > 0, "a sweep", "at least one combination of values", "none")
        for job in {composer.choices(job): job for job in jobs}.values():
            require_no_settings_of_its_own(job, composer)
        self.jobs = self.with_folders(jobs, composer)
        self.check(self.jobs, composer)
        for sentence in sentences:
            log.info(sentence)
        folder = self.make_folder()
        for line in seed_plan(list(self.planned(composer)), folder):
            log.info(line)
        assert self.config is not None
        with closing(folder, self.config):
            return super().sweep(arguments)

    def make_composer(self) -> Composer:
        """Return the composer of the jobs; the population launcher uses the same one."""
        assert self.config is not None
        assert self.hydra_context is not None
        composer = Composer(self.hydra_context.config_loader, self.config)
        if isinstance(self.launcher, PopulationLauncher):
            self.launcher.composer = composer
        return composer

    def parsed(self, arguments: Iterable[str]) -> list[Override]:
        """Parse words of the command line as Hydra does."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        return parser.parse_overrides(list(arguments))

    def combinations(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of each job: params, grids and what was typed, which stands before both."""
        given = self.parsed(arguments)
        typed = {key_of(override) for override in given}
        found: dict[tuple[str, ...], None] = {}
        for grid in self.grids:
            own, params = (
                self.parsed(f"{key}={value}" for key, value in values.items() if key not in typed)
                for values in (grid, self.params)
            )
            for jobs in BasicSweeper.split_arguments([*params, *given, *own], None):
                found |= dict.fromkeys(map(tuple, jobs))
        return [list(job) for job in found]

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:  # type: ignore[override]
        """Return the overrides of each job that was checked, in batches."""
        return list(BasicSweeper.split_overrides_to_chunks(self.jobs, max_batch_size))

    def with_folders(self, jobs: list[list[str]], composer: Composer) -> list[list[str]]:
        """Return the jobs with the name of each one's folder among its overrides.

        A sweep that is given its folder again finds the runs below it by their configuration: one trained before
        under another name keeps its folder.
        """
        assert self.config is not None
        if was_typed(self.config, "hydra.sweep.subdir"):
            return jobs
        names = run_names(jobs)
        folder = Path(self.config.hydra.sweep.dir)
        earlier = earlier_runs(folder) if was_typed(self.config, "hydra.sweep.dir") else {}
        if earlier:
            named = zip(jobs, names, strict=True)
            prints = [
                self.fingerprint([*job, subdir(name)], number, composer)
                for number, (job, name) in enumerate(named)
            ]
            names = choose_folders(names, prints, earlier)
        return [[*job, subdir(name)] for job, name in zip(jobs, names, strict=True)]

    def fingerprint(self, job: list[str], number: int, composer: Composer) -> str:
        """Return the fingerprint of a job's configuration, empty if it cannot be resolved."""
        config = composer.compose(job, number)
        try:
            with environment_of(config):
                return fingerprint(plain(composer.task(job, config)))
        except OmegaConfBaseException:  # the check that follows names the job and the reason
            return ""

    def check(self, jobs: list[list[str]], composer: Composer) -> None:
        """Refuse the sweep if one of its jobs cannot be trained, or its folder holds another run.

        Raises:
            ConfigError: the job's name and the reason.
        """
        from normlab.training.dry_run import dry_run_once

        assert self.config is not None
        again = was_typed(self.config, "hydra.sweep.dir")
        names = run_names([[word for word in job if not word.startswith("hydra.")] for job in jobs])
        folders: dict[Path, str] = {}
        for number, (overrides, name) in enumerate(zip(jobs, names, strict=True)):
            try:
                composed = composer.compose(overrides, number)
                require_one_of_each(map(parse, overrides))
                task, folder = composer.task(overrides, composed), Path(composed.hydra.runtime.output_dir)
                if folder in folders:
                    raise ConfigError(
                        f"hydra.sweep.subdir gives it the folder of {folders[folder]}, {folder.name}"
                    )
                with environment_of(composed):
                    dry_run_once(task)
                    if task.timing != self.config.get("timing"):
                        raise ConfigError(
                            f"timing must be the same for a whole sweep, got {task.timing} for this run alone; "
                            "type timing=true or timing=false"
                        )
                    if again:
                        require_own(folder, task)
                folders[folder] = name
            except HydraException:
                raise
            except Exception as error:
                said = f"{place_of(error, composer.master)}{error}"
                raise ConfigError(f"{name}: {said}" if len(jobs) > 1 else said) from error

    def planned(self, composer: Composer) -> "Iterator[PlannedRun]":
        """Yield the jobs, as they are planned to be trained."""
        from normlab.report.plan import PlannedRun
        from normlab.training.build import data_traits

        for number, job in enumerate(self.jobs):
            composed = composer.compose(job, number)
            with environment_of(composed):
                task = composer.task(job, composed)
                yield PlannedRun.of(composed, task, *data_traits(task.data))

    def validate_batch_is_legal(self, batch: Any) -> None:
        """Do nothing: :meth:`check` has composed every job."""

    def make_folder(self) -> Path:
        """Make the sweep's folder, one of its own unless a person named it, and let the jobs know."""
        assert isinstance(self.config, DictConfig)
        folder = Path(self.config.hydra.sweep.dir)
        if was_typed(self.config, "hydra.sweep.dir"):
            require_sweep(folder)
            require_writable(folder)
            return folder
        require_writable(folder.parent)
        folder = free_folder(folder)
        with read_write(self.config), open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
            self.config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")
        return folder


def subdir(name: str) -> str:
    """Return the override that names a job's folder."""
    return f"hydra.sweep.subdir={QuotedString(name, Quote.single).with_quotes()}"


def require_no_settings_of_its_own(job: list[str], composer: Composer) -> None:
    """Refuse a job with a choice that sets how a sweep is carried out: a sweep is carried out in one way.

    Raises:
        ConfigError: the choice, as an experiment with a sweep of its own among several.
    """
    chosen, master = (config.hydra for config in (composer.choose(job), composer.master))
    for part in ("sweeper", "launcher", "sweep"):
        if OmegaConf.to_container(chosen[part]) != OmegaConf.to_container(master[part]):
            choices = composer.choices(job)
            words = [word for word in choices if word.startswith("experiment=")] or choices
            raise ConfigError(
                f"{' '.join(words)} sets hydra.{part}, which has no effect where it is one of several; "
                f"give it a sweep of its own: -m {' '.join(words)}"
            )


def applicable(jobs: Jobs, composer: Composer) -> tuple[list[list[str]], list[str]]:
    """Leave an override out of the jobs that lack its key, where at least one other job of the sweep has it.

    Returns:
        The jobs, those that became equal once; and a sentence for each key that does not apply everywhere.
    """
    lacking = [set(missing_keys(job, composer)) for job in jobs]
    had = {
        key
        for job, missing in zip(jobs, lacking, strict=True)
        for word in job
        if (key := key_of(parse(word))) not in missing
    }
    kept = {
        tuple(word for word in job if (key := key_of(parse(word))) not in missing or key not in had): None
        for job, missing in zip(jobs, lacking, strict=True)
    }
    partial = dict.fromkeys(key for missing in lacking for key in sorted(missing & had))
    sentences = [f"{key} does not apply to {', '.join(where(jobs, lacking, key, composer))}" for key in partial]
    return [list(job) for job in kept], sentences


def missing_keys(job: Sequence[str], composer: Composer) -> Iterator[str]:
    """Yield the keys of a job's overrides that its config lacks; of a key to add, its group counts."""
    config = composer.choose(job)
    introduced: list[str] = []
    for override in map(parse, job):
        key = override.key_or_group
        if override.is_hydra_override() or composer.is_choice(override):
            continue
        adds = override.is_add() or override.is_force_add()
        if not (config_has(config, override, adds) or any(is_at_or_below(key, own) for own in introduced)):
            yield key_of(override)
        if adds or isinstance(override.value(), dict):
            introduced.append(key)


def config_has(config: DictConfig, override: Override, adds: bool) -> bool:
    """Return whether a config has the key of an override, or the group that a key is added to."""
    parent, _, name = override.key_or_group.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if isinstance(node, ListConfig):
        return True
    is_group = isinstance(node, DictConfig) and not node._is_none()
    return is_group and (adds or name in node.keys())  # noqa: SIM118 - `in` leaves out what is missing


def where(jobs: Jobs, lacking: Sequence[set[str]], key: str, composer: Composer) -> list[str]:
    """Return the choices of a key's group that lack it, or the names of the jobs where those do not tell."""
    group = key.partition(".")[0]
    labels = [f"{group}={composer.choose(job).hydra.runtime.choices.get(group)}" for job in jobs]
    without = {label for label, missing in zip(labels, lacking, strict=True) if key in missing}
    if without & {label for label, missing in zip(labels, lacking, strict=True) if key not in missing}:
        labels = run_names(jobs)
    return list(dict.fromkeys(label for label, missing in zip(labels, lacking, strict=True) if key in missing))
