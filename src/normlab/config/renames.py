"""Keys and targets that were renamed or added: configurations recorded before are read as if written today."""

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
"""Values of keys in records from before the keys existed."""


def updated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration with the keys and targets of today.

    >>> updated({"warmup": 3, "net": {"_target_": "normlab.models.SourceMLP"}})
    {'replicate': 'seed', 'stats_warmup_epochs': 3, 'net': {'_target_': 'normlab.source_experiments.SourceMLP'}}
    """
    if not config:  # of a run that left no configuration
        return {}
    return DEFAULTS_BEFORE | {RENAMED_KEYS.get(key, key): with_moved_targets(node) for key, node in config.items()}


def updated_override(override: str) -> str:
    """Return a recorded override with the key of today.

    >>> updated_override("warmup=3"), updated_override("seed=1")
    ('stats_warmup_epochs=3', 'seed=1')
    """
    key, equals, value = override.partition("=")
    return f"{RENAMED_KEYS.get(key, key)}{equals}{value}"


def with_moved_targets(node: Any) -> Any:
    """Return a part of a configuration with every ``_target_`` that has moved replaced."""
    if isinstance(node, dict):
        return {
            key: MOVED_TARGETS.get(value, value) if key == "_target_" else with_moved_targets(value)
            for key, value in node.items()
        }
    return [with_moved_targets(entry) for entry in node] if isinstance(node, list) else node
