"""Time of sweeps by executor: workers of one machine, and jobs of SLURM and Ray.

    python benchmarks/executors.py workers     16 populations with hydra.launcher.n_jobs=1 and 2
    python benchmarks/executors.py clusters    one population of 96 runs in process, by SLURM and by Ray

The clusters are those of the tests, on this machine. Each command is a whole process; those that are compared take
turns, and medians are printed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = "import torch, pytorch_lightning"
GROUP = ["model=bn", "seed=range(96)", "data=digits", "trainer.max_epochs=20", "trainer.threads=1"]
POPULATIONS = [
    *("model=bn", "data=digits", "net.hidden=[64,64],[64,65],[64,66],[64,67],[64,68],[64,69],[64,70],[64,71]"),
    *("data.batch_size=64,128", "seed=range(32)", "trainer.threads=1", "trainer.compile=false"),
]


def seconds_of(command: Sequence[str], environment: dict[str, str] | None = None) -> float:
    """Return the seconds of a command in an empty folder; it must succeed."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env=os.environ | (environment or {}), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return time.perf_counter() - started


def sweep(*words: str) -> list[str]:
    """Return the command of a sweep."""
    return [sys.executable, str(ROOT / "train.py"), "-m", *words]


def take_turns(timers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the median of each timer over rounds in which all take turns."""
    seconds = [[timer() for timer in timers.values()] for _ in range(rounds)]
    return dict(zip(timers, map(median, zip(*seconds, strict=True)), strict=True))


def measure_workers(epochs: int, rounds: int) -> None:
    """Time 16 populations with one and with two workers."""
    words = [*POPULATIONS, f"trainer.max_epochs={epochs}"]
    timers = {f"n_jobs={n}": partial(seconds_of, sweep(*words, f"hydra.launcher.n_jobs={n}")) for n in (1, 2)}
    times = take_turns(timers, rounds)
    print(f"seconds of 16 populations of 32 runs, {epochs} epochs")
    for name, seconds in times.items():
        print(f"{name:<40}{seconds:8.1f}")
    print(f"{'n_jobs=1 / n_jobs=2':<40}{times['n_jobs=1'] / times['n_jobs=2']:8.2f}")


def measure_clusters(rounds: int) -> None:
    """Time a population of 96 runs by each executor, and the imports of a job."""
    sys.path.insert(0, str(ROOT))
    slurm_cluster: Any = import_module("tests.clusters.slurm").SlurmCluster
    ray_cluster: Any = import_module("tests.clusters.ray").RayCluster
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="c-"))) for _ in range(2)]
        slurm, ray = slurm_cluster(folders[0]), ray_cluster(folders[1])
        stack.enter_context(slurm)
        stack.enter_context(ray)
        by_slurm = sweep(*GROUP, "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1")
        by_ray = sweep(*GROUP, "hydra/launcher=ray", f"hydra.launcher.address={ray.address}")
        timers = {
            IMPORTS: partial(seconds_of, [sys.executable, "-c", IMPORTS]),
            "in process": partial(seconds_of, sweep(*GROUP)),
            "slurm": partial(seconds_of, by_slurm, slurm.environment),
            "ray": partial(seconds_of, by_ray, ray.environment),
        }
        times = take_turns(timers, rounds)
    print("seconds of one population of 96 runs")
    for name, seconds in times.items():
        print(f"{name:<40}{seconds:8.2f}")
    for name in ("slurm", "ray"):
        overhead = times[name] - times["in process"]
        print(f"{f'overhead of {name}, / imports':<40}{overhead:8.2f}{overhead / times[IMPORTS]:8.2f}")


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=("workers", "clusters"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=120, help="of the populations for workers")
    options = parser.parse_args()
    if options.kind == "workers":
        measure_workers(options.epochs, options.rounds)
    else:
        measure_clusters(options.rounds)


if __name__ == "__main__":
    main()
