"""A command that is killed or preempted goes on when it is repeated, and ends as an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_files import require_same_files

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


def start(folder: Path, words: list[str]) -> subprocess.Popen:
    """Start a training with the output folder ``folder``."""
    key = "hydra.sweep.dir" if "-m" in words else "hydra.run.dir"
    command = [sys.executable, str(ROOT / "train.py"), *words, f"{key}={folder}"]
    return subprocess.Popen(command, cwd=folder.parent, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(folder: Path, words: list[str]) -> str:
    """Train to the end, and return what was printed."""
    process = start(folder, words)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out + err


def run_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("result.json"))


def saves(folder: Path) -> set[tuple[str, int]]:
    """Return the names and times of the states in a folder."""
    files = [*folder.glob(".normlab/*.pt"), *folder.glob(".normlab/*.ckpt")]
    return {(path.name, path.stat().st_mtime_ns) for path in files}


def interrupt_after_save(folder: Path, words: list[str], number: int) -> int:
    """Start a training, send a signal some time after its state was saved, and return its exit code."""
    process, before = start(folder, words), saves(folder)
    ends = time.monotonic() + 200
    while not saves(folder) - before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_repeated_command_ends_as_an_undisturbed_one(tmp_path, words):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole, words)
    assert interrupt_after_save(broken, words, signal.SIGKILL) == -signal.SIGKILL
    for number in (signal.SIGTERM, signal.SIGUSR1) if words is COMMANDS["sweep"] else (signal.SIGTERM,):
        assert interrupt_after_save(broken, words, number) == 128 + number
    assert " goes on from epoch " in finish(broken, words)
    folders = run_folders(whole)
    assert [path.relative_to(whole) for path in folders] == [
        path.relative_to(broken) for path in run_folders(broken)
    ]
    for folder in folders:
        require_same_files(folder, broken / folder.relative_to(whole))
    assert not saves(broken)
