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
    Column,
    ParsedInput,
    Source,
    infer_task,
    missing_targets,
    parse_target,
    task_notice,
)
from normlab.data.sampling import split_rows
from normlab.data.table import Encoder, Table, distinct_values, drop_remedy, format_list
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
    inputs, target = select_columns(frame, options, source)
    names = tuple(map(str, inputs.columns))
    x, columns = parse_inputs(inputs, options, source)
    missing = missing_targets(target, options.task)
    steps = []
    if options.missing == "drop":
        complete = ~(missing | np.isnan(x).any(axis=1))
        reason = f"mean, as every row of {source.name} has a missing value"
        require(bool(complete.any()), "data.missing", reason, "drop")
        if not complete.all():
            steps = [f"{pluralize(int((~complete).sum()), 'row')} with missing values dropped"]
            x, target = x[complete], Column(target.series[complete], source)
    else:
        target.reject_missing(missing, "use data.missing=drop")
        steps = describe_imputation(names, x) if options.missing == "mean" else []
    task = infer_task(target) if options.task == "auto" else options.task
    y, labels = parse_target(target, task)
    notices = [task_notice(target, labels)] if options.task == "auto" else []
    steps = describe_encoding(names, columns, x) + steps
    notices += [f"data: {', '.join(steps)}"] if steps else []
    return ParsedTable(
        Table(torch.from_numpy(x), y, len(labels), names),
        tuple(notices),
        tuple(column.categories for column in columns),
        next((column.overflow for column in columns if column.overflow), ""),
        "" if labels else target.overflow,
    )


def select_columns(
    frame: "pd.DataFrame", options: ParsingOptions, source: Source
) -> tuple["pd.DataFrame", Column]:
    """Return the input columns and the target column.

    Raises:
        ConfigError: if the target or a column to drop is unknown, with the nearest name; if the target is dropped
            or not set; or if no input is left.
    """
    columns, target = list(frame.columns), options.target_column
    if target is None:
        raise ConfigError(
            f"data.target_column must be a column of {source.name} ({format_list(columns)}), got null"
        )
    if target not in columns:
        suggestion = nearest(target, columns)
        raise ConfigError(
            f"data.target_column={target}: {source.name} has no such column; did you mean {suggestion}?"
        )
    for name in options.drop:
        if name not in columns:
            suggestion = nearest(name, columns)
            raise ConfigError(f"data.drop: {source.name} has no column {name}; did you mean {suggestion}?")
        require(name != target, "data.drop", f"without {target}, the target", f"[{', '.join(options.drop)}]")
    inputs = frame.drop(columns=[target, *options.drop])
    if inputs.columns.empty:
        raise ConfigError(
            f"{source.name} has no column besides the target {target}; it needs at least one input column"
        )
    return inputs, Column(frame[target], source)


def parse_inputs(
    frame: "pd.DataFrame", options: ParsingOptions, source: Source
) -> tuple[np.ndarray, list[ParsedInput]]:
    """Parse all input columns into an array ``(N, columns)``, with the metadata of each column.

    Missing values are NaN. The array is float32 if that holds all values exactly, otherwise float64. The returned
    columns have empty ``values``.
    """
    x, columns = np.zeros(frame.shape, dtype=np.float32), []
    for index, name in enumerate(frame.columns):
        column = Column(frame[name], source)
        parsed = column.parse_input()
        missing = np.isnan(parsed.values)
        if missing.all():
            raise ConfigError(f"{source.name}: column {name} has no values; leave it out with {drop_remedy(name)}")
        if options.missing == "error":
            column.reject_missing(missing, "use data.missing=drop or mean")
        # float32 halves the memory of tables that it holds exactly, such as images with integer pixels.
        if x.dtype == np.float32 and not exact_in_float32(parsed.values):
            x = x.astype(np.float64)
        x[:, index] = parsed.values
        columns.append(replace(parsed, values=np.empty(0)))
    return x, columns


def exact_in_float32(values: np.ndarray) -> bool:
    """Return True if float32 holds all values exactly.

    >>> exact_in_float32(np.array([0.5, np.nan])), exact_in_float32(np.array([0.1]))
    (True, False)
    """
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(np.float32), values, equal_nan=True)


def describe_encoding(names: Sequence[str], columns: Sequence[ParsedInput], x: np.ndarray) -> list[str]:
    """Describe the one-hot encoded columns and the columns of booleans, for a notice."""
    encoded = [
        f"{name}: {pluralize(len(distinct_values(x[:, index])), 'class')}"
        for index, name in enumerate(names)
        if columns[index].categories
    ]
    booleans = [name for name, column in zip(names, columns, strict=True) if column.is_boolean]
    steps = [f"{pluralize(len(encoded), 'column')} one-hot encoded ({format_list(encoded)})"] if encoded else []
    return steps + ([f"true taken as 1 and false as 0 ({format_list(booleans)})"] if booleans else [])


def describe_imputation(names: Sequence[str], x: np.ndarray) -> list[str]:
    """Describe the number of imputed values and their columns, for a notice."""
    counts = np.isnan(x).sum(axis=0)
    columns = format_list([name for name, count in zip(names, counts, strict=True) if count])
    values = pluralize(int(counts.sum()), "missing value")
    return [f"{values} imputed with the training mean ({columns})"] if columns else []


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
        own = [*parsed.notices, *self.unseen_category_warnings(), *[unused_rows] * (used < rows)]
        return [*super().notices, *own]

    def unseen_category_warnings(self) -> list[str]:
        """Return a warning that lists categories of held-out samples that are absent from training."""
        parsed = self.read()
        table, rows = parsed.table, split_rows(len(parsed.table), (self.train, self.val, self.test), self.seed)
        unknown = []
        for column in filter(parsed.categories.__getitem__, range(len(parsed.categories))):
            train, held_out = (table.x[index, column].numpy() for index in (rows[0], torch.cat(rows[1:])))
            codes = np.setdiff1d(distinct_values(held_out), distinct_values(train))
            unknown += [f"{table.names[column]}={parsed.categories[column][int(code)]}" for code in codes]
        line = f"data: categories absent from the training samples, encoded as zeros: {format_list(unknown)}"
        return [line] if unknown else []
