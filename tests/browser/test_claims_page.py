"""The page over all claims and the profile page in a browser, on phone and desktop screens, with both themes."""

import math

import pytest
from tests.claims.claim_records import part, record, write

from normlab.claims.page import write_claims_page
from normlab.stats.regions import Region

pytestmark = pytest.mark.slow

SIZES = {
    "phone": {"width": 390, "height": 844},
    "tablet": {"width": 820, "height": 1180},
    "desktop": {"width": 1280, "height": 900},
}
LONG = "bn against nobn, last_third/probe/angular_update/batch/hidden1.linear/relative, optimizer.lr={:.3g}"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Write pages from records with many and with long parts; return their paths."""
    folder = tmp_path_factory.mktemp("claims")
    many = [
        part(LONG.format(0.001 * 1.5**k), "value", 1 + k / 100, 0.02, Region(0.9, 1.1), level=90)
        for k in range(20)
    ]
    endless = part(effect=math.inf, interval=(1.2, math.inf), p=1.0, p_against=1e-5)
    write(
        folder, record("many", many, claim={"statement": "a statement with a_very_long_name_without_a_break " * 4})
    )
    write(folder, record("endless", [endless, part(effect=1e-6, se=2.0)], claim={"order": 2}))
    write(folder, record("open", [part(effect=0.97)], claim={"order": 3, "power": "underpowered: 0.3"}))
    arms = {
        arm: [part(f"{arm} against nobn, test/loss", effect=e)]
        for arm, e in (("bn", 0.6), ("mine", 0.7), ("ln", 1.4))
    }
    write(folder, record("good", [part()], profile={**arms, "rms": "no_setting_of_rms_trains_" * 9}))
    write(folder, record("good", [part()], fresh=True, data="breast_cancer"), "good-fresh")
    write(folder, record("good", [part()], overrides=["data=wine"]), "good-wine")
    return {"index": write_claims_page(folder), "profile": folder / "profile-mine.html"}


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join)
def opened(request, browser, pages):
    """Return the pages by name, their requests, and their console messages and errors."""
    size, scheme = request.param
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
    requests, messages, shown = [], [], {}
    for name, path in pages.items():
        page = shown[name] = context.new_page()
        page.on("request", lambda sent: requests.append(sent.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(path.as_uri())
    yield shown, requests, messages
    context.close()


def test_pages_load_without_requests_or_errors(opened, pages):
    _, requests, messages = opened
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri() for path in pages.values()]
    assert messages == []


def test_pages_fit_the_screen(opened):
    shown, *_ = opened
    for page in shown.values():
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_no_text_of_a_row_covers_another(opened):
    shown, *_ = opened
    for page in shown.values():
        covered = page.evaluate(
            """[...document.querySelectorAll('.part')].flatMap(row => {
                const cells = [...row.children, ...row.querySelectorAll('text')].filter(
                    cell => cell.textContent.trim() && !cell.classList.contains('plot'))
                const boxes = cells.map(cell => cell.getBoundingClientRect())
                return boxes.flatMap((a, i) => boxes.slice(0, i).filter(b =>
                    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
                    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3).map(() => cells[i].textContent))
            })"""
        )
        assert covered == []


def test_every_figure_is_visible_and_labelled(opened):
    shown, *_ = opened
    for page in shown.values():
        for figure in page.locator("figure.forest").all():
            assert len(figure.get_attribute("aria-label")) > 20
            strip = figure.locator(".plot").first.bounding_box()
            assert strip["width"] > 150
            box, last = figure.bounding_box(), figure.locator(".part").last.bounding_box()
            assert last["y"] + last["height"] <= box["y"] + box["height"] + 1, "it would cover what follows"
            assert 20 < strip["height"] < 120


def test_click_on_heading_sorts_the_summary(opened):
    shown, *_ = opened
    page = shown["index"]
    if page.viewport_size["width"] < 1000:
        pytest.skip("no headings on small screens")
    page.locator("th button", has_text="Verdict").click()
    badges = page.locator("table.summary tbody td:nth-child(2) .badge").all_inner_texts()
    order = ["✓ holds", "✕ does not hold", "? undecided"]
    assert badges == sorted(badges, key=order.index)


def test_text_contrast(opened):
    """The contrast of text is at least 4.5 (WCAG 2.2, level AA) on the page, on badges and on bars."""
    shown, *_ = opened
    pairs = shown["index"].evaluate(
        """() => [...document.querySelectorAll(
            'p, td, td span, dd, figcaption, a, .badge, .bar span, .flag, .part span'
        )].map(element => {
                let under = element
                while (getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)' && under.parentElement)
                    under = under.parentElement
                return [getComputedStyle(element).color, getComputedStyle(under).backgroundColor]
            })"""
    )
    for pair in {tuple(pair) for pair in pairs}:
        dark, light = sorted(map(luminance, pair))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, pair


def luminance(colour: str) -> float:
    """Return the relative luminance of ``rgb(…)``."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
