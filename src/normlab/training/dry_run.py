"""A dry run: a configuration that cannot be trained is refused before anything trains."""

import inspect
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from normlab.config.validation import check
from normlab.data.datamodule import InMemoryData
from normlab.data.sampling import batch_sizes
from normlab.errors import ConfigError, first_line, prefix_errors, require
from normlab.probes.snapshot import Probe
from normlab.results.folder import plain
from normlab.results.result import Result
from normlab.training.build import (
    make_data,
    make_extra,
    make_probes,
    optimizer_maker,
    precision_of,
    scheduler_maker,
)
from normlab.training.population_module import PopulationModule
from normlab.training.progress import Progress
from normlab.training.run_folders import Run
from normlab.training.session import TrainingSession
from normlab.training.stackability import population_key_of_values

NEVER = 10**12
"""So many steps that a probe which looks every so often looks at the first step alone."""


def dry_run_once(config: DictConfig) -> list[str]:
    """Refuse a configuration that cannot be trained.

    The numbers of the optimizer and its schedule are tried for each configuration. All else is tried once for the
    runs that could share a population: minibatches of each size pass through the net, and a training of a few
    samples takes a step with each size, validates, tests and probes.

    Returns:
        What a person should know about the data and the layers.

    Raises:
        ConfigError: the reason, in one line.
    """
    check(config)
    values = plain(config)
    try_optimizer(json.dumps({name: values[name] for name in ("optimizer", "scheduler")}))
    shape = population_key_of_values(values)
    if shape not in _notices:
        with silenced():
            _notices[shape] = dry_run(OmegaConf.create(values))
    return _notices[shape]


_notices: dict[str, list[str]] = {}


@lru_cache(maxsize=4096)
def try_optimizer(text: str) -> None:
    """Make the optimizer and its schedule for a parameter of its own.

    Raises:
        ConfigError: what they refuse, or that the optimizer needs a closure.
    """
    config = OmegaConf.create(json.loads(text))
    try:
        made = optimizer_maker([config.optimizer])([nn.Parameter(torch.zeros(2, 2))], 1)
        make_scheduler = scheduler_maker([config.scheduler])
        if make_scheduler is not None:
            make_scheduler(made, 1)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optimizer or scheduler: {first_line(error)}") from error
    closure = inspect.signature(type(made).step).parameters.get("closure")
    optional = closure is None or closure.default is not inspect.Parameter.empty
    require(optional, "optimizer._target_", "an optimizer whose step needs no closure", config.optimizer._target_)


def dry_run(config: DictConfig) -> list[str]:
    """Pass minibatches through the net, then train on a few samples in a temporary folder.

    Returns:
        What a person should know about the data and the layers.
    """
    data = make_data(config)
    make_extra(config)
    sizes = sorted(set(batch_sizes(len(data.parts[0]), data.batch_size)))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(shortened(config), Path(folder) / "run", "dry run", {}, [])
        training = TrainingSession([run], NoProgress(), data=few_of(data, sum(sizes)))
        module = training.module.to(precision_of(config))
        try_layers(module, data, sizes)
        for name, probe in make_probes(config).items():
            with prefix_errors(f"probes.{name}"):
                probe.check(module.population.net)
        name_parts(module)
        with prefix_errors("dry run"):
            (result,) = training.results()
    require_metrics(config, result)
    return [*data.notices, *notices_of_layers(module.population.net, sizes), *notices_of_metrics(config, result)]


def try_layers(module: PopulationModule, data: InMemoryData, sizes: Iterable[int]) -> None:
    """Pass a minibatch of each size through the net, in training and in evaluation mode.

    Raises:
        ConfigError: which layer cannot take it, or that the outputs have another shape than the targets need.
    """
    table = data.parts[0]
    numbers = table.is_classification or table.y.is_floating_point()
    require(numbers, "data: the targets", "classes, or numbers of floating point", table.y.dtype)
    with innermost(module.population.net) as where:
        for size in sizes:
            x, _ = module.cast((table.x[None, :size], table.y[None, :size]))
            try:
                outputs = module(x)
                with module.eval().evaluating(), torch.no_grad():
                    module(x)
                module.train()
            except Exception as error:
                key = f"data.batch_size={size}: " if size == 1 else ""
                raise ConfigError(f"{key}{where()} cannot take a batch of {size}: {first_line(error)}") from error
            require_outputs(outputs, (size, table.out_features))


def require_outputs(outputs: Any, expected: tuple[int, int]) -> None:
    """Refuse outputs of another shape: a loss would broadcast them against the targets."""
    is_tensor = isinstance(outputs, Tensor)
    shape = tuple(outputs.shape[1:]) if is_tensor else type(outputs).__name__
    hint = ", which .unsqueeze(1) makes of it" if shape == expected[:1] else ""
    require(shape == expected, "net: the outputs", f"of shape {expected}{hint}", shape)


def few_of(data: InMemoryData, samples: int) -> InMemoryData:
    """Return the data with as many training samples as make one minibatch of each size."""
    few = data.with_seed(data.seed)
    train, *rest = data.parts
    few.train, few._parts = samples, (train.at(torch.arange(samples)), *rest)
    return few


def shortened(config: DictConfig) -> DictConfig:
    """Return a configuration of one epoch, in which each probe looks once, without ``extra``."""
    short = deepcopy(config)
    OmegaConf.set_struct(short, False)
    short.trainer.update({"max_epochs": 1, "check_val_every_n_epoch": 1, "fast_dev_run": False, "compile": False})
    short.callbacks.extra, short.logger.extra = {}, {}
    made = make_probes(config)
    for name, node in short.probes.items():
        if isinstance(made[str(name)], Probe):
            node.update({"at_start": False, "at_end": False, "every_n_epochs": None, "every_n_steps": NEVER})
    return short


def name_parts(module: PopulationModule) -> None:
    """Prefix errors of the loss and of an optimizer step with their keys."""

    def named(key: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*arguments: Any, **keywords: Any) -> Any:
            with prefix_errors(key):
                return call(*arguments, **keywords)

        return calling

    make = module.make_optimizer

    def make_optimizer(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = make(*arguments)
        optimizer.step = named("optimizer", optimizer.step)  # type: ignore[method-assign]
        return optimizer

    module.make_optimizer = make_optimizer
    module.task.loss = named("loss", module.task.loss)  # type: ignore[method-assign]


class NoProgress(Progress):
    """The progress of a dry run, which nobody sees."""

    def __init__(self) -> None:
        self.said = set()

    def advance(self, epochs: int, words: str = "") -> None:
        """Show nothing."""

    def tell(self, notice: str) -> None:
        """Say nothing: the training will."""


@contextmanager
def silenced() -> Iterator[None]:
    """Hide log lines and warnings of a dry run: the training gives them again."""
    log, level = logging.getLogger("normlab"), logging.getLogger("normlab").level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextmanager
def innermost(net: nn.Module) -> Iterator[Callable[[], str]]:
    """Know the layer that was entered last, by name and class: where an error came from."""
    entered = [("net", net)]
    handles = [
        layer.register_forward_pre_hook(lambda layer, _, name=name: entered.append((name, layer)))
        for name, layer in net.named_modules()
    ]
    try:
        yield lambda: f"{entered[-1][0] or 'net'} ({type(entered[-1][1]).__name__})"
    finally:
        for handle in handles:
            handle.remove()


def notices_of_layers(net: nn.Module, sizes: Iterable[int]) -> list[str]:
    """Return the warnings of layers with a method ``notices`` about minibatches of these sizes, each once."""
    layers: list[Any] = [layer for layer in net.modules() if hasattr(layer, "notices")]
    return list(dict.fromkeys(notice for size in sizes for layer in layers for notice in layer.notices(size)))


def notices_of_metrics(config: DictConfig, result: Result) -> list[str]:
    """Return a line where the metric that runs are judged by is no number after the first steps."""
    metric = config.optimized_metric
    metrics = result.last.metrics if result.last else {}
    if not math.isnan(metrics.get(metric, 0.0)) or math.isnan(metrics.get("train/loss", math.nan)):
        return []
    return [f"{metric} is not a number after the first epoch of a dry run; a run without one has no best epoch"]


def require_metrics(config: DictConfig, result: Result) -> None:
    """Refuse to judge a run by a metric that it never has."""
    there = result.last.metrics if result.last else {}
    known = [name for name in there if name.startswith(("train/", "val/")) and name != "train/lr"]
    stopping = config.callbacks.early_stopping
    judges = {"optimized_metric": config.optimized_metric}
    judges |= {"callbacks.early_stopping.monitor": stopping.monitor} if stopping else {}
    for key, metric in judges.items():
        require(metric in known, key, f"one of {', '.join(known)} with this data", metric)
    every, epochs = config.trainer.check_val_every_n_epoch, config.trainer.max_epochs
    seen = epochs == 0 or every <= epochs or config.optimized_metric.startswith("train/")
    require(seen, "trainer.check_val_every_n_epoch", f"at most the {epochs} epochs", every)
