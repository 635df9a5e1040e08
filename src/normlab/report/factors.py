"""Find the factors of a sweep, the configuration keys in which its runs differ.

:func:`find_factors` is the main entry. Resolved configurations are compared, so that a difference counts whether
the command line or a YAML file sets it.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

from normlab.config.frozen import config_leaves
from normlab.config.schema import REPORT_KEYS, SECTIONS
from normlab.results.result import Result
from normlab.results.sweep import overrides, setting
from normlab.stats.design import ABSENT, MODEL, OPTIMIZER, SEED, configuration_label, varied_keys

WITHOUT_EFFECT = (
    *("seed", "target", "logger", "metrics", "probes", "trainer.threads", "trainer.compile", "trainer.logger"),
    *("trainer.default_root_dir", "trainer.profiler", "trainer.log_every_n_steps", "trainer.enable_checkpointing"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "claim", *REPORT_KEYS),
)
"""Keys and groups of keys that cannot change the result of a run, and its seed."""
FactorColumn = Sequence[Hashable]
UnresolvedConfigs = Callable[[], Sequence[Mapping[str, Any]]]
UNKNOWN_SETTING = "unknown"


class EndedRuns:
    """The resolved configurations of the finished and diverged runs, as columns by key.

    Args:
        results: of all runs.
        ended: the indices of the finished and diverged runs with a known configuration.
        unresolved: see :func:`find_factors`.

    Attributes:
        values: a column of comparable values for each key in which the runs differ and that can change a result;
            ``ABSENT`` where a run lacks the key. Keys whose column equals the seeds are left out.
        choices: a column of choices for each Hydra group in which the runs differ.
        overall: the groups of ``choices`` without a section of their own, such as ``experiment``; they may set
            any key.
    """

    def __init__(self, results: Sequence[Result], ended: Sequence[int], unresolved: UnresolvedConfigs) -> None:
        self.ended, self.unresolved = ended, unresolved
        runs = [results[k] for k in ended]
        self.files: list[dict[str, Any]] | None = None
        seeds = [run.config.get(SEED) for run in runs]
        columns = differing([{key: comparable(value) for key, value in config_leaves(run.config)} for run in runs])
        self.values = {key: column for key, column in columns.items() if column != seeds}
        self.choices = differing([run.choices for run in runs])
        sections = {*SECTIONS, *(str(key) for run in runs for key in run.config)}
        self.overall = [group for group in self.choices if group not in sections]

    def explanation(self, key: str, candidates: Sequence[Sequence[FactorColumn]]) -> Sequence[FactorColumn] | None:
        """Return the first of several sets of columns that determines a key, or None.

        A set determines the key if runs that agree in its columns have the same value or the same reference.
        """
        classes = [
            list(zip(*columns, strict=True)) if columns else [()] * len(self.ended) for columns in candidates
        ]
        for column in (lambda: self.values[key], lambda: self.references(key)):
            values = column()
            for columns, class_of_run in zip(candidates, classes, strict=True):
                if is_constant_within(values, class_of_run):
                    return columns
        return None

    def references(self, key: str) -> list[Hashable]:
        """Return each run's unresolved reference for a key, or its value where the file has no reference."""
        if self.files is None:
            unresolved = self.unresolved()
            self.files = [dict(config_leaves(unresolved[k])) for k in self.ended]
        texts = [unresolved_text(file, key) for file in self.files]
        pairs = zip(texts, self.values[key], strict=True)
        return [text if is_reference(text) else value for text, value in pairs]


def implicit_keys(runs: EndedRuns, explicit: pd.DataFrame) -> Iterator[str]:
    """Yield the groups and keys in which runs differ and that no command-line key or choice explains.

    A key is explained if runs have the same value wherever they agree in the choice of its group, in a
    command-line key above it, or in these and the experiment; or if it is the same reference, such as ``${seed}``.

    Args:
        runs: the finished and diverged runs.
        explicit: their settings of the keys set on the command line, ``(runs, keys)``.
    """
    overall = [runs.choices[group] for group in runs.overall]
    groups = [group for group in runs.choices if any(is_below(key, group) for key in runs.values)]
    groups = [group for group in groups if group not in explicit]
    unexplained_groups = [
        group
        for group in groups
        if not overall or not is_constant_within(runs.choices[group], list(zip(*overall, strict=True)))
    ]
    above: dict[str, FactorColumn] = {**{str(key): explicit[key].tolist() for key in explicit}, **runs.choices}
    unexplained_keys, by_overall = [], len(unexplained_groups) < len(groups)
    for key in (key for key in runs.values if key not in explicit):
        parents = [column for other, column in above.items() if is_below(key, other)]
        candidates: list[list[FactorColumn]] = [[column] for column in parents] or [[]]
        explanation = runs.explanation(key, [*candidates, *([[*parents, *overall]] if overall else [])])
        if explanation is None:
            unexplained_keys.append(key)
        else:
            by_overall |= explanation not in candidates
    yield from [group for group in runs.overall if by_overall and group not in explicit]
    yield from unexplained_groups
    yield from unexplained_keys


def unresolved_text(file: Mapping[str, Any], key: str) -> Any:
    """Return the unresolved value of a key, or of the nearest group above it with the rest of the key.

    >>> unresolved_text({"model.norm.eps": 0.1, "model.norm2d": "${model.norm}"}, "model.norm2d.eps")
    '${model.norm}.eps'
    """
    parts = key.split(".")
    for depth in range(len(parts), 0, -1):
        above = ".".join(parts[:depth])
        if above in file:
            return ".".join([str(file[above]), *parts[depth:]]) if depth < len(parts) else file[above]
    return None


def differing(runs: Sequence[Mapping[str, Hashable]]) -> dict[str, list[Hashable]]:
    """Return the column of each key in which runs differ, except keys that cannot change a result."""
    keys = dict.fromkeys(key for run in runs for key in run)
    columns = {key: [run.get(key, ABSENT) for run in runs] for key in keys if not is_without_effect(key)}
    return {key: column for key, column in columns.items() if len(set(column)) > 1}


@lru_cache(maxsize=4096)
def is_without_effect(key: str) -> bool:
    """Return True if a key cannot change the result of a run.

    >>> [is_without_effect(key) for key in ("seed", "logger.extra.csv.name", "data.seed", "trainer.precision")]
    [True, True, False, False]
    """
    return any(key == name or is_below(key, name) for name in WITHOUT_EFFECT)


def is_below(key: str, other: str) -> bool:
    """Return True if a dotted key lies below another."""
    return key.startswith(f"{other}.")


def comparable(value: Any) -> Hashable:
    """Convert a value to a hashable one: scalars stay, so that 1 equals 1.0; lists become JSON."""
    return value if isinstance(value, str | bool | int | float) else json.dumps(value)


def is_constant_within(column: FactorColumn, classes: FactorColumn) -> bool:
    """Return True if the entries of a column are equal within each class.

    >>> is_constant_within([1, 1, 2], ["a", "a", "b"]), is_constant_within([1, 2, 2], ["a", "a", "b"])
    (True, False)
    """
    return len(set(zip(column, classes, strict=True))) == len(set(classes))


def is_reference(text: Any) -> bool:
    """Return True if an unresolved value refers to other keys, not to the environment.

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
            ``UNKNOWN_SETTING`` where its configuration is lost. Keys of ``named`` have a column too.
        implicit: factors that differ without being set on the command line. They make panels.
        named: keys that only some arms have; their settings are part of the arm's name, ``bn, momentum=0.05``.
    """

    keys: list[str]
    settings: pd.DataFrame
    implicit: tuple[str, ...] = ()
    named: tuple[str, ...] = ()


def find_factors(results: Sequence[Result], unresolved: UnresolvedConfigs, compare: str | None = None) -> Factors:
    """Find the keys in which runs differ: those set on the command line, then unexplained ones.

    Args:
        results: of the runs.
        unresolved: returns the configuration of each run before interpolation. It is called only if the resolved
            configurations leave a difference unexplained, because reading these files takes time.
        compare: the key whose settings are the arms; by default ``model``, or the first key that is not tuned.
    """
    overridden = pd.DataFrame([overrides(result) for result in results])
    explicit = pd.DataFrame(
        {str(key): [known_setting(result, str(key)) for result in results] for key in overridden},
        index=overridden.index,
    )
    keys = varied_keys(overridden, explicit)
    ended = [k for k, result in enumerate(results) if result.status.done and result.config]
    implicit = list(implicit_keys(EndedRuns(results, ended, unresolved), explicit.loc[ended, keys]))
    settings = explicit[keys].copy()
    for key in implicit:
        settings[key] = [known_setting(result, key) for result in results]
    settings = settings.fillna(UNKNOWN_SETTING)
    compare = compare or default_comparison(settings, implicit)
    dropped, named = absent_keys(results, settings, compare)
    keys = [key for key in [*keys, *implicit] if key not in dropped and key not in named]
    if named:
        settings[compare] = arm_names(settings, compare, named)
    panels = tuple(key for key in implicit if key in keys and key != compare)
    return Factors(keys, settings[[*keys, *named]], panels, named)


def known_setting(result: Result, key: str) -> str | None:
    """Return a key's text in a run: ``ABSENT`` if the run lacks it, None if its configuration is lost.

    >>> from normlab.results.result import Objective, Status
    >>> run = Result("", Status.FINISHED, {"net": {}}, {"model": "bn"}, [], Objective("", "", 0.0))
    >>> known_setting(run, "model"), known_setting(run, "net.width")
    ('bn', '–')
    """
    text = setting(result, key)
    if text or not result.config:
        return text
    node: Any = result.config
    for part in key.split("."):
        node = node.get(part, ...) if isinstance(node, dict) else ...
    return ABSENT if node is ... else text


def default_comparison(settings: pd.DataFrame, implicit: Sequence[str]) -> str:
    """Return the default factor to compare: ``model``, else the first untuned key, else empty."""
    others = [str(key) for key in settings if not str(key).startswith(OPTIMIZER) and key not in implicit]
    return MODEL if MODEL in settings else next(iter(others), "")


def absent_keys(
    results: Sequence[Result], settings: pd.DataFrame, compare: str
) -> tuple[set[str], tuple[str, ...]]:
    """Return keys that only some choices of their group have: those to drop, and those that name arms.

    An example is ``model.norm.momentum``, which ``nobn`` lacks. If the runs with the key share one setting, the
    choice of the group implies it and the key is dropped. With several settings it distinguishes arms, provided
    that its group is compared.
    """
    dropped, named = set(), []
    known = [bool(result.config and result.choices) for result in results]
    for key in map(str, settings):
        group = key.partition(".")[0]
        column = settings.loc[known, key]
        choices = [result.choices.get(group) for result, is_known in zip(results, known, strict=True) if is_known]
        if group == key or not (column == ABSENT).any() or not is_constant_within(list(column == ABSENT), choices):
            continue
        if column[column != ABSENT].nunique() == 1:
            dropped.add(key)
        elif group == compare:
            named.append(key)
    return dropped, tuple(named)


def arm_names(settings: pd.DataFrame, compare: str, named: Sequence[str]) -> list[str]:
    """Return each run's arm with its settings of the keys that only some arms have: ``bn, momentum=0.05``."""
    ends = [key.rpartition(".")[2] for key in named]
    short = [end if ends.count(end) == 1 else key for key, end in zip(named, ends, strict=True)]
    rows = zip(settings[compare], settings[list(named)].to_numpy().tolist(), strict=True)
    parts = [(arm, [pair for pair in zip(short, row, strict=True) if pair[1] != ABSENT]) for arm, row in rows]
    return [
        ", ".join([arm, configuration_label(*zip(*pairs, strict=True))]) if pairs else arm for arm, pairs in parts
    ]


def implicit_note(keys: Iterable[str]) -> list[str]:
    """Return the warning about factors that no command line sets, as one line, or nothing.

    >>> implicit_note(["trainer.max_epochs", "optimizer.lr"])
    ['runs differ in trainer.max_epochs, optimizer.lr, not set on the command line: each combination is a panel']
    """
    names = list(keys)
    panels = "each combination is a panel" if len(names) > 1 else "each value is a panel"
    return [f"runs differ in {', '.join(names)}, not set on the command line: {panels}"] if names else []


def short_names(keys: Sequence[str]) -> list[str]:
    """Return the last part of each key, or the whole key where two last parts are equal.

    >>> short_names(["model", "optimizer.lr", "data.seed", "net.seed"])
    ['model', 'lr', 'data.seed', 'net.seed']
    """
    ends = [key.rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]
