"""Holding a composed configuration against the schemas: unknown keys, other types, impossible values."""

import inspect
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import lru_cache
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

from normlab.config.renames import MOVED_TARGETS, RENAMED_KEYS
from normlab.config.schema import EXAMPLES, SECTIONS, Config, SchedulerConfig
from normlab.errors import ConfigError, first_line, is_near, nearest, require

HYDRA_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")

WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    list[int]: "a list of whole numbers",
    int | None: "null or a whole number",
    float | None: "null or a number",
    str | None: "null or a word",
}

WHOLE = "Lightning is handed an epoch at a time"
ONE_DEVICE = "a run is trained on one device"
NOT_USED = "Lightning's own of this is not used"
NOT_HERE = {
    "max_steps": f"{WHOLE}; use trainer.max_epochs",
    "min_steps": f"{WHOLE}; use callbacks=early_stopping",
    "min_epochs": "early stopping counts validations; use callbacks.early_stopping.patience",
    "max_time": "how long a run takes must not change its result; use trainer.max_epochs",
    "limit_train_batches": f"{WHOLE}; use data.train",
    "limit_val_batches": f"{WHOLE}; use data.val",
    "limit_test_batches": f"{WHOLE}; use data.test",
    "limit_predict_batches": "nothing is predicted; load checkpoints/best.pt to predict",
    "overfit_batches": f"{WHOLE}; use experiment=overfit",
    "val_check_interval": f"{WHOLE}; use trainer.check_val_every_n_epoch",
    "accumulate_grad_batches": f"{WHOLE}; use data.batch_size",
    "log_every_n_steps": f"{WHOLE}, and every epoch is logged; use trainer.check_val_every_n_epoch",
    "reload_dataloaders_every_n_epochs": "the data are in memory; remove it",
    "num_sanity_val_steps": "every run is tried by a step and a validation before anything trains; remove it",
    "num_nodes": f"{ONE_DEVICE}; remove it",
    "strategy": f"{ONE_DEVICE}; use trainer.accelerator",
    "sync_batchnorm": f"{ONE_DEVICE}; remove it",
    "use_distributed_sampler": f"{ONE_DEVICE}; remove it",
    "plugins": "they are objects, for which there is no group; use trainer.precision",
    "callbacks": "callbacks are a group; use +callbacks.extra.NAME._target_=…",
    "logger": "loggers are a group; use logger=csv, or +logger.extra.NAME._target_=…",
    "enable_checkpointing": f"{NOT_USED}: best.pt and last.pt are always written; remove it",
    "enable_progress_bar": f"{NOT_USED}: a bar is shown on a terminal alone; to have none, pipe the output",
    "enable_model_summary": f"{NOT_USED}; use +callbacks.extra.NAME._target_=… with its ModelSummary",
    "enable_autolog_hparams": f"{NOT_USED}: TensorBoard's HParams are always written; use logger=csv for none",
    "model_registry": f"{NOT_USED}; remove it",
    "profiler": f"{WHOLE}, so that it would see no step; use python -m cProfile train.py",
    "barebones": f"{NOT_USED}; use logger=csv",
}
"""The arguments of Lightning's Trainer that have no effect here, each with the reason and what to use instead."""

# What it logs about a _target_ that cannot be loaded, it raises as well.
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)


def check(config: DictConfig) -> None:
    """Refuse a composed config that has a key no schema knows, a value of another type, or an impossible one.

    Raises:
        ConfigError: the key, what was expected and what came, in one line.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise unresolved(config, error) from error
    assert isinstance(plain, dict)
    for needed in (*SECTIONS, *Config.__annotations__):
        if needed not in plain or (needed in SECTIONS and plain[needed] is None):
            raise ConfigError(f"{needed} is missing, which every run needs; write {needed}=…, without ~{needed}")
    for key in plain:
        if key not in SECTIONS and key not in Config.__annotations__:
            refuse_key("", str(key), [*SECTIONS, *Config.__annotations__], "no such key")
    for group in ("metrics", "probes"):
        for path, node in target_nodes(plain.get(group), group):
            check_target(path, node)
    check_section("", Config, {key: value for key, value in plain.items() if key not in SECTIONS})
    for name in SECTIONS:
        check_group(name, json.dumps(plain.get(name)))
    metric, data = plain["optimized_metric"], plain["data"]
    for split in ("val", "test") if plain["statistics"] == "batch" else ():
        expected = "0 or at least 2 as statistics=batch normalizes by it"
        require(data[split] != 1, f"data.{split}", expected, data[split])
    require(data["val"] > 0 or metric.startswith("train/"), "optimized_metric", "train/… as data.val is 0", metric)


def unresolved(config: DictConfig, error: OmegaConfBaseException) -> ConfigError:
    """Return the error for an interpolation that cannot be resolved, with the key that holds it."""
    written = raw_value(config, error.full_key or "")
    reason = first_line(error)
    if missing := re.match(r"Interpolation key '([^']+)' not found", reason):
        name = missing[1]
        if name.startswith("hydra."):
            hint = f"in a run's keys, values of Hydra's are written ${{hydra:{name.removeprefix('hydra.')}}}"
        else:
            hint = f"did you mean ${{{nearest(name, keys_of(config))}}}?"
        reason = f"{written} refers to a key that is not there, {name}; {hint}"
    elif isinstance(error, InterpolationResolutionError | UnsupportedInterpolationType):
        reason = f"{written} cannot be resolved: {reason}"
    found = ConfigError(f"{error.full_key}: {reason}")
    found.written = written
    return found


def raw_value(config: DictConfig, key: str) -> str | None:
    """Return the interpolation that a dotted key holds, as it is written; None if it holds none."""
    node: Any = config
    for part in re.findall(r"[^.\[\]]+", key):
        node = node._get_node(int(part) if isinstance(node, ListConfig) else part) if node is not None else None
    return str(node._value()) if node is not None and node._is_interpolation() else None


def keys_of(node: DictConfig, path: str = "") -> list[str]:
    """Return every dotted key of a configuration."""
    keys = [f"{path}{key!s}" for key in node]
    groups = {str(key): child for key, child in node.items_ex(resolve=False) if is_group(child)}
    return keys + [key for name, child in groups.items() for key in keys_of(child, f"{path}{name}.")]


def is_group(node: Any) -> bool:
    """Return whether a node of a configuration holds keys."""
    return isinstance(node, DictConfig) and not (node._is_none() or node._is_interpolation())


@lru_cache(maxsize=4096)
def check_group(name: str, text: str) -> None:
    """Check one group, given as JSON, once for all jobs that have it: a check takes milliseconds."""
    group = json.loads(text)
    for path, node in target_nodes(group, name):
        check_target(path, node)
    check_section(name, SECTIONS[name], group)


def target_nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping with a ``_target_`` below ``node``, with its dotted path."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, dict(node)
        for key, value in node.items():
            yield from target_nodes(value, f"{path}.{key}" if path else str(key))


def parameters_of(path: str, target: str) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the callable that ``target`` names."""
    if target in MOVED_TARGETS:
        raise ConfigError(f"{path}._target_={target} is now {MOVED_TARGETS[target]}")
    try:
        return inspect.signature(get_object(target)).parameters
    except (InstantiationException, ImportError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}._target_={target} cannot be loaded: {reason}") from error


def check_target(path: str, node: dict[str, Any]) -> None:
    """Refuse keys that the ``_target_`` does not take, and values of another type than it asks for."""
    parameters = parameters_of(path, node["_target_"])
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    own = {f.name for f in fields(SECTIONS["trainer"])} if path == "trainer" else set()
    kinds = types_of(node["_target_"])
    for key, value in node.items():
        if path == "trainer" and key in NOT_HERE:
            raise ConfigError(f"trainer.{key} has no effect here: {NOT_HERE[key]}")
        if key in kinds and isinstance(value, bool | int | float | str) and not fits(value, kinds[key]):
            refuse_type(path, key, kinds[key], value)
    lr = parameters.get("lr")
    if path == "optimizer" and lr and lr.default is lr.empty and "lr" not in node:
        raise ConfigError(f"optimizer.lr is missing, which {node['_target_']} needs; write +optimizer.lr=0.01")
    known = set(parameters) | own
    unknown = [key for key in node if key not in known and key not in HYDRA_KEYS]
    if unknown:
        refuse_arguments(path, node["_target_"], unknown, known - supplied(node, parameters))


def supplied(node: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> set[str]:
    """Return the argument that a partial ``_target_`` is called with later: its first without a default."""
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    return set(needed[:1]) if node.get("_partial_") else set()


def refuse_arguments(path: str, target: str, unknown: list[str], known: set[str]) -> None:
    """Raise :class:`ConfigError` for arguments that a ``_target_`` does not take.

    A key that is nearly one of those it takes was mistyped; others may be left from another ``_target_``.
    """
    meant = nearest(unknown[0], sorted(known)) if known else ""
    if len(unknown) == 1 and is_near(unknown[0], meant):
        raise ConfigError(f"{path}.{unknown[0]}: {target} takes no such argument; did you mean {path}.{meant}?")
    names = ", ".join(f"{path}.{key}" for key in unknown)
    removal = " ".join(f"'~{path}.{key}'" for key in unknown)
    takes = f"; it takes {', '.join(sorted(known))}" if known else ""
    which = "no such argument" if len(unknown) == 1 else "no such arguments"
    raise ConfigError(
        f"{names}: {target} takes {which}{takes}; leave out what you added, remove the rest: {removal}"
    )


@lru_cache(maxsize=1024)
def types_of(target: str) -> dict[str, type]:
    """Return the arguments of a callable that are a bool, an int, a float or a str, and nothing else."""
    called = get_object(target)
    try:
        hints = get_type_hints(called.__init__ if inspect.isclass(called) else called)
    except (AttributeError, NameError, TypeError):  # of a callable whose annotations cannot be read
        return {}
    return {name: kind for name, kind in hints.items() if kind in (bool, int, float, str)}


def fits(value: bool | int | float | str, kind: type) -> bool:
    """Return whether a value is of a kind; a whole number is a number too, and true is not.

    >>> fits(1, float), fits(True, int), fits("no", bool)
    (True, False, False)
    """
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float if kind is float else kind)


def refuse_key(path: str, key: str, known: Iterable[str], reason: str) -> None:
    """Raise :class:`ConfigError` for an unknown key, with the nearest right one."""
    if not path and key in RENAMED_KEYS:
        raise ConfigError(f"{key} is now {RENAMED_KEYS[key]}")
    known = sorted(known)
    name = f"{path}.{key}" if path else key
    hint = f"; did you mean {path + '.' if path else ''}{nearest(key, known)}?" if known else ""
    raise ConfigError(f"{name}: {reason}{hint}")


def check_section(path: str, schema: type, node: Any) -> None:
    """Refuse keys that the schema does not have, values of another type, and values outside its limits."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path} must be a group of keys, got {node}")
    known = {} if schema is SchedulerConfig and "_target_" not in node else {f.name for f in fields(schema)}
    if "_target_" not in node:
        for key in node:
            if key not in known:
                refuse_key(path, key, known, "no such key")
    given = {key: value for key, value in node.items() if key in known}
    try:
        checked = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        name = ".".join(part for part in (path, key) if part)
        if isinstance(error, MissingMandatoryValue):
            example = EXAMPLES.get(name)
            remedy = f", for example {key}: {example}" if example else ""
            raise ConfigError(
                f"{name} is missing: write it into the YAML of {path or 'the run'}{remedy}"
            ) from error
        if key not in given:
            raise ConfigError(f"{name}: {first_line(error)}") from error
        refuse_type(path, key, get_type_hints(schema)[key], given[key])
    for key, value in given.items():
        # The schema reads the word no as false, but what is instantiated would be handed the word.
        if isinstance(value, str) and not isinstance(getattr(checked, key), str):
            refuse_type(path, key, get_type_hints(schema)[key], value)


def refuse_type(path: str, key: str, kind: Any, value: object) -> None:
    """Raise :class:`ConfigError` for a value of another type than was expected."""
    name = f"{path}.{key}" if path else key
    got = f"the word {value}" if isinstance(value, str) else value
    raise ConfigError(f"{name} must be {WORDS.get(kind, kind)}, got {got}")
