"""One self-contained page of words, tables and pictures: ``index.html``, and all of them as files beside it."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from normlab.report.console import csv, format_number
from normlab.report.figures import save
from normlab.results.result import write_atomically

TEMPLATE = Path(__file__).parent / "template"
# What is drawn for white paper follows the page's colours, light or dark.
THEME = {"#000000": "currentColor", "#ffffff": "var(--paper)", "#e4e4e4": "var(--grid)", "#555555": "var(--soft)"}
PAGE = "index.html"
FEW_PICTURES = 12
"""Up to how many rows a table is shown open; longer ones can be opened."""


@dataclass(frozen=True)
class PageTable:
    """A table of the page, also a csv file.

    Attributes:
        name: of the file, without ``.csv``.
        caption: what the rows are.
        frame: the numbers; what is missing is shown as a dash.
        shown: the frame as it is read on the page, if not as it is.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    shown: pd.DataFrame | None = None

    @property
    def head(self) -> list[str]:
        """The names of the columns."""
        return [str(name) for name in (self.frame if self.shown is None else self.shown)]

    @property
    def open(self) -> bool:
        """Whether it is shown without a click."""
        return len(self.frame) <= FEW_PICTURES

    def rows(self) -> Iterator[list[tuple[str, Any]]]:
        """Yield each row: the text of its cells, and what they are sorted by."""
        shown = self.frame if self.shown is None else self.shown
        for row in shown.itertuples(index=False, name=None):
            yield [cell(value) for value in row]


@dataclass(frozen=True)
class Picture:
    """A figure of the page, also a png and an svg file.

    Attributes:
        name: of the files.
        figure: what is drawn.
        alt: what is seen, for who cannot see it.
        caption: how to read it.
        table: the numbers behind it.
        wide: whether it takes the width of the page, and is scrolled sideways on a phone.
    """

    name: str
    figure: Figure
    alt: str
    caption: str
    table: PageTable | None = None
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: words first, then pictures, then tables."""

    name: str
    title: str
    words: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[PageTable] = ()


@dataclass(frozen=True)
class Page:
    """What the page says.

    Attributes:
        title: of the page.
        lead: the sentences that a reader who stops here should have read.
        warnings: what to know before one believes them.
        sections: the rest.
        facts: pairs of what and which, such as the commit.
    """

    title: str
    lead: Sequence[str]
    warnings: Sequence[str] = ()
    sections: Sequence[Section] = ()
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)


def write_page(page: Page, folder: Path) -> Path:
    """Write the page, its figures and its tables into a folder, each file whole or not at all; return the page.

    What an earlier report left there and this one has not is removed: the folder is the report's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for picture in pictures(page):
        files += [save(picture.figure, folder / f"{picture.name}.{kind}") for kind in ("png", "svg")]
    for table in tables(page):
        files.append(folder / f"{table.name}.csv")
        write_atomically(files[-1], csv(table.frame))
    index = folder / PAGE
    write_atomically(index, html(page, folder))
    for path in {*folder.glob("*.csv"), *folder.glob("*.png"), *folder.glob("*.svg")} - set(files):
        path.unlink()
    return index


def pictures(page: Page) -> Iterator[Picture]:
    """Yield every picture of a page."""
    for section in page.sections:
        yield from section.pictures


def tables(page: Page) -> Iterator[PageTable]:
    """Yield every table of a page, also those behind a picture."""
    for section in page.sections:
        yield from (picture.table for picture in section.pictures if picture.table is not None)
        yield from section.tables


def html(page: Page, folder: Path) -> str:
    """Return the page, with the pictures that are in a folder inside it. Everything from outside is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = {
        picture.name: Markup(inline((folder / f"{picture.name}.svg").read_text(), picture.name, picture.alt))
        for picture in pictures(page)
    }
    css, script = (Markup((TEMPLATE / name).read_text()) for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(page=page, drawn=drawn, css=css, script=script)


def inline(svg: str, name: str, alt: str) -> str:
    """Return an svg file as an element of the page: in the page's colours, its names its own, with an alt text."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    for colour, variable in THEME.items():
        element = element.replace(colour, variable)
    prefix = re.sub(r"\W", "_", name)
    element = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", element)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', element)
    width = size[1] if size else "640"
    opening = f'<svg class="figure" role="img" aria-label="{Markup.escape(alt)}" style="--width: {width}px" '
    element = re.sub(r'\b(width|height)="[\d.]+pt" ?', "", element, count=2)
    return opening + element.removeprefix("<svg ")


def cell(value: Any) -> tuple[str, Any]:
    """Return how a value is shown, and what it is sorted by, numbers after what is missing and before infinity.

    >>> cell(0.123456), cell("bn"), cell(None), cell(float("inf"))
    (('0.1235', 0.123456), ('bn', 'bn'), ('–', ''), ('∞', 1e+308))
    """
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "–", ""
    if isinstance(value, float) and math.isinf(value):
        return ("∞", 1e308) if value > 0 else ("−∞", -1e308)
    if isinstance(value, bool):
        return ("yes" if value else "no"), int(value)
    if isinstance(value, float):
        return format_number(value).replace("-", "−", 1) if value < 0 else format_number(value), value
    return str(value), value
