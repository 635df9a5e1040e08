"""Configurations as plain data: frozen for a run, recorded with its result, compared and migrated.

OmegaConf serves composition alone; a run gets a :class:`FrozenConfig`, in which all interpolations are resolved.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from normlab.config.schema import POPULATION, REPORT_KEYS

KeyPath = tuple[Any, ...]
FOLDER_KEYS = ("retrain", "timing", "ckpt_path", "claim", "records")
"""Keys that change the files of a run or sweep but not its results; they are not recorded with the run."""

TRAINER_FOLDER_KEYS = ("save_every",)
"""The same keys of ``trainer``."""

RENAMED_KEYS = {"warmup": "stats_warmup_epochs"}

MOVED_TARGETS = {
    **{f"normlab.training.optim.{name}": f"normlab.population.optim.{name}" for name in ("SGD", "Adam", "AdamW")},
    **{
        f"normlab.{package}.schedulers.{name}": f"torch.optim.lr_scheduler.{name}"
        for package in ("training", "population")
        for name in ("CosineAnnealingLR", "ReduceLROnPlateau", "StepLR")
    },
    "normlab.models.SourceMLP": "normlab.source_experiments.SourceMLP",
    "normlab.probes.AliasedLipschitz": "normlab.source_experiments.AliasedLipschitz",
}

DEFAULTS_BEFORE = {"replicate": "seed", "module": {"_target_": POPULATION}, "trainable": "all"}
"""Values of keys that older records lack."""

LOSSES_BEFORE: dict[Any, dict[str, Any]] = {
    None: {},
    "squared_error": {"_target_": "normlab.population.losses.squared_error", "_partial_": True},
}
"""Names of losses in older records, which now are nodes."""


class FrozenConfig(dict[str, Any]):
    """A read-only mapping whose keys can be read as attributes: ``config.optimizer.lr``.

    >>> config = FrozenConfig.of({"seed": 1, "optimizer": {"lr": 0.1}})
    >>> config.optimizer.lr, config | {"seed": 2}
    (0.1, {'seed': 2, 'optimizer': {'lr': 0.1}})
    >>> config.seed = 2
    Traceback (most recent call last):
    TypeError: a configuration is read-only; make another with FrozenConfig.of
    """

    @classmethod
    def of(cls, values: Mapping[Any, Any]) -> "FrozenConfig":
        """Freeze a mapping and the mappings below it; those that are frozen already are shared."""
        return values if isinstance(values, cls) else cls({key: frozen(value) for key, value in values.items()})

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"the configuration has no key {key}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenConfig, (dict(self),)

    def refuse(self, *arguments: Any, **keywords: Any) -> NoReturn:
        """Raise TypeError, in place of every method that changes a dict."""
        raise TypeError("a configuration is read-only; make another with FrozenConfig.of")

    __setattr__ = __setitem__ = __delattr__ = __delitem__ = __ior__ = refuse
    clear = pop = popitem = setdefault = update = refuse


def frozen(value: Any) -> Any:
    """Freeze the mappings in a value."""
    if isinstance(value, Mapping):
        return FrozenConfig.of(value)
    return [frozen(entry) for entry in value] if isinstance(value, list) else value


def is_population(config: Mapping[str, Any]) -> bool:
    """Return True if runs of a configuration train in a population, False if another module trains each alone."""
    target: str = config["module"]["_target_"]
    return target == POPULATION


def replaced(node: Any, changes: Mapping[KeyPath, Any]) -> Any:
    """Return plain data with other values at some paths; unchanged parts are shared.

    >>> replaced({"seed": 0, "net": {"hidden": [8, 8]}}, {("seed",): 1, ("net", "hidden", 1): 9})
    {'seed': 1, 'net': {'hidden': [8, 9]}}
    """
    copy, below = node.copy(), dict[Any, dict[KeyPath, Any]]()
    for (key, *rest), value in changes.items():
        if rest:
            below.setdefault(key, {})[tuple(rest)] = value
        else:
            copy[key] = value
    for key, deeper in below.items():
        copy[key] = replaced(copy[key], deeper)
    return copy


def recorded(config: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a configuration as it is recorded: JSON data, without the keys that concern its folder alone."""
    data: dict[str, Any] = to_jsonable(without_folder_keys(config))
    return data


def without_folder_keys(config: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a configuration without ``FOLDER_KEYS`` and ``TRAINER_FOLDER_KEYS``.

    >>> without_folder_keys({"retrain": True, "trainer": {"max_epochs": 3, "save_every": "10s"}})
    {'trainer': {'max_epochs': 3}}
    """
    kept = {key: value for key, value in config.items() if key not in FOLDER_KEYS}
    trainer = kept.get("trainer")
    if isinstance(trainer, Mapping):
        kept["trainer"] = {key: value for key, value in trainer.items() if key not in TRAINER_FOLDER_KEYS}
    return kept


def without_report_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the keys that only the report reads; the rest determines the result."""
    return {key: value for key, value in config.items() if key not in REPORT_KEYS}


def fingerprint(config: Mapping[str, Any]) -> str:
    """Serialize the part of a configuration that decides the result of its run."""
    return json.dumps(without_report_keys(recorded(config)), sort_keys=True, default=str)


def config_leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each leaf of a nested configuration."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from config_leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def to_jsonable(value: Any) -> Any:
    """Convert non-finite floats and mapping keys to strings, as JSON allows neither NaN nor numeric keys.

    >>> to_jsonable({"loss": [math.inf, 1.0]})
    {'loss': ['inf', 1.0]}
    """
    if isinstance(value, dict):
        return {str(key): to_jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def differing_keys(one: Any, other: Any, path: str = "") -> list[str]:
    """Return the dotted keys whose values differ between two configurations.

    >>> differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c']
    """
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [path]
    keys = sorted(one.keys() | other.keys())
    return [
        k
        for key in keys
        for k in differing_keys(one.get(key, ...), other.get(key, ...), f"{path}.{key}".lstrip("."))
    ]


def updated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration with current keys and ``_target_`` paths.

    >>> new = updated({"warmup": 3, "net": {"_target_": "normlab.models.SourceMLP"}})
    >>> new["replicate"], new["stats_warmup_epochs"], new["net"]
    ('seed', 3, {'_target_': 'normlab.source_experiments.SourceMLP'})
    """
    if not config:  # the run left no configuration
        return {}
    renamed = {RENAMED_KEYS.get(key, key): with_moved_targets(node) for key, node in config.items()}
    return DEFAULTS_BEFORE | with_loss_node(renamed)


def with_loss_node(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with a node for its loss; older records and experiments have its name or null.

    >>> with_loss_node({"loss": None}), with_loss_node({"loss": "squared_error"})["loss"]["_target_"]
    ({'loss': {}}, 'normlab.population.losses.squared_error')
    """
    named = "loss" in config and (config["loss"] is None or isinstance(config["loss"], str))
    return {**config, "loss": LOSSES_BEFORE.get(config["loss"], config["loss"])} if named else dict(config)


def updated_choices(choices: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the group choices of a record, with an option for the loss where older records have its name.

    >>> updated_choices({"model": "bn"}, {"loss": None}), updated_choices({}, {"loss": "squared_error"})
    ({'loss': 'default', 'model': 'bn'}, {'loss': 'squared_error'})
    """
    loss = config.get("loss", {})
    before = {} if isinstance(loss, Mapping) else {"loss": loss or "default"}
    return before | dict(choices)


def updated_override(override: str) -> str:
    """Return a recorded override with the current name of its key.

    >>> updated_override("warmup=3"), updated_override("loss=null"), updated_override("seed=1")
    ('stats_warmup_epochs=3', 'loss=default', 'seed=1')
    """
    if override == "loss=null":
        return "loss=default"
    key, equals, value = override.partition("=")
    return f"{RENAMED_KEYS.get(key, key)}{equals}{value}"


def with_moved_targets(node: Any) -> Any:
    """Replace moved ``_target_`` paths in a part of a configuration."""
    if isinstance(node, dict):
        return {
            key: MOVED_TARGETS.get(value, value) if key == "_target_" else with_moved_targets(value)
            for key, value in node.items()
        }
    return [with_moved_targets(entry) for entry in node] if isinstance(node, list) else node
