"""Refusing what cannot be trained, before anything is."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from normlab.checks import check
from normlab.config import ConfigError, first_line, require
from normlab.data.datamodule import Split
from normlab.data.order import batch_sizes
from normlab.probes.graph import Graph
from normlab.probes.scene import Probe, Scene
from normlab.records.folder import plain
from normlab.training.build import make_data, make_module, make_probes, make_trainer
from normlab.training.module import NormModule
from normlab.training.population import copy_of


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
    sizes = sorted(set(batch_sizes(len(table), data.batch_size)))
    with innermost(module.population.net) as where:
        for size in sizes:
            try:
                outputs = module(table.x[None, :size].to(module.dtype))
                with module.eval().evaluating(), torch.no_grad():
                    module(table.x[None, :size].to(module.dtype))
                module.train()
            except Exception as error:
                raise ConfigError(f"{where()} cannot take a batch of {size}: {first_line(error)}") from error
    try:
        known = module.values(outputs, table.y[None, : outputs.shape[1]])
    except Exception as error:
        raise ConfigError(f"metrics: {first_line(error)}") from error
    for name, value in known.items():
        require(value.dim() == 1, f"metrics.{name}", "one number for each net", f"shape {tuple(value.shape[1:])}")
    require_metrics(config, known)
    x, y = table.x[None, : sizes[-1]].to(module.dtype), table.y[None, : sizes[-1]]
    require_visible(make_probes(config), module, (x, module.cast((x, y))[1]))
    return [*data.notices, *notices_of_layers(module.population.net, sizes)]


def require_visible(probes: Mapping[str, Probe | Graph], module: NormModule, batch: Split) -> None:
    """Refuse probes that have nothing to look at in a net, or that it does not let look: many points at a time."""
    population, (x, y) = module.population, batch
    state, number = copy_of(population), torch.zeros(1, dtype=torch.float64)
    trained = [name for name, parameter in population.net.named_parameters() if parameter.requires_grad]
    generators = [torch.Generator().manual_seed(0)]
    scene = Scene(
        population.net,
        module.task.loss,
        trained,
        state,
        state,
        state,
        batch,
        (x[0], y[0]),
        number,
        None,
        generators,
        0,
        0,
    )
    for name, probe in probes.items():
        try:
            probe.check(population.net)
            for mode in probe.modes if isinstance(probe, Probe) else ():
                landscape = scene.landscape(mode)
                landscape.losses(landscape.theta.expand(2, *landscape.theta.shape))
        except Exception as error:
            raise ConfigError(f"probes.{name}: {first_line(error)}") from error


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
    """Return what layers with a method ``notices`` have to say of minibatches of these sizes, each once."""
    layers: list[Any] = [layer for layer in net.modules() if hasattr(layer, "notices")]
    return list(dict.fromkeys(notice for size in sizes for layer in layers for notice in layer.notices(size)))


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
