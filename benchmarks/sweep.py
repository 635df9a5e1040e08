"""A whole sweep, from the command to its table, against as many runs of Lightning as usually set up.

192 runs of 400 steps: two models, three learning rates, 32 seeds, on fitness. The command is run as a person types
it, in a process of its own and with all that it writes. Of the Lightning runs a few are trained, in turn with the
command, and their median is taken 192 times; starting Python and importing Lightning is not counted for them.

    python benchmarks/sweep.py [--repeats 3] [--json]
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import torch
from step import make_net, usual_lightning

from normlab.population.hardware import threads

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
RUNS, EPOCHS, SAMPLES, BATCH_SIZE = 192, 100, 600, 150
COMMAND = [
    *("-m", "model=bn,nobn", "optimizer.lr=0.001,0.01,0.1", "seed=range(32)", "hydra/launcher=population"),
    *(f"data.train={SAMPLES}", f"data.batch_size={BATCH_SIZE}", f"trainer.max_epochs={EPOCHS}"),
]


def sweep() -> float:
    """Return the seconds that the command takes."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([sys.executable, str(TRAIN), *COMMAND], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def lightning() -> float:
    """Return the seconds that a run of Lightning takes."""
    with threads(1):
        started = time.perf_counter()
        usual_lightning(BATCH_SIZE, EPOCHS, make_net(features=3, hidden=64), SAMPLES)
        return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(0)
    lightning()  # the first one is slower
    seconds = [(sweep(), RUNS * lightning()) for _ in range(arguments.repeats)]
    ours, theirs = (median(column) for column in zip(*seconds, strict=True))
    ratio = median(other / own for own, other in seconds)
    if arguments.json:
        print(json.dumps({"normlab_s": ours, "lightning_s": theirs, "ratio": ratio}))
        return
    print(f"{f'seconds for {RUNS} runs of {EPOCHS * SAMPLES // BATCH_SIZE} steps':48}")
    print(f"{'normlab, the whole command':48}{ours:8.1f}")
    print(f"{'Lightning as usually set up, 192 times a run':48}{theirs:8.1f}")
    print(f"{'ratio':48}{ratio:8.1f}")


if __name__ == "__main__":
    main()
