"""The words of a column as numbers, as missing values, or as the places of classes."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

NO_NUMBERS = {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"}
NO_NUMBERS |= {"NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
"""Words that pandas reads as a missing value. Here they are missing among numbers alone."""


RESEMBLING = r"[+-]?\d+([.,' ]\d{3})*([.,]\d+)?([eE][+-]?\d+)?"
"""A number, whatever signs stand before its fraction and between its thousands."""


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
    return (words.isna() | words.isin(NO_NUMBERS)).to_numpy(bool)


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
