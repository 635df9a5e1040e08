"""The factors of a sweep: the configuration keys in which its runs differ; see :func:`find_factors`.

Resolved configurations are compared, so that a difference counts whether it was typed or came from a YAML file.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from normlab.config.schema import REPORT_KEYS, SECTIONS
from normlab.results.result import Result
from normlab.results.sweep import overrides, setting
from normlab.stats.configurations import ABSENT, SEED, configuration_label, varied_keys
from normlab.stats.design import MODEL, OPTIMIZER

WITHOUT_EFFECT = (
    *("seed", "target", "logger", "metrics", "probes", "trainer.threads", "trainer.compile", "trainer.logger"),
    *("trainer.default_root_dir", "trainer.profiler", "trainer.log_every_n_steps", "trainer.enable_checkpointing"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", *REPORT_KEYS),
)
"""Keys, and groups of keys, that cannot change the result of a run and its seed."""
FactorColumn = Sequence[Hashable]
Written = Callable[[], Sequence[Mapping[str, Any]]]
UNKNOWN_SETTING = "unknown"


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
        columns = differing([{key: comparable(value) for key, value in config_leaves(run.config)} for run in runs])
        self.values = {key: column for key, column in columns.items() if column != seeds}
        self.choices = differing([run.choices for run in runs])
        sections = {*SECTIONS, *(str(key) for run in runs for key in run.config)}
        self.overall = [group for group in self.choices if group not in sections]

    def explanation(self, key: str, ways: Sequence[Sequence[FactorColumn]]) -> Sequence[FactorColumn] | None:
        """Return the first of some sets of columns that a key follows, None if there is none.

        It follows columns if it is the same, or the same reference, in all runs in which they agree.
        """
        classes = [list(zip(*way, strict=True)) if way else [()] * len(self.ended) for way in ways]
        for column in (lambda: self.values[key], lambda: self.references(key)):
            values = column()
            for way, own in zip(ways, classes, strict=True):
                if is_constant_within(values, own):
                    return way
        return None

    def references(self, key: str) -> list[Hashable]:
        """Return the written reference of a key in each run, or its value where the file has no reference."""
        if self.files is None:
            written = self.written()
            self.files = [dict(config_leaves(written[k])) for k in self.ended]
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
        if not overall or not is_constant_within(runs.choices[group], list(zip(*overall, strict=True)))
    ]
    above: dict[str, FactorColumn] = {**{str(key): typed[key].tolist() for key in typed}, **runs.choices}
    found, by_overall = [], len(own) < len(groups)
    for key in (key for key in runs.values if key not in typed):
        parents = [column for other, column in above.items() if is_below(key, other)]
        ways: list[list[FactorColumn]] = [[column] for column in parents] or [[]]
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


def config_leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a configuration that is no group of keys, with its dotted key."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from config_leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def comparable(value: Any) -> Hashable:
    """Return a value as it is compared: numbers by size, lists by their text."""
    return value if isinstance(value, str | bool | int | float) else json.dumps(value)


def is_constant_within(column: FactorColumn, classes: FactorColumn) -> bool:
    """Return whether the entries of a column are equal within each class.

    >>> is_constant_within([1, 1, 2], ["a", "a", "b"]), is_constant_within([1, 2, 2], ["a", "a", "b"])
    (True, False)
    """
    return len(set(zip(column, classes, strict=True))) == len(set(classes))


def is_reference(text: Any) -> bool:
    """Return whether the value written for a key follows from other keys, as ``${seed}`` does.

    >>> is_reference("${trainer.max_epochs}"), is_reference("${oc.env:RATE}"), is_reference(0.1)
    (True, False, False)
    """
    return isinstance(text, str) and "${" in text and "${oc.env:" not in text


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
    settings = settings.fillna(UNKNOWN_SETTING)
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
        if group == key or not (column == ABSENT).any() or not is_constant_within(list(column == ABSENT), choices):
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
    return [
        ", ".join([arm, configuration_label(*zip(*pairs, strict=True))]) if pairs else arm for arm, pairs in parts
    ]


def untyped_note(keys: Iterable[str]) -> list[str]:
    """Return the caution about factors that nobody typed, if there are any.

    >>> untyped_note(["trainer.max_epochs", "optimizer.lr"])
    ['runs differ in trainer.max_epochs, optimizer.lr, which nobody typed: they are panels']
    """
    names = list(keys)
    ends = "they are panels" if len(names) > 1 else "it makes panels"
    return [f"runs differ in {', '.join(names)}, which nobody typed: {ends}"] if names else []


def short_names(keys: Sequence[str]) -> list[str]:
    """Return the last part of each key, or the whole where two would read the same.

    >>> short_names(["model", "optimizer.lr", "data.seed", "net.seed"])
    ['model', 'lr', 'data.seed', 'net.seed']
    """
    ends = [key.rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]
