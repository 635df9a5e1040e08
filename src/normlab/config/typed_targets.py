"""Overrides as typed for another ``_target_``, in the form that Hydra takes: :func:`with_target_arguments`."""

import re
from collections.abc import Callable, Iterable, Sequence

from normlab.config.schema import SCHEDULER_TIMING
from normlab.config.validation import HYDRA_KEYS, parameters_of
from normlab.errors import ConfigError

TARGET_GROUPS = ("loss", "optimizer", "scheduler", "module")
"""Groups that accept any ``_target_``, with its arguments."""
ADDED_KEYS = ("optimizer.no_decay", *(f"scheduler.{name}" for name in SCHEDULER_TIMING))
"""Keys that no option has, but every optimizer or scheduler with a ``_target_`` accepts."""


def with_target_arguments(words: Sequence[str], keys_of_group: Callable[[str], Iterable[str]]) -> list[str]:
    """Rewrite the overrides of groups whose ``_target_`` is on the command line.

    The arguments of the new ``_target_`` are added to the group, as with ``++``. Arguments of the chosen option
    that neither were typed nor are taken by the new ``_target_`` are removed.

    Args:
        words: of the command line.
        keys_of_group: returns the keys of a group in the composed configuration.

    >>> words = ["scheduler._target_=torch.optim.lr_scheduler.StepLR", "scheduler.step_size=3", "loss=null"]
    >>> with_target_arguments(words, lambda group: ["_target_", "T_max"])[1:]
    ['++scheduler.step_size=3', 'loss=default', '~scheduler.T_max']
    """
    words = ["loss=default" if word == "loss=null" else word for word in words]
    words = [f"++{word}" if word.startswith(tuple(f"{key}=" for key in ADDED_KEYS)) else word for word in words]
    for group in TARGET_GROUPS:
        targets = [match[1] for word in words if (match := re.match(rf"\+{{0,2}}{group}\._target_=(.+)", word))]
        if not targets:
            continue
        keys = list(keys_of_group(group))
        added = re.compile(rf"{group}\.(?!({'|'.join(map(re.escape, keys))})[.=])" if keys else rf"{group}\.")
        words = [f"++{word}" if added.match(word) else word for word in words]
        typed = {word.lstrip("+~").partition("=")[0] for word in words}
        removed = replaced_arguments(group, targets[-1].split(","), keys)
        words += [f"~{group}.{key}" for key in removed if f"{group}.{key}" not in typed]
    return words


def replaced_arguments(group: str, targets: Sequence[str], keys: Iterable[str]) -> list[str]:
    """Return the keys of a group that none of the targets takes; none if a target cannot be loaded."""
    try:
        parameters = [parameters_of(group, target) for target in targets]
    except ConfigError:  # reported by the validation
        return []
    variable = any(p.kind is p.VAR_KEYWORD for known in parameters for p in known.values())
    accepted = {name for known in parameters for name in known}
    return (
        []
        if variable
        else [key for key in keys if key not in (*accepted, *HYDRA_KEYS, *SCHEDULER_TIMING, "no_decay")]
    )
