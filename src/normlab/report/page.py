"""Self-contained report page ``index.html``, with its figures and tables also as files; see :func:`write_page`."""

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

from normlab.report.console import csv_text, format_number
from normlab.report.figures import save
from normlab.results.result import write_atomically

TEMPLATE = Path(__file__).parent / "template"
# Figures are drawn for white paper; on the page their colours follow the light or dark theme.
THEME = {"#000000": "currentColor", "#ffffff": "var(--paper)", "#e4e4e4": "var(--grid)", "#555555": "var(--soft)"}
PAGE = "index.html"
OPEN_ROWS = 12
"""Tables with more rows than this are collapsed at first."""


@dataclass(frozen=True)
class PageTable:
    """A table of the page, also written as a csv file.

    Attributes:
        name: file name without ``.csv``.
        caption: caption of the table.
        frame: the numbers for the csv file; missing values appear as a dash on the page.
        formatted: the table as formatted for the page; by default ``frame``.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    formatted: pd.DataFrame | None = None

    @property
    def head(self) -> list[str]:
        """The column names."""
        return [str(name) for name in (self.frame if self.formatted is None else self.formatted)]

    @property
    def open(self) -> bool:
        """True if the table is expanded at first."""
        return len(self.frame) <= OPEN_ROWS

    def rows(self) -> Iterator[list[tuple[str, Any]]]:
        """Yield each row as pairs of a cell's text and its sort value."""
        frame = self.frame if self.formatted is None else self.formatted
        for row in frame.itertuples(index=False, name=None):
            yield [table_cell(value) for value in row]


@dataclass(frozen=True)
class Picture:
    """A figure of the page, also written as a png and an svg file.

    Attributes:
        name: file name without extension.
        figure: the figure.
        alt: text alternative for screen readers.
        caption: caption of the figure.
        table: the data of the figure.
        wide: True if the figure takes the full width of the page; on a phone it scrolls sideways.
    """

    name: str
    figure: Figure
    alt: str
    caption: str
    table: PageTable | None = None
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A section of the page: paragraphs, then figures, then tables. ``name`` is its anchor."""

    name: str
    title: str
    paragraphs: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[PageTable] = ()


@dataclass(frozen=True)
class Page:
    """The content of the page.

    Attributes:
        title: title of the page.
        results: the main findings, one sentence each.
        caveats: the limits of these findings, one sentence each.
        sections: the sections in their order.
        provenance: pairs of a label and a value, such as the commit.
    """

    title: str
    results: Sequence[str]
    caveats: Sequence[str] = ()
    sections: Sequence[Section] = ()
    provenance: Sequence[tuple[str, str]] = field(default_factory=tuple)


def write_page(page: Page, folder: Path) -> Path:
    """Write the page, its figures and its tables into a folder, each file atomically; return the path of the page.

    Figures and tables of an earlier report that this one lacks are removed: the folder belongs to the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for picture in pictures(page):
        files += [save(picture.figure, folder / f"{picture.name}.{kind}") for kind in ("png", "svg")]
    for table in tables(page):
        files.append(folder / f"{table.name}.csv")
        write_atomically(files[-1], csv_text(table.frame))
    index = folder / PAGE
    write_atomically(index, render_html(page, folder))
    for path in {*folder.glob("*.csv"), *folder.glob("*.png"), *folder.glob("*.svg")} - set(files):
        path.unlink()
    return index


def pictures(page: Page) -> Iterator[Picture]:
    """Yield all figures of a page."""
    for section in page.sections:
        yield from section.pictures


def tables(page: Page) -> Iterator[PageTable]:
    """Yield all tables of a page, including the data of its figures."""
    for section in page.sections:
        yield from (picture.table for picture in section.pictures if picture.table is not None)
        yield from section.tables


def render_html(page: Page, folder: Path) -> str:
    """Render the page with the svg files of ``folder`` inlined; all text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    svgs = {
        picture.name: Markup(inline_svg((folder / f"{picture.name}.svg").read_text(), picture.name, picture.alt))
        for picture in pictures(page)
    }
    css, script = (Markup((TEMPLATE / name).read_text()) for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(page=page, svgs=svgs, css=css, script=script)


def inline_svg(svg: str, name: str, alt: str) -> str:
    """Convert an svg file to an element of the page, with theme colours, prefixed ids and an alt text."""
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


def table_cell(value: Any) -> tuple[str, Any]:
    """Return the text and the sort value of a cell; "" is the sort value of missing values.

    >>> table_cell(0.123456), table_cell("bn"), table_cell(None), table_cell(float("inf"))
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
