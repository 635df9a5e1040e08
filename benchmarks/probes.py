"""Time of probes compared with the usual way to measure the same, and their overhead in training.

Lipschitz constant of the gradient: 100 random directions, 3 → 64 → 1 with and without BatchNorm, 1,000 inputs.
The reference is the loop of the second source experiment without its fault: torch modules, and for each direction
two backward passes, an in-place perturbation and restored parameters. Both use the same directions.

Largest eigenvalue of the Hessian: 64 nets 64 → 32 → 10 with BatchNorm and 500 inputs, all at once. The reference
is one call of curvlinops and ``eigsh`` per net, with the same tolerance and start, on the last number of threads
in ``--threads``. Errors are relative to eigenvalues converged to 1e-9 in float64.

Overhead of probes: the training of ``benchmarks/step.py`` with ``probes=none`` and ``probes=light``, with
validation and all output files, for one run (on one thread) and for ``--members`` runs together.

All computations use float32. Both ways are measured alternately in one process. The tables show medians; for
curvlinops, the sum over its calls, a quarter of the nets at a time. The script takes about 90 seconds.

    python benchmarks/probes.py [--repeats 5] [--threads 1,2] [--members 64] [--modes batch] [--json]
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from curvlinops import HessianLinearOperator
from hydra import compose, initialize_config_dir
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.func import stack_module_state

from normlab.config.frozen import FrozenConfig, replaced
from normlab.config.validation import validate
from normlab.models import MLP
from normlab.norms import BatchNorm1d
from normlab.population.kernels import tune_malloc
from normlab.probes.curvature import extreme_eigenvalues
from normlab.probes.gradient_lipschitz import gradient_lipschitz
from normlab.probes.landscape import side_effect_free_copy
from normlab.probes.snapshot import TrainingSnapshot
from normlab.probes.spectrum import LARGEST
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = Path(__file__).resolve().parent.parent / "conf"
RADIUS, SAMPLES, TOLERANCE, PARTS = 1e-5, 100, 1e-3, 4
SOURCE = ["data=random", "data.train=1000", "data.batch_size=128", "net.hidden=[50]"]
ARMS = {"bn, frozen": (True, "frozen"), "bn, batch": (True, "batch"), "no bn": (False, "frozen")}
Split = tuple[Tensor, Tensor]


def fitness() -> Split:
    """Return features of very different scales and a score, as in the second source experiment."""
    low, high = torch.tensor([1.2, 30.0, 2000.0]), torch.tensor([2.0, 120.0, 5000.0])
    x = low + (high - low) * torch.rand(1000, 3)
    score = 35 * x[:, :1] + 15 * x[:, 1:2].log() + 0.008 * x[:, 2:] + 10 * torch.randn(1000, 1)
    return x, (100 * (score - 109) / (186 - 109)).clamp(0, 100)


def digits() -> Split:
    return torch.rand(500, 64), torch.randint(10, (500,))


def mean_squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square().flatten(1).mean(1)


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)


def generators(members: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(members)]


def snapshot_of(
    nets: Sequence[nn.Module], data: Split, loss: Callable[[Tensor, Tensor], Tensor]
) -> TrainingSnapshot:
    """Return the snapshot of untrained nets, stacked into a population."""
    params, buffers = stack_module_state(list(nets))
    state = {name: tensor.detach() for name, tensor in (params | buffers).items()}
    lr = torch.ones(len(nets), dtype=torch.float64)
    minibatch = data[0].expand(len(nets), *data[0].shape), data[1].expand(len(nets), *data[1].shape)
    member_generators = generators(len(nets))
    train = data[0].unsqueeze(0), data[1].unsqueeze(0)
    return TrainingSnapshot(
        nets[0], loss, list(params), state, state, state, minibatch, train, lr, None, member_generators, 0, 0
    )


def source_net(normalized: bool, x: Tensor) -> nn.Sequential:
    """Return a net of torch modules after 50 epochs of forward passes for the running statistics."""
    norm = nn.BatchNorm1d(64) if normalized else nn.Identity()
    net = nn.Sequential(nn.Linear(3, 64), norm, nn.ReLU(), nn.Linear(64, 1))
    for _ in range(50):
        for batch in x.split(128):
            net(batch)
    return net


def source_loop(net: nn.Module, data: Split, delta: Tensor) -> Tensor:
    """Return ‖∇f(θ + δ) − ∇f(θ)‖ / ‖δ‖ for each δ in a loop, ``(S, P)`` to ``(S,)``."""
    params, loss_of, estimates = list(net.parameters()), nn.MSELoss(), []

    def gradient() -> Tensor:
        net.zero_grad()
        loss_of(net(data[0]), data[1]).backward()
        return torch.cat([param.grad.flatten() for param in params if param.grad is not None])

    for direction in delta:
        before = gradient()
        saved = [param.detach().clone() for param in params]
        steps = direction.split([param.numel() for param in params])
        with torch.no_grad():
            for param, step in zip(params, steps, strict=True):
                param.add_(step.view_as(param))
        change = gradient() - before
        with torch.no_grad():
            for param, original in zip(params, saved, strict=True):
                param.copy_(original)
        estimates.append(change.norm() / direction.norm())
    return torch.stack(estimates)


def lipschitz(normalized: bool, mode: str, repeats: int) -> dict[str, float]:
    """Return the seconds of both ways and the largest relative difference of their estimates."""
    torch.manual_seed(0)
    data = fitness()
    theirs = source_net(normalized, data[0])
    ours = MLP((3,), 1, hidden=[64], norm=BatchNorm1d if normalized else None)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    snapshot = snapshot_of([ours], data, mean_squared_error)
    theirs.train(mode == "batch")
    delta = RADIUS * snapshot.landscape(mode, "train").normal(generators(1), SAMPLES)[:, 0]

    def probe(double: bool = False) -> Tensor:
        landscape = snapshot.landscape(mode, "train", double=double)
        return gradient_lipschitz(landscape, RADIUS, SAMPLES, generators=generators(1))[:, 0]

    seconds, results = measure_in_turn(
        {"loop": lambda: source_loop(theirs, data, delta), "normlab": probe}, repeats
    )
    exact = source_loop(theirs.double(), (data[0].double(), data[1].double()), delta.double())
    return {
        **seconds,
        "ratio": seconds["loop"] / seconds["normlab"],
        "difference_float32": largest_difference(results["normlab"], results["loop"]),
        "difference_float64": largest_difference(probe(double=True), exact),
    }


def measure_in_turn(
    ways: dict[str, Callable[[], Tensor]], repeats: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the median seconds of each way, and its last result."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            results[name] = way()
            times[name].append(time.perf_counter() - started)
    return {name: median(values[1:]) for name, values in times.items()}, results


def largest_difference(values: Tensor, others: Tensor) -> float:
    return ((values - others).abs() / others.abs()).max().item()


def eigenvalue(net: nn.Module, data: Split, start: Tensor) -> float:
    """Return the largest eigenvalue of one net's Hessian by curvlinops and ARPACK."""
    operator = HessianLinearOperator(
        net, nn.CrossEntropyLoss(), list(net.parameters()), [data], check_deterministic=False
    )
    values = eigsh(
        operator.to_scipy(), k=1, which="LA", tol=TOLERANCE, v0=start.numpy(), return_eigenvectors=False
    )
    return float(values[0])


def largest(mode: str, members: int) -> dict[str, float]:
    """Return the seconds of both ways for all members, and the largest relative error of each."""
    nets = []
    for k in range(members):
        torch.manual_seed(k)
        nets.append(MLP((64,), 10, hidden=[32], norm=BatchNorm1d))
    torch.manual_seed(members)
    data = digits()
    snapshot, copies = snapshot_of(nets, data, cross_entropy), [side_effect_free_copy(net, mode) for net in nets]
    eigenvalues = partial(extreme_eigenvalues, ends=(LARGEST,))

    def probe() -> Tensor:
        landscape = snapshot.landscape(mode, "train")
        return eigenvalues(landscape, tolerance=TOLERANCE, generators=generators(members)).values[0]

    landscape = snapshot.landscape(mode, "train", double=True)
    exact = eigenvalues(landscape, tolerance=1e-9, iterations=200, generators=generators(members)).values[0]
    starts = landscape.normal(generators(members))[0].float()
    eigenvalue(copies[0], data, starts[0])
    theirs, times, calls = [], [], 0.0
    for part in range(PARTS):
        started = time.perf_counter()
        indices = range(part * members // PARTS, (part + 1) * members // PARTS)
        theirs += [eigenvalue(copies[k], data, starts[k]) for k in indices]
        calls += time.perf_counter() - started
        started = time.perf_counter()
        ours = probe()
        times.append(time.perf_counter() - started)
    return {
        "curvlinops": calls,
        "normlab": median(times),
        "ratio": calls / median(times),
        "error_curvlinops": largest_difference(torch.tensor(theirs, dtype=torch.float64), exact),
        "error_normlab": largest_difference(ours, exact),
    }


def training(members: int, model: str, repeats: int) -> dict[str, float]:
    """Return the seconds of a training with ``probes=none`` and ``probes=light``, and their ratio."""
    threads, configs = 1 if members == 1 else 2, {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for probes in ("none", "light"):
            overrides = [f"model={model}", f"probes={probes}", f"trainer.threads={threads}", *SOURCE]
            configs[probes] = validate(compose("train", overrides=overrides))

    def seconds(config: FrozenConfig) -> float:
        with tempfile.TemporaryDirectory() as folder:
            runs = []
            for seed in range(members):
                run_config = FrozenConfig.of(replaced(config, {("seed",): seed}))
                runs.append(Run(run_config, Path(folder, str(seed)), str(seed), {}, []))
            started = time.perf_counter()
            train(runs)
            return time.perf_counter() - started

    times = [(seconds(configs["none"]), seconds(configs["light"])) for _ in range(repeats + 1)][1:]
    none, light = (median(column) for column in zip(*times, strict=True))
    return {"none": none, "light": light, "light / none": median(one / other for other, one in times)}


def table(title: str, rows: dict[str, dict[str, float]]) -> str:
    columns = next(iter(rows.values()))
    lines = [title, f"{'':24}" + "".join(f"{column.replace('_', ' '):>20}" for column in columns)]
    for name, row in rows.items():
        lines.append(f"{name:24}" + "".join(f"{value:>20.3g}" for value in row.values()))
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--modes", default="batch", help="modes of the eigenvalues: batch,frozen")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    # curvlinops uses torch's forward-mode differentiation, which warns about its use of torch.jit.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    tune_malloc()
    directions: dict[str, dict[str, float]] = {}
    ends: dict[str, dict[str, float]] = {}
    for threads in map(int, arguments.threads.split(",")):
        torch.set_num_threads(threads)
        at = f"{threads} thread{'s' * (threads > 1)}"
        for name, (normalized, mode) in ARMS.items():
            directions[f"{name}, {at}"] = lipschitz(normalized, mode, arguments.repeats)
    for mode in arguments.modes.split(","):
        ends[f"bn, {mode}, {at}"] = largest(mode, arguments.members)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    costs = {
        f"{model}, {members} run{'s' * (members > 1)}": training(members, model, arguments.repeats)
        for members in (1, arguments.members)
        for model in ("bn", "nobn")
    }
    if arguments.json:
        print(json.dumps({"gradient_lipschitz": directions, "lambda_max": ends, "light": costs}))
        return
    print(table(f"gradient_lipschitz, seconds for {SAMPLES} directions", directions), end="\n\n")
    print(table(f"largest eigenvalue, seconds for {arguments.members} nets", ends), end="\n\n")
    print(table("a training of 100 epochs at batch 128, seconds", costs))


if __name__ == "__main__":
    main()
