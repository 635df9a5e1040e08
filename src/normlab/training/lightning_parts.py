"""Builds the LightningModule of a run that trains alone from the parts it takes: :func:`make_single_module`."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torchmetrics
from hydra.utils import get_object
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score
from torchmetrics.utilities import dim_zero_cat

from normlab.config.frozen import FrozenConfig, is_population
from normlab.data.datamodule import InMemoryData
from normlab.errors import ConfigError, first_line
from normlab.population.evaluation import MetricFunction, Task
from normlab.population.population import initial_nets, seeded
from normlab.training.build import make_metric, make_task, net_maker, precision_of
from normlab.training.instantiate import make, missing_arguments, require_instance
from normlab.training.optimizers import TorchOptimizer
from normlab.training.schedules import make_scheduler, with_total_steps

PARTS = ("net", "loss", "metrics", "optimizer", "scheduler")
"""Parts of a run that a LightningModule may take by name."""

SCHEDULE_KEYS = ("interval", "frequency", "monitor")
"""Keys of a scheduler that Lightning reads."""


class WholeSplitMetric(torchmetrics.Metric):
    """A function of all outputs and targets of a split as a metric of torchmetrics.

    Args:
        function: maps outputs ``(N, O)`` and targets to one number.
    """

    outputs: list[Tensor]
    targets: list[Tensor]

    def __init__(self, function: MetricFunction) -> None:
        super().__init__()
        self.function = function
        self.add_state("outputs", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Keep the outputs and targets of a batch."""
        self.outputs.append(outputs)
        self.targets.append(targets)

    def compute(self) -> Tensor:
        """Return the function of all outputs and targets."""
        outputs, targets = dim_zero_cat(self.outputs), dim_zero_cat(self.targets)
        return torch.as_tensor(self.function(outputs, targets))


def make_single_module(config: FrozenConfig, data: InMemoryData) -> tuple[pl.LightningModule, nn.Module | None]:
    """Return the LightningModule of a run, and the net it was given; None if it takes no ``net``.

    It is called with those of net, loss, metrics, optimizer and scheduler that it has parameters for, and with the
    other keys of ``module``.

    Raises:
        ConfigError: if the module cannot be constructed, or is no LightningModule.
    """
    parts = takes(config.module)
    net = initial_nets(net_maker(config, data), [config.seed])[0] if "net" in parts else None
    if net is None and config.trainable != "all":
        raise ConfigError(f"trainable={config.trainable} has no effect: the module takes no net; remove it")
    makers: dict[str, Callable[[], Any]] = {
        "net": lambda: net,
        "loss": lambda: single_loss(make_task(data, config.loss)),
        "metrics": lambda: make_metrics(config, data),
        "optimizer": lambda: partial(TorchOptimizer(config.optimizer).of, net=net),
        "scheduler": lambda: torch_scheduler_maker(config, data),
    }
    target = config.module._target_
    for name in missing_arguments("module", config.module):
        if name not in parts:
            raise ConfigError(f"module: {target} needs the argument {name}; write module.{name}=…")
    with seeded(config.seed):
        try:
            module = make({**config.module, "_partial_": True})(**{name: makers[name]() for name in parts})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"module: {target} cannot be made: {first_line(error)}") from error
    require_instance("module", config.module, pl.LightningModule, module)
    if precision_of(config) == torch.float64:  # before Lightning does, which first loads a checkpoint in float32
        module.double()
    return module, net


def takes(node: Mapping[str, Any]) -> list[str]:
    """Return the parts of a run that a module takes by name, without those that its node defines itself."""
    accepted = parameter_names(get_object(node["_target_"]))
    return [name for name in PARTS if name in accepted and name not in node]


def parameter_names(target: Any) -> set[str]:
    """Return the names of a callable's parameters; ``**kwargs`` of a class stands for those of its base class."""
    names: set[str] = set()
    for called in target.__mro__ if inspect.isclass(target) else (target,):
        parameters = inspect.signature(called).parameters
        names |= parameters.keys()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def untaken_parts_notices(config: FrozenConfig) -> list[str]:
    """Return a warning that names the groups that the module of a run does not take."""
    taken = {"net", *PARTS} if is_population(config) else {*takes(config.module), *config.module}
    untaken = [name for name in PARTS if name not in taken]
    target = config.module._target_
    return (
        [f"module: {target} takes no {' and no '.join(untaken)}, so these keys have no effect"] if untaken else []
    )


def single_loss(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of one net: outputs ``(B, O)`` and targets to their mean loss."""
    return lambda outputs, targets: task.loss(outputs.unsqueeze(0), targets.unsqueeze(0)).squeeze(0)


def make_metrics(config: FrozenConfig, data: InMemoryData) -> torchmetrics.MetricCollection:
    """Return the metrics of a task and those of ``metrics``; a metric of torchmetrics keeps its class."""
    train, *held_out = data.parts
    metrics: dict[str, torchmetrics.Metric | torchmetrics.MetricCollection]
    if train.is_classification:
        metrics = {"acc": MulticlassAccuracy(train.out_features, average="micro")}
    else:
        metrics = {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}
        if all(len(part) != 1 for part in held_out):  # r2 needs two samples
            metrics["r2"] = R2Score()
        for metric in metrics.values():  # float32 would round the sums over a split
            metric.set_dtype(torch.float64)
    for name, node in config.metrics.items():
        metric = make_metric(str(name), node)
        metrics[str(name)] = metric if isinstance(metric, torchmetrics.Metric) else WholeSplitMetric(metric)
    for metric in metrics.values():
        if isinstance(metric, torchmetrics.Metric):
            metric.distributed_available_fn = not_distributed
    return torchmetrics.MetricCollection(metrics)


def not_distributed() -> bool:
    """Return False: each process measures its metrics alone, as each evaluates whole splits."""
    return False


def torch_scheduler_maker(
    config: FrozenConfig, data: InMemoryData
) -> Callable[[torch.optim.Optimizer], dict[str, Any]] | None:
    """Return a function that makes Lightning's ``lr_scheduler`` from an optimizer; None if none is configured.

    A schedule by a metric is stepped when the metric is measured: it monitors the validation loss, or the training
    loss without a validation split.
    """
    if not config.scheduler.get("_target_"):
        return None
    node = with_total_steps(config)
    settings = {key: node[key] for key in SCHEDULE_KEYS if node.get(key) is not None}
    settings.setdefault("monitor", "val/loss" if data.val else "train/loss")

    def lr_scheduler(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        scheduler = make_scheduler(node, optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            settings.setdefault("frequency", config.trainer.check_val_every_n_epoch if data.val else 1)
        return {"scheduler": scheduler, **settings}

    return lr_scheduler
