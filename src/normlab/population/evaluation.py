"""Loss and metrics of all members at once, and the statistics that batch-dependent layers use in evaluation.

The entries are the tasks :class:`Regression` and :class:`Classification`, and :class:`EvaluationStatistics`.

Letters: K members, N samples, O outputs, C features, T minibatches.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

from normlab.data.sampling import batch_sizes
from normlab.errors import ConfigError, first_line, prefix_errors, require
from normlab.models.layer_lookup import (
    HookedLayers,
    batch_statistics,
    pooled_statistics,
    running_statistics,
    use_batch_statistics,
)
from normlab.norms.statistics import running_stat_names
from normlab.population.losses import MemberLoss
from normlab.population.population import Population

log = logging.getLogger("normlab")
SAMPLES_AT_ONCE = 1024
"""Samples in a minibatch of re-estimation, unless the training uses larger minibatches."""
FINITE_LOGIT = -20.0
"""The logarithm of a class share from which minimization starts, in place of -inf for a class without samples."""
MetricFunction = Callable[[Tensor, Tensor], Tensor]
"""Returns one number for outputs ``(N, O)`` and targets of one net."""


class Regression:
    """Regression by mean squared error, with the metrics mse, mae and r2.

    Shapes:
        outputs and targets ``(K, N, O)``; the loss and each metric ``(K,)``.

    Args:
        summed: whether the loss is summed over the outputs instead of averaged.
        own_loss: another loss, in place of the squared error.
    """

    def __init__(self, summed: bool = False, own_loss: MemberLoss | None = None) -> None:
        self.summed, self.own_loss = summed, own_loss

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each member's loss, by default the squared error averaged over its samples."""
        if self.own_loss is not None:
            return self.own_loss(outputs, targets)
        mean = F.mse_loss(outputs, targets, reduction="none").flatten(1).mean(1)
        return mean * outputs.shape[2] if self.summed else mean

    def best_constant(self, targets: Tensor, out_features: int) -> Tensor:
        """Return the best constant prediction, the mean of the targets: ``(N, …)`` to ``(O,)``."""
        return targets.flatten(1).mean(0)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return each member's metrics; torchmetrics treats members as outputs. r2 needs two samples."""
        members, _, width = outputs.shape
        predicted, expected = (t.double().transpose(0, 1).flatten(1) for t in (outputs, targets))
        count = members * width
        values = {
            "mse": mean_squared_error(predicted, expected, num_outputs=count),
            "mae": mean_absolute_error(predicted, expected, num_outputs=count),
        }
        if len(predicted) > 1:
            values["r2"] = r2_score(predicted, expected, multioutput="raw_values")
        return {name: value.view(members, width).mean(1) for name, value in values.items()}


class Classification:
    """Classification by cross-entropy, with the metric accuracy.

    Shapes:
        outputs ``(K, N, O)`` logits, targets ``(K, N)`` class indices; the loss and each metric ``(K,)``.

    Args:
        summed: whether the loss is the squared distance to the one-hot target, summed over the classes.
        own_loss: another loss, in place of cross-entropy.
    """

    def __init__(self, summed: bool = False, own_loss: MemberLoss | None = None) -> None:
        self.summed, self.own_loss = summed, own_loss

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each member's loss, by default cross-entropy averaged over its samples."""
        if self.own_loss is not None:
            return self.own_loss(outputs, targets)
        if self.summed:
            expected = F.one_hot(targets, outputs.shape[2]).to(outputs)
            return (outputs - expected).square().sum(2).mean(1)
        losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(targets.shape).mean(1)

    def best_constant(self, targets: Tensor, out_features: int) -> Tensor:
        """Return the best constant outputs, class shares or their logarithms: ``(N,)`` to ``(O,)``."""
        shares = targets.bincount(minlength=out_features) / len(targets)
        return shares if self.summed else shares.log()

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return each member's accuracy."""
        accuracy = multiclass_accuracy(
            outputs.argmax(2), targets, outputs.shape[2], average="micro", multidim_average="samplewise"
        )
        return {"acc": accuracy}


Task = Regression | Classification


def constant_predictor_loss(task: Task, targets: Tensor, out_features: int) -> float | None:
    """Return the loss of the best constant predictor, the reference for an untrained net.

    That of another loss than the task's is found by minimization (:func:`minimized_constant_loss`).
    """
    if task.own_loss is not None:
        return minimized_constant_loss(task, task.own_loss, targets, out_features)
    outputs = task.best_constant(targets, out_features).expand(1, len(targets), -1)
    return task.loss(outputs, targets.unsqueeze(0)).item()


def minimized_constant_loss(task: Task, loss: MemberLoss, targets: Tensor, out_features: int) -> float | None:
    """Minimize a loss over one output for all samples by L-BFGS in float64; None if the result is not finite.

    The lowest of two searches, from the task's own best constant and from the medians of the targets (equal
    outputs for classes). For a convex loss this is the minimum; for others it may be a local one.
    """
    targets = targets.double() if targets.is_floating_point() else targets
    best = task.best_constant(targets, out_features).double().clamp(min=FINITE_LOGIT)
    middle = targets.flatten(1).median(0).values if targets.is_floating_point() else torch.zeros_like(best)
    found = []
    for start in (best, middle):
        constant = start.clone().requires_grad_()
        search = torch.optim.LBFGS([constant], max_iter=100, line_search_fn="strong_wolfe")

        def value(constant: Tensor = constant) -> Tensor:
            return loss(constant.expand(1, len(targets), -1), targets.unsqueeze(0))[0]

        def closure(constant: Tensor = constant, value: Callable[[], Tensor] = value) -> Tensor:
            now = value()
            (constant.grad,) = torch.autograd.grad(now, constant)
            return now

        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                search.step(closure)
                found.append(value().item())
        except Exception:  # a foreign loss may raise any error for outputs that nets do not give
            log.debug("no constant minimizes the loss %s", loss.name)
    finite = [value for value in found if math.isfinite(value)]
    return min(finite) if finite else None


def per_member_metrics(
    metrics: Mapping[str, MetricFunction], outputs: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Return metrics that are defined for one net, for each member, ``(K,)`` each.

    Raises:
        ConfigError: if a metric fails or returns anything but one number.
    """
    values = {}
    for name, metric in metrics.items():
        with prefix_errors(f"metrics.{name}"):
            if isinstance(metric, nn.Module):  # one of torchmetrics
                metric.to(outputs.device)
            of_members = [torch.as_tensor(metric(*member)) for member in zip(outputs, targets, strict=True)]
            shape = tuple(of_members[0].shape)
            require(shape == (), f"metrics.{name}", "one number for each net", f"shape {shape}")
            values[name] = torch.stack(of_members).to(outputs.dtype)
    return values


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
