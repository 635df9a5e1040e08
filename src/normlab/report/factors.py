"""The factors of a sweep: the configuration keys in which its runs differ. The entry is :func:`find_factors`.

Resolved configurations are compared, so that a difference counts whether it was typed or came from a YAML file.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from normlab.report.untyped import Ended, Written, is_constant, untyped_keys
from normlab.results.result import Result
from normlab.results.sweep import overrides, setting
from normlab.stats.arms import ABSENT, label, varied_keys
from normlab.stats.design import MODEL, OPTIMIZER

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Factors:
    """The keys in which runs differ, apart from their seed.

    Attributes:
        keys: the factors.
        settings: the text of each factor in each run, ``(runs, keys)``; ``ABSENT`` where a run lacks the key,
            ``UNKNOWN`` where nothing is known of the run. Keys that are named have a column too.
        untyped: factors from other configuration files rather than the command line. They make panels.
        named: keys that only some arms have; their settings are part of the arm's name, ``bn, momentum=0.05``.
    """

    keys: list[str]
    settings: pd.DataFrame
    untyped: tuple[str, ...] = ()
    named: tuple[str, ...] = ()


def find_factors(results: Sequence[Result], written: Written, compare: str | None = None) -> Factors:
    """Return the factors of some runs.

    Args:
        results: of the runs.
        written: returns the configuration of each run with its interpolations unresolved. It is called only where
            the resolved configurations leave a question open, as reading these files takes time.
        compare: the key whose settings are the arms; by default ``model``, or the first key that is not tuned.
    """
    given = pd.DataFrame([overrides(result) for result in results])
    typed = pd.DataFrame(
        {str(key): [known_setting(result, str(key)) for result in results] for key in given}, index=given.index
    )
    keys = varied_keys(given, typed)
    ended = [k for k, result in enumerate(results) if result.status.done and result.config]
    untyped = list(untyped_keys(Ended(results, ended, written), typed.loc[ended, keys]))
    settings = typed[keys].copy()
    for key in untyped:
        settings[key] = [known_setting(result, key) for result in results]
    settings = settings.fillna(UNKNOWN)
    compare = compare or default_comparison(settings, untyped)
    dropped, named = absent_keys(results, settings, compare)
    keys = [key for key in [*keys, *untyped] if key not in dropped and key not in named]
    if named:
        settings[compare] = arm_names(settings, compare, named)
    panels = tuple(key for key in untyped if key in keys and key != compare)
    return Factors(keys, settings[[*keys, *named]], panels, named)


def known_setting(result: Result, key: str) -> str | None:
    """Return the text of a key in a run: ``ABSENT`` if the run lacks it, None if its configuration is lost.

    >>> from normlab.results.result import Objective, Status
    >>> run = Result("", Status.FINISHED, {"net": {}}, {"model": "bn"}, [], Objective("", "", 0.0))
    >>> known_setting(run, "model"), known_setting(run, "net.width")
    ('bn', '–')
    """
    found = setting(result, key)
    if found or not result.config:
        return found
    node: Any = result.config
    for part in key.split("."):
        node = node.get(part, ...) if isinstance(node, dict) else ...
    return ABSENT if node is ... else found


def default_comparison(settings: pd.DataFrame, untyped: Sequence[str]) -> str:
    """Return the key that is compared unless another is asked for; empty if there is none."""
    others = [str(key) for key in settings if not str(key).startswith(OPTIMIZER) and key not in untyped]
    return MODEL if MODEL in settings else next(iter(others), "")


def absent_keys(
    results: Sequence[Result], settings: pd.DataFrame, compare: str
) -> tuple[set[str], tuple[str, ...]]:
    """Return the keys that are no factors because a group's choice implies them, and those that name arms.

    Both are keys that only some choices of their group have, as ``model.norm.momentum``, which ``nobn`` lacks.
    With one setting among the runs that have it such a key is no factor; with several it tells arms apart.
    """
    dropped, named = set(), []
    known = [bool(result.config and result.choices) for result in results]
    for key in map(str, settings):
        group = key.partition(".")[0]
        column = settings.loc[known, key]
        choices = [result.choices.get(group) for result, own in zip(results, known, strict=True) if own]
        if group == key or not (column == ABSENT).any() or not is_constant(list(column == ABSENT), choices):
            continue
        if column[column != ABSENT].nunique() == 1:
            dropped.add(key)
        elif group == compare:
            named.append(key)
    return dropped, tuple(named)


def arm_names(settings: pd.DataFrame, compare: str, named: Sequence[str]) -> list[str]:
    """Return the name of each run's arm, with its settings of the keys that only some arms have."""
    ends = [key.rpartition(".")[2] for key in named]
    short = [end if ends.count(end) == 1 else key for key, end in zip(named, ends, strict=True)]
    rows = zip(settings[compare], settings[list(named)].to_numpy().tolist(), strict=True)
    parts = [(arm, [pair for pair in zip(short, row, strict=True) if pair[1] != ABSENT]) for arm, row in rows]
    return [", ".join([arm, label(*zip(*pairs, strict=True))]) if pairs else arm for arm, pairs in parts]


def untyped_note(keys: Iterable[str]) -> list[str]:
    """Return the caution about factors that nobody typed, if there are any.

    >>> untyped_note(["trainer.max_epochs", "optimizer.lr"])
    ['runs differ in trainer.max_epochs, optimizer.lr, which nobody typed: they are panels']
    """
    names = list(keys)
    ends = "they are panels" if len(names) > 1 else "it makes panels"
    return [f"runs differ in {', '.join(names)}, which nobody typed: {ends}"] if names else []
