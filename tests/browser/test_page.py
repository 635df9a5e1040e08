"""The report page in a browser, on phone and desktop screens, with the light and the dark theme."""

import json

import pytest

pytestmark = pytest.mark.slow

SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join)
def opened(request, browser, sweep):
    """Return the page, its requests, and its console messages and errors."""
    size, scheme = request.param
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
    page, requests, messages = context.new_page(), [], []
    page.on("request", lambda sent: requests.append(sent.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto((sweep / "report" / "index.html").as_uri())
    yield page, requests, messages
    context.close()


def test_page_loads_without_requests_or_errors(opened, sweep):
    _, requests, messages = opened
    assert [url for url in requests if not url.startswith("data:")] == [(sweep / "report" / "index.html").as_uri()]
    assert messages == []


def test_page_fits_the_screen(opened):
    page, *_ = opened
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_answer_and_effects_are_on_the_first_screen(opened):
    page, *_ = opened
    for selector in ("#answer strong", "#effects .verdict:not(:empty)", "#effects .interval"):
        box = page.locator(selector).first.bounding_box()
        assert box["y"] + box["height"] <= 700, selector


def test_conditions_and_caveats_are_on_the_first_screen_of_a_desktop(opened):
    page, *_ = opened
    if page.viewport_size["width"] < 1000:
        pytest.skip("a phone scrolls to them")
    for selector in ("#caveats h2", "#caveats li", "#conditions h2", "#conditions dd"):
        box = page.locator(selector).first.bounding_box()
        assert box["y"] + box["height"] <= page.viewport_size["height"], selector


def test_drawn_effects_are_those_of_the_report(opened, sweep):
    """Dots lie on their side of the line of equality, and those of declared differences are filled."""
    page, *_ = opened
    rows = json.loads((sweep / "report/report.json").read_text())["effects"]
    drawn = page.locator("#effects tbody tr:has(.dot)")
    assert drawn.count() == sum(row["estimate"] is not None for row in rows) > 0
    for row, place in zip((row for row in rows if row["estimate"] is not None), drawn.all(), strict=True):
        dot, line = (place.locator(f".forest .{name}").bounding_box() for name in ("dot", "same"))
        side = dot["x"] + dot["width"] / 2 - line["x"]
        assert (side < 0) == (row["estimate"] < (row["effect"] == "ratio")) or abs(side) < 1
        assert (place.locator(".dot.declared").count() == 1) == (row["verdict"] in ("better", "worse"))


def test_no_text_of_a_figure_covers_another(opened):
    page, *_ = opened
    covered = page.evaluate(
        """[...document.querySelectorAll('svg.figure')].flatMap(figure => {
            const texts = [...figure.querySelectorAll('text')].filter(text => text.textContent.trim())
            const boxes = texts.map(text => text.getBoundingClientRect())
            const scale = figure.getBoundingClientRect().width / figure.viewBox.baseVal.width
            const found = []
            boxes.forEach((a, i) => boxes.slice(0, i).forEach((b, j) => {
                const width = Math.min(a.right, b.right) - Math.max(a.left, b.left)
                const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)
                // The box of a text is a little higher than its letters.
                if (width > 2 * scale && height > 4 * scale)
                    found.push([texts[i].textContent, texts[j].textContent])
            }))
            return found
        })"""
    )
    assert covered == []


def test_every_figure_is_visible_and_labelled(opened):
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


def test_figure_text_is_legible_on_a_phone(opened):
    page, *_ = opened
    heights = page.evaluate(
        """[...document.querySelectorAll('figure:not(.wide) svg.figure text')]
            .map(text => text.getBoundingClientRect().height)"""
    )
    assert min(height for height in heights if height) > 7


def test_text_contrast(opened):
    """The contrast of text is at least 4.5 (WCAG 2.2, level AA)."""
    page, *_ = opened
    colours = page.evaluate(
        """() => [...document.querySelectorAll(
            'p, li, td, th, th button, figcaption, a, dt, dd, svg.figure text'
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


def test_click_on_heading_sorts_the_table(opened):
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


def test_printed_page_expands_all_tables(opened):
    page, *_ = opened
    page.emulate_media(media="print", color_scheme="light")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert len(page.pdf()) > 10_000


def test_svg_file_is_on_white_background(sweep):
    text = next((sweep / "report").glob("curves_*.svg")).read_text()
    assert "#ffffff" in text
    assert "var(" not in text
