"""Time from the command to the first optimizer step, compared with the imports alone.

The imports are Lightning, Hydra and TensorBoard. Both are whole processes, run alternately several times; the
table shows medians.

    python benchmarks/startup.py [--repeats 5]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl

ROOT = Path(__file__).resolve().parent.parent
# Both processes end with os._exit, so the interpreter's cleanup is not timed.
IMPORTS = [sys.executable, "-c", "import pytorch_lightning, hydra, tensorboard, os; os._exit(0)"]
COMMAND = [sys.executable, str(ROOT / "train.py"), "+callbacks.extra.leave._target_=startup.LeaveAtFirstStep"]


class LeaveAtFirstStep(pl.Callback):
    """Ends the process just before the first optimizer step."""

    def on_train_epoch_start(self, *_: Any) -> None:
        os._exit(0)


def seconds(command: list[str]) -> float:
    """Return the wall-clock seconds of a command."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, check=True)
        return time.perf_counter() - started


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    times = [(seconds(IMPORTS), seconds(COMMAND)) for _ in range(repeats + 1)][1:]
    imports, first_step = (median(column) for column in zip(*times, strict=True))
    print(f"{'import pytorch_lightning, hydra, tensorboard':48}{imports:8.2f} s")
    print(f"{'python train.py, to its first optimizer step':48}{first_step:8.2f} s")
    print(f"{'ratio':48}{first_step / imports:8.2f}")


if __name__ == "__main__":
    main()
