import re

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from normlab.report.page import (
    Answer,
    Effect,
    EffectGroup,
    Page,
    PageTable,
    Picture,
    Section,
    inline_svg,
    write_page,
)

NASTY = '<script>alert("x")</script>&'


def picture(name="curve", alt="a line", data=None):
    figure = Figure(figsize=(3, 2))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    axes.plot([0, 1], [0, 1], color="#000000")
    return Picture(name, figure, alt, f"caption of {name}", data)


def page(*pictures, tables=(), text=None):
    """Return a page with every kind of content; ``text`` replaces all texts."""

    def given(words):
        return text or words

    texts = ("an arm", "× 2", "0.05", "better", "1", "2")
    effect = Effect(*map(given, texts), "red", True)
    words, finding, shared = given("words"), given("a finding"), given("shared")
    return Page(
        title=given("a page"),
        answers=[Answer(given("a panel"), "best", given("an arm"), given("an answer"), (given("a detail"),))],
        groups=[EffectGroup(given("a metric"), given("a question"), [effect], [(given("a tick"), 5.0)])],
        more_groups=[EffectGroup(given("another metric"), "", [effect])],
        baseline=given("a baseline"),
        note=given("a note"),
        conditions=[(given("a label"), given("a condition"))],
        caveats=[given("a caveat")],
        sections=[Section("part", given("A part"), [words], pictures, tables, [finding], shared)],
        provenance=[(given("seeds"), given("0–3"))],
    )


def test_page_is_self_contained_with_files_beside_it(tmp_path):
    numbers = pd.DataFrame({"x": [0, 1], "y": [0.5, float("inf")]})
    index = write_page(page(picture(data=numbers)), tmp_path / "report")
    assert index == tmp_path / "report" / "index.html"
    assert sorted(path.name for path in index.parent.iterdir()) == [
        "curve.csv",
        "curve.png",
        "curve.svg",
        "index.html",
    ]
    text = index.read_text()
    for text_part in (
        "a page",
        "an answer",
        "a detail",
        "a metric",
        "another metric",
        "a baseline",
        "a tick",
        "a note",
        "a condition",
        "a finding",
        "shared",
        "a caveat",
        "A part",
        "words",
        "caption of curve",
        "Data of the figure",
        "0–3",
        "∞",
    ):
        assert text_part in text
    assert text.count("<svg") == 1
    links = set(re.findall(r'(?:src|href)="([^"#][^"]*)"', text)) - {"data:,"}
    assert links == {"curve.svg", "curve.png", "curve.csv", "report.json", "report.tex"}
    assert (index.parent / "curve.csv").read_text() == "x,y\n0,0.5\n1,inf\n"


def test_text_is_escaped(tmp_path):
    drawn = Picture("curve", picture().figure, NASTY, NASTY, pd.DataFrame({NASTY: [NASTY]}))
    tables = [PageTable("more", NASTY, pd.DataFrame({NASTY: [NASTY]}))]
    index = write_page(page(drawn, tables=tables, text=NASTY), tmp_path)
    text = index.read_text()
    assert "alert" in text
    assert "<script>alert" not in text
    assert 'aria-label="&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;&amp;"' in text


def test_only_files_of_an_earlier_report_are_removed(tmp_path):
    write_page(page(picture("old"), tables=[PageTable("old_numbers", "", pd.DataFrame({"a": [1]}))]), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    write_page(page(picture("new")), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "new.png", "new.svg", "notes.txt"]


def test_svg_ids_are_unique_and_colours_themed(tmp_path):
    index = write_page(page(picture("one"), picture("two")), tmp_path)
    svgs = re.findall(r"<svg.*?</svg>", index.read_text(), re.DOTALL)
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in svgs]
    assert all(ids)
    assert not ids[0] & ids[1]
    for svg, own in zip(svgs, ids, strict=True):
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
        assert used <= own
        assert "currentColor" in svg
        assert "var(--paper)" in svg
        assert not re.search("#(000000|ffffff|e4e4e4)", svg)


def test_inline_svg_has_alt_text():
    svg = (
        '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="324pt" height="216pt" '
        'viewBox="0 0 324 216"><metadata>when</metadata><g id="axes_1"/></svg>'
    )
    assert inline_svg(svg, "a-b", "a figure") == (
        '<svg class="figure" role="img" aria-label="a figure" style="--width: 324px" '
        'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 324 216"><g id="a_b-axes_1"/></svg>'
    )


@pytest.mark.parametrize(("rows", "opened"), [(24, True), (25, False)])
def test_long_table_is_collapsed(tmp_path, rows, opened):
    table = PageTable("numbers", "all of them", pd.DataFrame({"x": range(rows)}))
    text = write_page(page(tables=[table]), tmp_path).read_text()
    assert ("<summary>all of them" in text) != opened
