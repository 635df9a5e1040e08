"""Sweeps as typed."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).parents[2] / "train.py"


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """Start ``python train.py`` in a folder."""
    pipes: Any = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    return subprocess.Popen(
        [sys.executable, str(TRAIN), *arguments],
        cwd=folder,
        preexec_fn=reset_sigint,
        start_new_session=True,
        **pipes,
    )


def reset_sigint() -> None:
    """Install Python's handler of Ctrl-C, which is ignored where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(folder: Path, *arguments: str, seconds: float = 240) -> str:
    """Run ``python train.py`` in a folder, and return its output; it must succeed."""
    process = start(folder, *arguments)
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out
    return out
