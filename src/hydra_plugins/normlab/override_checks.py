"""Rejects overrides that would have no effect, and drops those that apply to other arms alone.

The entries are :func:`require_effective` and :func:`drop_inapplicable`.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigLoadError
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from normlab.config.schema import REPORT_KEYS
from normlab.error_messages import SEARCH, SEARCH_OPTIONS
from normlab.errors import ConfigError, nearest
from normlab.results.folder import run_names

if TYPE_CHECKING:
    from hydra_plugins.normlab.composer import Composer

Jobs = Sequence[Sequence[str]]

EXCLUSIVE_GROUPS = ("data", "net", "model", "optimizer", "scheduler", "loss", "module", "trainer")
"""Groups with one option per run; options of other groups, such as probes, may be combined in a list."""

PLUGINS = ("sweeper", "launcher")
SET_BY_HYDRA = "because Hydra sets it; leave it out"
SWEEP_KEYS = ("timing", "records", *REPORT_KEYS)
"""Keys that must have the same value in all runs of a sweep."""
INEFFECTIVE = {
    "hydra.runtime": SET_BY_HYDRA,
    "hydra.overrides": SET_BY_HYDRA,
    "hydra.job.override_dirname": SET_BY_HYDRA,
    "hydra.job.config_name": SET_BY_HYDRA,
    "callbacks.pruning": "outside a search; add hydra/sweeper=optuna hydra/sweeper/pruner=median",
}
INEFFECTIVE_IN_RUN = {
    "hydra.sweep": "in a single run, whose folder is hydra.run.dir; a sweep needs -m",
    **dict.fromkeys(
        ("hydra.sweeper", "hydra/sweeper", "hydra.launcher", "hydra/launcher"), "in a single run; a sweep needs -m"
    ),
}
INEFFECTIVE_IN_SWEEP = {
    "hydra.run": "in a sweep, whose folder is hydra.sweep.dir",
    **dict.fromkeys(("hydra.job.num", "hydra.job.id"), "in a sweep, where Hydra numbers the jobs; leave it out"),
}
INEFFECTIVE_IN_POPULATION = {
    **dict.fromkeys(
        ("hydra.job_logging", "hydra/job_logging"),
        "with hydra/launcher=population, which writes train.log itself; add hydra/launcher=basic",
    ),
}


@cache
def parse(word: str) -> Override:
    """Parse an override with Hydra's parser; cached, as the jobs of a sweep share most overrides."""
    return OverridesParser.create().parse_override(word)


def key_of(override: Override) -> str:
    """Return the key or group of an override, without ``+``, ``++`` or ``~``."""
    return override.get_key_element().lstrip("+~")


def command_line_overrides(config: DictConfig) -> list[Override]:
    """Return the overrides of the command line, with interpolations unresolved."""
    words: Any = OmegaConf.to_container(config.hydra.overrides)
    return [parse(word) for word in (*words["task"], *words["hydra"])]


def is_at_or_below(key: str, parent: str) -> bool:
    """Return True if a dotted key equals ``parent`` or lies below it."""
    return key == parent or key.startswith(f"{parent}.")


def is_overridden(config: DictConfig, key: str) -> bool:
    """Return True if a key, a key below it or a mapping that contains it was set on the command line."""
    return any(
        is_at_or_below(set_key, key) or (is_at_or_below(key, set_key) and isinstance(override.value(), dict))
        for override in command_line_overrides(config)
        if not override.is_delete() and (set_key := key_of(override))
    )


def require_effective(config: DictConfig, is_sweep: bool) -> None:
    """Reject overrides of the command line that have no effect in a single run, or in a sweep.

    Raises:
        ConfigError: for the first such override, with the reason and the remedy.
    """
    overrides = command_line_overrides(config)
    require_distinct(overrides)
    require_single_option(overrides)
    require_distinct_values(overrides)
    refuse_below(overrides, INEFFECTIVE | (INEFFECTIVE_IN_SWEEP if is_sweep else INEFFECTIVE_IN_RUN))
    for override in overrides:
        if override.is_add() or override.is_force_add():
            require_known_hydra_key(config, override)
    if not is_sweep:
        return
    for override in overrides:
        key = key_of(override)
        if key in SWEEP_KEYS and override.is_sweep_override():
            raise ConfigError(
                f"{key} must be the same in all runs of a sweep, got {override.input_line}; give it one value"
            )
    for part in PLUGINS:
        require_arguments(config, part)


def refuse_below(overrides: Sequence[Override], reasons: Mapping[str, str]) -> None:
    """Raise :class:`ConfigError` for overrides at or below a key of ``reasons``, with its reason."""
    for override in overrides:
        for key, reason in reasons.items():
            if is_at_or_below(key_of(override), key):
                raise ConfigError(f"{override.input_line} has no effect {reason}")


def require_distinct(overrides: Sequence[Override]) -> None:
    """Raise :class:`ConfigError` for a key set to two values; Hydra would ignore the first."""
    first: dict[str, Override] = {}
    for override in overrides:
        if override.is_delete():
            first.pop(key_of(override), None)
            continue
        key = key_of(override)
        other = first.setdefault(key, override)
        if (
            other is override
            or other._value == override._value
            or {type(other.value()), type(override.value())} == {dict}
        ):
            continue
        if key == "hydra.mode":
            raise ConfigError(f"{other.input_line} has no effect with -m; leave out one of the two")
        raise ConfigError(f"{key} is set twice, by {other.input_line} and {override.input_line}; keep one of them")


def require_distinct_values(overrides: Iterable[Override]) -> None:
    """Raise :class:`ConfigError` for a value that a sweep has twice, as in ``model=bn,bn``: it makes one job."""
    for override in overrides:
        values = list(override.sweep_string_iterator()) if override.is_choice_sweep() else []
        numbers = [number_or_text(value) for value in values]
        for value, number in zip(values, numbers, strict=True):
            if numbers.count(number) > 1:
                raise ConfigError(f"{override.input_line} has {value} twice; write each value once")


def number_or_text(text: str) -> float | str:
    """Return the number that a value is, so that 1 and 1.0 are equal; the text itself if it is none."""
    try:
        return float(text)
    except ValueError:
        return text


def require_known_hydra_key(config: DictConfig, override: Override) -> None:
    """Raise :class:`ConfigError` for an added ``hydra.…`` key that Hydra's schema lacks."""
    parent, _, name = override.key_or_group.rpartition(".")
    if not is_at_or_below(parent, "hydra") or any(is_at_or_below(parent, f"hydra.{part}") for part in PLUGINS):
        return
    node = OmegaConf.select(config, parent)
    kind = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    if not is_dataclass(kind):
        return
    known = [field.name for field in fields(kind)]
    if name not in known:
        hint = f"; did you mean {parent}.{nearest(name, known)}?" if known else ""
        raise ConfigError(f"{override.key_or_group}: Hydra has no such key{hint}")


def require_single_option(overrides: Iterable[Override]) -> None:
    """Raise :class:`ConfigError` for a list of options of an exclusive group: ``model=[bn,nobn]``."""
    for override in overrides:
        group, chosen = key_of(override), override.value()
        if group in EXCLUSIVE_GROUPS and isinstance(chosen, list):
            several = ",".join(map(str, chosen))
            raise ConfigError(
                f"{group}=[{several}]: a run has one {group}; choose one, or train each in a sweep: "
                f"-m {group}={several}"
            )


def require_arguments(config: DictConfig, part: str) -> None:
    """Raise :class:`ConfigError` for unknown arguments or another ``_target_`` of a launcher or sweeper."""
    node, choice = config.hydra[part], config.hydra.runtime.choices[f"hydra/{part}"]
    remedy = f"choose with hydra/{part}=…, or in the defaults of a file with - override /hydra/{part}: …"
    chosen = target_of_option(part, str(choice))
    if chosen not in (None, node._target_):
        raise ConfigError(
            f"hydra.{part}._target_ must be that of hydra/{part}={choice}, {chosen}, got {node._target_}; {remedy}"
        )
    parameters = inspect.signature(get_object(node._target_)).parameters
    for key in target_arguments(node):
        if key not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            if part == "sweeper" and key in SEARCH_OPTIONS:
                raise ConfigError(f"hydra.sweeper.{key}: an option of a search; add {SEARCH}")
            known = f"; it takes {', '.join(parameters)}" if parameters else ""
            raise ConfigError(f"hydra.{part}.{key}: hydra/{part}={choice} takes no such argument{known}")


def target_of_option(part: str, option: str) -> str | None:
    """Return the ``_target_`` that ConfigStore holds for a launcher or sweeper; None for a YAML option."""
    try:
        node: Any = ConfigStore.instance().load(f"hydra/{part}/{option}.yaml").node
    except ConfigLoadError:
        return None
    return str(node._target_) if "_target_" in node else None


def target_arguments(node: DictConfig) -> Iterator[str]:
    """Yield the keys of a node that its ``_target_`` receives: all without a leading underscore."""
    yield from (str(key) for key in node if not str(key).startswith("_"))


def require_no_sweep_settings(job: Sequence[str], composer: "Composer") -> None:
    """Reject a job whose choices set the sweeper, launcher or sweep; these are fixed for the whole sweep.

    Raises:
        ConfigError: with the choice, such as one of several experiments that defines a sweep.
    """
    chosen, master = (config.hydra for config in (composer.choose(job), composer.master))
    for part in ("sweeper", "launcher", "sweep"):
        if OmegaConf.to_container(chosen[part]) != OmegaConf.to_container(master[part]):
            choices = composer.choices(job)
            words = [word for word in choices if word.startswith(("experiment=", "claim="))] or choices
            raise ConfigError(
                f"{' '.join(words)} sets hydra.{part}, which has no effect for single jobs of a sweep; "
                f"run it as a separate sweep: -m {' '.join(words)}"
            )


def drop_inapplicable(jobs: Jobs, composer: "Composer") -> tuple[list[list[str]], list[str]]:
    """Remove overrides from jobs whose config lacks the key, if another job of the sweep has it.

    Returns:
        The jobs without duplicates, and a log line for each key that does not apply to all jobs.
    """
    # Jobs with the same choices and keys lack the same keys.
    kinds = [(composer.choices(job), tuple(key_and_kind(parse(word)) for word in job)) for job in jobs]
    of_kind = {kind: set(missing_keys(job, composer)) for kind, job in dict(zip(kinds, jobs, strict=True)).items()}
    lacking = [of_kind[kind] for kind in kinds]
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


def key_and_kind(override: Override) -> tuple[str, bool]:
    """Return the key of an override with ``+``, ``++`` or ``~``, and whether its value is a mapping."""
    return override.get_key_element(), isinstance(override.value(), dict)


def missing_keys(job: Sequence[str], composer: "Composer") -> Iterator[str]:
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


def choices_without_key(jobs: Jobs, lacking: Sequence[set[str]], key: str, composer: "Composer") -> list[str]:
    """Return the choices of a key's group that lack the key, or job names if these are ambiguous."""
    group = key.partition(".")[0]
    labels = [f"{group}={composer.choose(job).hydra.runtime.choices.get(group)}" for job in jobs]
    without = {label for label, missing in zip(labels, lacking, strict=True) if key in missing}
    if without & {label for label, missing in zip(labels, lacking, strict=True) if key not in missing}:
        labels = run_names(jobs)
    return list(dict.fromkeys(label for label, missing in zip(labels, lacking, strict=True) if key in missing))
