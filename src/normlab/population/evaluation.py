"""Statistics of batch-dependent layers in evaluation: running, re-estimated or of the batch itself.

The entry is :class:`EvaluationStatistics`.

Letters: K members, C features, T minibatches.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import vmap

from normlab.data.sampling import batch_sizes
from normlab.errors import ConfigError, first_line
from normlab.models.layer_lookup import (
    HookedLayers,
    batch_statistics,
    pooled_statistics,
    running_statistics,
    use_batch_statistics,
)
from normlab.norms.statistics import running_stat_names
from normlab.population.population import Population

log = logging.getLogger("normlab")
SAMPLES_AT_ONCE = 1024
"""Samples in a minibatch of re-estimation, unless the training uses larger minibatches."""


def member_statistics(layer: nn.Module, x: Tensor, y: Tensor, features: int) -> Tensor:
    """Return :func:`batch_statistics` of each member's input in float64.

    Shapes:
        x ``(K, ..., C, ...)``, C on the axis ``features``; returns ``(K, 3, C)``.
    """
    statistics = partial(batch_statistics, layer, features=features - 1)
    # vmap over one member would take most of a small layer's time.
    return statistics(x[0].double()).unsqueeze(0) if len(x) == 1 else vmap(statistics)(x.double())


@contextmanager
def with_reestimated(population: Population, minibatches: Iterable[Tensor]) -> Iterator[None]:
    """Context manager that re-estimates the running statistics, and restores them on exit."""
    state = population.state()
    saved = {name: state[name].clone() for name in running_statistics(population.net)}
    try:
        reestimate(population, minibatches)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in saved.items():
                state[name].copy_(tensor)


@torch.no_grad()
def reestimate(population: Population, minibatches: Iterable[Tensor]) -> None:
    """Replace every member's running statistics by those pooled over all minibatches.

    Each minibatch passes once through the net in evaluation mode, normalized by its own statistics. The inputs of
    a layer are pooled over all samples, so that the first normalizer's mean and variance are those of the whole
    training set, whatever the batch size (PreciseBN; Wu and Johnson 2021, arXiv:2105.07576).

    Shapes:
        minibatches ``(K, B, ...)`` each.
    """
    net, minibatches = population.net, list(minibatches)
    running = running_statistics(net)
    if not running or not minibatches:
        return
    layers = {name.rpartition(".")[0]: layer for name, (layer, _) in running.items()}
    training, watch = population.training, HookedLayers(layers, member_statistics)
    population.eval()
    with use_batch_statistics(net):
        observed = [population.observe(x, watch)[1] for x in minibatches]
    population.train(training)
    state = population.state()
    for path, layer in layers.items():
        values = pooled_statistics(layer, torch.stack([seen[path] for seen in observed]).transpose(1, 2))
        for name in running_stat_names(layer):
            state[f"{path}.{name}".lstrip(".")].copy_(values[name])


class EvaluationStatistics:
    """Selects the statistics of a population's batch-dependent layers in evaluation.

    Args:
        population: in evaluation mode when the contexts are entered.
        kind: ``running``, ``batch`` or ``reestimated``.
    """

    def __init__(self, population: Population, kind: str) -> None:
        self.population, self.kind = population, kind
        self.can_reestimate = True

    def context(self) -> AbstractContextManager[None]:
        """Context manager for evaluation; hides the running statistics if ``kind`` is ``batch``."""
        return use_batch_statistics(self.population.net) if self.kind == "batch" else nullcontext()

    @contextmanager
    def reestimated(self, x: Tensor, batch_size: int) -> Iterator[None]:
        """Context manager with statistics re-estimated on a split, or running ones if that fails.

        Args:
            x: inputs of the split, ``(K, N, …)``.
            batch_size: of the training; minibatches have at least :data:`SAMPLES_AT_ONCE` samples.

        Raises:
            ConfigError: if re-estimation fails although ``kind`` is ``reestimated``.
        """
        at_once = min(x.shape[1], max(batch_size, SAMPLES_AT_ONCE))
        minibatches = x.split(batch_sizes(x.shape[1], at_once), dim=1)
        with ExitStack() as stack:
            try:
                stack.enter_context(with_reestimated(self.population, minibatches if self.can_reestimate else []))
            except Exception as error:  # of a layer that needs its running statistics
                if self.kind == "reestimated":
                    raise ConfigError(f"statistics=reestimated: {first_line(error)}") from error
                self.can_reestimate = False
                log.warning("train_eval/loss uses running statistics: %s", first_line(error))
            yield
