"""TensorBoard in a browser: the curves of configurations, their bands, and the HParams tab."""

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.slow

WAIT = 60_000
"""Timeout in milliseconds."""


@pytest.fixture(scope="module")
def served(sweep) -> Iterator:
    """Return a function that starts TensorBoard on a folder and returns its address."""
    processes = []

    def serve(folder) -> str:
        command = [
            sys.executable,
            "-m",
            "tensorboard.main",
            "--logdir",
            str(folder),
            "--port",
            "0",
            "--host",
            "localhost",
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        processes.append(process)
        for line in process.stderr:
            if found := re.search(r"at (http://localhost:\d+)", line):
                return found[1]
        pytest.fail("TensorBoard did not start")

    yield serve
    for process in processes:
        process.terminate()
        process.wait(60)
        process.stderr.close()


@pytest.fixture(scope="module")
def configurations(browser, served, sweep):
    """Return a browser page and the address of the configurations' curves."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    yield page, served(sweep / "arms")
    page.close()


def test_each_configuration_has_a_curve(configurations):
    page, address = configurations
    page.goto(f"{address}/#timeseries")
    page.get_by_role("combobox", name="Filter tags (regex)").fill("^val/loss/median$", timeout=WAIT)
    # The cards of other tags stay in the document, hidden.
    card = page.locator("scalar-card").filter(has_text="/loss").filter(visible=True).first
    card.locator("line-chart").wait_for(timeout=WAIT)
    curves = card.locator("scalar-card-data-table").inner_text(timeout=WAIT)
    assert len(set(re.findall(r"model=\S+", curves))) == 8


def test_custom_scalars_show_bands(configurations):
    page, address = configurations
    page.goto(f"{address}/#custom_scalars")
    page.get_by_text("val/loss").first.wait_for(timeout=WAIT)
    assert page.locator("tf-custom-scalar-margin-chart-card").count() >= 1


@pytest.mark.thorough
def test_hparams_tab_lists_the_varied_keys(browser, served, sweep):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{served(sweep)}/#hparams")
    table = page.locator("vaadin-grid, tf-hparams-table-view").first
    table.wait_for(timeout=WAIT)
    page.get_by_text("optimizer.lr").first.wait_for(timeout=WAIT)
    for key in ("model", "optimizer.lr", "data.batch_size"):
        assert page.get_by_text(key, exact=True).count() >= 1
    page.close()
