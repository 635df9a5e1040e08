"""An Optuna study that resumes: asks for batches of trials, is told their outcomes; the entry is :class:`Study`.

Optuna is imported where it is used, as Hydra imports this module at every start.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_plugins.normlab.search_space import Dimension
from normlab.errors import ConfigError, first_line
from normlab.execution.state import DRIVER, SweepState
from normlab.results.folder import to_yaml
from normlab.results.result import worst_value, write_atomically

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

JOURNAL, STUDY = "optuna.journal", "search"
RESULTS_FILE = "optimization_results.yaml"
OVERRIDES, SWEEP, RUN = "overrides", "sweep", "run"
"""User attributes of a trial: the overrides of its run, its sweep's folder, and its folder in it."""
REPEATS, DIVERGED = "repeats", "diverged"
"""User attributes of a trial: the trial that it repeats, and whether its run diverged."""
CURVE = "curve"
"""User attribute of a trial: pairs of epoch and metric, for the median rule."""
COMMAND = "command"
"""User attribute of a study: what all its trials have in common."""


@dataclass(frozen=True)
class SamplerSettings:
    """A sampler by name (tpe, grid or random), with its options."""

    kind: str
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def sampler(self, number: int, dimensions: Sequence[Dimension]) -> "optuna.samplers.BaseSampler":
        """Return the sampler of a trial; with a seed it is reproducible, whatever has been sampled before.

        A generator of one study for all trials would repeat its first numbers when the study resumes. The grid of
        Optuna has no order of its own, so that a resumed or shorter search would have other points.
        """
        import numpy as np
        from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler

        if self.kind == "grid":
            point = next(islice(product(*(d.values for d in dimensions)), number, None))
            fixed = {d.key: value for d, value in zip(dimensions, point, strict=True)}
            return PartialFixedSampler(fixed, RandomSampler())
        seed = None if self.seed is None else int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.kind == "tpe":
            # Otherwise the trials of a batch would be sampled as if the others did not exist.
            return TPESampler(seed=seed, constant_liar=True, **self.options)
        return RandomSampler(seed=seed)


class Study:
    """An Optuna study of a sweep.

    Args:
        study: of Optuna.
        folder: of the sweep.
        is_own: whether the storage belongs to this sweep alone.
        dimensions: of the search space.
        sampler: its settings.
        metric, direction: the objective.
    """

    def __init__(
        self,
        study: "optuna.Study",
        folder: Path,
        is_own: bool,
        dimensions: Sequence[Dimension],
        sampler: SamplerSettings,
        metric: str,
        direction: str,
    ) -> None:
        self.study, self.folder, self.is_own = study, folder, is_own
        self.dimensions, self.sampler = dimensions, sampler
        self.metric, self.direction = metric, direction

    def trials(self, *states: str) -> "list[FrozenTrial]":
        """Return the trials with an override list, in states such as ``COMPLETE``; by default in all.

        A process that is killed while it asks for a trial leaves one without.
        """
        trials = self.study.get_trials(deepcopy=False)
        return [t for t in trials if OVERRIDES in t.user_attrs and (not states or t.state.name in states)]

    @property
    def finished(self) -> "list[FrozenTrial]":
        """Trials that have ended."""
        return [trial for trial in self.trials() if trial.state.is_finished()]

    def open_trials(self) -> "list[FrozenTrial]":
        """Return the trials that were running when the command of their sweep ended."""
        return [trial for trial in self.trials("RUNNING") if self.is_own or self.is_left(trial)]

    def is_left(self, trial: "FrozenTrial") -> bool:
        """Return True for a trial of this sweep, or of one whose folder is here and which no process trains."""
        sweep = Path(trial.user_attrs[SWEEP])
        return sweep == self.folder.absolute() or (sweep.is_dir() and not SweepState(sweep).is_locked(DRIVER))

    def drop_unnamed(self) -> None:
        """Fail the trials that a process left when it was killed while it asked for them."""
        for trial in self.study.get_trials(deepcopy=False) if self.is_own else ():
            if trial.state.name == "RUNNING" and OVERRIDES not in trial.user_attrs:
                self.tell_failure(trial.number)

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Begin a trial; return its number and the value of each key.

        Raises:
            ConfigError: if the study has another search space.
        """
        self.study.sampler = self.sampler.sampler(len(self.trials()), self.dimensions)
        try:
            trial = self.study.ask({d.key: d.distribution() for d in self.dimensions})
        except ValueError as error:
            raise ConfigError(
                f"{self.folder} holds a study with another search space ({error}); repeat its command, or choose "
                "another folder or hydra.sweeper.study_name"
            ) from error
        return trial.number, self.parameters(trial)

    def parameters(self, trial: "optuna.Trial | FrozenTrial") -> dict[str, Any]:
        """Return the value of each key with which a trial is trained."""
        return {d.key: d.trained(trial.params[d.key]) for d in self.dimensions}

    def begin(self, number: int, overrides: Sequence[str], run: str) -> None:
        """Record the run of a trial."""
        attributes = {SWEEP: str(self.folder.absolute()), RUN: run, OVERRIDES: list(overrides)}
        for key, value in attributes.items():
            self.note(number, key, value)

    def note(self, number: int, key: str, value: Any) -> None:
        """Set a user attribute of a trial."""
        storage = self.study._storage
        storage.set_trial_user_attr(
            storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number), key, value
        )

    def tell_pruned(self, number: int, epoch: int, value: float) -> None:
        """Finish a trial that the median rule stopped in an epoch with this value of the metric."""
        import optuna

        storage = self.study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        optuna.Trial(self.study, trial_id).report(value, epoch)
        self.study.tell(number, state=optuna.trial.TrialState.PRUNED)

    def values(self) -> dict[int, list[float]]:
        """Return the metric of the ended trials by epoch, after the end of a trial its last value.

        That of a diverged trial is the worst value. Otherwise the median would be over ever better trials.
        """
        curves = []
        for trial in self.trials("COMPLETE", "PRUNED"):
            curves.append({int(epoch): float(value) for epoch, value in trial.user_attrs.get(CURVE, [])})
            if DIVERGED in trial.user_attrs:
                curves[-1][max(curves[-1], default=1)] = worst_value(self.direction)
        by_epoch = {epoch: list[float]() for epoch in sorted({epoch for curve in curves for epoch in curve})}
        for curve in filter(None, curves):
            for epoch, values in by_epoch.items():
                known = [at for at in curve if at <= epoch]
                values.extend([curve[max(known)]] if known else [])
        return by_epoch

    def tell(self, number: int, value: float) -> None:
        """Finish a trial; a run that diverged has the worst value, which Optuna's samplers learn to avoid."""
        if not math.isfinite(value):
            self.note(number, DIVERGED, True)
            value = worst_value(self.direction)
        self.study.tell(number, value)

    def tell_failure(self, number: int) -> None:
        """Finish a trial whose run failed."""
        from optuna.trial import TrialState

        self.study.tell(number, state=TrialState.FAIL)

    def first_with(self, overrides: Sequence[str], before: int, batch: Collection[int]) -> "FrozenTrial | None":
        """Return the first trial before a number that trains a run with these overrides, ended or in the batch."""
        trials = (t for t in self.trials("COMPLETE", "RUNNING", "PRUNED") if t.number < before)
        known = (t for t in trials if t.state.is_finished() or t.number in batch)
        return next((t for t in known if t.user_attrs[OVERRIDES] == list(overrides)), None)

    def best(self) -> "FrozenTrial | None":
        """Return the best trial; None if none has a finite objective."""
        trials = [t for t in self.trials("COMPLETE") if math.isfinite(t.value or 0.0)]
        sign = 1.0 if self.direction == "min" else -1.0
        return min(trials, key=lambda trial: sign * float(trial.value or 0.0), default=None)

    def counts(self) -> dict[str, int]:
        """Return the number of trials that finished, diverged, were pruned and failed."""
        complete = self.trials("COMPLETE")
        diverged = sum(DIVERGED in trial.user_attrs for trial in complete)
        pruned, failed = len(self.trials("PRUNED")), len(self.trials("FAIL"))
        return {"finished": len(complete) - diverged, "diverged": diverged, "pruned": pruned, "failed": failed}

    def write(self) -> None:
        """Write the best trial and the numbers of trials to ``optimization_results.yaml``."""
        best = self.best()
        record = {
            "name": "optuna",
            "best_params": self.parameters(best) if best else {},
            "best_value": best.value if best else None,
            "best_trial": best.number if best else None,
            "best_run": best.user_attrs[RUN] if best else None,
            "metric": self.metric,
            "direction": f"{self.direction}imize",
            "trials": self.counts(),
        }
        write_atomically(self.folder / RESULTS_FILE, to_yaml(record))

    def summary(self) -> list[str]:
        """Return log lines about the study: numbers of trials, and the best one."""
        counts, best = self.counts(), self.best()
        ended = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"
        lines = [f"trials of study {self.study.study_name}: {ended}"]
        if best is None:
            return [*lines, f"no trial has a finite {self.metric}"]
        words = " ".join(f"{key}={value}" for key, value in self.parameters(best).items())
        return [*lines, f"best trial: {best.number}, {self.metric}={best.value:.4g}   {words}"]


def grid_size(dimensions: Sequence[Dimension]) -> int:
    """Return the number of points of the grid.

    Raises:
        ConfigError: for an interval of floats or integers, which has no grid.
    """
    for dimension in dimensions:
        if not dimension.values:
            remedy = "write range or values, or leave out hydra/sweeper/sampler=grid"
            raise ConfigError(
                f"{dimension.typed}: the grid sampler takes ranges and values, got an interval; {remedy}"
            )
    return math.prod(len(dimension.values) for dimension in dimensions)


def open_storage(storage: str) -> Any:
    """Return Optuna's storage: a database by URL, or a journal file.

    Raises:
        ConfigError: if the storage cannot be opened.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if "://" in storage:
            return optuna.storages.get_storage(storage)
        return optuna.storages.JournalStorage(JournalFileBackend(storage))
    except Exception as error:
        raise ConfigError(
            f"hydra.sweeper.storage must be a database's URL or a file, got {storage}: {first_line(error)}"
        ) from error


def study_name(dimensions: Sequence[Dimension], command: Mapping[str, Any]) -> str:
    """Return the default name of a study in a storage that other searches may share: a digest of its command."""
    text = json.dumps([[dimension.typed for dimension in dimensions], command], sort_keys=True)
    return f"{STUDY}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def open_study(storage: Any, name: str, direction: str, command: Mapping[str, Any]) -> "optuna.Study":
    """Create a study, or load the one of an earlier command.

    Raises:
        ConfigError: if the storage holds a study of this name with another direction, metric or other overrides.
    """
    import optuna

    study = optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True,
        direction="minimize" if direction == "min" else "maximize", pruner=optuna.pruners.NopPruner(),
    )  # fmt: skip
    earlier = study.user_attrs.setdefault(COMMAND, None)
    if earlier is None:
        study.set_user_attr(COMMAND, dict(command))
    elif earlier != command:
        key = next(key for key in command if earlier.get(key) != command[key])
        before, now = shown(earlier.get(key)), shown(command[key])
        raise ConfigError(
            f"study {name} was begun with other {key}: {before}, got {now}; repeat its command, "
            "or choose another folder or hydra.sweeper.study_name"
        )
    return study


def shown(value: Any) -> str:
    """Return a value of a command as text."""
    return (" ".join(value) if isinstance(value, list) else str(value)) or "none"
