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
from hydra.core.utils import env_override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydra_plugins.normlab.callback import finalizing
from hydra_plugins.normlab.composer import Composer, Job
from hydra_plugins.normlab.launcher import PopulationLauncher
from hydra_plugins.normlab.override_checks import (
    drop_inapplicable,
    is_overridden,
    key_of,
    parse,
    require_distinct_values,
    require_no_sweep_settings,
    require_single_option,
)
from normlab.config.frozen import fingerprint, recorded
from normlab.config.schema import RECORDS
from normlab.config.validation import check_values
from normlab.error_messages import source_location
from normlab.errors import ConfigError, require
from normlab.results.folder import (
    choose_folders,
    free_folder,
    group_choices,
    read_configuration,
    require_run_folder,
    require_sweep_folder,
    require_writable,
    run_names,
)
from normlab.results.result import Objective, Result, Status
from normlab.results.sweep import run_folders

SWEEP_OPTIONS = {"timing": ("true", "false"), "records": RECORDS}
"""Keys that all runs of a sweep have in common, with their values."""
log = logging.getLogger("normlab")

if TYPE_CHECKING:
    from normlab.report.plan import PlannedRun
    from normlab.training.stackability import DryRun


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
        assert self.config is not None
        if self.config.get("claim"):
            from normlab.claims.judge import Command  # imports pandas and scipy

            values: Any = OmegaConf.to_container(self.config)
            Command.of(values)
        composer = self.make_composer()
        jobs, lines = drop_inapplicable(self.combinations(arguments), composer)
        require(len(jobs) > 0, "a sweep", "at least one combination of values", "none")
        for job in {composer.choices(job): job for job in jobs}.values():
            require_no_sweep_settings(job, composer)
        self.jobs = self.with_folders(jobs, composer)
        dry_runs = self.check(self.jobs, composer)
        for line in lines:
            log.info(line)
        folder = self.make_folder()
        from normlab.report.plan import seed_plan  # imports scipy

        for line in seed_plan(list(self.planned(composer, dry_runs)), folder):
            log.info(line)
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
        refuse_intervals(overrides)
        overridden = {key_of(override) for override in overrides}
        combined: dict[tuple[str, ...], None] = {}
        for grid in self.grids:
            grid_overrides, params = (
                self.parsed(f"{key}={value}" for key, value in values.items() if key not in overridden)
                for values in (grid, self.params)
            )
            refuse_intervals((*params, *grid_overrides))
            require_distinct_values((*params, *grid_overrides))
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
            named = [[*job, subdir_override(name)] for job, name in zip(jobs, names, strict=True)]
            configs = [composer.compose(job, number).config for number, job in enumerate(named)]
            # The validation that follows reports errors.
            marks = ["" if isinstance(config, ConfigError) else fingerprint(config) for config in configs]
            names = choose_folders(names, marks, earlier)
        return [[*job, subdir_override(name)] for job, name in zip(jobs, names, strict=True)]

    def check(self, jobs: list[list[str]], composer: Composer) -> "list[DryRun]":
        """Validate all jobs: configuration, dry run, distinct folders, and earlier runs in those folders.

        The values of all jobs come first, because this needs no torch and so takes no time.

        Raises:
            ConfigError: for the first invalid job, with its name and the reason.
        """
        assert self.config is not None
        may_resume = is_overridden(self.config, "hydra.sweep.dir")
        common = {key: self.config.get(key) for key in SWEEP_OPTIONS}
        folders: dict[Path, str] = {}

        def check_job(name: str, words: Sequence[str], job: Job) -> None:
            require_single_option(map(parse, words))
            if job.folder in folders:
                first = folders[job.folder]
                raise ConfigError(
                    f"hydra.sweep.subdir must differ between jobs, got {job.folder.name}, as for {first}"
                )
            folders[job.folder] = name
            own = check_values(job.values)
            for key, value in common.items():
                if own[key] != value:
                    raise ConfigError(
                        f"{key} must be the same in all runs of a sweep, got {own[key]} for this run; "
                        f"add {' or '.join(f'{key}={option}' for option in SWEEP_OPTIONS[key])}"
                    )

        def try_job(name: str, words: Sequence[str], job: Job) -> "DryRun":
            from normlab.training.dry_run import dry_run_once  # imports torch

            outcome = dry_run_once(job.values)
            if may_resume:
                require_run_folder(job.folder, job.values)
            return outcome

        self.validate_jobs(jobs, composer, check_job)
        return self.validate_jobs(jobs, composer, try_job)

    def validate_jobs(
        self, jobs: list[list[str]], composer: Composer, validate: Callable[[str, Sequence[str], Job], Any]
    ) -> list[Any]:
        """Compose each job and validate it; errors are prefixed with the job's name."""
        names = run_names([[word for word in job if not word.startswith("hydra.")] for job in jobs])
        outcomes = []
        for number, (words, name) in enumerate(zip(jobs, names, strict=True)):
            try:
                job = composer.compose(words, number)
                with env_override(job.hydra["job"]["env_set"]):
                    outcomes.append(validate(name, words, job))
            except HydraException:
                raise
            except Exception as error:
                message = f"{source_location(error, composer.master)}{error}"
                raise ConfigError(f"{name}: {message}" if len(jobs) > 1 else message) from error
        return outcomes

    def planned(self, composer: Composer, dry_runs: "Sequence[DryRun]") -> "Iterator[PlannedRun]":
        """Yield the planned run of each job, for the seed plan."""
        from normlab.report.plan import PlannedRun

        for number, (words, dry_run) in enumerate(zip(self.jobs, dry_runs, strict=True)):
            job = composer.compose(words, number)
            result = Result(
                name="",
                status=Status.FINISHED,
                config=recorded(job.values),
                choices=group_choices(job.hydra["runtime"]["choices"]),
                overrides=job.overrides,
                objective=Objective("", "", 0.0),
                data={"generated": dry_run.generated},
            )
            yield PlannedRun(job.written, result, job.folder, dry_run.classes)

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


def refuse_intervals(overrides: Iterable[Override]) -> None:
    """Raise ConfigError for an interval, whose values a grid does not have."""
    for override in overrides:
        if override.is_interval_sweep():
            raise ConfigError(
                f"{override.input_line}: an interval needs a search; add hydra/sweeper=optuna, or write values or "
                "range"
            )


def subdir_override(name: str) -> str:
    """Return the quoted override ``hydra.sweep.subdir=…`` for a folder name."""
    return f"hydra.sweep.subdir={QuotedString(name, Quote.single).with_quotes()}"


def earlier_runs(folder: Path) -> dict[str, list[str]]:
    """Map the fingerprint of each run in a sweep's folder to the run's paths relative to that folder."""
    by_fingerprint: dict[str, list[str]] = {}
    for path in sorted(run_folders(folder)):
        configuration = read_configuration(path)
        if configuration is not None:
            by_fingerprint.setdefault(fingerprint(configuration), []).append(path.relative_to(folder).as_posix())
    return by_fingerprint
