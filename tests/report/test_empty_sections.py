"""Sections without content appear on the page neither as headings nor in its list of contents."""

import re

import pytest
from probe_drawings import all_measurements

from normlab.report.__main__ import main
from normlab.results.result import Status


@pytest.fixture
def page(tmp_path):
    """Return a function that writes the report of the sweep and returns its page without styles and scripts."""

    def write():
        main([str(tmp_path / "sweep")])
        text = (tmp_path / "sweep/report/index.html").read_text()
        return re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)

    return write


def one_run(make_run):
    make_run("model=bn seed=0")


def one_epoch(make_run):
    for seed in range(8):
        for model in ("bn", "nobn"):
            make_run(f"model={model} seed={seed}", (2.0 + (model == "nobn"),), max_epochs=1)


def one_arm(make_run):
    for seed in range(8):
        make_run(f"model=bn seed={seed}")


def one_rate(make_run):
    for seed in range(8):
        for model, level in (("bn", 1.0), ("nobn", 2.0)):
            make_run(f"model={model} seed={seed}", (4.0, level, level + 0.1 * (seed % 3)))


def rates(make_run):
    for seed in range(12):
        for model, level in (("bn", 1.0), ("nobn", 2.0)):
            for lr in ("0.01", "0.1"):
                make_run(f"model={model} optimizer.lr={lr} seed={seed}", (4.0, level, level + 0.1 * (seed % 3)))


def batch_sizes(make_run):
    for seed in range(8):
        for model, level in (("bn", 1.0), ("nobn", 2.0)):
            for size in (64, 128):
                make_run(f"model={model} data.batch_size={size} seed={seed}", (4.0, level))


def probes(probed):
    for seed in range(8):
        for model, level in (("bn", 1.0), ("nobn", 2.0)):
            probed(f"model={model} seed={seed}", all_measurements(seed, level)[:1], losses=(4.0, level))


def all_diverged(make_run):
    for seed in range(8):
        for model in ("bn", "nobn"):
            make_run(f"model={model} seed={seed}", status=Status.DIVERGED)


def all_failed(make_run):
    for seed in range(2):
        for model in ("bn", "nobn"):
            make_run(f"model={model} seed={seed}", (), status=Status.FAILED)


ALWAYS = {"runs"}
EXPECTED = {
    one_run: {"arms", "curves", "target"},
    one_epoch: {"comparison", "arms"},
    one_arm: {"arms", "curves", "target"},
    one_rate: {"comparison", "arms", "curves", "target"},
    rates: {"comparison", "arms", "curves", "target", "tuning"},
    batch_sizes: {"comparison", "arms", "curves", "target", "batch-size"},
    probes: {"comparison", "arms", "curves", "target", "probes"},
    all_diverged: {"comparison", "arms", "curves"},
    all_failed: {"comparison", "arms"},
}


@pytest.mark.parametrize("sweep", EXPECTED, ids=lambda sweep: sweep.__name__)
def test_only_sections_with_content_appear(make_run, probed, page, sweep):
    sweep(probed if sweep is probes else make_run)
    text = page()
    main_part = text[text.index("<main>") :]
    sections = dict(re.findall(r'<section id="([\w-]+)">(.*?)</section>', main_part, re.DOTALL))
    contents = re.findall(r'<a href="#([\w-]+)">', text[text.index("<nav") : text.index("</nav>")])
    assert contents == list(sections)
    assert set(sections) - {"provenance"} == EXPECTED[sweep] | ALWAYS
    for name, content in sections.items():
        assert re.search(r"<svg|<td|<dd", content), f"{name} has neither a figure nor a number"
    assert not re.search(r"<(ul|ol|dl|tbody|figcaption|h2|h3|caption|p|div|aside)\b[^>]*>\s*</\1>", text)
    for table in re.findall(r"<table>.*?</table>", text, re.DOTALL):
        assert "<td" in table, table
