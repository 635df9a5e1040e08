"""A person's own table, in a file of values separated by commas."""

import csv
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from hydra.utils import to_absolute_path

from normlab.config import ConfigError, first_line, require
from normlab.data.columns import Source, listing
from normlab.data.frame import FrameData, Reading, table_of

ENCODING = "utf-8-sig"
"""UTF-8, with the mark at the beginning that spreadsheets write, or without."""


@dataclass(kw_only=True, eq=False)
class CSV(FrameData):
    """A table whose first line names its columns: one of them is the target, all others are inputs.

    A path that is relative starts in the folder where the command was typed. Every value must be there, and every
    input a number (true and false count as 1 and 0). Rows are named as a text editor counts lines.

    Shapes:
        x: ``(rows, columns − 1)``; y: ``(rows, 1)``, or ``(rows,)`` for classes.
    """

    path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.path is not None, "data.path", "a file, as in data.path=people.csv", "null")

    def reading(self) -> Reading:
        """Read the file, once for each state that it is found in."""
        file = Path(to_absolute_path(str(Path(str(self.path)).expanduser())))
        if not file.is_file():
            raise ConfigError(f"data.path={self.path}: there is no file {file}")
        found = file.stat()
        return read(file, found.st_mtime_ns, found.st_size, self.column, self.task)


@lru_cache(maxsize=2)
def read(path: Path, modified: int, size: int, target_column: str | None, task: str) -> Reading:
    """Return the table of a file; when it was modified and how large it is tell apart what it holds.

    Raises:
        ConfigError: for what is no table, by row and column.
    """
    import pandas as pd

    try:
        header = header_of(path)
        with warnings.catch_warnings():
            # It would leave out what the first row has more than the header, and say so in a warning alone.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(path, encoding=ENCODING, skipinitialspace=True, index_col=False, low_memory=False)
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror or first_line(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} must be text in UTF-8; save it as such ({first_line(error)})") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        refuse_lengths(path)
        raise ConfigError(f"{path.name} cannot be read as a CSV: {first_line(error)}") from error
    if frame.empty:
        raise ConfigError(f"{path.name} has no rows below its header")
    frame.columns = pd.Index(header)
    source = Source(path.name, lambda row: f"{path.name}, row {line_of(path, row)}")
    return table_of(frame, target_column, task, source)


def header_of(path: Path) -> list[str]:
    """Return the names of the columns.

    Raises:
        ConfigError: if there are none, a single one, one without a name, or two of the same name.
    """
    _, cells = next(records(path), (0, []))
    names = [" ".join(cell.split()) for cell in cells]
    if not names:
        raise ConfigError(f"{path.name} is empty")
    if len(names) == 1:
        raise ConfigError(
            f"{path.name} has a single column, {listing(names)}; values must be separated by commas, with names "
            "in the first line"
        )
    for place, name in enumerate(names):
        if not name:
            raise ConfigError(
                f"{path.name}: column {place + 1} has no name; name it in the first line or remove it"
            )
        if name in names[:place]:
            raise ConfigError(f"{path.name} has two columns named {name}; rename one")
    return names


def records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line that each record begins in, counted from 1, and its values; blank lines are none."""
    lines: list[str] = []
    with path.open(encoding=ENCODING, newline="") as file:

        def remembered() -> Iterator[str]:
            for line in file:
                lines.append(line)
                yield line

        start = 1
        for cells in csv.reader(remembered(), skipinitialspace=True):
            if "".join(lines).strip(" \t\r\n"):
                yield start, cells
            start += len(lines)
            lines.clear()


def line_of(path: Path, row: int) -> int:
    """Return the line in which a row of values begins; a quoted value may go over several lines."""
    line, _ = next(islice(records(path), row + 1, None))
    return line


def refuse_lengths(path: Path) -> None:
    """Raise :class:`ConfigError` for the first row that has more values than there are columns."""
    width = len(header_of(path))
    for line, cells in records(path):
        if len(cells) > width:
            raise ConfigError(
                f"{path.name}, row {line}: {len(cells)} values for {width} columns; quote a value that has a comma"
            )
