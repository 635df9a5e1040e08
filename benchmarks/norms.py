"""Time of each normalizer, forward and backward, relative to torch's BatchNorm: eager and compiled.

All layers of a shape are measured alternately, several times; the tables show medians. Weight parametrizations are
measured on a linear map or convolution, relative to the same map without one.

    python benchmarks/norms.py [--repeats 9] [--threads 1,2] [--device cpu] [--eager] [--json]
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from normlab import norms
from normlab.population.kernels import tune_malloc

SHAPES = [(128, 64), (1024, 512), (64, 32, 28, 28)]
Make = Callable[[int], nn.Module]

ROWS: dict[str, Make] = {
    "torch.nn.BatchNorm": nn.BatchNorm1d,
    "bn, fused": partial(norms.BatchNorm1d, fused=True),
    "bn, formula": norms.BatchNorm1d,
    "ghost": partial(norms.GhostBatchNorm, ghost_size=32, fused=True),
    "brn": partial(norms.BatchRenorm, total_steps=1000, fused=True),
    "noisy": partial(norms.NoisyBatchNorm, fused=True),
    "l1bn": norms.L1BatchNorm,
    "linfbn": norms.LInfBatchNorm,
    "actnorm": norms.ActNorm,
    "dyt": norms.DynamicTanh,
    "derf": norms.Derf,
}
IMAGES = ROWS | {
    "torch.nn.BatchNorm": nn.BatchNorm2d,
    "bn, fused": partial(norms.BatchNorm2d, fused=True),
    "bn, formula": norms.BatchNorm2d,
    "rms": norms.RMSNorm2d,
}
WEIGHTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "the map alone": lambda layer: layer,
    "wn, torch's": weight_norm,
    "wn": norms.weight_normalization,
    "ws": norms.scaled_weight_standardization,
    "ws, plain": norms.weight_standardization,
}


def layers_for(shape: tuple[int, ...], device: str) -> dict[str, nn.Module]:
    """Return the normalizers for this input shape by name, torch's BatchNorm first."""
    return {name: make(shape[1]).to(device) for name, make in (IMAGES if len(shape) == 4 else ROWS).items()}


def maps_for(shape: tuple[int, ...], device: str) -> dict[str, nn.Module]:
    """Return shape-preserving maps with each weight parametrization by name, the plain map first."""

    def plain() -> nn.Module:
        width = shape[1]
        return nn.Conv2d(width, width, 3, padding=1) if len(shape) == 4 else nn.Linear(width, width)

    return {name: change(plain()).to(device) for name, change in WEIGHTS.items()}


def seconds(layer: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor, calls: int) -> float:
    """Return the seconds of a forward and backward pass, averaged over calls."""
    if x.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        layer(x).backward(grad)
        x.grad = None
    if x.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / calls


def median_times(
    layers: dict[str, nn.Module], shape: tuple[int, ...], device: str, compiled: bool, repeats: int
) -> dict[str, float]:
    """Return the median microseconds of each layer by name."""
    x = torch.randn(shape, device=device, requires_grad=True)
    grad = torch.randn(shape, device=device)
    torch.compiler.reset()
    called = {name: torch.compile(layer, dynamic=False) if compiled else layer for name, layer in layers.items()}
    for layer in called.values():
        seconds(layer, x, grad, 3)
    calls = max(3, int(0.02 / seconds(next(iter(called.values())), x, grad, 5)))
    times: dict[str, list[float]] = {name: [] for name in called}
    for _ in range(repeats):
        for name, layer in called.items():
            times[name].append(seconds(layer, x, grad, calls))
    return {name: 1e6 * median(values) for name, values in times.items()}


def columns(layers_of: Callable, shape: tuple[int, ...], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the microseconds by column (threads, eager or compiled) and layer."""
    times = {}
    for threads in map(int, args.threads.split(",")):
        torch.set_num_threads(threads)
        for compiled in (False,) if args.eager else (False, True):
            column = f"{threads} thread{'s' * (threads > 1)}, {'compiled' if compiled else 'eager'}"
            layers = layers_of(shape, args.device)
            times[column] = median_times(layers, shape, args.device, compiled, args.repeats)
    return times


def table(shape: tuple[int, ...], times: dict[str, dict[str, float]]) -> str:
    """Format microseconds, with ratios to the first layer in eager mode on as many threads."""
    names = list(next(iter(times.values())))
    lines = [f"{shape!s:24}" + "".join(f"{column:>24}" for column in times)]
    for name in names:
        grid = []
        for column, of_layer in times.items():
            base = times[column.replace("compiled", "eager")][names[0]]
            grid.append(f"{of_layer[name]:>15.0f} ({of_layer[name] / base:5.2f})")
        lines.append(f"{name:24}" + "".join(f"{cell:>24}" for cell in grid))
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--eager", action="store_true", help="measure eager mode only")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    tune_malloc()
    results = {}
    if not args.json:
        print("microseconds, forward and backward (ratio to the first layer in eager mode)")
    for layers_of in (layers_for, maps_for):
        for shape in SHAPES:
            times = columns(layers_of, shape, args)
            results[f"{layers_of.__name__} {shape}"] = times
            if not args.json:
                print("\n" + table(shape, times), flush=True)
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
