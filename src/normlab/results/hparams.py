"""What a run's configuration looks like in TensorBoard's HParams tab."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from normlab.results.folder import computed

GROUPS = ("data", "net", "model", "optimizer", "scheduler")


def flat(config: dict[str, Any], choices: dict[str, str]) -> dict[str, bool | int | float | str]:
    """Return the group choices and every number, word or list of the configuration, by dotted key.

    >>> flat({"seed": 0, "net": {"_target_": "x.MLP", "hidden": [64]}}, {"model": "bn"})
    {'model': 'bn', 'seed': 0, 'net.hidden': '[64]'}
    """
    chosen = {group: choices[group] for group in GROUPS if group in choices}
    return chosen | dict(leaves(config))


def group_choices(chosen: Mapping[str, Any]) -> dict[str, str]:
    """Return the choices of a run's own groups, given all of Hydra's.

    >>> group_choices({"model": "bn", "experiment": None, "hydra/launcher": "basic"})
    {'model': 'bn'}
    """
    return {group: option for group, option in chosen.items() if isinstance(option, str) and "/" not in group}


def leaves(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Yield the leaves of a configuration with their dotted keys."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        elif value is not None and not key.startswith("_"):
            yield f"{path}{key}", value if isinstance(value, bool | int | float | str) else json.dumps(value)


def group(config: dict[str, Any], choices: dict[str, str]) -> str:
    """Return a name that the runs share which differ in their seed alone.

    The configuration comes with its interpolations as they are written, so that what follows the seed is equal.

    >>> one, two = ({"seed": seed, "data": {"seed": "${seed}"}} for seed in (0, 1))
    >>> group(one, {"model": "bn"}) == group(two, {"model": "bn"})
    True
    """
    rest = {key: value for key, value in computed(config).items() if key != "seed"}
    digest = hashlib.sha256(json.dumps([rest, choices], sort_keys=True, default=str).encode()).hexdigest()
    return f"{choices.get('model', 'run')}-{digest[:8]}"
