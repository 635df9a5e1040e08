"""How a file of values is written: the sign between values and the sign before a number's fraction."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

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
