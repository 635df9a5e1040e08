"""Decides which runs can share a population, by their configurations and a check of their net.

The outcome for all runs with one population key is their :class:`DryRun`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import nn

from normlab.config.frozen import FrozenConfig, is_population, recorded, replaced
from normlab.data.datamodule import InMemoryData
from normlab.data.sampling import batch_sizes
from normlab.population.optim import StackedOptimizer
from normlab.population.population import initial_nets
from normlab.population.resources import (
    Footprint,
    compiling_pays,
    device,
    expected_seconds,
    members_at_once,
    threads,
    threads_for,
)
from normlab.population.stacking_check import (
    CHECK_SEEDS,
    CHECK_STEPS,
    Stacking,
    check_optimizer_stacking,
    check_stacking,
)
from normlab.training.build import make_task, net_maker, precision_of, shared_data
from normlab.training.extra import single_run_callback
from normlab.training.optimizers import TorchOptimizer, is_stacked
from normlab.training.parameter_selection import HIDDEN
from normlab.training.population_module import PopulationModule
from normlab.training.schedules import needs_metric

LIGHTNING_SECONDS = 1e-3
"""Seconds that a step of another LightningModule takes longer than one of a population."""


@dataclass(frozen=True)
class DryRun:
    """The outcome of a dry run, for all runs with its population key.

    Attributes:
        config: of the run that was tried.
        footprint: of its net.
        generated: whether its samples are drawn from its seed.
        classes: whether its targets are class indices.
        shape_is_fitted: whether the input shape depends on the split.
        warnings: about the data, the layers and the metric.
    """

    config: FrozenConfig
    footprint: Footprint
    generated: bool
    classes: bool
    shape_is_fitted: bool
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: FrozenConfig, data: InMemoryData, footprint: Footprint) -> "DryRun":
        """Return the outcome for these data."""
        return cls(config, footprint, data.generated, data.parts[0].is_classification, data.shape_is_fitted)

    @cached_property
    def stacking(self) -> Stacking:
        """The way in which the runs can be stacked, checked at the first access."""
        return check_stacking_of(self.config, shared_data(self.config), self.footprint)

    @property
    def stacking_in_sweep(self) -> Stacking:
        """The same for runs of a sweep, whose configuration may not allow them to share a population."""
        reason = single_run_reason(self.config)
        return Stacking(reason) if reason else self.stacking

    def members_at_once(self, n_jobs: int, own_samples: bool) -> int:
        """Return the largest number of runs in a population; see :func:`members_at_once`."""
        on = device(self.config.trainer.get("accelerator", "auto"))
        return members_at_once(self.footprint, on, n_jobs, own_samples=own_samples)

    def expected_seconds(self, members: int, populations: int = 1) -> float:
        """Return the estimated seconds that a population trains, as one of several with this key."""
        config, compiled = self.config, self.config.trainer.compile
        if compiled is None:
            compiled = should_compile(self, members, populations)
        sizes = batch_sizes(config.data.train, config.data.batch_size)
        seconds = expected_seconds(self.footprint, sizes, config.trainer.max_epochs, members, compiled)
        alone = not is_population(config)
        return seconds + alone * config.trainer.max_epochs * len(sizes) * LIGHTNING_SECONDS


def footprint_of(module: PopulationModule, data: InMemoryData, precision: torch.dtype) -> Footprint:
    """Measure the footprint of a run by passing its first minibatch through its net."""
    table = data.parts[0]
    x, _ = module.cast((table.x[None, : data.batch_size], table.y))
    samples = sum(part.x.numel() + part.y.numel() for part in data.parts)
    return Footprint.measure(module.population, x, samples, precision.itemsize)


def check_stacking_of(config: FrozenConfig, data: InMemoryData, footprint: Footprint) -> Stacking:
    """Run :func:`check_stacking` on the net, the loss and the first minibatches of a configuration."""
    if not is_stacked(config.optimizer, StackedOptimizer):
        factory = TorchOptimizer(config.optimizer)
        for group, make in zip(factory.groups, factory.partials, strict=True):
            reason = check_optimizer_stacking(make, matrices=list(group.match) == [HIDDEN])
            if reason is not None:
                return Stacking(f"{group.node['_target_']}: {reason}")
    split = data.split(0)
    minibatches = list(islice(data.minibatches((split.x, split.y), CHECK_SEEDS, 0), CHECK_STEPS))
    make_net, task = net_maker(config, data), make_task(data, config.loss)
    if config.probes and task.own_loss and task.own_loss.looped_reason:
        return Stacking(f"probes need a loss under vmap, {task.own_loss.name}: {task.own_loss.looped_reason}")

    def make_nets(dtype: torch.dtype) -> list[nn.Module]:
        # A deepcopy would not copy objects that hooks and functions refer to.
        return [net.to(dtype) for net in initial_nets(make_net, CHECK_SEEDS)]

    with threads(threads_for(footprint, len(CHECK_SEEDS))):
        return check_stacking(make_nets, task, minibatches, precision_of(config))


def population_key(config: Mapping[str, Any]) -> str:
    """Return a text that is equal for runs whose configurations allow them to share a population."""
    values = recorded(config)
    values["seed"] = values["data"]["seed"] = "#"
    # An optimizer of torch has one number for all members.
    if is_stacked(values["optimizer"], StackedOptimizer):
        frequency = values["scheduler"].get("frequency", 1)
        values |= {name: mask_numbers(values[name]) for name in ("optimizer", "scheduler")}
        values["frequency"] = frequency
    return json.dumps(values, sort_keys=True)


def mask_numbers(node: Any) -> Any:
    """Replace the numbers of a node by ``#``; runs can be stacked if the rest is equal.

    >>> mask_numbers({"lr": 0.1, "betas": [0.9, 0.99], "nesterov": True, "_target_": "x"})
    {'lr': '#', 'betas': '##', 'nesterov': True, '_target_': 'x'}
    """
    if isinstance(node, dict):
        return {key: mask_numbers(value) for key, value in node.items()}
    if isinstance(node, list) and all(isinstance(mask_numbers(value), str) for value in node):
        return "".join(mask_numbers(value) for value in node)
    return "#" if isinstance(node, int | float) and not isinstance(node, bool) else node


def single_run_reason(config: FrozenConfig) -> str:
    """Return the reason a configuration cannot train in a population; empty if it can."""
    if not is_population(config):
        return f"module._target_={config.module._target_} trains a single run"
    if reason := single_run_callback(config):
        return f"{reason}; by module=lightning"
    if not is_stacked(config.optimizer, StackedOptimizer) and needs_metric(config.scheduler):
        return (
            f"{config.scheduler._target_} gives each run a learning rate of its own, and "
            f"{config.optimizer._target_} has one for all; use optimizer=adam, adamw or sgd"
        )
    return ""


def without_extra(config: FrozenConfig) -> FrozenConfig:
    """Return the configuration without the Lightning callbacks and loggers of ``extra``."""
    return FrozenConfig.of(replaced(config, {("callbacks", "extra"): {}, ("logger", "extra"): {}}))


def should_compile(trial: DryRun, members: int, populations: int = 1) -> bool:
    """Return True if compiling the step is estimated to save time for populations of one shape."""
    config = trial.config
    if config.trainer.get("fast_dev_run") or not is_stacked(config.optimizer, StackedOptimizer):
        return False
    sizes = batch_sizes(config.data.train, config.data.batch_size)
    return compiling_pays(trial.footprint, sizes, config.trainer.max_epochs, members, populations)


def choose_stacking(module: PopulationModule, trial: DryRun, warn: Callable[[str], None]) -> None:
    """Select stacking by layers or vmap, as the stacking check allows, and report a loss that cannot be vmapped.

    A compiled step of a single run also goes through the stacked forms; if the check fails, it stays uncompiled.
    """
    alone = module.population.members == 1
    loss = module.task.own_loss
    if loss is not None and loss.looped_reason and not alone:
        warn(f"loss: {loss.name} is evaluated for one member after another: {loss.looped_reason}")
    if alone and not (module.compiles and is_stacked(trial.config.optimizer, StackedOptimizer)):
        return
    module.population.by_layers = trial.stacking.vmap_reason is None
    if trial.stacking.unstackable_reason and alone:
        warn(f"trainer.compile: {trial.stacking.unstackable_reason}; training continues uncompiled")
        module.compiles = False
