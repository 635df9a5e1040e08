"""Conversion of data frame columns to numbers or categories; errors name row and column.

The main entry is :func:`parse_column`. "Words" are the values of a column as text.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from normlab.errors import ConfigError

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


def to_words(column: "pd.Series") -> "pd.Series":
    """Return the values of a column as stripped text; empty text is missing."""
    words = column.astype("string").str.strip()
    return words.mask((words == "").fillna(False))


def looks_numeric(words: "pd.Series") -> np.ndarray:
    """Return a mask of words that look like numbers in any locale, ``(N,)``."""
    return words.str.fullmatch(NUMBER_LIKE).fillna(False).to_numpy(bool)


def to_numbers(words: "pd.Series", decimal: str | None) -> np.ndarray:
    """Convert words to numbers, ``(N,)``, or booleans to 1 and 0; other words become NaN."""
    import pandas as pd

    if are_booleans(words):
        return words.str.lower().map({"true": 1.0, "false": 0.0}).to_numpy(np.float64, na_value=np.nan)
    if decimal == ",":
        has_point = words.str.contains(".", regex=False).fillna(False)
        words = words.mask(has_point).str.replace(",", ".", regex=False)
    return pd.to_numeric(words.astype(object), errors="coerce").to_numpy(np.float64, na_value=np.nan)


def are_booleans(words: "pd.Series") -> bool:
    """Return True if all words except missing ones are true or false, in any case."""
    known = words[~is_missing_number(words)]
    return len(known) > 0 and set(known.str.lower().unique()) <= {"true", "false"}


def is_missing_number(words: "pd.Series") -> np.ndarray:
    """Return a mask of the missing values in a numeric column, ``(N,)``, including NA, NaN and null."""
    return (words.isna() | words.isin(MISSING_WORDS)).to_numpy(bool)


def encode_labels(words: "pd.Series", labels: Sequence[str]) -> np.ndarray:
    """Return the index of each word in ``labels``, ``(N,)``, with NaN for missing words."""
    import pandas as pd

    codes = pd.Categorical(words.astype(object), categories=list(labels)).codes
    return np.where(codes < 0, np.nan, codes.astype(np.float64))


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

    def reject(self, column: "pd.Series", row: int, reason: str) -> NoReturn:
        """Raise :class:`ConfigError` with row and column of a value; ``row`` counts from 0."""
        raise ConfigError(self.message(column, row, reason))

    def message(self, column: "pd.Series", row: int, reason: str) -> str:
        """Return an error message with row and column of a value."""
        return f"{self.locate(int(column.index[row]))}, column {column.name}: {reason}"

    def reject_word(self, column: "pd.Series", row: int, remedy: str) -> NoReturn:
        """Raise :class:`ConfigError` for text in a numeric column."""
        word = str(column.iloc[row]).strip()
        reason = f"{shorten(word)} is not a number"
        if self.decimal and re.fullmatch(NUMBER_LIKE, word):
            current, other = ("point", "comma") if self.decimal == "." else ("comma", "point")
            reason += f" with a decimal {current}; use data.decimal={other} if the file has decimal {other}s"
        self.reject(column, row, f"{reason}; {remedy}")


@dataclass(frozen=True)
class ParsedColumn:
    """Values of a column ``(N,)``, with NaN for missing ones.

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


def parse_column(column: "pd.Series", source: Source) -> ParsedColumn:
    """Parse an input column as numbers, or as categories if fewer than half of its values look numeric.

    True and false become 1 and 0. A column with a categorical dtype is categorical unless its labels are booleans.

    Raises:
        ConfigError: for text in a numeric column, an infinite number, or too many categories.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        values, is_boolean = column.to_numpy(np.float64, na_value=np.nan), pd.api.types.is_bool_dtype(column)
    else:
        words = to_words(column)
        values, known = to_numbers(words, source.decimal), ~is_missing_number(words)
        is_boolean = are_booleans(words)
        declared = isinstance(column.dtype, pd.CategoricalDtype) and not is_boolean
        numeric = looks_numeric(words) | ~np.isnan(values)
        if declared or 2 * np.count_nonzero(numeric) < np.count_nonzero(known):
            return parse_categories(column, words, source)
        invalid = known & np.isnan(values)
        if invalid.any():
            remedy = f"correct it{source.remedy}, or leave the column out with {drop_remedy(column.name)}"
            source.reject_word(column, int(invalid.argmax()), remedy)
    check_finite(values, column, source)
    return ParsedColumn(values, is_boolean=is_boolean, overflow=float32_overflow(values, column, source))


def parse_categories(column: "pd.Series", words: "pd.Series", source: Source) -> ParsedColumn:
    """Parse a column as categories, with labels in sorted order.

    Raises:
        ConfigError: if there are more than ``MAX_CATEGORIES``.
    """
    labels = sort_labels(words.dropna().unique().tolist())
    if len(labels) > MAX_CATEGORIES:
        row = int(words.notna().to_numpy().argmax())
        limit = (
            f"the column has {len(labels)} categories, more than the {MAX_CATEGORIES} that can be one-hot encoded"
        )
        remedy = f"leave the column out with {drop_remedy(column.name)}"
        source.reject(column, row, f"{shorten(words.iloc[row])} is not a number, and {limit}; {remedy}")
    return ParsedColumn(encode_labels(words, labels), tuple(labels))


def check_finite(values: np.ndarray, column: "pd.Series", source: Source) -> None:
    """Raise :class:`ConfigError` for the first number that is infinite or above ``LARGEST_INPUT``."""
    invalid = np.abs(values) > LARGEST_INPUT
    if invalid.any():
        row = int(invalid.argmax())
        remedy = f"correct it or remove the row{source.remedy}"
        source.reject(
            column, row, f"{shorten(column.iloc[row])} is not a finite number up to {LARGEST_INPUT:g}; {remedy}"
        )


def float32_overflow(values: np.ndarray, column: "pd.Series", source: Source) -> str:
    """Return the error message for the first number beyond float32; "" if all numbers fit."""
    overflows = np.abs(values) > LARGEST_IN_FLOAT32
    if not overflows.any():
        return ""
    row = int(overflows.argmax())
    remedy = f"standardize it, correct it or remove the row{source.remedy}"
    return source.message(column, row, f"{shorten(column.iloc[row])} is not a finite 32-bit number; {remedy}")


def check_not_missing(column: "pd.Series", missing: np.ndarray, source: Source, remedy: str) -> None:
    """Raise :class:`ConfigError` for the first missing value of a column."""
    if missing.any():
        row = int(missing.argmax())
        value = column.iloc[row]
        word = f" ({value})" if isinstance(value, str) and value.strip() else ""
        reason = f"a value is missing{word}; fill it in or remove the row{source.remedy}, or {remedy}"
        source.reject(column, row, reason)


def drop_remedy(name: object) -> str:
    """Return the command-line override that drops a column.

    >>> print(drop_remedy("id"), drop_remedy("blood pressure"))
    data.drop=[id] 'data.drop=["blood pressure"]'
    """
    return f"data.drop=[{name}]" if str(name).isidentifier() else f"'data.drop=[\"{name}\"]'"


def format_list(values: Sequence[object]) -> str:
    """Join values with commas; of more than seven, show the first five and the last.

    >>> format_list([1, 2]), format_list([1, 2, 3, 4, 5, 6, 7, 8])
    ('1, 2', '1, 2, 3, 4, 5, …, 8')
    """
    words = [shorten(value) for value in values]
    return ", ".join(words if len(words) <= 7 else [*words[:5], "…", words[-1]])


def shorten(value: object) -> str:
    """Return a value as one line of at most 40 characters.

    >>> shorten("two" + chr(10) + "lines"), shorten(0.5)
    ('two lines', '0.5')
    """
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:39]}…"
