"""CSV: a user's own table in a file, with any separator and decimal sign."""

import csv
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import to_absolute_path

from normlab.data.parsing import Source, listing
from normlab.data.tabular import Choices, FrameData, Reading, table_of
from normlab.errors import ConfigError, first_line, require

if TYPE_CHECKING:
    import pandas as pd

ENCODING = "utf-8-sig"
"""UTF-8, with the mark at the beginning that spreadsheets write, or without."""

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}
DECIMALS = {"point": ".", "comma": ","}
SIGNS = {sign: word for word, sign in SEPARATORS.items()}
"""The words for the signs: a shell and Hydra's grammar read most of the signs as their own."""

FRACTION = re.compile(r"[+-]?\d*([.,])\d+([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Dialect:
    """The sign between values and the sign before a number's fraction."""

    separator: str
    decimal: str

    def __str__(self) -> str:
        """Return both in words."""
        decimal = "point" if self.decimal == "." else "comma"
        return f"separator {SIGNS.get(self.separator, self.separator)}, decimal {decimal}"


def dialect_of(path: Path, separator: str | None, decimal: str | None) -> Dialect:
    """Return the dialect of a file; each sign as given, or else found in the file."""
    separator = separator or find_separator(path, decimal)
    return Dialect(separator, decimal or find_decimal(path, separator))


def find_separator(path: Path, decimal: str | None) -> str:
    """Return the sign that divides the header, and the first hundred rows into as many values; else the comma.

    Of two signs that do so as well, the comma is the less likely: it also stands before fractions and in text.
    """
    best, found = (False, 0.0), ","
    for sign in ("\t", ";", "|", ","):
        if sign == decimal:
            continue
        widths = [len(values) for _, values in islice(records(path, sign), 101)]
        divides = bool(widths) and widths[0] > 1
        score = (divides, widths.count(widths[0]) / len(widths) if divides else 0.0)
        if score > best:
            best, found = score, sign
    return found


def find_decimal(path: Path, separator: str) -> str:
    """Return the sign that stands before most fractions in the first thousand rows."""
    if separator == ",":
        return "."
    rows = islice(records(path, separator), 1, 1001)
    fractions = [FRACTION.fullmatch(value.strip()) for _, values in rows for value in values]
    signs = [fraction[1] for fraction in fractions if fraction]
    return "," if signs.count(",") > signs.count(".") else "."


def records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line that each record begins in, counted from 1, and its values; blank lines are none."""
    lines: list[str] = []
    with path.open(encoding=ENCODING, newline="") as file:

        def remembered() -> Iterator[str]:
            for line in file:
                lines.append(line)
                yield line

        start = 1
        for cells in csv.reader(remembered(), delimiter=separator, skipinitialspace=True):
            if "".join(lines).strip(" \t\r\n"):
                yield start, cells
            start += len(lines)
            lines.clear()


@dataclass(kw_only=True, eq=False)
class CSV(FrameData):
    """A table whose first line names its columns: one of them is the target, all others are inputs.

    A path that is relative starts in the folder where the command was typed. Rows are named as a text editor
    counts lines; a row without any value is none.

    Args:
        path: the file.
        separator: the sign between values, or comma, semicolon, tab, pipe or space; null finds it.
        decimal: point or comma, or the sign itself; null finds it.

    Shapes:
        x: ``(rows, inputs)``; y: ``(rows, 1)``, or ``(rows,)`` for classes.
    """

    path: str | None = None
    separator: str | None = None
    decimal: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.path is not None, "data.path", "a file, as in data.path=people.csv", "null")
        separator, decimal = self.signs
        one = separator is None or (
            len(separator) == 1 and not separator.isalnum() and separator not in '"\r\n.+-'
        )
        require(one, "data.separator", f"null, {', '.join(SEPARATORS)} or a single sign", self.separator)
        require(decimal in (None, ".", ","), "data.decimal", f"null, {' or '.join(DECIMALS)}", self.decimal)

    @property
    def signs(self) -> tuple[str | None, str | None]:
        """The sign between values and the one before fractions, as far as they are given."""
        separator, decimal = (None if word is None else str(word) for word in (self.separator, self.decimal))
        return SEPARATORS.get(separator or "", separator), DECIMALS.get(decimal or "", decimal)

    def reading(self) -> Reading:
        """Read the file, once for each state that it is found in."""
        file = Path(to_absolute_path(str(Path(str(self.path)).expanduser())))
        if not file.is_file():
            raise ConfigError(f"data.path={self.path}: there is no file {file}")
        found = file.stat()
        return read_csv(file, found.st_mtime_ns, found.st_size, *self.signs, self.choices)


@lru_cache(maxsize=2)
def read_csv(
    path: Path, modified: int, size: int, separator: str | None, decimal: str | None, choices: Choices
) -> Reading:
    """Return the table of a file; when it was modified and how large it is tell apart what it holds.

    Raises:
        ConfigError: for what is no table, by row and column.
    """
    dialect, frame = frame_of(path, separator, decimal)
    source = Source(
        path.name, lambda row: f"{path.name}, row {line_of(path, dialect, row)}", decimal=dialect.decimal
    )
    reading = table_of(frame, choices, source)
    if dialect in (Dialect(",", "."), Dialect(separator or "", decimal or "")):
        return reading
    return replace(reading, notices=(f"data: {path.name}: {dialect}", *reading.notices))


def frame_of(path: Path, separator: str | None, decimal: str | None) -> tuple[Dialect, "pd.DataFrame"]:
    """Return the dialect of a file, and its rows; an empty field is missing, any other holds what is written.

    Raises:
        ConfigError: for a file that cannot be read, or is no table.
    """
    import pandas as pd

    try:
        dialect = dialect_of(path, separator, decimal)
        header = header_of(path, dialect)
        with warnings.catch_warnings():
            # It would leave out what the first row has more than the header, and say so in a warning alone.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                path,
                sep=dialect.separator,
                decimal=dialect.decimal,
                encoding=ENCODING,
                skipinitialspace=True,
                index_col=False,
                low_memory=False,
                keep_default_na=False,
                na_values=[""],
            )
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror or first_line(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} must be text in UTF-8; save it as such ({first_line(error)})") from error
    except csv.Error as error:
        raise ConfigError(f"{path.name} cannot be read as a CSV: {error}") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        refuse_lengths(path, dialect)
        raise ConfigError(f"{path.name} cannot be read as a CSV: {first_line(error)}") from error
    frame.columns = pd.Index(header)
    frame = frame.dropna(how="all")
    if frame.empty:
        raise ConfigError(f"{path.name} has no rows below its header")
    for place, name in enumerate(header):
        if not name and frame.iloc[:, place].notna().any():
            raise ConfigError(
                f"{path.name}: column {place + 1} has no name; name it in the first line or remove it"
            )
    return dialect, frame.drop(columns=[""], errors="ignore")


def header_of(path: Path, dialect: Dialect) -> list[str]:
    """Return the names of the columns; one without values, as spreadsheets write, may have none.

    Raises:
        ConfigError: if there are no columns, a single one, or two of the same name.
    """
    _, cells = next(records(path, dialect.separator), (0, []))
    names = [" ".join(cell.split()) for cell in cells]
    if not names:
        raise ConfigError(f"{path.name} is empty")
    if len(names) == 1:
        raise ConfigError(
            f"{path.name} has a single column, {listing(names)}, with {dialect}; "
            f"the first line must name several; data.separator may be {', '.join(SEPARATORS)} or another sign"
        )
    for place, name in enumerate(names):
        if name and name in names[:place]:
            raise ConfigError(f"{path.name} has two columns named {name}; rename one")
    return names


def line_of(path: Path, dialect: Dialect, row: int) -> int:
    """Return the line in which a row of values begins; a quoted value may go over several lines."""
    line, _ = next(islice(records(path, dialect.separator), row + 1, None))
    return line


def refuse_lengths(path: Path, dialect: Dialect) -> None:
    """Raise :class:`ConfigError` for the first row that has more values than there are columns."""
    width = len(header_of(path, dialect))
    for line, cells in records(path, dialect.separator):
        if len(cells) > width:
            raise ConfigError(
                f"{path.name}, row {line}: {len(cells)} values for {width} columns; "
                f"quote a value that has a {SIGNS.get(dialect.separator, dialect.separator)}"
            )
