"""Validation of a composed configuration: its keys, types and limits; see :func:`validate`."""

import inspect
import json
import logging
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import lru_cache
from types import ModuleType
from typing import Any, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from normlab.config.frozen import MOVED_TARGETS, RENAMED_KEYS, FrozenConfig, with_loss_node
from normlab.config.module import check_module
from normlab.config.schema import EXAMPLES, SCHEDULER_TIMING, SECTIONS, SELECTIONS, Config, SchedulerConfig
from normlab.errors import ConfigError, describe_exception, first_line, is_near, nearest, require, user_file

HYDRA_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")

TYPE_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    list[int]: "a list of integers",
    list[str]: "a list of strings",
    int | None: "null or an integer",
    float | None: "null or a number",
    str | None: "null or a string",
}

# Hydra logs an error for a _target_ that cannot be loaded and also raises it; the log line is redundant.
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)


def validate(config: DictConfig) -> FrozenConfig:
    """Resolve a composed configuration, check its values and return it as plain data.

    Raises:
        ConfigError: for the first violation, with the key, the expected value and the value found.
    """
    return check_values(resolve(config))


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain data, with its interpolations resolved.

    Raises:
        ConfigError: for an interpolation that cannot be resolved, or a missing value.
    """
    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise unresolved(config, error) from error
    return with_loss_node({str(key): value for key, value in values.items()})


def check_values(values: Mapping[str, Any]) -> FrozenConfig:
    """Check all that the schemas alone can judge, and return the configuration as plain data.

    Imports neither torch nor Lightning, so that a wrong number is reported at once.

    Raises:
        ConfigError: as :func:`validate`.
    """
    config, known = FrozenConfig.of(values), (*SECTIONS, *Config.__annotations__)
    for needed in known:
        if needed not in config or (needed in SECTIONS and config[needed] is None):
            raise ConfigError(f"{needed} is missing, but every run needs it; write {needed}=…, without ~{needed}")
    for key in config:
        if key not in known:
            refuse_key("", key, known, "no such key")
    check_group("", json.dumps({key: value for key, value in config.items() if key not in SECTIONS}))
    for name in SECTIONS:
        check_group(name, json.dumps(config[name]))
    check_module(config)
    metric, data = config.optimized_metric, config.data
    for split in ("val", "test") if config.statistics == "batch" else ():
        expected = "0 or at least 2, as statistics=batch normalizes with this split"
        require(data[split] != 1, f"data.{split}", expected, data[split])
    if (pruning := config.callbacks.get("pruning")) and pruning.n_warmup_epochs:
        # In the last epoch there is nothing left to stop.
        epochs, key = config.trainer.max_epochs, "hydra.sweeper.pruner.n_warmup_epochs"
        fits = pruning.n_warmup_epochs <= epochs - 2
        require(fits, key, f"at most trainer.max_epochs - 2 = {epochs - 2}", pruning.n_warmup_epochs)
    can_measure = data.val > 0 or metric.startswith("train/")
    require(can_measure, "optimized_metric", "train/…, as data.val is 0", metric)
    return config


def check_targets(config: FrozenConfig) -> None:
    """Check the arguments of every ``_target_``, which imports them and so torch.

    Raises:
        ConfigError: for the first target that cannot be loaded, or argument that it does not take.
    """
    for group in ("metrics", "probes", *SECTIONS):
        check_targets_of(group, json.dumps(config[group]))


def unresolved(config: DictConfig, error: OmegaConfBaseException) -> ConfigError:
    """Return the error for an unresolvable interpolation, with the key whose value contains it."""
    interpolation = raw_value(config, error.full_key or "")
    reason = first_line(error)
    if missing := re.match(r"Interpolation key '([^']+)' not found", reason):
        name = missing[1]
        if name.startswith("hydra."):
            hint = f"outside hydra.…, write Hydra's values as ${{hydra:{name.removeprefix('hydra.')}}}"
        else:
            hint = f"did you mean ${{{nearest(name, keys_of(config))}}}?"
        reason = f"{interpolation} refers to a missing key, {name}; {hint}"
    elif isinstance(error, InterpolationResolutionError | UnsupportedInterpolationType):
        reason = f"{interpolation} cannot be resolved: {reason}"
    config_error = ConfigError(f"{error.full_key}: {reason}")
    config_error.interpolation = interpolation
    return config_error


def raw_value(config: DictConfig, key: str) -> str | None:
    """Return the unresolved interpolation at a dotted key, or None if the value is not an interpolation."""
    node: Any = config
    for part in re.findall(r"[^.\[\]]+", key):
        node = node._get_node(int(part) if isinstance(node, ListConfig) else part) if node is not None else None
    return str(node._value()) if node is not None and node._is_interpolation() else None


def keys_of(node: DictConfig, path: str = "") -> list[str]:
    """Return all dotted keys of a configuration, those of its groups included."""
    keys = [f"{path}{key!s}" for key in node]
    groups = {str(key): child for key, child in node.items_ex(resolve=False) if is_group(child)}
    return keys + [key for name, child in groups.items() for key in keys_of(child, f"{path}{name}.")]


def is_group(node: Any) -> bool:
    """Return True if a node is a mapping, and neither null nor an interpolation."""
    return isinstance(node, DictConfig) and not (node._is_none() or node._is_interpolation())


@lru_cache(maxsize=4096)
def check_group(name: str, text: str) -> None:
    """Validate the values of one group, or of the top-level keys with the name "", given as JSON.

    JSON is hashable, so the jobs of a sweep share the checks, which take milliseconds.
    """
    check_section(name, SECTIONS[name] if name else Config, json.loads(text))


@lru_cache(maxsize=4096)
def check_targets_of(name: str, text: str) -> None:
    """Validate the arguments of each ``_target_`` in one group, given as JSON."""
    for path, node in target_nodes(json.loads(text), name):
        check_target(path, node)


def target_nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(dotted path, mapping)`` for every mapping with a ``_target_`` in ``node``, itself included."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, dict(node)
        for key, value in node.items():
            yield from target_nodes(value, f"{path}.{key}" if path else str(key))


def parameters_of(path: str, target: str) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the callable at the import path ``target``.

    Raises:
        ConfigError: if the target has moved or cannot be loaded.
    """
    if target in MOVED_TARGETS:
        raise ConfigError(f"{path}._target_={target} is now {MOVED_TARGETS[target]}")
    try:
        return inspect.signature(get_object(target)).parameters
    except (InstantiationException, ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}._target_={target} cannot be loaded: {load_failure(target, error)}") from error


def load_failure(target: str, error: Exception) -> str:
    """Return the reason for which an import path cannot be loaded, and the remedy."""
    cause = error.__cause__
    missing = cause.name if isinstance(cause, ModuleNotFoundError) and cause.name else ""
    if missing and f"{target}.".startswith(f"{missing}."):
        parent, _, name = missing.rpartition(".")
        if not parent:
            return f"there is no module {name}; start in the folder that contains it, or install it"
        module = sys.modules[parent]
        file, names = user_file(getattr(module, "__file__", None)), public_names(module)
        meant = nearest(name, names) if names else ""
        hint = f"; did you mean {parent}.{meant}?" if is_near(name, meant) else ""
        return f"{parent}{f' ({file})' if file else ''} has no {name}{hint}"
    return describe_exception(cause) if cause else " ".join(str(error).split())


def public_names(module: ModuleType) -> list[str]:
    """Return the names of a module's classes, functions and submodules that have no leading underscore."""
    own = [name for name, value in vars(module).items() if callable(value)]
    inner = [found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))]
    return [name for name in (*own, *inner) if not name.startswith("_")]


def check_target(path: str, node: dict[str, Any]) -> None:
    """Raise :class:`ConfigError` for unknown arguments of a ``_target_``, or values of the wrong type."""
    parameters = parameters_of(path, node["_target_"])
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    schema_keys = {f.name for f in fields(SECTIONS["trainer"])} if path == "trainer" else set()
    schema_keys |= set({"scheduler": SCHEDULER_TIMING, "optimizer": SELECTIONS}.get(path, ()))
    schema_keys |= {"match"} if path.startswith("optimizer.groups.") else set()
    kinds = scalar_types(node["_target_"])
    for key, value in node.items():
        if key in kinds and isinstance(value, bool | int | float | str) and not fits(value, kinds[key]):
            refuse_type(path, key, kinds[key], value)
    lr = parameters.get("lr")
    if path == "optimizer" and lr and lr.default is lr.empty and "lr" not in node:
        raise ConfigError(f"optimizer.lr is missing, but {node['_target_']} needs it; write +optimizer.lr=0.01")
    known = set(parameters) | schema_keys
    unknown = [key for key in node if key not in known and key not in HYDRA_KEYS]
    if unknown:
        refuse_arguments(path, node["_target_"], unknown, known - supplied(node, parameters))


def supplied(node: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> set[str]:
    """Return the first required argument of a partial ``_target_``, which its caller passes later."""
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    return set(required[:1]) | {"optimizer"} if node.get("_partial_") else set()


def refuse_arguments(path: str, target: str, unknown: list[str], known: set[str]) -> None:
    """Raise :class:`ConfigError` for arguments that a ``_target_`` does not take.

    A key similar to a known one is a misspelling; others may remain from another ``_target_``.
    """
    suggestion = nearest(unknown[0], sorted(known)) if known else ""
    if len(unknown) == 1 and is_near(unknown[0], suggestion):
        raise ConfigError(
            f"{path}.{unknown[0]}: {target} takes no such argument; did you mean {path}.{suggestion}?"
        )
    names = ", ".join(f"{path}.{key}" for key in unknown)
    removal = " ".join(f"'~{path}.{key}'" for key in unknown)
    takes = f"; it takes {', '.join(sorted(known))}" if known else ""
    noun = "argument" if len(unknown) == 1 else "arguments"
    raise ConfigError(
        f"{names}: {target} takes no such {noun}{takes}; leave out those you added, remove the others: {removal}"
    )


@lru_cache(maxsize=1024)
def scalar_types(target: str) -> dict[str, type]:
    """Return the arguments of a callable annotated as exactly bool, int, float or str, with their types."""
    called = get_object(target)
    try:
        hints = get_type_hints(called.__init__ if inspect.isclass(called) else called)
    except (AttributeError, NameError, TypeError):  # the annotations cannot be read
        return {}
    return {name: kind for name, kind in hints.items() if kind in (bool, int, float, str)}


def fits(value: bool | int | float | str, kind: type) -> bool:
    """Return True if a value has a type; an int is accepted as a float, a bool not as a number.

    >>> fits(1, float), fits(True, int), fits("no", bool)
    (True, False, False)
    """
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float if kind is float else kind)


def refuse_key(path: str, key: str, known: Iterable[str], reason: str) -> None:
    """Raise :class:`ConfigError` for an unknown key, with the most similar known one."""
    if not path and key in RENAMED_KEYS:
        raise ConfigError(f"{key} is now {RENAMED_KEYS[key]}")
    known = sorted(known)
    name = f"{path}.{key}" if path else key
    hint = f"; did you mean {path + '.' if path else ''}{nearest(key, known)}?" if known else ""
    raise ConfigError(f"{name}: {reason}{hint}")


def check_section(path: str, schema: type, node: Any) -> None:
    """Raise :class:`ConfigError` for unknown keys, wrong types and values outside the limits of a schema."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path} must be a group of keys, got {node}")
    known = {} if schema is SchedulerConfig and "_target_" not in node else {f.name for f in fields(schema)}
    if "_target_" not in node:
        for key in node:
            if key not in known:
                refuse_key(path, key, known, "no such key")
    values = {key: value for key, value in node.items() if key in known}
    try:
        checked = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        name = ".".join(part for part in (path, key) if part)
        if isinstance(error, MissingMandatoryValue):
            example = EXAMPLES.get(name)
            remedy = f", for example {key}: {example}" if example else ""
            raise ConfigError(
                f"{name} is missing: write it into the YAML of {path or 'the run'}{remedy}"
            ) from error
        if key not in values:
            raise ConfigError(f"{name}: {first_line(error)}") from error
        refuse_type(path, key, get_type_hints(schema)[key], values[key])
    for key, value in values.items():
        # OmegaConf converts the string "no" to False for the schema, but the _target_ would receive the string.
        if isinstance(value, str) and not isinstance(getattr(checked, key), str):
            refuse_type(path, key, get_type_hints(schema)[key], value)


def refuse_type(path: str, key: str, kind: Any, value: object) -> None:
    """Raise :class:`ConfigError` for a value of the wrong type."""
    name = f"{path}.{key}" if path else key
    got = repr(value) if isinstance(value, str) else value
    raise ConfigError(f"{name} must be {TYPE_NAMES.get(kind, kind)}, got {got}")
