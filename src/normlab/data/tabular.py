"""Conversion of a data frame to a :class:`Table`: target, numeric inputs and missing values.

The main entries are :func:`parse_table` and the base class :class:`FrameData`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from normlab.data.datamodule import InMemoryData, Transform
from normlab.data.parsing import (
    ParsedColumn,
    Source,
    check_not_missing,
    drop_remedy,
    format_list,
    parse_column,
)
from normlab.data.preprocessing import Encoder
from normlab.data.table import Table, split_rows
from normlab.data.target import infer_task, missing_targets, parse_target, task_notice
from normlab.errors import ConfigError, nearest, require

if TYPE_CHECKING:
    import pandas as pd

Categories = tuple[tuple[str, ...], ...]
"""The category labels of each input column; empty for numeric columns."""


@dataclass(frozen=True)
class ParsedTable:
    """A table before preprocessing, with notices about how its columns were parsed.

    In ``table.x`` a missing value is NaN, and a categorical value is its index in the column's ``categories``.

    Attributes:
        input_overflow, target_overflow: the error message for a number beyond float32, or ""; it applies only if
            the numbers are not standardized.
    """

    table: Table
    notices: tuple[str, ...] = ()
    categories: Categories = ()
    input_overflow: str = ""
    target_overflow: str = ""


@dataclass(frozen=True, kw_only=True)
class ParsingOptions:
    """The options of :class:`FrameData` that affect parsing; hashable, as part of cache keys."""

    target_column: str | None = None
    task: str = "auto"
    drop: tuple[str, ...] = ()
    missing: str = "error"


def parse_table(frame: "pd.DataFrame", options: ParsingOptions, source: Source) -> ParsedTable:
    """Parse the target column, and all other columns except ``options.drop`` as inputs.

    Shapes:
        x: ``(N, columns)``; y: ``(N, 1)``, or ``(N,)`` for classes.

    Raises:
        ConfigError: for an unknown column, a missing or invalid value, or a target with a single class.
    """
    target = frame[check_target_column(options.target_column, list(frame.columns), source)]
    inputs = frame.drop(columns=[target.name, *check_dropped_columns(frame, target.name, options.drop, source)])
    if inputs.columns.empty:
        raise ConfigError(
            f"{source.name} has no column besides the target {target.name}; it needs at least one input column"
        )
    names = tuple(map(str, inputs.columns))
    x, columns = parse_inputs(inputs, options, source)
    missing_target = missing_targets(target, options.task, source)
    if options.missing == "drop":
        complete = ~(missing_target | np.isnan(x).any(axis=1))
        require(
            bool(complete.any()),
            "data.missing",
            f"mean, as every row of {source.name} has a missing value",
            "drop",
        )
        x, target = (x, target) if complete.all() else (x[complete], target[complete])
        steps = describe_dropped_rows(complete)
    else:
        check_not_missing(target, missing_target, source, "use data.missing=drop")
        steps = describe_imputation(names, x) if options.missing == "mean" else []
    task = infer_task(target, source) if options.task == "auto" else options.task
    parsed_target = parse_target(target, task, source)
    notices = [task_notice(target, parsed_target.labels, source)] if options.task == "auto" else []
    steps = describe_encoding(names, columns, x) + steps
    notices += [f"data: {', '.join(steps)}"] if steps else []
    return ParsedTable(
        Table(torch.from_numpy(x), parsed_target.y, len(parsed_target.labels), names),
        tuple(notices),
        tuple(column.categories for column in columns),
        next((column.overflow for column in columns if column.overflow), ""),
        parsed_target.overflow,
    )


def check_target_column(name: str | None, columns: list[str], source: Source) -> str:
    """Return the target's name if it is a column.

    Raises:
        ConfigError: if it is None or unknown; the message lists the columns or suggests the nearest.
    """
    if name is None:
        raise ConfigError(
            f"data.target_column must be a column of {source.name} ({format_list(columns)}), got null"
        )
    if name not in columns:
        suggestion = nearest(name, columns)
        raise ConfigError(
            f"data.target_column={name}: {source.name} has no such column; did you mean {suggestion}?"
        )
    return name


def check_dropped_columns(
    frame: "pd.DataFrame", target: object, drop: Sequence[str], source: Source
) -> Sequence[str]:
    """Return the columns to drop if all of them are input columns.

    Raises:
        ConfigError: if a column is unknown or is the target.
    """
    columns = [str(name) for name in frame.columns]
    for name in drop:
        if name not in columns:
            suggestion = nearest(name, columns)
            raise ConfigError(f"data.drop: {source.name} has no column {name}; did you mean {suggestion}?")
        require(name != target, "data.drop", f"without {target}, the target", f"[{', '.join(drop)}]")
    return drop


def parse_inputs(
    frame: "pd.DataFrame", options: ParsingOptions, source: Source
) -> tuple[np.ndarray, list[ParsedColumn]]:
    """Parse all input columns into an array ``(N, columns)``, with the metadata of each column.

    Missing values are NaN. The array is float32 if that holds all values exactly, otherwise float64. The returned
    columns have empty ``values``.
    """
    x, columns = np.zeros(frame.shape, dtype=np.float32), []
    for index, name in enumerate(frame.columns):
        column = parse_column(frame[name], source)
        missing = np.isnan(column.values)
        if missing.all():
            raise ConfigError(f"{source.name}: column {name} has no values; leave it out with {drop_remedy(name)}")
        if options.missing == "error":
            check_not_missing(frame[name], missing, source, "use data.missing=drop or mean")
        # float32 halves the memory of tables that it holds exactly, such as images with integer pixels.
        if x.dtype == np.float32 and not exact_in_float32(column.values):
            x = x.astype(np.float64)
        x[:, index] = column.values
        columns.append(replace(column, values=np.empty(0)))
    return x, columns


def exact_in_float32(values: np.ndarray) -> bool:
    """Return True if float32 holds all values exactly.

    >>> exact_in_float32(np.array([0.5, np.nan])), exact_in_float32(np.array([0.1]))
    (True, False)
    """
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(np.float32), values, equal_nan=True)


def describe_encoding(names: Sequence[str], columns: Sequence[ParsedColumn], x: np.ndarray) -> list[str]:
    """Describe the one-hot encoded columns and the columns of booleans, for a notice."""
    classes = {
        name: len(distinct_values(x[:, index])) for index, name in enumerate(names) if columns[index].categories
    }
    encoded = format_list([f"{name}: {pluralize(number, 'class')}" for name, number in classes.items()])
    booleans = [name for name, column in zip(names, columns, strict=True) if column.is_boolean]
    steps = [f"{pluralize(len(classes), 'column')} one-hot encoded ({encoded})"] if classes else []
    return steps + ([f"true taken as 1 and false as 0 ({format_list(booleans)})"] if booleans else [])


def distinct_values(values: np.ndarray) -> np.ndarray:
    """Return the sorted distinct values except NaN."""
    return np.unique(values[~np.isnan(values)])


def describe_dropped_rows(complete: np.ndarray) -> list[str]:
    """Describe the number of dropped rows, for a notice."""
    return [] if complete.all() else [f"{pluralize(int((~complete).sum()), 'row')} with missing values dropped"]


def describe_imputation(names: Sequence[str], x: np.ndarray) -> list[str]:
    """Describe the number of imputed values and their columns, for a notice."""
    counts = np.isnan(x).sum(axis=0)
    columns = format_list([name for name, count in zip(names, counts, strict=True) if count])
    if not columns:
        return []
    return [f"{pluralize(int(counts.sum()), 'missing value')} imputed with the training mean ({columns})"]


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural.

    >>> pluralize(1, "row"), pluralize(2, "class")
    ('1 row', '2 classes')
    """
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


@dataclass(kw_only=True, eq=False)
class FrameData(InMemoryData):
    """Base class of datasets read from a data frame; subclasses implement :meth:`read`.

    With ``task="auto"``, text, booleans and at most 20 distinct integers make a classification target, other
    numbers a regression target. Classes are numbered in sorted order. All other columns are inputs: numbers
    unchanged, true and false as 1 and 0, text one-hot encoded.

    Args:
        target_column: the column to predict.
        task: auto, regression or classification.
        drop: columns to leave out.
        missing: error rejects missing values, drop removes their rows, mean imputes the training mean.
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
        is_list = isinstance(self.drop, Sequence) and not isinstance(self.drop, str)
        require(is_list, "data.drop", "a list of columns, as [id]", self.drop)

    def read(self) -> ParsedTable:
        """Return the whole table before preprocessing, with the notices of parsing."""
        raise NotImplementedError(f"{type(self).__name__} must define read()")

    def table(self) -> Table:
        """Return the whole table before one-hot encoding and imputation.

        Raises:
            ConfigError: if a number exceeds float32 and is not standardized.
        """
        parsed = self.read()
        error = "" if self.standardize else parsed.input_overflow
        error = error or ("" if self.standardize_target else parsed.target_overflow)
        if error:
            raise ConfigError(error)
        return parsed.table

    def encoder(self, train: Table) -> Transform:
        """Fit one-hot encoding and mean imputation to the training samples."""
        return Encoder.fit(train, self.read().categories, self.missing == "mean")

    @property
    def shape_is_fitted(self) -> bool:
        """True if there are categorical columns, as categories absent from the training samples have no input."""
        return any(self.read().categories)

    @property
    def generated(self) -> bool:
        """False, because the seed determines only the split of the rows."""
        return False

    @property
    def parsing_options(self) -> ParsingOptions:
        """The options for parsing; column names are strings, as Hydra parses a name of digits as an integer."""
        return ParsingOptions(
            target_column=None if self.target_column is None else str(self.target_column),
            task=self.task,
            drop=tuple(map(str, self.drop)),
            missing=self.missing,
        )

    @property
    def notices(self) -> list[str]:
        """Add notices about parsing, unseen categories and unused rows."""
        parsed = self.read()
        rows, used = len(parsed.table), self.train + self.val + self.test
        fifth = rows // 5
        unused_rows = (
            f"data: {used} of the {rows} rows are used; "
            f"data.train={rows - 2 * fifth} data.val={fifth} data.test={fifth} would use all"
        )
        return [
            *super().notices,
            *parsed.notices,
            *self.unseen_category_warnings(),
            *([unused_rows] if used < rows else []),
        ]

    def unseen_category_warnings(self) -> list[str]:
        """Return a warning that lists categories of held-out samples that are absent from training."""
        parsed = self.read()
        table, rows = parsed.table, split_rows(len(parsed.table), (self.train, self.val, self.test), self.seed)
        unknown = []
        for column, labels in ((column, labels) for column, labels in enumerate(parsed.categories) if labels):
            train, held_out = (
                distinct_values(table.x[index, column].numpy()) for index in (rows[0], torch.cat(rows[1:]))
            )
            codes = np.setdiff1d(held_out, train)
            unknown += [f"{table.names[column]}={labels[int(code)]}" for code in codes]
        line = f"data: categories absent from the training samples, encoded as zeros: {format_list(unknown)}"
        return [line] if unknown else []
