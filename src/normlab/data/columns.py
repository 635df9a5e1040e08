"""The columns of a data frame as numbers, and the one line that names a value which is none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from normlab.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Source:
    """Where a frame came from: its name, how a person finds one of its rows, and what is added to a remedy."""

    name: str
    place: Callable[[int], str]
    remedy: str = ""

    def refuse(self, row: int, column: object, reason: str) -> NoReturn:
        """Raise :class:`ConfigError` for a value, by its row and column."""
        raise ConfigError(f"{self.place(row)}, column {column}: {reason}{self.remedy}")


def numbers(column: "pd.Series", source: Source, remedy: str) -> np.ndarray:
    """Return a column as finite numbers, ``(N,)``.

    Raises:
        ConfigError: for the first value that is missing, no number, or beyond what 32 bits hold.
    """
    refuse_missing(column, source)
    values = parsed(column)
    wrong = ~(np.abs(values) <= LARGEST)
    if wrong.any():
        row = int(wrong.argmax())
        value = shown(column.iloc[row])
        if np.isnan(values[row]):
            source.refuse(row, column.name, f"{value} is not a number; {remedy}")
        source.refuse(row, column.name, f"{value} is not a finite 32-bit number; correct it or remove the row")
    return values


def parsed(column: "pd.Series") -> np.ndarray:
    """Return a column's numbers, ``(N,)``, and NaN for what is none; true and false are 1 and 0."""
    import pandas as pd

    plain = column.astype(object) if isinstance(column.dtype, pd.CategoricalDtype) else column
    return pd.to_numeric(plain, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def refuse_missing(column: "pd.Series", source: Source) -> None:
    """Raise :class:`ConfigError` for the first value that is missing."""
    missing = column.isna().to_numpy()
    if missing.any():
        source.refuse(int(missing.argmax()), column.name, "a value is missing; fill it in or remove the row")


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
