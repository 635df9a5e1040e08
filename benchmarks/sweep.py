"""Time of a whole sweep, from the command to its table, compared with 192 default Lightning runs.

The sweep has 192 runs of 400 steps: two models, three learning rates and 32 seeds, on fitness. The command runs in
its own process and writes all its files. A few Lightning runs alternate with it, and their median is multiplied by
192; the time to start Python and import Lightning is not counted for them.

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

from normlab.population.resources import threads

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
RUNS, EPOCHS, SAMPLES, BATCH_SIZE = 192, 100, 600, 150
COMMAND = [
    *("-m", "model=bn,nobn", "optimizer.lr=0.001,0.01,0.1", "seed=range(32)", "hydra/launcher=population"),
    *(f"data.train={SAMPLES}", f"data.batch_size={BATCH_SIZE}", f"trainer.max_epochs={EPOCHS}"),
]


def sweep() -> float:
    """Return the wall-clock seconds of the sweep command."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([sys.executable, str(TRAIN), *COMMAND], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def lightning() -> float:
    """Return the wall-clock seconds of one Lightning run."""
    with threads(1):
        started = time.perf_counter()
        usual_lightning(BATCH_SIZE, EPOCHS, make_net(features=3, hidden=64), SAMPLES)
        return time.perf_counter() - started


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(0)
    lightning()  # Warm-up: the first call is slower.
    seconds = [(sweep(), RUNS * lightning()) for _ in range(arguments.repeats)]
    ours, theirs = (median(column) for column in zip(*seconds, strict=True))
    ratio = median(lightning_s / normlab_s for normlab_s, lightning_s in seconds)
    if arguments.json:
        print(json.dumps({"normlab_s": ours, "lightning_s": theirs, "ratio": ratio}))
        return
    print(f"{f'seconds for {RUNS} runs of {EPOCHS * SAMPLES // BATCH_SIZE} steps':48}")
    print(f"{'normlab, the whole command':48}{ours:8.1f}")
    print(f"{'Lightning as usually set up, 192 times a run':48}{theirs:8.1f}")
    print(f"{'ratio':48}{ratio:8.1f}")


if __name__ == "__main__":
    main()
