"""From a configuration to the objects that train."""

import inspect
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from normlab.checks import check
from normlab.config import ConfigError, first_line, require
from normlab.data.datamodule import InMemoryData
from normlab.data.order import batch_sizes
from normlab.records.folder import plain
from normlab.training.module import NormModule
from normlab.training.optim import StackedOptimizer
from normlab.training.population import Population, initial_nets
from normlab.training.schedulers import Scheduler
from normlab.training.tasks import Classification, Regression, Task

# That there is no GPU, and what else could be installed, is not what a person asked.
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def make(node: DictConfig, **arguments: Any) -> Any:
    """Instantiate a ``_target_``; what it refuses is refused in its own words.

    Raises:
        ConfigError: for a ValueError or TypeError of the target.
    """
    try:
        return instantiate(node, **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, ValueError | TypeError | InstantiationException):
            raise ConfigError(first_line(cause)) from error
        raise cause from None


def make_data(config: DictConfig) -> InMemoryData:
    """Return the datamodule, its splits made."""
    data = make(config.data)
    try:
        _ = data.parts
    except ValueError as error:
        raise ConfigError(first_line(error)) from error
    return data


def net_maker(config: DictConfig, data: InMemoryData) -> Callable[[], nn.Module]:
    """Return what makes a net for this data, with the model's parts in the slots that the net has.

    Raises:
        ConfigError: if the model consists of a part that this net has no slot for.
    """
    slots = inspect.signature(get_object(config.net._target_)).parameters
    parts = {name: node for name, node in config.model.items() if node is not None}
    for name in parts:
        if name not in slots and not any(other in slots for other in parts):
            raise ConfigError(f"net: {config.net._target_} has no place for model.{name}")
    makers = {name: make(node) for name, node in parts.items() if name in slots}
    make_net = make(config.net)
    table = data.parts[0]
    return lambda: make_net(table.input_shape, table.out_features, **makers)


def make_task(data: InMemoryData) -> Task:
    """Return what the targets ask for."""
    return Classification() if data.parts[0].is_classification else Regression()


def numbers_of(nodes: Sequence[DictConfig]) -> dict[str, list]:
    """Return the arguments in which the members' nodes differ, each as the members' values in order.

    Of an argument that is a list of numbers, each entry becomes the members' values.
    """
    differing = {}
    for key in map(str, nodes[0]):
        values = [node[key] for node in nodes]
        if any(value != values[0] for value in values):
            lists = all(OmegaConf.is_list(value) for value in values)
            differing[key] = [list(entries) for entries in zip(*values, strict=True)] if lists else values
    return differing


def is_stacked(node: DictConfig, base: type) -> bool:
    """Return whether a ``_target_`` is one of our classes that hold a number for each member."""
    target = get_object(node._target_) if node.get("_target_") else None
    return inspect.isclass(target) and issubclass(target, base)


def optimizer_maker(nodes: Sequence[DictConfig]) -> Callable[..., torch.optim.Optimizer]:
    """Return what makes the optimizer: one of ours for K members, or anyone's for a run alone."""
    partial = make(nodes[0])
    if is_stacked(nodes[0], StackedOptimizer):
        numbers = numbers_of(nodes)
        return lambda parameters, members: partial(parameters, members=members, **numbers)
    return lambda parameters, members: partial(parameters)


def scheduler_maker(nodes: Sequence[DictConfig]) -> Callable[..., Scheduler] | None:
    """Return what makes the schedule of the learning rates, if there is to be one."""
    if not nodes[0].get("_target_"):
        return None
    partial, numbers = make(nodes[0]), numbers_of(nodes)
    return lambda optimizer, members: partial(optimizer, members=members, **numbers)


def make_module(configs: Sequence[DictConfig], data: InMemoryData) -> NormModule:
    """Return the LightningModule for a population, a member for each configuration.

    The configurations may differ in their seeds and in the numbers of a stacked optimizer and its schedule.
    """
    seeds = [config.seed for config in configs]
    return NormModule(
        Population(initial_nets(net_maker(configs[0], data), seeds)),
        make_task(data),
        seeds,
        optimizer_maker([config.optimizer for config in configs]),
        scheduler_maker([config.scheduler for config in configs]),
        gradient_clip_val=configs[0].trainer.gradient_clip_val,
        compiles=bool(configs[0].trainer.compile),
    )


def make_trainer(config: DictConfig, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Return the Trainer, with what ours does better switched off."""
    node = {
        key: value
        for key, value in config.trainer.items()
        if key not in ("gradient_clip_val", "threads", "compile")
    }
    node.setdefault("log_every_n_steps", 1)
    extra = [make(callback) for callback in config.callbacks.extra.values()]
    return make(
        OmegaConf.create(node),
        callbacks=[*callbacks, *extra],
        logger=[make(logger) for logger in config.logger.extra.values()] or False,
        enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in extra),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def rehearse(config: DictConfig) -> list[str]:
    """Refuse a configuration that cannot be trained: build all of it and pass a batch of each size through.

    Returns:
        What a person should know about the data.

    Raises:
        ConfigError: the reason, in one line.
    """
    check(config)
    return _rehearse(json.dumps(plain(config) | {"seed": 0}))


@lru_cache(maxsize=1024)
def _rehearse(text: str) -> list[str]:
    """Rehearse a configuration without its seed, once for all seeds of a sweep."""
    config = OmegaConf.create(json.loads(text))
    data = make_data(config)
    module = make_module([config], data)
    make_trainer(config, [])
    try:
        module.configure_optimizers()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optimizer or scheduler: {first_line(error)}") from error
    table = data.parts[0]
    for size in sorted(set(batch_sizes(len(table), data.batch_size))):
        try:
            outputs = module(table.x[None, :size].to(module.dtype))
        except Exception as error:
            made = f"model.norm={config.model.get('norm') and config.model.norm._target_}"
            raise ConfigError(f"{made} cannot be trained on a batch of {size}: {first_line(error)}") from error
    require_metrics(config, module.task.metrics(outputs, table.y[None, : outputs.shape[1]]))
    return data.notices


def require_metrics(config: DictConfig, metrics: Iterable[str]) -> None:
    """Refuse to judge a run by a metric that it never has."""
    known = ["train/loss"] + [f"val/{name}" for name in ("loss", *metrics)] * (config.data.val > 0)
    stopping = config.callbacks.early_stopping
    judges = {"optimized_metric": config.optimized_metric}
    judges |= {"callbacks.early_stopping.monitor": stopping.monitor} if stopping else {}
    for key, metric in judges.items():
        require(metric in known, key, f"one of {', '.join(known)} with this data", metric)
    every, epochs = config.trainer.check_val_every_n_epoch, config.trainer.max_epochs
    seen = epochs == 0 or every <= epochs or config.optimized_metric.startswith("train/")
    require(seen, "trainer.check_val_every_n_epoch", f"at most the {epochs} epochs", every)
