"""Sweeps as typed."""

from pathlib import Path

from tests.warm_python import WarmProcess, WarmPython

TRAIN = Path(__file__).parents[2] / "train.py"


def start(python: WarmPython, folder: Path, *arguments: str) -> WarmProcess:
    """Start ``python train.py`` in a folder; the processes of a cluster start Python as usual."""
    return python.start([TRAIN, *arguments], folder)


def run(python: WarmPython, folder: Path, *arguments: str) -> str:
    """Run ``python train.py`` in a folder, and return its stdout and stderr; it must succeed."""
    done = python.run([TRAIN, *arguments], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
