"""Differences between runs that nobody typed, by resolved configurations. The entry is :func:`untyped_keys`."""

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from normlab.config.schema import OF_THE_VERDICT, SECTIONS
from normlab.results.result import Result
from normlab.stats.arms import ABSENT, SEED

WITHOUT_EFFECT = (
    *("seed", "target", "logger", "metrics", "probes", "trainer.threads", "trainer.compile", "trainer.logger"),
    *("trainer.default_root_dir", "trainer.profiler", "trainer.log_every_n_steps", "trainer.enable_checkpointing"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", *OF_THE_VERDICT),
)
"""Keys, and groups of keys, that cannot change the result of a run and its seed."""
Column = Sequence[Hashable]
Written = Callable[[], Sequence[Mapping[str, Any]]]


class Ended:
    """The configurations of the runs that came to their end, by key.

    Attributes:
        values: the leaves in which the runs differ and that can change a result, without those that equal the
            seed, each a column of comparable values; ``ABSENT`` where a run lacks the key.
        choices: the Hydra groups whose choice differs.
        overall: of these the groups that may set any key, as ``experiment``, and have no section of their own.
    """

    def __init__(self, results: Sequence[Result], ended: Sequence[int], written: Written) -> None:
        self.ended, self.written = ended, written
        runs = [results[k] for k in ended]
        self.files: list[dict[str, Any]] | None = None
        seeds = [run.config.get(SEED) for run in runs]
        columns = differing([{key: comparable(value) for key, value in leaves(run.config)} for run in runs])
        self.values = {key: column for key, column in columns.items() if column != seeds}
        self.choices = differing([run.choices for run in runs])
        sections = {*SECTIONS, *(str(key) for run in runs for key in run.config)}
        self.overall = [group for group in self.choices if group not in sections]

    def explanation(self, key: str, ways: Sequence[Sequence[Column]]) -> Sequence[Column] | None:
        """Return the first of some sets of columns that a key follows, None if there is none.

        It follows columns if it is the same, or the same reference, in all runs in which they agree.
        """
        classes = [list(zip(*way, strict=True)) if way else [()] * len(self.ended) for way in ways]
        for column in (lambda: self.values[key], lambda: self.references(key)):
            values = column()
            for way, own in zip(ways, classes, strict=True):
                if is_constant(values, own):
                    return way
        return None

    def references(self, key: str) -> list[Hashable]:
        """Return the written reference of a key in each run, or its value where the file has no reference."""
        if self.files is None:
            written = self.written()
            self.files = [dict(leaves(written[k])) for k in self.ended]
        texts = [written_for(file, key) for file in self.files]
        pairs = zip(texts, self.values[key], strict=True)
        return [text if is_reference(text) else value for text, value in pairs]


def untyped_keys(runs: Ended, typed: pd.DataFrame) -> Iterator[str]:
    """Yield the groups and leaves in which runs differ although no typed key or choice explains it.

    A leaf is explained by the choice of its group, by a typed key above it, or by the experiment, if it is the
    same in all runs that have the same of these; or by being written as the same reference, such as ``${seed}``.

    Args:
        runs: those that came to their end.
        typed: their settings of the typed factors, ``(runs, keys)``.
    """
    overall = [runs.choices[group] for group in runs.overall]
    groups = [group for group in runs.choices if any(is_below(key, group) for key in runs.values)]
    groups = [group for group in groups if group not in typed]
    own = [
        group
        for group in groups
        if not overall or not is_constant(runs.choices[group], list(zip(*overall, strict=True)))
    ]
    above: dict[str, Column] = {**{str(key): typed[key].tolist() for key in typed}, **runs.choices}
    found, by_overall = [], len(own) < len(groups)
    for key in (key for key in runs.values if key not in typed):
        parents = [column for other, column in above.items() if is_below(key, other)]
        ways: list[list[Column]] = [[column] for column in parents] or [[]]
        way = runs.explanation(key, [*ways, *([[*parents, *overall]] if overall else [])])
        if way is None:
            found.append(key)
        else:
            by_overall |= way not in ways
    yield from [group for group in runs.overall if by_overall and group not in typed]
    yield from own
    yield from found


def written_for(file: Mapping[str, Any], key: str) -> Any:
    """Return the text written for a key, or for the nearest group above it, with the rest of the key.

    >>> written_for({"model.norm.eps": 0.1, "model.norm2d": "${model.norm}"}, "model.norm2d.eps")
    '${model.norm}.eps'
    """
    parts = key.split(".")
    for place in range(len(parts), 0, -1):
        above = ".".join(parts[:place])
        if above in file:
            return ".".join([str(file[above]), *parts[place:]]) if place < len(parts) else file[above]
    return None


def differing(runs: Sequence[Mapping[str, Hashable]]) -> dict[str, list[Hashable]]:
    """Return the columns, by key, of which the entries are not all equal, without keys that have no effect."""
    keys = dict.fromkeys(key for run in runs for key in run)
    columns = {key: [run.get(key, ABSENT) for run in runs] for key in keys if not is_without_effect(key)}
    return {key: column for key, column in columns.items() if len(set(column)) > 1}


def is_without_effect(key: str) -> bool:
    """Return whether a key cannot change the result of a run.

    >>> [is_without_effect(key) for key in ("seed", "logger.extra.csv.name", "data.seed", "trainer.precision")]
    [True, True, False, False]
    """
    return any(key == name or is_below(key, name) for name in WITHOUT_EFFECT)


def is_below(key: str, other: str) -> bool:
    """Return whether a dotted key lies below another."""
    return key.startswith(f"{other}.")


def leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a configuration that is no group of keys, with its dotted key."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def comparable(value: Any) -> Hashable:
    """Return a value as it is compared: numbers by size, lists by their text."""
    return value if isinstance(value, str | bool | int | float) else json.dumps(value)


def is_constant(column: Column, classes: Column) -> bool:
    """Return whether the entries of a column are equal within each class.

    >>> is_constant([1, 1, 2], ["a", "a", "b"]), is_constant([1, 2, 2], ["a", "a", "b"])
    (True, False)
    """
    return len(set(zip(column, classes, strict=True))) == len(set(classes))


def is_reference(text: Any) -> bool:
    """Return whether the value written for a key follows from other keys, as ``${seed}`` does.

    >>> is_reference("${trainer.max_epochs}"), is_reference("${oc.env:RATE}"), is_reference(0.1)
    (True, False, False)
    """
    return isinstance(text, str) and "${" in text and "${oc.env:" not in text
