"""Fixtures for tests in chromium, driven by Playwright; without either the tests are skipped."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TRAIN = Path(__file__).parents[2] / "train.py"

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Return a headless browser."""
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make setup")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def sweep(tmp_path_factory) -> Path:
    """Train a sweep of 96 runs from the command line and return its folder."""
    folder = tmp_path_factory.mktemp("real")
    words = ["model=bn,nobn", "optimizer.lr=0.01,0.1", "data.batch_size=64,256", "seed=range(12)", "probes=light"]
    few = ["trainer.max_epochs=3", f"hydra.sweep.dir={folder / 'sweep'}"]
    subprocess.run([sys.executable, str(TRAIN), "-m", *words, *few], cwd=folder, check=True, capture_output=True)
    return folder / "sweep"
