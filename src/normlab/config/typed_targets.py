"""Overrides as typed for another ``_target_``, in the form that Hydra takes: :func:`with_target_arguments`."""

import re
from collections.abc import Callable, Iterable, Sequence

from normlab.config.schema import SCHEDULER_TIMING, SELECTIONS
from normlab.config.validation import HYDRA_KEYS

TARGET_GROUPS = ("loss", "optimizer", "scheduler", "module")
"""Groups that accept any ``_target_``, with its arguments."""
GROUPS = "optimizer.groups."
ADDED_KEYS = (
    "data.corrupt=",
    "data.severity=",
    "optimizer.no_decay=",
    *(f"scheduler.{name}=" for name in SCHEDULER_TIMING),
)
"""Keys that an option may lack, but every dataset, optimizer and scheduler with a ``_target_`` accepts."""
KEPT_KEYS = (*HYDRA_KEYS, "lr", *SELECTIONS, *SCHEDULER_TIMING)
"""Keys of a group that stay under a new ``_target_``."""


def with_target_arguments(words: Sequence[str], keys_of_group: Callable[[str], Iterable[str]]) -> list[str]:
    """Rewrite the overrides of groups whose ``_target_`` is on the command line.

    The typed arguments of the new ``_target_`` are added to the group, as with ``++``. Arguments of the chosen
    option that were not typed are removed, so that the new ``_target_`` has its own defaults; the learning rate
    stays.

    Args:
        words: of the command line.
        keys_of_group: returns the keys of a group in the composed configuration.

    >>> words = ["scheduler._target_=torch.optim.lr_scheduler.StepLR", "scheduler.step_size=3", "loss=null"]
    >>> with_target_arguments(words, lambda group: ["_target_", "T_max"])[1:]
    ['++scheduler.step_size=3', 'loss=default', '~scheduler.T_max']
    """
    words = ["loss=default" if word == "loss=null" else word for word in words]
    has_groups = not any(word.startswith(GROUPS) for word in words) or "groups" in keys_of_group("optimizer")
    added_keys = ADDED_KEYS if has_groups else (*ADDED_KEYS, GROUPS)
    words = [f"++{word}" if word.startswith(added_keys) else word for word in words]
    for group in TARGET_GROUPS:
        if not any(re.match(rf"\+{{0,2}}{group}\._target_=.", word) for word in words):
            continue
        keys = list(keys_of_group(group))
        added = re.compile(rf"{group}\.(?!({'|'.join(map(re.escape, keys))})[.=])" if keys else rf"{group}\.")
        words = [f"++{word}" if added.match(word) else word for word in words]
        typed = {word.lstrip("+~").partition("=")[0] for word in words}
        words += [f"~{group}.{key}" for key in keys if key not in KEPT_KEYS and f"{group}.{key}" not in typed]
    return words
