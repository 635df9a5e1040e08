"""What normalizers over the batch go by in evaluation: running, re-estimated, or the batch's own statistics.

Letters: K members, C features, T minibatches.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import vmap

from normlab.models.layer_lookup import HookedLayers
from normlab.norms.batch_norm import BatchNorm
from normlab.norms.statistics import RUNNING, mean_and_variance, pooled, running_stat_names
from normlab.population.population import Population


def with_running_statistics(net: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that have running statistics, one or both, by name: ours, torch's, and those like them."""
    return {name: layer for name, layer in net.named_modules() if running_stat_names(layer)}


@contextmanager
def use_batch_statistics(net: nn.Module) -> Iterator[None]:
    """Have a net in evaluation mode go by each batch's own statistics, and move none.

    A layer without running statistics has nothing else to go by, so they are taken away for a while.
    """
    layers = with_running_statistics(net).values()
    taken = [(layer, name, layer._buffers[name]) for layer in layers for name in running_stat_names(layer)]
    for layer, name, _ in taken:
        layer._buffers[name] = None
    try:
        yield
    finally:
        for layer, name, buffer in taken:
            layer._buffers[name] = buffer


def batch_statistics(layer: nn.Module, x: Tensor, y: Tensor, features: int) -> Tensor:
    """Return mean and variance of what a layer takes, in float64, and of how many numbers they are.

    The variance is what the layer takes for one: an ℓ1 batch norm's is that of its mean absolute deviation.

    Shapes:
        x ``(K, ..., C, ...)``, C on the axis ``features``; returns ``(K, 3, C)``.
    """
    of_member = layer.statistics if isinstance(layer, BatchNorm) else mean_and_variance

    def statistics(x: Tensor) -> Tensor:
        rows = x.double().movedim(features - 1, -1)
        mean, _, var = of_member(rows)
        return torch.stack([mean, var, torch.full_like(mean, rows.shape[:-1].numel())])

    # For one member vmap takes most of a small layer's time.
    return statistics(x[0]).unsqueeze(0) if len(x) == 1 else vmap(statistics)(x)


@contextmanager
def with_reestimated(population: Population, minibatches: Iterable[Tensor]) -> Iterator[None]:
    """Context manager in which the running statistics are re-estimated; afterwards they are as they were."""
    names = [
        f"{layer}.{statistic}".removeprefix(".")
        for layer, module in with_running_statistics(population.net).items()
        for statistic in running_stat_names(module)
    ]
    state = population.state()
    kept = {name: state[name].clone() for name in names}
    try:
        reestimate(population, minibatches)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in kept.items():
                state[name].copy_(tensor)


@torch.no_grad()
def reestimate(population: Population, minibatches: Iterable[Tensor]) -> None:
    """Put the statistics of all minibatches together in the place of the running ones, for every member.

    Each minibatch goes once through the net in evaluation mode, normalized by its own statistics. What a layer
    takes is pooled over all samples, so that the first normalizer's mean and variance are those of the whole
    training set, whatever the size of the minibatches (PreciseBN; Wu and Johnson 2021, arXiv:2105.07576).

    Shapes:
        minibatches ``(K, B, ...)`` each.
    """
    net = population.net
    layers = with_running_statistics(net)
    minibatches = list(minibatches)
    if not layers or not minibatches:
        return
    training, watch = population.training, HookedLayers(layers, batch_statistics)
    population.eval()
    with use_batch_statistics(net):
        found = [population.observe(x, watch)[1] for x in minibatches]
    population.train(training)
    state = population.state()
    for name, layer in layers.items():
        mean, var, counts = torch.stack([seen[name] for seen in found]).unbind(2)
        pool = layer.pooled if isinstance(layer, BatchNorm) else pooled
        values = dict(zip(RUNNING, pool(mean, var, counts), strict=True))
        for statistic in running_stat_names(layer):
            state[f"{name}.{statistic}".removeprefix(".")].copy_(values[statistic])
