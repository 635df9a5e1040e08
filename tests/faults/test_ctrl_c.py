"""Ctrl-C at random moments of a sweep, from its first line on, with both cores busy: none is lost.

``python -m pytest tests/faults/test_ctrl_c.py --moments 100`` takes 100 moments of each sweep.
"""

import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from normlab.results.result import Result, Status

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ctrl_c_is_default")]
TRAIN = Path(__file__).parents[2] / "train.py"
SWEEP = ["-m", "model=bn,nobn", "trainer.max_epochs=200000", "logger.flush_seconds=0", "hydra.sweep.dir=sweep"]
AT_ONCE, MOMENTS = 3, 6
END_SECONDS = 120
"""Seconds in which a command ends after Ctrl-C; it writes its report, and the machine is busy."""


def start(folder: Path, words: list[str]) -> subprocess.Popen:
    """Start a command in a folder."""
    folder.mkdir()
    command = [sys.executable, str(TRAIN), *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def seconds_to_train(folder: Path, words: list[str]) -> float:
    """Return the seconds until the first epoch has ended; the compiled code is then in Inductor's cache."""
    started, process = time.monotonic(), start(folder, words)
    while not (folder / "sweep" / "model=bn" / "curves.csv").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    seconds = time.monotonic() - started
    process.kill()
    process.communicate()
    return seconds


def press_ctrl_c(folder: Path, words: list[str], delay: float) -> tuple[int, str]:
    """Press Ctrl-C after a delay; return exit code and stderr, and the code of a kill if the command goes on."""
    process = start(folder, words)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
    return process.returncode, err


@pytest.mark.thorough
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_no_ctrl_c_is_lost(tmp_path, moments, compiled):
    words = [*SWEEP, f"trainer.compile={compiled}"]
    longest = 2 * seconds_to_train(tmp_path / "first", words)
    generator = random.Random(compiled)
    delays = [generator.uniform(0, longest) for _ in range(moments(MOMENTS))]
    folders = [tmp_path / str(number) for number in range(len(delays))]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(lambda folder, delay: press_ctrl_c(folder, words, delay), folders, delays))
    for folder, delay, (code, err) in zip(folders, delays, outcomes, strict=True):
        # Before the first line of the script, Python itself ends with the signal.
        assert code == 128 + signal.SIGINT or (code == -signal.SIGINT and delay < 0.5), (delay, code, err)
        assert err == "" or code < 0, (delay, err)
        results = [Result.read(path.parent) for path in folder.rglob("result.json")]
        assert {result.status for result in results if result} <= {Status.STOPPED}, delay
