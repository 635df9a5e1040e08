"""Run the tests marked ``gpu`` and measure the speed of populations on a GPU, in less than ten minutes.

The tests train every model and net in populations and alone, let memory run out, and train in bf16 and with DDP.
Then a table for each net shows microseconds per member-step, which is one minibatch of one member. The task of mlp
is that of benchmarks/population.py; resmlp and cnn are the defaults. The first two epochs are not counted.

    python benchmarks/gpu.py                         on a GPU
    python benchmarks/gpu.py --device cpu --tiny     the same at small sizes, on any machine

- steps: the optimizer steps of an epoch, with its sample order; compiled: the same with compiled steps
- epoch: all of an epoch, with validation, metrics and curves
- order: drawing the sample order, on the CPU; it is part of the steps
- JAX: steps of benchmarks/population.py, where JAX is installed
- lightning: an epoch of one run with module=lightning; faster: how many times as long it takes as a member's epoch
- MB: the largest memory that torch has used on the GPU, or the process on the CPU
"""

import argparse
import gc
import importlib.util
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from population import jax_peer, peak_mb, population_times

from normlab.data.sampling import batch_sizes, epoch_order
from normlab.population.resources import is_out_of_memory

ROOT = Path(__file__).resolve().parent.parent
SECONDS, TEST_SECONDS = 570.0, 240.0
"""Time for all, and for the tests."""
MEMBERS = (16, 64, 256, 1024, 4096, 16384)
COMPILED = (256, 16384)
"""Sizes at which steps are also measured compiled, which takes up to a minute each."""
FEW_MEMBERS, FEW_EPOCHS = (2, 4), 4
EPOCHS = 5
SAMPLES = {"mlp": 1000, "resmlp": 1000, "cnn": 1080}
BATCH = {"mlp": 128, "resmlp": 128, "cnn": 120}
NETS = {
    "mlp": ["data=random", "net.hidden=[50]"],
    "resmlp": ["data=random", "net=resmlp"],
    "cnn": ["data=digits", "net=cnn"],
}
TINY = {"mlp": ["net.hidden=[8]"], "resmlp": ["net.width=8", "net.blocks=1"], "cnn": ["net.channels=[2]"]}
COLUMNS = ("members", "steps", "compiled", "epoch", "order", "JAX", "lightning", "faster", "MB")
TINY_TESTS = "bn-mlp or nobn-cnn or memory or bf16 or ddp"


class Budget:
    """The time that is left.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()


def run_tests(device: str, tiny: bool, seconds: float) -> bool:
    """Run the tests marked ``gpu``, print their summary, and return True if none failed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu", "-rs"]
    if tiny:
        command += ["-k", TINY_TESTS]
    elif importlib.util.find_spec("xdist"):
        command += ["--numprocesses", str(min(4, os.cpu_count() or 1))]
    environment = os.environ if device == "cuda" else {**os.environ, "NORMLAB_GPU_TESTS": device}
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"the tests took longer than {seconds:.0f} s and were ended")
        return False


def measured(call: Callable[[], float]) -> str:
    """Return a figure as text, or the reason that there is none."""
    try:
        return f"{call():.2f}"
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return "memory"
    finally:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def order_time(members: int, samples: int, batch: int) -> float:
    """Return microseconds per member-step for drawing the sample order."""
    started = time.perf_counter()
    epoch_order(list(range(members)), 0, samples)
    steps = len(batch_sizes(samples, batch))
    return (time.perf_counter() - started) / members / steps * 1e6


def used_mb(device: str) -> int:
    """Return the largest memory that torch has used on the GPU, or the process on the CPU, in MB."""
    return torch.cuda.max_memory_allocated() // 2**20 if device == "cuda" else peak_mb()


class Table:
    """The table of a net, a row for each number of members, as long as time is left.

    Args:
        net: its name in conf/net.
        device: ``cuda`` or ``cpu``.
        tiny: whether all is small.
        budget: of all tables.
    """

    def __init__(self, net: str, device: str, tiny: bool, budget: Budget) -> None:
        self.net, self.device, self.tiny, self.budget = net, device, tiny, budget
        self.epochs = FEW_EPOCHS if tiny else EPOCHS
        self.batch, self.samples = BATCH[net], 2 * BATCH[net] if tiny else SAMPLES[net]
        accelerator = "gpu" if device == "cuda" else "cpu"
        data = [f"data.train={self.samples}", f"data.batch_size={self.batch}", "replicate=seed"]
        small = TINY[net] if tiny else []
        self.words = [*NETS[net], *small, "model=bn", *data, f"trainer.accelerator={accelerator}"]

    def show(self) -> None:
        """Measure and print the rows."""
        print(f"\nnet={self.net}, batch {self.batch}: microseconds per member-step")
        print("".join(f"{column:>11}" for column in COLUMNS))
        lightning = population_times(1, [*self.words, "module=lightning"], self.epochs)[1]
        sizes = FEW_MEMBERS if self.tiny else MEMBERS
        seconds = 0.0
        for number, members in enumerate(sizes):
            if number and self.budget.left < 5 * seconds:
                print(f"{members:>11}  no time is left")
                return
            started = time.monotonic()
            print(f"{members:>11}" + "".join(f"{text:>11}" for text in self.row(members, lightning)), flush=True)
            seconds = time.monotonic() - started

    def row(self, members: int, lightning: float) -> list[str]:
        """Return the cells of a number of members, besides that number."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        epoch: list[float] = []
        steps = measured(lambda: self.steps(members, "false", epoch))
        compiles = members in (FEW_MEMBERS[-1:] if self.tiny else COMPILED) and self.budget.left > 60
        compiled = measured(lambda: self.steps(members, "true", [])) if compiles else "-"
        peer = self.net == "mlp" and importlib.util.find_spec("jax") and self.budget.left > 60
        jax = measured(lambda: jax_peer(members, self.batch, "bn")) if peer else "-"
        whole, faster = (f"{epoch[0]:.2f}", f"{lightning / epoch[0]:.1f}") if epoch else ("-", "-")
        order = f"{order_time(members, self.samples, self.batch):.2f}"
        return [steps, compiled, whole, order, jax, f"{lightning:.0f}", faster, str(used_mb(self.device))]

    def steps(self, members: int, compiled: str, epoch: list[float]) -> float:
        """Return the time of a member-step, and append that of its share of a whole epoch to ``epoch``."""
        steps, whole = population_times(members, [*self.words, f"trainer.compile={compiled}"], self.epochs)
        epoch.append(whole)
        return steps


def describe(device: str) -> str:
    """Return the hardware and the versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tests, and print the tables; exit with 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="few members and tests")
    parser.add_argument("--only", choices=("tests", "tables"), help="run a part; default: both")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU; python benchmarks/gpu.py --device cpu --tiny runs on the CPU")
    # Otherwise JAX would reserve three quarters of the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    budget = Budget(SECONDS)
    print(describe(args.device))
    passed = args.only == "tables" or run_tests(args.device, args.tiny, min(TEST_SECONDS, budget.left))
    for net in NETS if args.only != "tests" else ():
        Table(net, args.device, args.tiny, budget).show()
    sys.exit(not passed)


if __name__ == "__main__":
    main()
