"""Makes torch's schedulers from configuration nodes: :func:`make_scheduler`."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from hydra.utils import get_object

from normlab.config.frozen import FrozenConfig
from normlab.config.schema import SCHEDULER_TIMING
from normlab.config.validation import parameters_of
from normlab.data.sampling import batch_sizes
from normlab.errors import ConfigError, first_line, require
from normlab.population.schedulers import Hyperparameters, PopulationScheduler
from normlab.training.instantiate import make, missing_arguments

TORCH = "torch.optim.lr_scheduler."


def make_scheduler(node: Mapping[str, Any], optimizer: torch.optim.Optimizer, key: str = "scheduler") -> Any:
    """Return the scheduler of a node; schedulers among its arguments get the same optimizer.

    Raises:
        ConfigError: if an argument is missing, or the constructor fails.
    """
    takes_optimizer = "optimizer" in parameters_of(key, node["_target_"])
    missing = [name for name in missing_arguments(key, node) if name != "optimizer"]
    for name in missing:
        raise ConfigError(f"{key}: {node['_target_']} needs the argument {name}; write {key}.{name}=…")
    arguments = {
        name: made(value, optimizer, f"{key}.{name}")
        for name, value in node.items()
        if not name.startswith("_") and not (key == "scheduler" and name in SCHEDULER_TIMING)
    }
    if takes_optimizer:
        arguments["optimizer"] = optimizer
    if node["_target_"] == f"{TORCH}OneCycleLR" and isinstance(arguments.get("max_lr"), int | float):
        arguments["max_lr"] = in_proportion(arguments["max_lr"], optimizer)
    try:
        scheduler = get_object(node["_target_"])(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {first_line(error)}") from error
    steps = hasattr(scheduler, "step") and hasattr(scheduler, "state_dict")
    require(steps, f"{key}._target_", "a scheduler of torch, with step and state_dict", node["_target_"])
    return scheduler


def in_proportion(max_lr: float, optimizer: torch.optim.Optimizer) -> float | list[float]:
    """Return the largest learning rate of each parameter group, in proportion to the groups' learning rates."""
    first, *others = (group["lr"] for group in optimizer.param_groups)
    return max_lr if all(lr == first for lr in others) else [max_lr * lr / first for lr in (first, *others)]


def made(value: Any, optimizer: torch.optim.Optimizer, key: str) -> Any:
    """Return an argument of a scheduler, with the objects of its nodes made."""
    if isinstance(value, list):
        return [made(entry, optimizer, f"{key}[{number}]") for number, entry in enumerate(value)]
    if not isinstance(value, Mapping) or "_target_" not in value:
        return value
    schedules = "optimizer" in parameters_of(key, value["_target_"])
    return make_scheduler(value, optimizer, key) if schedules else make(value)


def scheduler_maker(nodes: Sequence[FrozenConfig]) -> Callable[..., PopulationScheduler] | None:
    """Return a function that makes the scheduler from a population's optimizer and K; None without one."""
    if not nodes[0].get("_target_"):
        return None
    texts = [json.dumps(node) for node in nodes]
    shared = {text: partial(make_scheduler, node) for text, node in zip(texts, nodes, strict=True)}
    timing = {name: nodes[0][name] for name in SCHEDULER_TIMING if name in nodes[0]}
    return lambda optimizer, members: PopulationScheduler(optimizer, [shared[text] for text in texts], **timing)


def with_total_steps(config: Mapping[str, Any]) -> FrozenConfig:
    """Return the scheduler node, with the number of its steps for OneCycleLR if the node has none."""
    node: FrozenConfig = config["scheduler"]
    lacks = not any(node.get(name) for name in ("total_steps", "epochs", "steps_per_epoch"))
    if node.get("_target_") != f"{TORCH}OneCycleLR" or not lacks:
        return node
    return FrozenConfig.of(node | {"total_steps": max(1, scheduler_steps(config))})


def scheduler_steps(config: Mapping[str, Any]) -> int:
    """Return the number of steps of the scheduler in a training."""
    node, data = config["scheduler"], config["data"]
    epochs: int = config["trainer"]["max_epochs"]
    frequency: int = node.get("frequency", 1)
    if node.get("interval") != "step":
        return epochs // frequency
    return epochs * (len(batch_sizes(data["train"], data["batch_size"])) // frequency)


def check_scheduler(config: Mapping[str, Any], scheduler: PopulationScheduler) -> None:
    """Raise ConfigError for a schedule that ends before the training, or timing that does not fit it."""
    node = config["scheduler"]
    name = node["_target_"].rpartition(".")[2]
    if scheduler.needs_metric:
        wanted = f"epoch: the metric of {name} is measured once per epoch"
        require(scheduler.interval == "epoch", "scheduler.interval", wanted, scheduler.interval)
    else:
        wanted = f"null, as {name} uses no metric"
        require(scheduler.monitor is None, "scheduler.monitor", wanted, scheduler.monitor)
    total, steps = getattr(scheduler.schedulers[0], "total_steps", None), scheduler_steps(config)
    if isinstance(total, int):
        wanted = f"at least {steps}, the steps of the scheduler in this training"
        require(total >= steps, "scheduler.total_steps", wanted, total)


def needs_metric(node: Mapping[str, Any]) -> bool:
    """Return True if the scheduler of a node is stepped with a metric, as ReduceLROnPlateau."""
    if not node.get("_target_"):
        return False
    holder = Hyperparameters([{"lr": 0.1, "betas": (0.9, 0.999), "momentum": 0.9}])
    return PopulationScheduler(holder, [partial(make_scheduler, node)]).needs_metric
