"""Refuses overrides on the command line that would have no effect, each with the remedy."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigLoadError
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from normlab.config.schema import OF_THE_VERDICT
from normlab.errors import ConfigError, nearest

ONE_OF_EACH = ("data", "net", "model", "optimizer", "scheduler", "trainer")
"""The groups whose options exclude each other; options of the others, as probes, may be combined in a list."""

PLUGINS = ("sweeper", "launcher")
SET_BY_HYDRA = "as Hydra sets it itself; leave it out"
OF_THE_SWEEP = ("timing", *OF_THE_VERDICT)
"""Keys that have one value for all runs of a sweep."""
ALWAYS = {
    "hydra.runtime": SET_BY_HYDRA,
    "hydra.overrides": SET_BY_HYDRA,
    "hydra.job.override_dirname": SET_BY_HYDRA,
    "hydra.job.config_name": SET_BY_HYDRA,
}
IN_A_RUN = {
    "hydra.sweep": "in a single run, whose folder is hydra.run.dir; a sweep needs -m",
    **dict.fromkeys(
        ("hydra.sweeper", "hydra/sweeper", "hydra.launcher", "hydra/launcher"), "in a single run; a sweep needs -m"
    ),
}
IN_A_SWEEP = {
    "hydra.run": "in a sweep, whose folder is hydra.sweep.dir",
    **dict.fromkeys(("hydra.job.num", "hydra.job.id"), "in a sweep, whose jobs Hydra numbers; leave it out"),
}
IN_A_POPULATION = {
    **dict.fromkeys(
        ("hydra.job_logging", "hydra/job_logging"),
        "with hydra/launcher=population, which writes train.log itself; add hydra/launcher=basic",
    ),
}


@cache
def parse(word: str) -> Override:
    """Parse an override as Hydra does; the jobs of a sweep have most of theirs in common."""
    return OverridesParser.create().parse_override(word)


def key_of(override: Override) -> str:
    """Return the key or group of an override, without ``+``, ``++`` or ``~``."""
    return override.get_key_element().lstrip("+~")


def typed_overrides(config: DictConfig) -> list[Override]:
    """Return the overrides of the command line, interpolations as written."""
    words: Any = OmegaConf.to_container(config.hydra.overrides)
    return [parse(word) for word in (*words["task"], *words["hydra"])]


def is_at_or_below(key: str, parent: str) -> bool:
    """Return whether a dotted key is ``parent`` or below it."""
    return key == parent or key.startswith(f"{parent}.")


def was_typed(config: DictConfig, key: str) -> bool:
    """Return whether a key, or a mapping that holds it, was set on the command line."""
    return any(
        is_at_or_below(own, key) or (is_at_or_below(key, own) and isinstance(override.value(), dict))
        for override in typed_overrides(config)
        if not override.is_delete() and (own := key_of(override))
    )


def require_effective(config: DictConfig, is_sweep: bool) -> None:
    """Refuse overrides without effect in a run, or in a sweep.

    Raises:
        ConfigError: the override, why it has none, and the remedy.
    """
    overrides = typed_overrides(config)
    require_distinct(overrides)
    require_one_of_each(overrides)
    refuse_below(overrides, ALWAYS | (IN_A_SWEEP if is_sweep else IN_A_RUN))
    for override in overrides:
        if override.is_add() or override.is_force_add():
            require_known(config, override)
    if not is_sweep:
        return
    for override in overrides:
        key = key_of(override)
        if key in OF_THE_SWEEP and override.is_sweep_override():
            raise ConfigError(
                f"{key} must be the same for a whole sweep, got {override.input_line}; give it one value"
            )
    for part in PLUGINS:
        require_arguments(config, part)


def refuse_below(overrides: Sequence[Override], reasons: Mapping[str, str]) -> None:
    """Refuse overrides of the keys of ``reasons`` and of those below them."""
    for override in overrides:
        for key, reason in reasons.items():
            if is_at_or_below(key_of(override), key):
                raise ConfigError(f"{override.input_line} has no effect {reason}")


def require_distinct(overrides: Sequence[Override]) -> None:
    """Refuse a key that is given two values: the first would be forgotten."""
    given: dict[str, Override] = {}
    for override in overrides:
        if override.is_delete():
            given.pop(key_of(override), None)
            continue
        key = key_of(override)
        other = given.setdefault(key, override)
        if (
            other is override
            or other._value == override._value
            or {type(other.value()), type(override.value())} == {dict}
        ):
            continue
        if key == "hydra.mode":
            raise ConfigError(f"{other.input_line} has no effect with -m; leave out one of the two")
        raise ConfigError(
            f"{key} is given twice, as {other.input_line} and {override.input_line}; keep one of them"
        )


def require_known(config: DictConfig, override: Override) -> None:
    """Refuse a key that was added where Hydra has none of that name and nothing reads it."""
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


def require_one_of_each(overrides: Iterable[Override]) -> None:
    """Refuse several options of a group that has one: ``model=[bn,nobn]``."""
    for override in overrides:
        group, chosen = key_of(override), override.value()
        if group in ONE_OF_EACH and isinstance(chosen, list):
            several = ",".join(map(str, chosen))
            raise ConfigError(
                f"{group}=[{several}]: a run has one {group}; choose one, or train each in a sweep: "
                f"-m {group}={several}"
            )


def require_arguments(config: DictConfig, part: str) -> None:
    """Refuse arguments that a sweep's launcher or sweeper does not have, and a class other than the chosen one."""
    node, choice = config.hydra[part], config.hydra.runtime.choices[f"hydra/{part}"]
    how = f"choose with hydra/{part}=…, in a file by its defaults: - override /hydra/{part}: …"
    chosen = target_of_option(part, str(choice))
    if chosen not in (None, node._target_):
        raise ConfigError(
            f"hydra.{part}._target_ must be that of hydra/{part}={choice}, {chosen}, got {node._target_}; {how}"
        )
    parameters = inspect.signature(get_object(node._target_)).parameters
    for key in target_arguments(node):
        if key not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            known = f"; it takes {', '.join(parameters)}" if parameters else ""
            raise ConfigError(f"hydra.{part}.{key}: hydra/{part}={choice} takes no such argument{known}")


def target_of_option(part: str, option: str) -> str | None:
    """Return the ``_target_`` that a package stored for a launcher or sweeper; None for one of a YAML file."""
    try:
        node: Any = ConfigStore.instance().load(f"hydra/{part}/{option}.yaml").node
    except ConfigLoadError:
        return None
    return str(node._target_) if "_target_" in node else None


def target_arguments(node: DictConfig) -> Iterator[str]:
    """Yield the keys of a node that are arguments of its ``_target_``."""
    yield from (str(key) for key in node if not str(key).startswith("_"))
