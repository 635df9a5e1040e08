"""Sweeper that searches with Optuna over the launchers' populations; see :class:`OptunaSweeper`.

Hydra executes the modules of plugins in the order of their names, and once more if they were imported before. The
name of this one follows that of ``sweeper``, so that the base class is the one that Hydra knows.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hydra_plugins.normlab.callback import finalizing
from hydra_plugins.normlab.composer import Composer
from hydra_plugins.normlab.override_checks import (
    SWEEP_KEYS,
    drop_inapplicable,
    is_overridden,
    key_of,
    missing_keys,
    parse,
    require_no_sweep_settings,
)
from hydra_plugins.normlab.search_options import pruning_override, require_optuna, sampler_settings
from hydra_plugins.normlab.search_space import Dimension, dimension_of
from hydra_plugins.normlab.study import (
    CURVE,
    JOURNAL,
    OVERRIDES,
    REPEATS,
    RUN,
    STUDY,
    Study,
    grid_size,
    open_storage,
    open_study,
    study_name,
)
from hydra_plugins.normlab.sweeper import NormlabSweeper, subdir_override
from normlab.config.schema import direction_of
from normlab.errors import ConfigError, first_line, require
from normlab.results.folder import run_name
from normlab.results.reading import read_curves
from normlab.results.result import Status
from normlab.results.sweep import Record

log = logging.getLogger("normlab")
N_TRIALS = 20
"""Number of trials by default."""
NOISY_LOGGERS = ("alembic.runtime.plugins", "alembic.runtime.migration")
"""Loggers that print several lines to stderr about the tables of a study's database."""
OBJECTIVE = ("optimized_metric", "direction")
"""Keys that say what is searched for."""
UNCOMPARED = ("retrain", *SWEEP_KEYS)
"""Keys that may differ between the commands of a study."""


@dataclass(frozen=True)
class Trial:
    """A trial with its number, the overrides of its run, and the run's folder in the sweep's."""

    number: int
    overrides: list[str]
    run: str

    @property
    def job(self) -> list[str]:
        """The overrides of the job."""
        return [*self.overrides, subdir_override(self.run)]


class OptunaSweeper(NormlabSweeper):
    """Searches with Optuna: every swept override is a dimension, each batch of trials one call of the launcher.

    The same command in the same folder continues the study.

    Attributes:
        known: keys that the configuration of some trial has; they are dropped for trials whose own lacks them.

    Args:
        sampler: of the trials.
        pruner: stops trials by the median rule, or none.
        direction: minimize or maximize; by default that of ``optimized_metric``.
        storage: URL of a database, or a journal file; by default a file in the sweep's folder.
        study_name: in the storage; by default a name by the overrides, so that the same command finds its study.
        n_trials: total number of trials of the study; by default ``N_TRIALS``, or all points of a grid.
        n_jobs: number of trials of a batch.
        max_failure_rate: largest share of failed trials of a batch with which the study continues.
        params: overrides by key; those of the command line take precedence.
        grids: refused; an experiment may set them for a sweep.
    """

    def __init__(
        self,
        sampler: Mapping[str, Any],
        pruner: Mapping[str, Any],
        direction: Any,
        storage: str | None,
        study_name: str | None,
        n_trials: int | None,
        n_jobs: int,
        max_failure_rate: float,
        params: Mapping[str, Any] | None = None,
        grids: Any = None,
    ) -> None:
        if grids is not None:
            raise ConfigError(
                "hydra.sweeper.grids, which claims and some experiments set, has no effect on a search; "
                "leave out hydra/sweeper=optuna"
            )
        require(n_trials is None or n_trials >= 1, "hydra.sweeper.n_trials", "null or at least 1", n_trials)
        require(n_jobs >= 1, "hydra.sweeper.n_jobs", "at least 1", n_jobs)
        valid = 0 <= max_failure_rate <= 1
        require(valid, "hydra.sweeper.max_failure_rate", "between 0 and 1", max_failure_rate)
        require(
            direction in (None, "minimize", "maximize"),
            "hydra.sweeper.direction",
            "minimize or maximize",
            direction,
        )
        super().__init__(None, {key: str(value) for key, value in (params or {}).items()})
        self.sampler, self.pruning = sampler_settings(sampler), pruning_override(pruner)
        self.direction, self.storage, self.study_name = direction, storage, study_name
        self.known: set[str] = set()
        self.n_trials, self.n_jobs, self.max_failure_rate = n_trials, n_jobs, max_failure_rate

    def sweep(self, arguments: list[str]) -> Any:
        """Validate the ends of the search space, train the trials in batches, and finalize the sweep."""
        assert self.config is not None
        require_optuna(self.sampler)
        from optuna.exceptions import ExperimentalWarning

        for name in NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        if self.config.get("claim"):
            raise ConfigError(
                "claim must be null in a search, as a claim is judged on its own sweep; leave out one of the two"
            )
        composer = self.make_composer()
        if is_overridden(self.config, "hydra.sweep.subdir"):
            raise ConfigError(
                "hydra.sweep.subdir has no effect with hydra/sweeper=optuna, which names runs by trial"
            )
        dimensions, fixed = self.search_space(arguments)
        fixed += self.pruning
        metric = str(self.config.optimized_metric)
        direction = self.study_direction()
        total = self.n_trials or N_TRIALS
        if self.sampler.kind == "grid":
            size = grid_size(dimensions)
            total = min(self.n_trials or size, size)
        self.check_search_space(dimensions, fixed, composer)
        shared = open_storage(self.storage) if self.storage else None
        folder = self.make_folder()
        with finalizing(folder, self.config), warnings.catch_warnings():
            # Optuna calls constant_liar and PartialFixedSampler experimental.
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.write_command(folder)
            compared = sorted(word for word in fixed if key_of(parse(word)) not in UNCOMPARED)
            command = {"metric": metric, "direction": direction, "overrides": compared}
            storage, is_own = shared or open_storage(str(folder / JOURNAL)), shared is None
            name = self.study_name or (STUDY if is_own else study_name(dimensions, command))
            opened = open_study(storage, name, direction, command)
            study = Study(opened, folder, is_own, dimensions, self.sampler, metric, direction)
            self.refuse_retraining(study)
            study.drop_unnamed()
            try:
                self.run_trials(study, total, fixed, composer)
            finally:
                study.write()
                for line in study.summary():
                    log.info(line)

    def study_direction(self) -> str:
        """Return min or max.

        Raises:
            ConfigError: if the sweeper's direction contradicts that of the metric, whose best epoch counts.
        """
        assert self.config is not None
        direction = direction_of(self.config.optimized_metric, self.config.direction)
        if self.direction not in (None, f"{direction}imize"):
            raise ConfigError(
                f"hydra.sweeper.direction must be {direction}imize, that of "
                f"optimized_metric={self.config.optimized_metric}, got {self.direction}; leave it out"
            )
        return direction

    def search_space(self, arguments: Sequence[str]) -> tuple[list[Dimension], list[str]]:
        """Return the dimensions of the swept overrides, and the overrides that all trials share.

        Raises:
            ConfigError: if nothing is swept.
        """
        overrides = self.parsed(arguments)
        overridden = {key_of(override) for override in overrides}
        params = self.parsed(f"{key}={value}" for key, value in self.params.items() if key not in overridden)
        together = [*params, *overrides]
        dimensions = [dimension_of(override) for override in together if override.is_sweep_override()]
        for dimension in dimensions:
            if dimension.key.lstrip("+") in OBJECTIVE:
                raise ConfigError(
                    f"{dimension.key.lstrip('+')} must be the same in all trials, whose objectives are compared, "
                    f"got {dimension.typed}; give it one value"
                )
        if not dimensions:
            raise ConfigError(
                "hydra/sweeper=optuna needs something to search; sweep an override, such as "
                "optimizer.lr='tag(log,interval(0.0001,0.1))'"
            )
        return dimensions, [str(override.input_line) for override in together if not override.is_sweep_override()]

    def check_search_space(
        self, dimensions: Sequence[Dimension], fixed: Sequence[str], composer: Composer
    ) -> None:
        """Validate the trials at the ends of the search space, before the first one trains.

        These are all combinations of group choices, each with one dimension at a time at its ends.
        """
        groups = [d for d in dimensions if composer.is_choice(parse(d.word(d.extremes[0])))]
        others = [d for d in dimensions if d not in groups]
        jobs: dict[tuple[str, ...], None] = {}
        for chosen in product(*(map(d.word, d.extremes) for d in groups)):
            first = [d.word(d.extremes[0]) for d in others]
            jobs[*fixed, *chosen, *first] = None
            for k, dimension in enumerate(others):
                for value in dimension.extremes[1:]:
                    jobs[*fixed, *chosen, *first[:k], dimension.word(value), *first[k + 1 :]] = None
        for words in jobs:
            keys = {key_of(parse(word)) for word in words}
            self.known |= keys - set(missing_keys(words, composer))
        applicable, lines = drop_inapplicable(list(jobs), composer)
        for job in {composer.choices(job): job for job in applicable}.values():
            require_no_sweep_settings(job, composer)
        self.check([[*job, subdir_override(str(k))] for k, job in enumerate(applicable)], composer)
        for line in lines:
            log.info(line)

    def write_command(self, folder: Path) -> None:
        """Write ``multirun.yaml``, as Hydra's sweepers do."""
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")

    def refuse_retraining(self, study: Study) -> None:
        """Raise ConfigError for ``retrain=true`` in a study with finished trials, whose values Optuna has used."""
        assert self.config is not None
        if self.config.get("retrain") and study.finished:
            raise ConfigError("retrain=true has no effect on a study's finished trials; choose another folder")

    def run_trials(self, study: Study, total: int, fixed: Sequence[str], composer: Composer) -> None:
        """Train batches of trials until the study has as many finished ones as asked for."""
        while True:
            trials = [Trial(t.number, t.user_attrs[OVERRIDES], t.user_attrs[RUN]) for t in study.open_trials()]
            # Trials that another process trains count, too.
            done = len(study.trials()) - len(trials)
            if done >= total and not trials:
                return
            if trials:
                log.info("training %d trials again that had not ended", len(trials))
            for trial in trials:
                study.begin(trial.number, trial.overrides, trial.run)
            number = min(self.n_jobs, total - done)
            trials += [self.next_trial(study, fixed, composer) for _ in range(number - len(trials))]
            best = study.best()
            so_far = "" if best is None else f"; best so far: trial {best.number}, {study.metric}={best.value:.4g}"
            log.info("trials %d to %d of %d%s", done + 1, done + len(trials), total, so_far)
            if self.pruning:
                from normlab.training.median_pruning import write_values  # imports torch

                write_values(study.folder, study.values())
            failures = self.run_batch(study, trials, composer)
            study.write()
            if len(failures) > self.max_failure_rate * len(trials):
                # The failed trials stay open, so that the repeated command trains them again.
                raise failures[next(iter(failures))]
            for number, error in failures.items():
                log.warning("trial %d failed: %s", number, first_line(error))
                study.tell_failure(number)

    def next_trial(self, study: Study, fixed: Sequence[str], composer: Composer) -> Trial:
        """Ask the study for a trial; overrides of keys that its configuration lacks are dropped."""
        number, params = study.ask()
        swept = [dimension.word(params[dimension.key]) for dimension in study.dimensions]
        missing = self.known.intersection(missing_keys([*fixed, *swept], composer))
        kept = [word for word in (*fixed, *swept) if key_of(parse(word)) not in missing]
        trial = Trial(number, kept, f"{number}_{run_name(word for word in swept if word in kept)}")
        study.begin(number, trial.overrides, trial.run)
        return trial

    def run_batch(self, study: Study, trials: Sequence[Trial], composer: Composer) -> dict[int, Exception]:
        """Train trials in one call of the launcher, and tell the study; return the errors of failed trials.

        A trial with the overrides of an earlier one gets its value, as it would be the same run.
        """
        assert self.launcher is not None
        batch = {trial.number for trial in trials}
        firsts = {trial.number: study.first_with(trial.overrides, trial.number, batch) for trial in trials}
        repeats = {number: first.number for number, first in firsts.items() if first is not None}
        failures: dict[int, Exception] = {}
        valid = []
        for trial in trials:
            if trial.number in repeats:
                continue
            try:
                self.check([trial.job], composer)
                valid.append(trial)
            except ConfigError as error:
                failures[trial.number] = error
        for trial, returned in zip(valid, self.launched(valid), strict=True):
            try:
                self.tell(study, trial, float(returned.return_value))
            except Exception as error:
                failures[trial.number] = error
        for number, first in repeats.items():
            self.repeat(study, number, first, failures)
        return failures

    def tell(self, study: Study, trial: Trial, value: float) -> None:
        """Tell the study the objective of a run, or that the median rule stopped it."""
        if not self.pruning:
            study.tell(trial.number, value)
            return
        record = Record.read(study.folder / trial.run)
        curve = read_curves([record]).query("metric == @study.metric").drop_duplicates("epoch")
        pairs = list(zip(curve["epoch"].tolist(), curve["value"].tolist(), strict=True))
        study.note(trial.number, CURVE, pairs)
        if record.result.status == Status.PRUNED:
            study.tell_pruned(trial.number, *pairs[-1])
        else:
            study.tell(trial.number, value)

    def launched(self, trials: Sequence[Trial]) -> Sequence[Any]:
        """Train trials in one call of the launcher."""
        assert self.launcher is not None
        return self.launcher.launch([trial.job for trial in trials], trials[0].number) if trials else []

    def repeat(self, study: Study, number: int, first: int, failures: dict[int, Exception]) -> None:
        """Tell the study the outcome of the trial that a trial repeats."""
        study.note(number, REPEATS, first)
        if first in failures:
            failures[number] = failures[first]
            return
        log.info("trial %d repeats trial %d, whose result it gets", number, first)
        trial = next(trial for trial in study.trials() if trial.number == first)
        if trial.state.name == "PRUNED":
            study.tell_pruned(number, *max(trial.intermediate_values.items()))
        else:
            study.tell(number, float("nan") if trial.value is None else trial.value)
