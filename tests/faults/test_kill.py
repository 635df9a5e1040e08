"""SIGKILL at random moments of a sweep, which is repeated each time: in the end it equals an undisturbed one.

``python -m pytest tests/faults/test_kill.py --moments 100`` takes 100 moments.
"""

import multiprocessing
import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from run_files import require_same_sweep, run_folders

pytestmark = pytest.mark.slow
TRAIN = Path(__file__).parents[2] / "train.py"
RUNS = 32
SWEEP = [
    *("-m", "model=bn,nobn", f"seed=range({RUNS // 2})", "trainer.max_epochs=40", "net.hidden=[8]"),
    *("hydra.launcher.chunk=8", "logger.flush_seconds=0.05", "hydra.sweep.dir=sweep"),
]
MOMENTS = 10


def command(folder: Path, words: list[str]) -> None:
    """Run ``train.py`` in a folder."""
    os.chdir(folder)
    sys.argv = [str(TRAIN), *words]
    with (folder / "output").open("a") as output:
        sys.stdout = sys.stderr = output
        runpy.run_path(str(TRAIN), run_name="__main__")


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServerContext]:
    """Return a context whose processes have imported torch and Lightning at their start, and end its server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["normlab.cli", "normlab.training.run", "normlab.report.report"])
    first = context.Process(target=print)  # the imports are no part of the time in which a command is killed
    first.start()
    first.join()
    yield context
    own: Any = forkserver._forkserver
    own._stop()


def killed_after(server: ForkServerContext, folder: Path, words: list[str], seconds: float | None) -> bool:
    """Run a command and kill it after some seconds; return False if it has ended before, without an error."""
    process = server.Process(target=command, args=(folder, words))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), (folder / "output").read_text()
    return process.exitcode != 0


@pytest.mark.thorough
@pytest.mark.parametrize("more", [[], ["trainer.save_every=0.1s"]], ids=["from the start", "from saved states"])
def test_killed_sweep_equals_an_undisturbed_one(server, tmp_path, moments, more):
    whole, words = tmp_path / "whole", [*SWEEP, *more]
    whole.mkdir()
    started = time.monotonic()
    assert not killed_after(server, whole, words, None)
    longest = time.monotonic() - started
    assert len(run_folders(whole / "sweep")) == RUNS
    generator, sweeps, ended = random.Random(0), 0, True
    for _ in range(moments(MOMENTS)):
        if ended:
            sweeps += 1
            (tmp_path / f"{sweeps}").mkdir()
        ended = not killed_after(server, tmp_path / f"{sweeps}", words, generator.uniform(0.1, longest))
    for number in range(1, sweeps + 1):
        assert number < sweeps or ended or not killed_after(server, tmp_path / f"{number}", words, None)
        require_same_sweep(tmp_path / f"{number}" / "sweep", whole / "sweep")
