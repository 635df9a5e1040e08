"""Renamed keys and moved ``_target_`` paths; :func:`updated` migrates configurations of older records."""

from collections.abc import Mapping
from typing import Any

RENAMED_KEYS = {"warmup": "stats_warmup_epochs"}

MOVED_TARGETS = {
    **{f"normlab.training.optim.{name}": f"normlab.population.optim.{name}" for name in ("SGD", "Adam", "AdamW")},
    **{
        f"normlab.training.schedulers.{name}": f"normlab.population.schedulers.{name}"
        for name in ("CosineAnnealingLR", "ReduceLROnPlateau", "StepLR")
    },
    "normlab.models.SourceMLP": "normlab.source_experiments.SourceMLP",
    "normlab.probes.AliasedLipschitz": "normlab.source_experiments.AliasedLipschitz",
}

DEFAULTS_BEFORE = {"replicate": "seed"}
"""Values of keys that older records lack."""


def updated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration with current keys and ``_target_`` paths.

    >>> updated({"warmup": 3, "net": {"_target_": "normlab.models.SourceMLP"}})
    {'replicate': 'seed', 'stats_warmup_epochs': 3, 'net': {'_target_': 'normlab.source_experiments.SourceMLP'}}
    """
    if not config:  # the run left no configuration
        return {}
    return DEFAULTS_BEFORE | {RENAMED_KEYS.get(key, key): with_moved_targets(node) for key, node in config.items()}


def updated_override(override: str) -> str:
    """Return a recorded override with the current name of its key.

    >>> updated_override("warmup=3"), updated_override("seed=1")
    ('stats_warmup_epochs=3', 'seed=1')
    """
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
