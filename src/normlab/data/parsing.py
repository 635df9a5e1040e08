"""Columns of a data frame as numbers, classes or words; invalid values are rejected with their row and column."""

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
"""Words that pandas reads as a missing value. Here they are missing among numbers alone."""


RESEMBLING = r"[+-]?\d+([.,' ]\d{3})*([.,]\d+)?([eE][+-]?\d+)?"
"""A number, whatever signs stand before its fraction and between its thousands."""
LARGEST_INPUT = 1e150
"""The largest number that is read: standardization squares it in float64."""
LARGEST_IN_FLOAT32 = float(np.finfo(np.float32).max)
MOST_WORDS = 50
"""A column of words is one-hot encoded if it has at most as many distinct ones."""


def words_of(column: "pd.Series") -> "pd.Series":
    """Return the values of a column as words, without spaces around them; an empty one is missing."""
    words = column.astype("string").str.strip()
    return words.mask((words == "").fillna(False))


def resemble_numbers(words: "pd.Series") -> np.ndarray:
    """Return which words resemble numbers, ``(N,)``, if with other signs than those that numbers are read with."""
    return words.str.fullmatch(RESEMBLING).fillna(False).to_numpy(bool)


def numbers_in(words: "pd.Series", decimal: str | None) -> np.ndarray:
    """Return the numbers that words are, ``(N,)``, and NaN for others; true and false, if all are, are 1 and 0."""
    import pandas as pd

    if are_truths(words):
        return words.str.lower().map({"true": 1.0, "false": 0.0}).to_numpy(np.float64, na_value=np.nan)
    if decimal == ",":
        pointed = words.str.contains(".", regex=False).fillna(False)
        words = words.mask(pointed).str.replace(",", ".", regex=False)
    return pd.to_numeric(words.astype(object), errors="coerce").to_numpy(np.float64, na_value=np.nan)


def are_truths(words: "pd.Series") -> bool:
    """Return whether all words are true or false, in any case, apart from missing ones."""
    given = words[~missing_among_numbers(words)]
    return len(given) > 0 and set(given.str.lower().unique()) <= {"true", "false"}


def missing_among_numbers(words: "pd.Series") -> np.ndarray:
    """Return which of the values of a column of numbers are missing, ``(N,)``: NA, NaN or null is no number."""
    return (words.isna() | words.isin(MISSING_WORDS)).to_numpy(bool)


def codes_of(words: "pd.Series", labels: Sequence[str]) -> np.ndarray:
    """Return the place of each word among the labels, ``(N,)``, and NaN where it is missing."""
    import pandas as pd

    codes = pd.Categorical(words.astype(object), categories=list(labels)).codes
    return np.where(codes < 0, np.nan, codes.astype(np.float64))


def in_order(labels: Iterable[str]) -> list[str]:
    """Return labels sorted by their value if all are numbers, otherwise as words; nan is a word.

    >>> in_order(["10", "9"]), in_order(["10", "9", "x"]), in_order(["10", "nan", "9"])
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
    """Where a frame came from: its name, how a person finds one of its rows, and what is added to a remedy.

    ``place`` is handed a row's label in the index of the frame; ``decimal`` stands before a number's fraction;
    None where a person cannot choose it.
    """

    name: str
    place: Callable[[int], str]
    remedy: str = ""
    decimal: str | None = None

    def refuse(self, column: "pd.Series", row: int, reason: str) -> NoReturn:
        """Raise :class:`ConfigError` for a value, by its row and column; ``row`` counts from 0."""
        raise ConfigError(self.line(column, row, reason))

    def line(self, column: "pd.Series", row: int, reason: str) -> str:
        """Return the line that names a value by its row and column."""
        return f"{self.place(int(column.index[row]))}, column {column.name}: {reason}"

    def refuse_word(self, column: "pd.Series", row: int, remedy: str) -> NoReturn:
        """Raise :class:`ConfigError` for a word where a number is expected."""
        word = str(column.iloc[row]).strip()
        reason = f"{shown(word)} is not a number"
        if self.decimal and re.fullmatch(RESEMBLING, word):
            read, other = ("point", "comma") if self.decimal == "." else ("comma", "point")
            reason += f" with a decimal {read}; use data.decimal={other} if it has one"
        self.refuse(column, row, f"{reason}; {remedy}")


@dataclass(frozen=True)
class ParsedColumn:
    """Values of a column ``(N,)``, NaN where one is missing; of words, the place of each in ``words``.

    Attributes:
        beyond: the line that refuses a number beyond float32, if there is one that is not standardized.
    """

    values: np.ndarray
    words: tuple[str, ...] = ()
    is_truth: bool = False
    beyond: str = ""


def parse_column(column: "pd.Series", source: Source) -> ParsedColumn:
    """Return an input column as numbers, or as words if fewer than half of its values resemble numbers.

    True and false are 1 and 0. What a data frame declares as categories is taken as words.

    Raises:
        ConfigError: for a word among numbers, an infinite number, or too many distinct words.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        values, is_truth = column.to_numpy(np.float64, na_value=np.nan), pd.api.types.is_bool_dtype(column)
    else:
        words = words_of(column)
        values, given = numbers_in(words, source.decimal), ~missing_among_numbers(words)
        is_truth = are_truths(words)
        declared = isinstance(column.dtype, pd.CategoricalDtype) and not is_truth
        alike = resemble_numbers(words) | ~np.isnan(values)
        if declared or 2 * np.count_nonzero(alike) < np.count_nonzero(given):
            return column_of_words(column, words, source)
        wrong = given & np.isnan(values)
        if wrong.any():
            remedy = f"correct it{source.remedy}, or leave the column out with {drop_remedy(column.name)}"
            source.refuse_word(column, int(wrong.argmax()), remedy)
    refuse_infinite(values, column, source)
    return ParsedColumn(values, is_truth=is_truth, beyond=beyond_float32(values, column, source))


def column_of_words(column: "pd.Series", words: "pd.Series", source: Source) -> ParsedColumn:
    """Return the place of each word among the column's, in order.

    Raises:
        ConfigError: if there are too many distinct ones.
    """
    labels = in_order(words.dropna().unique().tolist())
    if len(labels) > MOST_WORDS:
        row = int(words.notna().to_numpy().argmax())
        few = f"one of {len(labels)} distinct words, of which at most {MOST_WORDS} can be one-hot encoded"
        leave_out = f"leave the column out with {drop_remedy(column.name)}"
        source.refuse(column, row, f"{shown(words.iloc[row])} is not a number, and {few}; {leave_out}")
    return ParsedColumn(codes_of(words, labels), tuple(labels))


def refuse_infinite(values: np.ndarray, column: "pd.Series", source: Source) -> None:
    """Raise :class:`ConfigError` for the first number that is infinite, or too large to be squared."""
    wrong = np.abs(values) > LARGEST_INPUT
    if wrong.any():
        row = int(wrong.argmax())
        remedy = f"correct it or remove the row{source.remedy}"
        source.refuse(
            column, row, f"{shown(column.iloc[row])} is not a finite number up to {LARGEST_INPUT:g}; {remedy}"
        )


def beyond_float32(values: np.ndarray, column: "pd.Series", source: Source) -> str:
    """Return the line that refuses the first number beyond float32, which is to be standardized; "" if none is."""
    wrong = np.abs(values) > LARGEST_IN_FLOAT32
    if not wrong.any():
        return ""
    row = int(wrong.argmax())
    remedy = f"standardize it, correct it or remove the row{source.remedy}"
    return source.line(column, row, f"{shown(column.iloc[row])} is not a finite 32-bit number; {remedy}")


def refuse_missing(column: "pd.Series", missing: np.ndarray, source: Source, remedy: str) -> None:
    """Raise :class:`ConfigError` for the first value of a column that is missing."""
    if missing.any():
        row = int(missing.argmax())
        value = column.iloc[row]
        word = f" ({value})" if isinstance(value, str) and value.strip() else ""
        reason = f"a value is missing{word}; fill it in or remove the row{source.remedy}, or {remedy}"
        source.refuse(column, row, reason)


def drop_remedy(name: object) -> str:
    """Return the override that leaves a column out.

    >>> print(drop_remedy("id"), drop_remedy("blood pressure"))
    data.drop=[id] 'data.drop=["blood pressure"]'
    """
    return f"data.drop=[{name}]" if str(name).isidentifier() else f"'data.drop=[\"{name}\"]'"


def listing(values: Sequence[object]) -> str:
    """Return values in a line, the middle of many left out.

    >>> listing([1, 2]), listing([1, 2, 3, 4, 5, 6, 7, 8])
    ('1, 2', '1, 2, 3, 4, 5, …, 8')
    """
    words = [shown(value) for value in values]
    return ", ".join(words if len(words) <= 7 else [*words[:5], "…", words[-1]])


def shown(value: object) -> str:
    """Return a value as a part of a line, cut off where it is long.

    >>> shown("two" + chr(10) + "lines"), shown(0.5)
    ('two lines', '0.5')
    """
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:39]}…"
