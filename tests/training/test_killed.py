"""A command that is killed or preempted goes on when it is repeated, and ends as an undisturbed one."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_files import require_same_files
from tests.warm_python import WarmPython

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
LONG = ["net.hidden=[8]", "trainer.save_every=0.3s", "data=random", "data.train=60"]
COMMANDS = {
    "sweep": [
        *LONG,
        "-m",
        "trainer.max_epochs=300",
        "model=bn,noisy",
        "seed=range(4)",
        "optimizer.lr=0.01,0.1",
        "data.batch_size=20",
    ],
    "compiled": [
        *LONG,
        "-m",
        "trainer.max_epochs=300",
        "seed=range(4)",
        "trainer.compile=true",
        "data.batch_size=20",
    ],
    "lightning": [*LONG, "module=lightning", "trainer.max_epochs=300", "data.batch_size=10"],
}


def command(folder: Path, words: list[str]) -> list[str]:
    """Return the words after ``python`` of a training with the output folder ``folder``."""
    key = "hydra.sweep.dir" if "-m" in words else "hydra.run.dir"
    return [str(ROOT / "train.py"), *words, f"{key}={folder}"]


def run_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("result.json"))


def saves(folder: Path) -> set[tuple[str, int]]:
    """Return the names and times of the states in a folder."""
    files = [*folder.glob(".normlab/*.pt"), *folder.glob(".normlab/*.ckpt")]
    return {(path.name, path.stat().st_mtime_ns) for path in files}


def interrupt_after_save(python: WarmPython, folder: Path, words: list[str], number: int) -> int:
    """Start a training, send a signal some time after its state was saved, and return its exit code."""
    before, process = saves(folder), python.start(command(folder, words), folder.parent)
    ends = time.monotonic() + 200
    while not saves(folder) - before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.thorough
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_repeated_command_ends_as_an_undisturbed_one(warm_python, tmp_path, words):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    # A Python of its own: it orders sets in another way than the forked ones, on which nothing may depend.
    done = subprocess.run(
        [sys.executable, *command(whole, words)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert interrupt_after_save(warm_python, broken, words, signal.SIGKILL) == -signal.SIGKILL
    for number in (signal.SIGTERM, signal.SIGUSR1) if words is COMMANDS["sweep"] else (signal.SIGTERM,):
        assert interrupt_after_save(warm_python, broken, words, number) == 128 + number
    done = warm_python.run(command(broken, words), tmp_path)
    assert done.returncode == 0, done.stderr
    assert " goes on from epoch " in done.stdout + done.stderr
    folders = run_folders(whole)
    assert [path.relative_to(whole) for path in folders] == [
        path.relative_to(broken) for path in run_folders(broken)
    ]
    for folder in folders:
        require_same_files(folder, broken / folder.relative_to(whole))
    assert not saves(broken)
