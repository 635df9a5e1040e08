"""Grid sweeper that validates all jobs before training; see :class:`NormlabSweeper`."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from hydra_plugins.normlab.callback import finalizing
from hydra_plugins.normlab.composer import Composer, job_environment, source_location
from hydra_plugins.normlab.launcher import PopulationLauncher, choose_folders, earlier_runs, fingerprint
from hydra_plugins.normlab.override_checks import (
    is_at_or_below,
    is_overridden,
    key_of,
    parse,
    require_single_option,
)
from normlab.config.validation import check_values
from normlab.errors import ConfigError, require
from normlab.results.folder import (
    free_folder,
    plain,
    require_run_folder,
    require_sweep_folder,
    require_writable,
    run_names,
)

log = logging.getLogger("normlab")

if TYPE_CHECKING:
    from normlab.report.plan import PlannedRun

Jobs = Sequence[Sequence[str]]


@dataclass
class NormlabSweeperConfig:
    """The arguments of :class:`NormlabSweeper`: those of Hydra's basic sweeper, and ``grids``."""

    _target_: str = "hydra_plugins.normlab.sweeper.NormlabSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None
    grids: Any = None


ConfigStore.instance().store(group="hydra/sweeper", name="normlab", node=NormlabSweeperConfig, provider="normlab")


class NormlabSweeper(BasicSweeper):
    """Extends Hydra's basic sweeper.

    - Every job is composed and dry-run before the first one trains.
    - Each job's folder is named by the overrides in which the jobs differ.
    - The sweep's table and figures are written even if a job fails or the user presses Ctrl-C.
    - A sweep may be a union of several grids, for arms that do not form a product.

    Args:
        max_batch_size, params: as in Hydra's basic sweeper.
        grids: one mapping from key to values per grid; each grid is combined with ``params``. Overrides of the
            command line apply to every grid.
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
        """Validate and train every combination of the overrides, then finalize the sweep."""
        composer = self.make_composer()
        jobs, lines = drop_inapplicable(self.combinations(arguments), composer)
        require(len(jobs) > 0, "a sweep", "at least one combination of values", "none")
        for job in {composer.choices(job): job for job in jobs}.values():
            require_no_sweep_settings(job, composer)
        self.jobs = self.with_folders(jobs, composer)
        self.check(self.jobs, composer)
        for line in lines:
            log.info(line)
        folder = self.make_folder()
        from normlab.report.plan import seed_plan  # imports scipy

        for line in seed_plan(list(self.planned(composer)), folder):
            log.info(line)
        assert self.config is not None
        with finalizing(folder, self.config):
            return super().sweep(arguments)

    def make_composer(self) -> Composer:
        """Create the composer of the jobs and share it with the population launcher."""
        assert self.config is not None
        assert self.hydra_context is not None
        composer = Composer(self.hydra_context.config_loader, self.config)
        if isinstance(self.launcher, PopulationLauncher):
            self.launcher.composer = composer
        return composer

    def parsed(self, arguments: Iterable[str]) -> list[Override]:
        """Parse overrides with Hydra's parser."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        return parser.parse_overrides(list(arguments))

    def combinations(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of each job; the command line takes precedence over ``params`` and ``grids``."""
        overrides = self.parsed(arguments)
        overridden = {key_of(override) for override in overrides}
        combined: dict[tuple[str, ...], None] = {}
        for grid in self.grids:
            grid_overrides, params = (
                self.parsed(f"{key}={value}" for key, value in values.items() if key not in overridden)
                for values in (grid, self.params)
            )
            for jobs in BasicSweeper.split_arguments([*params, *overrides, *grid_overrides], None):
                combined |= dict.fromkeys(map(tuple, jobs))
        return [list(job) for job in combined]

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:  # type: ignore[override]
        """Return the validated jobs in batches of ``max_batch_size``, instead of splitting ``overrides``."""
        return list(BasicSweeper.split_overrides_to_chunks(self.jobs, max_batch_size))

    def with_folders(self, jobs: list[list[str]], composer: Composer) -> list[list[str]]:
        """Add to each job an override that names its folder.

        In a resumed sweep, a job whose configuration was trained under another name keeps that run's folder.
        """
        assert self.config is not None
        if is_overridden(self.config, "hydra.sweep.subdir"):
            return jobs
        names = run_names(jobs)
        folder = Path(self.config.hydra.sweep.dir)
        earlier = earlier_runs(folder) if is_overridden(self.config, "hydra.sweep.dir") else {}
        if earlier:
            named = zip(jobs, names, strict=True)
            fingerprints = [
                self.fingerprint([*job, subdir_override(name)], number, composer)
                for number, (job, name) in enumerate(named)
            ]
            names = choose_folders(names, fingerprints, earlier)
        return [[*job, subdir_override(name)] for job, name in zip(jobs, names, strict=True)]

    def fingerprint(self, job: list[str], number: int, composer: Composer) -> str:
        """Return the fingerprint of a job's configuration, or "" if it cannot be resolved."""
        config = composer.compose(job, number)
        try:
            with job_environment(config):
                return fingerprint(plain(composer.task(job, config)))
        except OmegaConfBaseException:  # the validation that follows reports it
            return ""

    def check(self, jobs: list[list[str]], composer: Composer) -> None:
        """Validate all jobs: configuration, dry run, distinct folders, and earlier runs in those folders.

        The values of all jobs come first, because this needs no torch and so takes no time.

        Raises:
            ConfigError: for the first invalid job, with its name and the reason.
        """
        assert self.config is not None
        may_resume, timing = is_overridden(self.config, "hydra.sweep.dir"), self.config.get("timing")
        folders: dict[Path, str] = {}

        def check_job(name: str, overrides: Sequence[str], composed: DictConfig) -> None:
            require_single_option(map(parse, overrides))
            task, folder = composer.task(overrides, composed), Path(composed.hydra.runtime.output_dir)
            if folder in folders:
                raise ConfigError(
                    f"hydra.sweep.subdir must differ between jobs, got {folder.name}, as for {folders[folder]}"
                )
            folders[folder] = name
            check_values(task)
            if task.timing != timing:
                raise ConfigError(
                    f"timing must be the same in all runs of a sweep, got {task.timing} for this run; "
                    "add timing=true or timing=false"
                )

        def try_job(name: str, overrides: Sequence[str], composed: DictConfig) -> None:
            from normlab.training.dry_run import dry_run_once

            task = composer.task(overrides, composed)
            dry_run_once(task)
            if may_resume:
                require_run_folder(Path(composed.hydra.runtime.output_dir), task)

        for validate in (check_job, try_job):
            self.validate_jobs(jobs, composer, validate)

    def validate_jobs(
        self, jobs: list[list[str]], composer: Composer, validate: Callable[[str, Sequence[str], DictConfig], None]
    ) -> None:
        """Compose each job and validate it; errors are prefixed with the job's name."""
        names = run_names([[word for word in job if not word.startswith("hydra.")] for job in jobs])
        for number, (overrides, name) in enumerate(zip(jobs, names, strict=True)):
            try:
                composed = composer.compose(overrides, number)
                with job_environment(composed):
                    validate(name, overrides, composed)
            except HydraException:
                raise
            except Exception as error:
                message = f"{source_location(error, composer.master)}{error}"
                raise ConfigError(f"{name}: {message}" if len(jobs) > 1 else message) from error

    def planned(self, composer: Composer) -> "Iterator[PlannedRun]":
        """Yield the planned run of each job, for the seed plan."""
        from normlab.report.plan import PlannedRun
        from normlab.training.build import data_traits

        for number, job in enumerate(self.jobs):
            composed = composer.compose(job, number)
            with job_environment(composed):
                task = composer.task(job, composed)
                yield PlannedRun.of(composed, task, *data_traits(task.data))

    def validate_batch_is_legal(self, batch: Any) -> None:
        """Do nothing: :meth:`check` has composed every job."""

    def make_folder(self) -> Path:
        """Create the sweep's folder and pass its path to the jobs; a name already in use gets a number.

        A folder set by ``hydra.sweep.dir`` is used as it is if it is empty or holds a sweep.
        """
        assert isinstance(self.config, DictConfig)
        folder = Path(self.config.hydra.sweep.dir)
        if is_overridden(self.config, "hydra.sweep.dir"):
            require_sweep_folder(folder)
            require_writable(folder)
            return folder
        require_writable(folder.parent)
        folder = free_folder(folder)
        with read_write(self.config), open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
            self.config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")
        return folder


def subdir_override(name: str) -> str:
    """Return the quoted override ``hydra.sweep.subdir=…`` for a folder name."""
    return f"hydra.sweep.subdir={QuotedString(name, Quote.single).with_quotes()}"


def require_no_sweep_settings(job: list[str], composer: Composer) -> None:
    """Reject a job whose choices set the sweeper, launcher or sweep; these are fixed for the whole sweep.

    Raises:
        ConfigError: with the choice, such as one of several experiments that defines a sweep.
    """
    chosen, master = (config.hydra for config in (composer.choose(job), composer.master))
    for part in ("sweeper", "launcher", "sweep"):
        if OmegaConf.to_container(chosen[part]) != OmegaConf.to_container(master[part]):
            choices = composer.choices(job)
            words = [word for word in choices if word.startswith("experiment=")] or choices
            raise ConfigError(
                f"{' '.join(words)} sets hydra.{part}, which has no effect for single jobs of a sweep; "
                f"run it as a separate sweep: -m {' '.join(words)}"
            )


def drop_inapplicable(jobs: Jobs, composer: Composer) -> tuple[list[list[str]], list[str]]:
    """Remove overrides from jobs whose config lacks the key, if another job of the sweep has it.

    Returns:
        The jobs without duplicates, and a log line for each key that does not apply to all jobs.
    """
    lacking = [set(missing_keys(job, composer)) for job in jobs]
    known = {
        key
        for job, missing in zip(jobs, lacking, strict=True)
        for word in job
        if (key := key_of(parse(word))) not in missing
    }
    reduced = {
        tuple(word for word in job if (key := key_of(parse(word))) not in missing or key not in known): None
        for job, missing in zip(jobs, lacking, strict=True)
    }
    partial = dict.fromkeys(key for missing in lacking for key in sorted(missing & known))
    lines = [
        f"{key} does not apply to {', '.join(choices_without_key(jobs, lacking, key, composer))}"
        for key in partial
    ]
    return [list(job) for job in reduced], lines


def missing_keys(job: Sequence[str], composer: Composer) -> Iterator[str]:
    """Yield the keys of a job's overrides that its config lacks; ``+key`` needs only the parent group."""
    config = composer.choose(job)
    introduced: list[str] = []
    for override in map(parse, job):
        key = override.key_or_group
        if override.is_hydra_override() or composer.is_choice(override):
            continue
        adds = override.is_add() or override.is_force_add()
        if not (config_has(config, override, adds) or any(is_at_or_below(key, new) for new in introduced)):
            yield key_of(override)
        if adds or isinstance(override.value(), dict):
            introduced.append(key)


def config_has(config: DictConfig, override: Override, adds: bool) -> bool:
    """Return True if a config has the key of an override, or the parent group if the override adds a key."""
    parent, _, name = override.key_or_group.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if isinstance(node, ListConfig):
        return True
    is_group = isinstance(node, DictConfig) and not node._is_none()
    return is_group and (adds or name in node.keys())  # noqa: SIM118 - `in` is False for keys with a missing value


def choices_without_key(jobs: Jobs, lacking: Sequence[set[str]], key: str, composer: Composer) -> list[str]:
    """Return the choices of a key's group that lack the key, or job names if these are ambiguous."""
    group = key.partition(".")[0]
    labels = [f"{group}={composer.choose(job).hydra.runtime.choices.get(group)}" for job in jobs]
    without = {label for label, missing in zip(labels, lacking, strict=True) if key in missing}
    if without & {label for label, missing in zip(labels, lacking, strict=True) if key not in missing}:
        labels = run_names(jobs)
    return list(dict.fromkeys(label for label, missing in zip(labels, lacking, strict=True) if key in missing))
