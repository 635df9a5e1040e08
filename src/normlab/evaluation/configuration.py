"""The configuration of an evaluation: that of a run, with the overrides of the command line.

The entries are :func:`check_overrides`, :func:`compose_options` and :func:`evaluation_config`. None imports torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.normlab.override_checks import (
    is_at_or_below,
    key_of,
    require_distinct,
    require_single_option,
)
from normlab.config.frozen import FrozenConfig, recorded, updated
from normlab.config.schema import SECTIONS, Config
from normlab.config.validation import check_values, keys_of, resolve
from normlab.errors import ConfigError, nearest
from normlab.option_folders import config_folders
from normlab.results.sweep import Record, resolve_references

COMMAND_KEYS = ("run", "checkpoint")
USED = ("data", "net", "model", "loss", "metrics", "statistics", "seed", "replicate")
USED_OF_TRAINER = ("accelerator", "precision", "threads")
"""Keys that determine the metrics of a checkpoint; the others, such as ``optimizer``, only affect training."""

TRAINING_ONLY = ("net.dropout", "net.init", "model.norm.momentum", "model.norm2d.momentum")
"""Keys below those that a net does not use in evaluation mode with given weights."""


def used_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that determines the metrics of a checkpoint, or its tensors' names."""
    trainer = {key: config["trainer"][key] for key in USED_OF_TRAINER if key in config["trainer"]}
    return {**{key: config[key] for key in (*USED, "trainable") if key in config}, "trainer": trainer}


def check_overrides(overrides: Sequence[Override]) -> None:
    """Check that overrides are of keys that an evaluation uses, with one value each, and given once.

    Raises:
        ConfigError: for the first override that is not.
    """
    used = (*USED, *(f"trainer.{key}" for key in USED_OF_TRAINER))
    for override in overrides:
        key, top = key_of(override), key_of(override).partition(".")[0].partition("/")[0]
        if not any(is_at_or_below(key, name) for name in used):
            if top in (*SECTIONS, *Config.__annotations__, "experiment", "hydra"):
                raise ConfigError(
                    f"{key} has no effect in an evaluation, which uses {', '.join(used)}; leave it out"
                )
            raise ConfigError(f"{key}: no such key; did you mean {nearest(key, (*COMMAND_KEYS, *used))}?")
        if key in TRAINING_ONLY:
            raise ConfigError(f"{key} has no effect on a trained net in evaluation mode; leave it out")
        if override.is_sweep_override():
            raise ConfigError(f"{key} must be one value, got {override.input_line}; run eval.py for each value")
    require_distinct(list(overrides))
    require_single_option(overrides)


def chooses_option(override: Override, conf: Path) -> bool:
    """Return True if an override chooses an option of a config group, as ``data=digits`` does."""
    return (conf / override.key_or_group).is_dir() and not isinstance(override.value(), dict)


def compose_options(overrides: Sequence[Override], conf: Path) -> dict[str, Any]:
    """Compose the default configuration with the options that overrides choose; interpolations stay unresolved."""
    words = [str(override.input_line) for override in overrides if chooses_option(override, conf)]
    folders = ",".join(f"'file://{folder.absolute()}'" for folder in config_folders(conf))
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("train", [f"hydra.searchpath=[{folders}]", *words]))
    return composed


def written_config(record: Record) -> dict[str, Any]:
    """Return the configuration of a run, with interpolations if the file that Hydra wrote has them.

    With interpolations, an override also reaches the keys that refer to the overridden one.

    Raises:
        ConfigError: if the run left no readable configuration.
    """
    config, written = record.result.config, updated(record.unresolved())
    if not config:
        raise ConfigError(f"{record.folder} has no readable configuration; choose another run")
    return written if recorded(resolve_references(written)) == recorded(config) else config


def evaluation_config(
    written: Mapping[str, Any], composed: Mapping[str, Any], overrides: Sequence[Override], conf: Path
) -> FrozenConfig:
    """Apply overrides to the configuration of a run; a chosen option replaces the whole group.

    Keys that an evaluation does not use get their default values, which keeps records of earlier versions valid.

    Args:
        written: the configuration of the run, from :func:`written_config`.
        composed: the default configuration with the chosen options, from :func:`compose_options`.
        overrides: of the command line.
        conf: the folder of the config groups.

    Raises:
        ConfigError: if a key does not exist, a value is impossible, or an override has no effect.
    """
    chosen = [key_of(override) for override in overrides if chooses_option(override, conf)]
    of_run = {key: node for key, node in written.items() if key not in chosen}
    config, default = OmegaConf.create({**composed, **of_run}), resolve(OmegaConf.create(dict(composed)))
    OmegaConf.set_struct(config, True)
    for override in overrides:
        if not chooses_option(override, conf):
            apply(override, config)
    used = used_part(resolve(config))
    if used["replicate"] == "seed" and any(key_of(override) == "seed" for override in overrides):
        raise ConfigError("seed has no effect: with replicate=seed the data depend on data.seed; use data.seed=…")
    trainer = default["trainer"] | used["trainer"]
    # The best epoch is known, so that the metric that would choose it need not exist for these splits.
    return check_values({**default, **used, "trainer": trainer, "optimized_metric": "train/loss"})


def apply(override: Override, config: DictConfig) -> None:
    """Apply an override in place, as Hydra does.

    Raises:
        ConfigError: if the configuration has no such key.
    """
    try:
        ConfigLoaderImpl._apply_overrides_to_config([override], config)
    except ConfigCompositionException as error:
        if not str(error).startswith("Could not override"):
            raise
        key, known = override.key_or_group, keys_of(config)
        near = [name for name in known if is_at_or_below(name, key.partition(".")[0])]
        raise ConfigError(f"{key}: no such key in the run; did you mean {nearest(key, near)}?") from error
