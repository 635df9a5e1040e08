"""Self-contained report page ``index.html``, with its figures and tables also as files; see :func:`write_page`."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
OPEN_ROWS = 24
"""Tables with more rows than this are collapsed at first."""
OPEN_ANSWERS, OPEN_EFFECTS, OPEN_CAVEATS = 3, 8, 4
"""The largest numbers of answers, effects and caveats that are not collapsed at first."""


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
        data: the numbers of the figure, written as a csv file of the same name.
        wide: True if the figure takes the full width of the page; on a phone it scrolls sideways.
    """

    name: str
    figure: Figure
    alt: str
    caption: str
    data: pd.DataFrame | None = None
    wide: bool = False

    @property
    def table(self) -> PageTable | None:
        """The numbers of the figure as a table."""
        return None if self.data is None else PageTable(self.name, "Data of the figure", self.data)


@dataclass(frozen=True)
class Section:
    """A section of the page: sentences, figures, tables, then notes. ``name`` is its anchor.

    Attributes:
        shared: conditions that all sentences share.
    """

    name: str
    title: str
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[PageTable] = ()
    sentences: Sequence[str] = ()
    shared: str = ""


@dataclass(frozen=True)
class Answer:
    """The answer to "which arm is best?" in one panel.

    Attributes:
        panel: name of the panel; empty if there is one.
        state: of the primary metric, such as ``best`` or ``undecided``; see :mod:`normlab.report.answer`.
        best: the arm that is declared better than every other arm, or empty.
        headline: the finding by the primary metric.
        details: sentences about the other pairs of arms and the other metrics.
    """

    panel: str
    state: str
    best: str
    headline: str
    details: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The answer in words."""
        where = f"{self.panel}: " if self.panel else ""
        return where + " ".join(f"{part}." for part in (self.headline, *self.details))


@dataclass(frozen=True)
class Effect:
    """A row of the first table, formatted.

    Attributes:
        label: of the panel and the arms.
        effect, p, verdict, value, best: texts, empty if unknown.
        colour: of the arm.
        declared: True if a difference is declared.
        place: estimate and interval in percent of the width of the axis; None without an estimate.
    """

    label: str
    effect: str
    p: str
    verdict: str
    value: str
    best: str
    colour: str
    declared: bool
    place: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class EffectGroup:
    """The effects by one metric in the first table.

    Attributes:
        metric: its name.
        meaning: the question that it answers, and its direction.
        effects: rows.
        ticks: values and places of the ticks of the axis, in percent of its width; empty without an axis.
        same: the place of equality.
    """

    metric: str
    meaning: str
    effects: Sequence[Effect]
    ticks: Sequence[tuple[str, float]] = ()
    same: float = 0.0


@dataclass(frozen=True)
class Page:
    """The content of the page.

    Attributes:
        title: title of the page.
        answers: the answer of each panel.
        overview: the number of panels with each answer, in words.
        groups, more_groups: the effects by metric, shown and collapsed at first.
        baseline: the baseline of the effects, if there is one for all.
        note: the explanation of the effects.
        effects: the numbers of the effects, which are written as a csv file.
        conditions: pairs of a label and a text.
        caveats: the limits of the findings, one sentence each.
        sections: the sections in their order.
        provenance: pairs of a label and a value, such as the commit.
    """

    title: str
    answers: Sequence[Answer] = ()
    overview: str = ""
    groups: Sequence[EffectGroup] = ()
    more_groups: Sequence[EffectGroup] = ()
    baseline: str = ""
    note: str = ""
    effects: PageTable | None = None
    conditions: Sequence[tuple[str, str]] = ()
    caveats: Sequence[str] = ()
    sections: Sequence[Section] = ()
    provenance: Sequence[tuple[str, str]] = ()


def alike(answers: Sequence[Answer]) -> list[Answer]:
    """Join the panels with the same answer in one answer, whose panel has all their names."""
    groups: dict[tuple[str, tuple[str, ...]], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.headline, answer.details), []).append(answer)
    joined = []
    for group in groups.values():
        is_all = len(group) == len(answers) > 1
        panel = f"all {len(group)} panels" if is_all else "; ".join(answer.panel for answer in group)
        joined.append(replace(group[0], panel=panel))
    return joined


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
    yield from [page.effects] if page.effects else []
    yield from (picture.table for picture in pictures(page) if picture.table is not None)
    for section in page.sections:
        yield from section.tables


def render_html(page: Page, folder: Path) -> str:
    """Render the page with the svg files of ``folder`` inlined; all text is escaped."""
    svgs = {
        picture.name: Markup(inline_svg((folder / f"{picture.name}.svg").read_text(), picture.name, picture.alt))
        for picture in pictures(page)
    }
    css, script = (Markup((TEMPLATE / name).read_text()) for name in ("page.css", "page.js"))
    return (
        templates()
        .get_template("page.html")
        .render(
            page=page,
            answers=alike(page.answers),
            open_answers=OPEN_ANSWERS,
            open_caveats=OPEN_CAVEATS,
            svgs=svgs,
            css=css,
            script=script,
        )
    )


def templates() -> Environment:
    """Return the templates of all pages; text is escaped and a missing variable is an error."""
    return Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


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
