"""From a data frame to a table: the target, the inputs as numbers, and missing values; see :class:`FrameData`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from normlab.data.datamodule import InMemoryData, Transform
from normlab.data.parsing import (
    ParsedColumn,
    Source,
    drop_remedy,
    listing,
    parse_column,
    refuse_missing,
)
from normlab.data.preprocessing import Encoder
from normlab.data.table import Table, split_rows
from normlab.data.target import guess_task, missing_targets, notice, parse_target
from normlab.errors import ConfigError, nearest, require

if TYPE_CHECKING:
    import pandas as pd

ColumnWords = tuple[tuple[str, ...], ...]
"""For each input column the words that its values are the places of; empty for numbers."""


@dataclass(frozen=True)
class Reading:
    """A table as it was read, the words of its columns, and what a person should know about how.

    In ``table.x`` a missing value is NaN and a word its place among the column's.

    Attributes:
        beyond_inputs, beyond_target: the lines that refuse numbers beyond float32, if there are any that are not
            standardized.
    """

    table: Table
    notices: tuple[str, ...] = ()
    words: ColumnWords = ()
    beyond_inputs: str = ""
    beyond_target: str = ""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The choices that a table is read by, as :class:`FrameData` has them."""

    target_column: str | None = None
    task: str = "auto"
    drop: tuple[str, ...] = ()
    missing: str = "error"


def table_of(frame: "pd.DataFrame", choices: Choices, source: Source) -> Reading:
    """Return a frame's target and, as inputs, all other columns but those that are left out.

    Shapes:
        x: ``(N, columns)``; y: ``(N, 1)``, or ``(N,)`` for classes.

    Raises:
        ConfigError: for a column that is not there, a value that is missing or cannot be used, a single class.
    """
    target = frame[known_column(choices.target_column, list(frame.columns), source)]
    inputs = frame.drop(columns=[target.name, *known_drops(frame, target.name, choices.drop, source)])
    if inputs.columns.empty:
        beside = f"{source.name} has no column beside the target {target.name}"
        raise ConfigError(f"{beside}; it needs one to predict it from")
    names = tuple(map(str, inputs.columns))
    x, columns = inputs_of(inputs, choices, source)
    lacking = missing_targets(target, choices.task, source)
    if choices.missing == "drop":
        kept = ~(lacking | np.isnan(x).any(axis=1))
        require(bool(kept.any()), "data.missing", f"mean, as every row of {source.name} lacks a value", "drop")
        x, target = (x, target) if kept.all() else (x[kept], target[kept])
        said = dropped_notice(kept)
    else:
        refuse_missing(target, lacking, source, "use data.missing=drop")
        said = filled_notice(names, x) if choices.missing == "mean" else []
    task = guess_task(target, source) if choices.task == "auto" else choices.task
    found = parse_target(target, task, source)
    notices = [notice(target, found.labels, source)] if choices.task == "auto" else []
    said = encoded_notice(names, columns, x) + said
    notices += [f"data: {', '.join(said)}"] if said else []
    return Reading(
        Table(torch.from_numpy(x), found.y, len(found.labels), names),
        tuple(notices),
        tuple(column.words for column in columns),
        next((column.beyond for column in columns if column.beyond), ""),
        found.beyond,
    )


def known_column(name: str | None, columns: list[str], source: Source) -> str:
    """Return the name of the target, one of several columns.

    Raises:
        ConfigError: if it is not, with those there are or the nearest of them.
    """
    if name is None:
        raise ConfigError(f"data.target_column must be a column of {source.name} ({listing(columns)}), got null")
    if name not in columns:
        meant = nearest(name, columns)
        raise ConfigError(f"data.target_column={name}: {source.name} has no such column; did you mean {meant}?")
    return name


def known_drops(frame: "pd.DataFrame", target: object, drop: Sequence[str], source: Source) -> Sequence[str]:
    """Return the columns to leave out, all of which are there.

    Raises:
        ConfigError: if one is not, or is the target.
    """
    columns = [str(name) for name in frame.columns]
    for name in drop:
        if name not in columns:
            meant = nearest(name, columns)
            raise ConfigError(f"data.drop: {source.name} has no column {name}; did you mean {meant}?")
        require(name != target, "data.drop", f"without {target}, the target", f"[{', '.join(drop)}]")
    return drop


def inputs_of(frame: "pd.DataFrame", choices: Choices, source: Source) -> tuple[np.ndarray, list[ParsedColumn]]:
    """Return all columns as numbers ``(N, columns)``, NaN where one is missing, and of each all but its values.

    The numbers are in float32 if it holds all of them exactly, otherwise in float64.
    """
    x, columns = np.zeros(frame.shape, dtype=np.float32), []
    for place, name in enumerate(frame.columns):
        column = parse_column(frame[name], source)
        missing = np.isnan(column.values)
        if missing.all():
            raise ConfigError(f"{source.name}: column {name} has no values; leave it out with {drop_remedy(name)}")
        if choices.missing == "error":
            refuse_missing(frame[name], missing, source, "use data.missing=drop or mean")
        # Half the memory for what needs no more, such as a large set of images in whole numbers.
        if x.dtype == np.float32 and not exact_in_float32(column.values):
            x = x.astype(np.float64)
        x[:, place] = column.values
        columns.append(replace(column, values=np.empty(0)))
    return x, columns


def exact_in_float32(values: np.ndarray) -> bool:
    """Return whether float32 holds all values as they are.

    >>> exact_in_float32(np.array([0.5, np.nan])), exact_in_float32(np.array([0.1]))
    (True, False)
    """
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(np.float32), values, equal_nan=True)


def encoded_notice(names: Sequence[str], columns: Sequence[ParsedColumn], x: np.ndarray) -> list[str]:
    """Return which columns are one-hot encoded, with the number of classes of each, or taken as 0 and 1."""
    classes = {name: len(present(x[:, place])) for place, name in enumerate(names) if columns[place].words}
    encoded = listing([f"{name}: {counted_noun(number, 'class')}" for name, number in classes.items()])
    truths = [name for name, column in zip(names, columns, strict=True) if column.is_truth]
    said = [f"{counted_noun(len(classes), 'column')} one-hot encoded ({encoded})"] if classes else []
    return said + ([f"true taken as 1 and false as 0 ({listing(truths)})"] if truths else [])


def present(values: np.ndarray) -> np.ndarray:
    """Return the distinct values that are not missing, in order."""
    return np.unique(values[~np.isnan(values)])


def dropped_notice(kept: np.ndarray) -> list[str]:
    """Return how many rows are dropped, if any are."""
    return [] if kept.all() else [f"{counted_noun(int((~kept).sum()), 'row')} with missing values dropped"]


def filled_notice(names: Sequence[str], x: np.ndarray) -> list[str]:
    """Return how many missing values are filled in, if any are."""
    holes = np.isnan(x).sum(axis=0)
    of = listing([name for name, number in zip(names, holes, strict=True) if number])
    return (
        [f"{counted_noun(int(holes.sum()), 'missing value')} filled in by the training mean ({of})"] if of else []
    )


def counted_noun(number: int, thing: str) -> str:
    """Return a number of things.

    >>> counted_noun(1, "row"), counted_noun(2, "class")
    ('1 row', '2 classes')
    """
    return f"{number} {thing}" + ("" if number == 1 else "es" if thing.endswith("s") else "s")


@dataclass(kw_only=True, eq=False)
class FrameData(InMemoryData):
    """A dataset that somebody wrote down, a sample a row; a subclass says in :meth:`reading` where.

    A target of words or booleans is a class, one of numbers with fractions is to be predicted as a number; one of
    whole numbers is classes if there are at most 20 distinct ones, otherwise a number. ``task`` says otherwise.
    Classes are numbered in sorted order. All other columns are inputs: numbers as they are, true and false as 1
    and 0, words one-hot encoded.

    Args:
        target_column: the column to predict.
        task: auto, regression or classification.
        drop: columns to leave out.
        missing: error refuses a missing value, drop leaves its row out, mean takes the training split's mean.
    """

    target_column: str | int | None = None
    task: str = "auto"
    drop: list[str] = field(default_factory=list)
    missing: str = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        tasks = ("auto", "regression", "classification")
        require(self.task in tasks, "data.task", "auto, regression or classification", self.task)
        policies = ("error", "drop", "mean")
        require(self.missing in policies, "data.missing", "error, drop or mean", self.missing)
        listed = isinstance(self.drop, Sequence) and not isinstance(self.drop, str)
        require(listed, "data.drop", "a list of columns, as [id]", self.drop)

    def reading(self) -> Reading:
        """Return the whole table as it was read, and what it was taken for."""
        raise NotImplementedError(f"{type(self).__name__} must define reading()")

    def table(self) -> Table:
        """Return the whole table as it was read, before its words are encoded.

        Raises:
            ConfigError: for a number beyond float32 that is not standardized.
        """
        reading = self.reading()
        beyond = "" if self.standardize else reading.beyond_inputs
        beyond = beyond or ("" if self.standardize_target else reading.beyond_target)
        if beyond:
            raise ConfigError(beyond)
        return reading.table

    def encoder(self, train: Table) -> Transform:
        """Fit the one-hot encoding of words, and the means for missing values, to the training samples."""
        return Encoder.fit(train, self.reading().words, self.missing == "mean")

    @property
    def shape_is_fitted(self) -> bool:
        """Whether there are columns of words: a word that the training samples lack has no input."""
        return any(self.reading().words)

    @property
    def generated(self) -> bool:
        """False: a seed splits the rows that were read."""
        return False

    @property
    def choices(self) -> Choices:
        """The choices that the table is read by; names of digits come from the command line as numbers."""
        return Choices(
            target_column=None if self.target_column is None else str(self.target_column),
            task=self.task,
            drop=tuple(map(str, self.drop)),
            missing=self.missing,
        )

    @property
    def notices(self) -> list[str]:
        """Add what the columns were taken for, and whether rows are left over."""
        reading = self.reading()
        rows, used = len(reading.table), self.train + self.val + self.test
        fifth = rows // 5
        left = (
            f"data: {used} of the {rows} rows are used; "
            f"data.train={rows - 2 * fifth} data.val={fifth} data.test={fifth} would use all"
        )
        return [*super().notices, *reading.notices, *self.unknown_words(), *([left] if used < rows else [])]

    def unknown_words(self) -> list[str]:
        """Return a warning of words that held-out samples have and the training split does not."""
        reading = self.reading()
        table, rows = reading.table, split_rows(len(reading.table), (self.train, self.val, self.test), self.seed)
        unknown = []
        for place, words in ((place, words) for place, words in enumerate(reading.words) if words):
            train, held_out = (present(table.x[index, place].numpy()) for index in (rows[0], torch.cat(rows[1:])))
            codes = np.setdiff1d(held_out, train)
            unknown += [f"{table.names[place]}={words[int(code)]}" for code in codes]
        said = f"data: {listing(unknown)} not among the training samples: 0 in all inputs of the column"
        return [said] if unknown else []
