"""Time per member-step of a population, compared with single runs, plain loops, Lightning and JAX.

The task: 1,000 samples of noise, 10 → 50 → 1 with or without BatchNorm, mean squared error, Adam. Each member has
its own learning rate and sample order. All ways are measured in one process. Compilation and the first epochs are
not counted; the figures are medians over epochs.

    python benchmarks/population.py                          the tables
    python benchmarks/population.py --members 256 --batch-size 32 --peer jax --json
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from step import make_net, plain_loop, usual_lightning

from normlab.config.frozen import FrozenConfig, replaced
from normlab.config.validation import validate
from normlab.data.sampling import batch_sizes
from normlab.execution import grouping
from normlab.population.kernels import tune_malloc
from normlab.population.resources import finished_time, threads, threads_for
from normlab.training.population_module import PopulationModule
from normlab.training.progress import Progress
from normlab.training.run_folders import Run
from normlab.training.session import TrainingSession

CONF = Path(__file__).resolve().parent.parent / "conf"
SAMPLES, FEATURES, HIDDEN = 1000, 10, 50
EPOCHS = 8
SIZES = (32, 128)
LABELS = {"none": "normlab", "alone": "a single run"}


class EpochTimes(pl.Callback):
    """Records the seconds of each epoch: of its optimizer steps, and of all of it.

    Args:
        module: whose optimizer steps are timed.
    """

    def __init__(self, module: PopulationModule) -> None:
        self.module = module
        self.steps: list[float] = []
        self.ended: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps.append(self.module.seconds - sum(self.steps))
        self.ended.append(finished_time(trainer.strategy.root_device))

    def medians(self) -> tuple[float, float]:
        """Return the median seconds of the steps of an epoch, and of all of an epoch, after two epochs."""
        return median(self.steps[2:]), median(after - before for before, after in pairwise(self.ended[1:]))


def stacked(members: int, batch_size: int, model: str, compiled: bool = True) -> float:
    """Return microseconds per member-step of normlab, with populations as its launcher sizes them."""
    changes = ["data=random", f"data.train={SAMPLES}", f"net.hidden=[{HIDDEN}]", f"data.batch_size={batch_size}"]
    return population_times(members, [f"model={model}", *changes, f"trainer.compile={str(compiled).lower()}"])[0]


def population_times(members: int, words: Sequence[str], epochs: int = EPOCHS) -> tuple[float, float]:
    """Return microseconds per member-step, of the steps alone and of whole epochs, for runs with these overrides.

    The populations are those that the launcher makes. The runs differ in their seeds and learning rates.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = [f"trainer.max_epochs={epochs}", "logger=csv"]
        base = validate(compose("train", overrides=[*words, *settings]))
    tune_malloc()
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for k in range(members):
            changed = {("seed",): k, ("optimizer", "lr"): 0.001 * (1 + k % 10)}
            config = FrozenConfig.of(replaced(base, changed))
            runs.append(Run(config, Path(folder) / str(k), str(k), {"model": "x"}, []))
        of_steps, of_epochs = zip(*map(epoch_seconds, grouping.group_runs(runs, chunk=None)), strict=True)
    member_steps = members * len(batch_sizes(base.data.train, base.data.batch_size))
    return sum(of_steps) / member_steps * 1e6, sum(of_epochs) / member_steps * 1e6


def epoch_seconds(group: grouping.Group) -> tuple[float, float]:
    """Return the median seconds that a population takes for the optimizer steps of an epoch, and for an epoch."""
    training = TrainingSession(group.runs, Progress("", 0), group.trial)
    times = EpochTimes(training.module)
    training.trainer.callbacks.append(times)  # type: ignore[attr-defined]
    with threads(threads_for(group.trial.footprint, len(group.runs))):
        training.trainer.fit(training.trained, datamodule=training.loaders)
    return times.medians()


def eager(members: int, batch_size: int, model: str) -> float:
    """Return microseconds per member-step of normlab without compilation."""
    return stacked(members, batch_size, model, compiled=False)


def one_by_one(members: int, batch_size: int, model: str) -> float:
    """Return microseconds per step of a single run of normlab."""
    return stacked(1, batch_size, model, compiled=False)


def plain(members: int, batch_size: int, model: str) -> float:
    """Return microseconds per step of a plain PyTorch loop over one net."""
    with threads(1):
        return timed(lambda: plain_loop(batch_size, EPOCHS, model == "bn"), batch_size)


def lightning(members: int, batch_size: int, model: str) -> float:
    """Return microseconds per step of Lightning with its default features."""
    with threads(1):
        return timed(lambda: usual_lightning(batch_size, EPOCHS, make_net(normalized=model == "bn")), batch_size)


def timed(call: Callable[[], None], batch_size: int) -> float:
    """Return microseconds per step, the median of three calls."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times) / EPOCHS / -(-SAMPLES // batch_size) * 1e6


def jax_peer(members: int, batch_size: int, model: str, draws: bool = True) -> float:
    """Return microseconds per member-step of ``jit(vmap(scan))`` with optax's Adam, one call per epoch.

    The call draws each member's sample order like all other ways; with ``draws=False`` it receives the orders.
    """
    import jax
    import jax.numpy as jnp
    import optax

    adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.01)

    def predict(p: dict, x: Any) -> tuple[Any, Any, Any]:
        h = x @ p["w1"] + p["b1"]
        mean, var = h.mean(0), h.var(0)
        if model == "bn":
            h = (h - mean) / jnp.sqrt(var + 1e-5) * p["gamma"] + p["beta"]
        return jax.nn.relu(h) @ p["w2"] + p["b2"], mean, var

    def loss_of(p: dict, x: Any, y: Any) -> tuple[Any, tuple[Any, Any]]:
        out, mean, var = predict(p, x)
        return jnp.mean((out - y) ** 2), (mean, var)

    def step(carry: Any, index: Any) -> tuple[Any, Any]:
        p, state, running_mean, running_var, x, y = carry
        (loss, (mean, var)), grads = jax.value_and_grad(loss_of, has_aux=True)(p, x[index], y[index])
        updates, state = adam.update(grads, state)
        unbiased = var * batch_size / (batch_size - 1)
        running = 0.9 * running_mean + 0.1 * mean, 0.9 * running_var + 0.1 * unbiased
        return (optax.apply_updates(p, updates), state, *running, x, y), loss

    def shuffled(key: Any) -> Any:
        return jax.random.permutation(key, SAMPLES)[: steps * batch_size].reshape(steps, batch_size)

    def epoch(p: dict, state: Any, rm: Any, rv: Any, x: Any, y: Any, key_or_order: Any) -> Any:
        order = shuffled(key_or_order) if draws else key_or_order
        carry, losses = jax.lax.scan(step, (p, state, rm, rv, x, y), order)
        return (*carry[:4], losses)

    keys = jax.random.split(jax.random.PRNGKey(0), members)

    def init(key: Any, lr: Any) -> tuple[dict, Any]:
        one, two = jax.random.split(key)
        p = {
            "w1": jax.random.normal(one, (FEATURES, HIDDEN)) * 0.1,
            "b1": jnp.zeros(HIDDEN),
            "w2": jax.random.normal(two, (HIDDEN, 1)) * 0.1,
            "b2": jnp.zeros(1),
        }
        if model == "bn":
            p |= {"gamma": jnp.ones(HIDDEN), "beta": jnp.zeros(HIDDEN)}
        state = adam.init(p)
        state.hyperparams["learning_rate"] = lr
        return p, state

    params, states = jax.vmap(init)(keys, 0.001 * (1 + jnp.arange(members) % 10))
    rm, rv = jnp.zeros((members, HIDDEN)), jnp.ones((members, HIDDEN))
    x = jax.random.normal(jax.random.PRNGKey(1), (SAMPLES, FEATURES))
    y = jax.random.normal(jax.random.PRNGKey(2), (SAMPLES, 1))
    steps = SAMPLES // batch_size
    run = jax.jit(jax.vmap(epoch, in_axes=(0, 0, 0, 0, None, None, 0)))
    times = []
    for number in range(EPOCHS):
        keys_or_orders = jax.random.split(keys[number % members], members)
        if not draws:
            keys_or_orders = jax.block_until_ready(jax.vmap(shuffled)(keys_or_orders))
        started = time.perf_counter()
        params, states, rm, rv, losses = run(params, states, rm, rv, x, y, keys_or_orders)
        jax.block_until_ready(losses)
        times.append(time.perf_counter() - started)
    return median(times[2:]) / steps / members * 1e6


def jax_given(members: int, batch_size: int, model: str) -> float:
    """Return microseconds per member-step of JAX without drawing the sample orders."""
    return jax_peer(members, batch_size, model, draws=False)


WAYS: dict[str, Callable[[int, int, str], float]] = {
    "none": stacked,
    "eager": eager,
    "alone": one_by_one,
    "plain": plain,
    "lightning": lightning,
    "jax": jax_peer,
    "jax-given": jax_given,
}


def table(members: int, model: str) -> None:
    """Print the microseconds per member-step of every way."""
    rows = {way: [WAYS[way](members, size, model) for size in SIZES] for way in WAYS}
    print(f"microseconds per member-step, {members} members, model={model}")
    print(f"{'':16}" + "".join(f"{f'batch {size}':>12}" for size in SIZES))
    for way, row in rows.items():
        print(f"{LABELS.get(way, way):16}" + "".join(f"{value:12.1f}" for value in row))
    for way in ("jax", "jax-given", "plain", "lightning"):
        ratios = (other / own for other, own in zip(rows[way], rows["none"], strict=True))
        print(f"{f'{way} / normlab':16}" + "".join(f"{ratio:12.2f}" for ratio in ratios))
    print()


def by_members(model: str) -> None:
    """Print microseconds per member-step and peak memory for 16 to 4,096 members."""
    print(f"microseconds per member-step and peak memory in MB, model={model}")
    columns = [(size, peer) for size in SIZES for peer in ("none", "jax")] + [(SAMPLES, "none")]
    heads = [f"{LABELS.get(peer, peer)} {size}" for size, peer in columns]
    print(f"{'members':8}" + "".join(f"{head:>14}{'MB':>6}" for head in heads))
    for members in (16, 64, 256, 1024, 4096):
        print(f"{members:<8}", end="", flush=True)
        for size, peer in columns:
            # Full batches of many members are trained in chunks, so a member-step takes no longer: skip them.
            if members * size <= 256 * SAMPLES or size < SAMPLES:
                figures = measure_in_subprocess(members, size, model, peer)
                print(f"{figures['us_per_member_step']:14.1f}{figures['peak_mb']:6}", end="", flush=True)
        print()


def measure_in_subprocess(members: int, batch_size: int, model: str, peer: str) -> dict[str, Any]:
    """Run this script with ``--json`` in another process, and return its JSON object."""
    values = {"members": members, "batch-size": batch_size, "model": model, "peer": peer}
    options = [f"--{name}={value}" for name, value in values.items()]
    process = subprocess.run([sys.executable, __file__, *options, "--json"], capture_output=True, check=True)
    return json.loads(process.stdout)


def peak_mb() -> int:
    """Return the peak resident memory in MB; on Linux ``ru_maxrss`` would include the parent's peak."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024


def main() -> None:
    """Print the tables, or one figure as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--model", choices=("bn", "nobn"), default="bn")
    parser.add_argument("--peer", choices=tuple(WAYS), default="none", help="none: normlab")
    parser.add_argument("--json", action="store_true", help="measure one way, and print one JSON object")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if not args.json:
        for model in ("bn", "nobn"):
            table(args.members, model)
        by_members("bn")
        return
    microseconds = WAYS[args.peer](args.members, args.batch_size, args.model)
    print(json.dumps({**vars(args), "us_per_member_step": microseconds, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
