"""The report in a real browser: on a phone and on a desk, in the light and in the dark."""

import pytest

SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join)
def opened(request, browser, sweep):
    """Return the page, and what it asked for and complained of."""
    size, scheme = request.param
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda sent: asked.append(sent.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((sweep / "report" / "index.html").as_uri())
    yield page, asked, said
    context.close()


def test_nothing_is_asked_for_and_nothing_complained_of(opened, sweep):
    _, asked, said = opened
    assert [url for url in asked if not url.startswith("data:")] == [(sweep / "report" / "index.html").as_uri()]
    assert said == []


def test_it_is_no_wider_than_the_screen(opened):
    page, *_ = opened
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_every_figure_is_seen_and_labelled(opened):
    page, *_ = opened
    figures = page.locator("figure svg.figure")
    assert figures.count() >= 10
    for figure in figures.all():
        assert figure.is_visible()
        assert len(figure.get_attribute("aria-label")) > 10
        box = figure.bounding_box()
        assert box["width"] > 250
        assert box["height"] > 100
        assert figure.locator("text").count() >= 5
    assert (
        page.locator("figure").count()
        == page.locator("figcaption").count()
        == page.locator("figure table").count()
    )


def test_letters_on_a_small_figure_can_be_read_on_a_phone(opened):
    page, *_ = opened
    heights = page.evaluate(
        """[...document.querySelectorAll('figure:not(.wide) svg.figure text')]
            .map(text => text.getBoundingClientRect().height)"""
    )
    assert min(height for height in heights if height) > 7


def test_words_and_lines_stand_out_from_the_paper(opened):
    """The contrast of text is at least 4.5, as WCAG 2.2 asks for."""
    page, *_ = opened
    colours = page.evaluate(
        """() => [...document.querySelectorAll(
            'p, li, td, th button, figcaption, a, dt, dd, svg.figure text'
        )].map(e => {
            const style = getComputedStyle(e);
            return e instanceof SVGElement ? style.fill : style.color;
        })"""
    )
    paper = luminance(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    for colour in set(colours):
        light, dark = sorted([luminance(colour), paper], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


def luminance(colour: str) -> float:
    """Return the relative luminance of ``rgb(…)``."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_click_on_a_column_sorts_the_table(opened):
    page, *_ = opened
    page.locator("#runs summary").click()
    table = page.locator("#runs table")
    column = table.locator("th").all_inner_texts().index("seed")
    head = table.locator("th").nth(column)
    for direction, expected in (("ascending", sorted), ("descending", lambda seeds: sorted(seeds, reverse=True))):
        head.locator("button").click()
        seeds = [int(text) for text in table.locator(f"tbody td:nth-child({column + 1})").all_inner_texts()]
        assert len(seeds) == 96
        assert seeds == expected(seeds)
        assert head.get_attribute("aria-sort") == direction


def test_what_is_printed_shows_every_table(opened):
    page, *_ = opened
    page.emulate_media(media="print", color_scheme="light")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert len(page.pdf()) > 10_000


def test_a_figure_as_a_file_is_on_white_paper(sweep):
    text = next((sweep / "report").glob("curves_by_epoch*.svg")).read_text()
    assert "#ffffff" in text
    assert "var(" not in text
