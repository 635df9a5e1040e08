"""Columns of data frames as numbers, categories or targets; errors name row and column.

The main entries are :class:`Column` and, for targets, :func:`infer_task` and :func:`parse_target`. "Words" are the
values of a column as text.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor

from normlab.data.table import drop_remedy, format_list, shorten
from normlab.errors import ConfigError, require

if TYPE_CHECKING:
    import pandas as pd

MISSING_WORDS = {
    "#N/A",
    "#N/A N/A",
    "#NA",
    "-1.#IND",
    "-1.#QNAN",
    "-NaN",
    "-nan",
    "1.#IND",
    "1.#QNAN",
    "<NA>",
    "N/A",
}
MISSING_WORDS |= {"NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
"""Words that pandas reads as missing values. Here they are missing only in numeric columns."""

NUMBER_LIKE = r"[+-]?\d+([.,' ]\d{3})*([.,]\d+)?([eE][+-]?\d+)?"
"""Pattern of a number with any decimal sign and any thousands separator."""
LARGEST_INPUT = 1e150
"""The largest valid number, small enough for standardization to square it in float64."""
LARGEST_IN_FLOAT32 = float(np.finfo(np.float32).max)
MAX_CATEGORIES = 50
"""The largest number of categories that are one-hot encoded."""
MAX_INTEGER_CLASSES = 20
"""The largest number of distinct integers for which ``task="auto"`` infers classification."""


@dataclass(frozen=True)
class Source:
    """The origin of a data frame, for error messages.

    Attributes:
        name: the file or dataset.
        locate: maps a label of the frame's index to a description of the row.
        remedy: text added to each remedy.
        decimal: the decimal sign, or None if the user cannot set it.
    """

    name: str
    locate: Callable[[int], str]
    remedy: str = ""
    decimal: str | None = None


@dataclass(frozen=True)
class Column:
    """A column of a data frame with N rows, as text and as numbers; its errors name row and column."""

    series: "pd.Series"
    source: Source

    @cached_property
    def has_number_type(self) -> bool:
        """True if pandas has the values as numbers or booleans."""
        import pandas as pd

        return pd.api.types.is_numeric_dtype(self.series)

    @property
    def is_categorical(self) -> bool:
        """True if pandas has the values as categories."""
        return str(self.series.dtype) == "category"

    @cached_property
    def is_boolean(self) -> bool:
        """True if all values except missing ones are true or false, in any case."""
        if self.has_number_type:
            return str(self.series.dtype).lower().startswith("bool")
        known = self.words[~self.missing]
        return len(known) > 0 and set(known.str.lower().unique()) <= {"true", "false"}

    @cached_property
    def words(self) -> "pd.Series":
        """The values as stripped text; empty text is missing."""
        words = self.series.astype("string").str.strip()
        return words.mask((words == "").fillna(False))

    @cached_property
    def labels(self) -> list[str]:
        """The distinct words, sorted."""
        return sort_labels(self.words.dropna().unique().tolist())

    @property
    def codes(self) -> np.ndarray:
        """The index of each word in the labels, ``(N,)``; NaN for missing words."""
        import pandas as pd

        codes = pd.Categorical(self.words.astype(object), categories=self.labels).codes
        return np.where(codes < 0, np.nan, codes.astype(np.float64))

    @cached_property
    def missing(self) -> np.ndarray:
        """Mask of the missing values, ``(N,)``, among text with words such as NA, NaN and null."""
        values = self.series if self.has_number_type else self.words
        mask = values.isna() if self.has_number_type else values.isna() | values.isin(MISSING_WORDS)
        return mask.to_numpy(bool)

    @cached_property
    def numbers(self) -> np.ndarray:
        """The values as numbers, ``(N,)``, with 1 for true and 0 for false; NaN for text and missing values."""
        import pandas as pd

        if self.has_number_type:
            return self.series.to_numpy(np.float64, na_value=np.nan)
        words = self.words
        if self.is_boolean:
            return words.str.lower().map({"true": 1.0, "false": 0.0}).to_numpy(np.float64, na_value=np.nan)
        if self.source.decimal == ",":
            has_point = words.str.contains(".", regex=False).fillna(False)
            words = words.mask(has_point).str.replace(",", ".", regex=False)
        return pd.to_numeric(words.astype(object), errors="coerce").to_numpy(np.float64, na_value=np.nan)

    @property
    def looks_numeric(self) -> np.ndarray:
        """Mask of the words that look like numbers in any locale, ``(N,)``."""
        return self.words.str.fullmatch(NUMBER_LIKE).fillna(False).to_numpy(bool)

    def message(self, row: int, reason: str) -> str:
        """Return an error message with row and column of a value; ``row`` counts from 0."""
        return f"{self.source.locate(int(self.series.index[row]))}, column {self.series.name}: {reason}"

    def reject(self, row: int, reason: str) -> NoReturn:
        """Raise :class:`ConfigError` with row and column of a value."""
        raise ConfigError(self.message(row, reason))

    def reject_word(self, row: int, remedy: str) -> NoReturn:
        """Raise :class:`ConfigError` for text among numbers."""
        word, decimal = str(self.series.iloc[row]).strip(), self.source.decimal
        reason = f"{shorten(word)} is not a number"
        if decimal and re.fullmatch(NUMBER_LIKE, word):
            current, other = ("point", "comma") if decimal == "." else ("comma", "point")
            reason += f" with a decimal {current}; use data.decimal={other} if the file has decimal {other}s"
        self.reject(row, f"{reason}; {remedy}")

    def reject_missing(self, missing: np.ndarray, remedy: str) -> None:
        """Raise :class:`ConfigError` for the first missing value, if there is one."""
        for row in np.flatnonzero(missing)[:1].tolist():
            value = self.series.iloc[row]
            word = f" ({value})" if isinstance(value, str) and value.strip() else ""
            fill = f"fill it in or remove the row{self.source.remedy}, or {remedy}"
            self.reject(row, f"a value is missing{word}; {fill}")

    def reject_infinite(self) -> None:
        """Raise :class:`ConfigError` for the first number that is infinite or above ``LARGEST_INPUT``."""
        for row in np.flatnonzero(np.abs(self.numbers) > LARGEST_INPUT)[:1].tolist():
            limit = f"{shorten(self.series.iloc[row])} is not a finite number up to {LARGEST_INPUT:g}"
            self.reject(row, f"{limit}; correct it or remove the row{self.source.remedy}")

    @property
    def overflow(self) -> str:
        """The error message for the first number beyond float32; "" if all numbers fit."""
        for row in np.flatnonzero(np.abs(self.numbers) > LARGEST_IN_FLOAT32)[:1].tolist():
            limit = f"{shorten(self.series.iloc[row])} is not a finite 32-bit number"
            return self.message(row, f"{limit}; standardize it, correct it or remove the row{self.source.remedy}")
        return ""

    def parse_input(self) -> "ParsedInput":
        """Parse an input as numbers, or as categories if fewer than half of its values look numeric.

        True and false become 1 and 0. A column with a categorical dtype is categorical unless its labels are
        booleans.

        Raises:
            ConfigError: for text in a numeric column, an infinite number, or too many categories.
        """
        invalid = ~self.missing & np.isnan(self.numbers)
        if not self.has_number_type:
            numeric = self.looks_numeric | ~np.isnan(self.numbers)
            declared = self.is_categorical and not self.is_boolean
            if declared or 2 * np.count_nonzero(numeric) < np.count_nonzero(~self.missing):
                return self.parse_categories()
        if invalid.any():
            remedy = (
                f"correct it{self.source.remedy}, or leave the column out with {drop_remedy(self.series.name)}"
            )
            self.reject_word(int(invalid.argmax()), remedy)
        self.reject_infinite()
        return ParsedInput(self.numbers, is_boolean=self.is_boolean, overflow=self.overflow)

    def parse_categories(self) -> "ParsedInput":
        """Parse an input as categories.

        Raises:
            ConfigError: if there are more than ``MAX_CATEGORIES``.
        """
        if len(self.labels) > MAX_CATEGORIES:
            row = int(self.words.notna().to_numpy().argmax())
            limit = f"the column has {len(self.labels)} categories, more than the {MAX_CATEGORIES}"
            self.reject(
                row,
                f"{shorten(self.words.iloc[row])} is not a number, and {limit} that can be one-hot encoded; "
                f"leave the column out with {drop_remedy(self.series.name)}",
            )
        return ParsedInput(self.codes, tuple(self.labels))


@dataclass(frozen=True)
class ParsedInput:
    """Values of an input column ``(N,)``, with NaN for missing ones.

    Attributes:
        values: numbers, or indices into ``categories``.
        categories: the sorted labels of a categorical column; empty for numbers.
        overflow: the error message for a number beyond float32, or ""; it applies only if the column is not
            standardized.
    """

    values: np.ndarray
    categories: tuple[str, ...] = ()
    is_boolean: bool = False
    overflow: str = ""


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Sort labels by value if all are numbers, otherwise alphabetically; nan is not a number.

    >>> sort_labels(["10", "9"]), sort_labels(["10", "9", "x"]), sort_labels(["10", "nan", "9"])
    (['9', '10'], ['10', '9', 'x'], ['10', '9', 'nan'])
    """
    labels = sorted(labels)
    try:
        values = {label: float(label) for label in labels}
    except ValueError:
        return labels
    return labels if any(map(math.isnan, values.values())) else sorted(labels, key=values.__getitem__)


def missing_targets(target: Column, task: str) -> np.ndarray:
    """Return a mask of the missing targets, ``(N,)``: empty values, and NA, NaN or null among numbers.

    Among class labels, such words are valid names.
    """
    if target.has_number_type or task == "regression":
        return target.missing
    are_numbers = not np.isnan(target.numbers[~target.missing]).any() and not target.missing.all()
    numeric = task == "auto" and are_numbers and not target.is_categorical
    return target.missing if numeric else target.words.isna().to_numpy(bool)


def infer_task(target: Column) -> str:
    """Infer the task of a target without missing values: "classification" or "regression".

    Raises:
        ConfigError: for text among many numbers, or a number with the other decimal sign. It is probably a typing
            error, which would otherwise turn all numbers into classes.
    """
    if target.is_categorical or (target.has_number_type and target.is_boolean):
        return "classification"
    is_number = ~np.isnan(target.numbers)
    if is_number.all():
        few = is_integer_valued(target.numbers) and len(np.unique(target.numbers)) <= MAX_INTEGER_CLASSES
        return "classification" if few else "regression"
    mistyped = ~is_number & target.looks_numeric
    if mistyped.any() or (is_number.any() and target.series.nunique() > MAX_INTEGER_CLASSES):
        row = int(mistyped.argmax() if mistyped.any() else is_number.argmin())
        target.reject_word(row, f"correct it{target.source.remedy}, or use data.task=classification")
    return "classification"


def parse_target(target: Column, task: str) -> tuple[Tensor, list[object]]:
    """Return regression targets ``(N, 1)`` in float64, or class indices ``(N,)`` and the sorted class labels.

    Raises:
        ConfigError: for text in a regression target, an infinite number, or a single class.
    """
    if task == "classification":
        if target.has_number_type:
            target.reject_infinite()
        y, labels = encode_classes(target)
        key = f"{target.source.name}: the target {target.series.name}"
        require(len(labels) > 1, key, "of two classes or more", format_list(labels))
        return y, labels
    invalid = np.isnan(target.numbers)
    if invalid.any():
        target.reject_word(int(invalid.argmax()), "use data.task=classification")
    target.reject_infinite()
    return torch.tensor(target.numbers).unsqueeze(1), []


def encode_classes(target: Column) -> tuple[Tensor, list[object]]:
    """Return the class index of each sample, ``(N,)``, and the sorted class labels, numbers by value."""
    if target.has_number_type and not target.is_boolean:
        # Integers stay integers, because float64 would merge those beyond 2^53.
        values = target.series.to_numpy()
        whole = (
            np.issubdtype(values.dtype, np.floating) and is_integer_valued(values) and np.abs(values).max() < 2**53
        )
        classes, codes = np.unique(values.astype(np.int64) if whole else values, return_inverse=True)
        return torch.tensor(codes, dtype=torch.long), classes.tolist()
    return torch.tensor(target.codes, dtype=torch.long), list(target.labels)


def task_notice(target: Column, labels: list[object]) -> str:
    """Return a notice about the inferred task, with the override that selects the other task."""
    name = target.series.name
    if not labels:
        other = f"data.task=classification would take its {target.series.nunique()} distinct values as classes"
        return f"data: target {name} taken as a regression target; {other}"
    are_numbers = not np.isnan(target.numbers).any()
    other = "; data.task=regression would take it as a regression target" if are_numbers else ""
    return f"data: target {name} taken as {len(labels)} classes ({format_list(labels)}){other}"


def is_integer_valued(values: np.ndarray) -> bool:
    """Return True if all values are integers.

    >>> is_integer_valued(np.array([1.0, 2.0])), is_integer_valued(np.array([1.0, 2.5]))
    (True, False)
    """
    return bool((values == np.floor(values)).all())
