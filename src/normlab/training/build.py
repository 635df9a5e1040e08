"""Builds datamodule, net, LightningModule, probes and Trainer from the configurations of runs."""

import inspect
import json
import logging
import signal
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import get_object
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.loggers import Logger
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from torch import nn

from normlab.config.frozen import FrozenConfig, is_population
from normlab.config.schema import DEFAULT_DATA_SEED
from normlab.data.datamodule import InMemoryData
from normlab.data.sampling import batch_sizes, derive_seed
from normlab.errors import ConfigError, first_line, prefix_errors
from normlab.population.evaluation import Classification, Regression, Task
from normlab.population.losses import LossFunction, MemberLoss, squared_error
from normlab.population.optim import Clipping
from normlab.population.population import Population, initial_nets, seeded
from normlab.probes.graph import Graph
from normlab.probes.snapshot import Probe
from normlab.training.instantiate import is_class, layer_maker, make, missing_arguments, require_arguments
from normlab.training.optimizers import optimizer_maker
from normlab.training.population_module import PopulationModule
from normlab.training.schedules import scheduler_maker, with_total_steps
from normlab.training.strategy import strategy_of
from normlab.training.trainable import restrict_training

# Hide Lightning's hints about unused GPUs and optional packages, but not the reports of its callbacks.
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
for _name in ("pytorch_lightning.callbacks", "pytorch_lightning.utilities.rank_zero"):
    logging.getLogger(_name).setLevel(logging.INFO)
logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
    lambda record: record.levelno >= logging.ERROR or Path(record.pathname).parent.name == "callbacks"
)
LOSS_SAMPLES = 32
"""Samples that a foreign loss is tried with."""


def make_data(config: FrozenConfig, *others: FrozenConfig) -> InMemoryData:
    """Return the datamodule of a run or a population, with splits in the training precision.

    The global generators are seeded with each member's data seed while its data are drawn and split.

    Raises:
        ConfigError: if the dataset cannot be made.
    """
    seeds = [data_seed(member) for member in (config, *others)]
    dataset = make(config.data)
    try:
        with seeded(seeds[0]):
            data: InMemoryData = dataset.for_members(seeds)
        for member in dict.fromkeys(data.members):
            member.dtype = precision_of(config)
            with seeded(member.seed):
                _ = member.parts
    except ValueError as error:
        raise ConfigError(first_line(error)) from error
    return data


_latest: dict[str, InMemoryData] = {}


def shared_data(config: FrozenConfig) -> InMemoryData:
    """Return the datamodule of a run, which is built once for consecutive calls; callers must not change it."""
    key = json.dumps([config.data, data_seed(config), config.trainer.precision])
    if key not in _latest:
        _latest.clear()
        _latest[key] = make_data(config)
    return _latest[key]


def data_seed(config: FrozenConfig) -> int:
    """Return the seed for drawing and splitting the data of a run.

    With ``replicate=data`` it is derived from ``data.seed`` and ``seed``, so that replicates have different
    samples or splits; with ``replicate=seed`` it is ``data.seed``.
    """
    seed: int = config.data.get("seed", DEFAULT_DATA_SEED)
    return derive_seed(seed, "replicate", config.seed) if config.get("replicate") == "data" else seed


def net_maker(config: FrozenConfig, data: InMemoryData) -> Callable[[], nn.Module]:
    """Return a function that makes a net for this data, with the normalizers and weight maps of the model.

    The number of optimizer steps of the training is assigned to every layer whose ``total_steps`` is None.
    Parameters that ``trainable`` does not select are frozen; its random entries depend on the seed of torch alone.

    Raises:
        ConfigError: if the net takes neither of the model's normalizers, or no weight parametrization; by the
            function: if ``trainable`` selects no parameter.
    """
    accepted = inspect.signature(get_object(config.net._target_)).parameters
    parts = {name: node for name, node in config.model.items() if node is not None}
    scale = parts.pop("branch_scale", None)
    if scale is not None and "branch_scale" not in accepted:
        target = config.net._target_
        raise ConfigError(
            f"model.branch_scale has no effect: {target} has no residual branches; choose net=resmlp"
        )
    require_model_arguments(config.net._target_, accepted, parts)
    require_effective_sync(config.net._target_, accepted, parts)
    makers = {name: layer_maker(f"model.{name}", node) for name, node in parts.items() if name in accepted}
    make_net = make(config.net)
    table = data.parts[0]
    total_steps = config.trainer.max_epochs * len(batch_sizes(len(table), data.batch_size))

    def net() -> nn.Module:
        made = make_net(table.input_shape, table.out_features, **makers)
        for layer in made.modules():
            if getattr(layer, "total_steps", 0) is None:
                layer.total_steps = total_steps
        return restrict_training(made, config.trainable, torch.initial_seed())

    return net


def require_model_arguments(net: str, accepted: Container[str], parts: Container[str]) -> None:
    """Raise ConfigError if the net takes no argument for the model's normalizer or weight parametrization.

    Args:
        net: its ``_target_``, for the message.
        accepted: names of the net's arguments.
        parts: names of the model's entries that are not None.
    """
    kinds = {"norm": "rows of features", "norm2d": "images"}
    configured, usable = ([kind for kind in kinds if kind in names] for names in (parts, accepted))
    if configured and not any(kind in usable for kind in configured):
        has = f"a normalizer for {kinds[configured[0]]} alone, model.{configured[0]}"
        takes = f"one for {kinds[usable[0]]}, model.{usable[0]}" if usable else "none"
        raise ConfigError(f"model: there is {has}, but {net} takes {takes}; choose another net or model")
    if "weight" in parts and "weight" not in accepted:
        raise ConfigError(f"model.weight: {net} takes no weight parametrization; choose another net or model")


def require_effective_sync(net: str, accepted: Container[str], parts: Mapping[str, Any]) -> None:
    """Raise ConfigError if ``sync`` is set for a normalizer that the net does not take, and for no other."""
    synced = [name for name, node in parts.items() if node.get("sync")]
    if synced and not any(name in accepted for name in synced):
        used = next(name for name in parts if name in accepted)
        raise ConfigError(
            f"model.{synced[0]}.sync has no effect: {net} takes model.{used}; write +model.{used}.sync=true"
        )


def make_task(data: InMemoryData, loss: Mapping[str, Any]) -> Task:
    """Return classification or regression, as the targets are, with the loss of a node; empty: the task's loss."""
    table = data.parts[0]
    task: type[Task] = Classification if table.is_classification else Regression
    if not loss:
        return task()
    function, name = make_loss(loss), loss["_target_"]
    if getattr(function, "func", None) is squared_error:  # as a formula of all members
        return task(summed=True)
    targets = table.y[None, :LOSS_SAMPLES].expand(2, *table.y[:LOSS_SAMPLES].shape)
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, targets.shape[1], table.out_features, generator=generator)
    with prefix_errors("loss"):
        return task(own_loss=MemberLoss(function, name, outputs.to(data.dtype), targets))


def make_loss(node: Mapping[str, Any]) -> LossFunction:
    """Return the loss of one net: an instance of a class, or a function with its arguments.

    Lists of numbers for ``weight`` and ``pos_weight`` of torch's losses become tensors.

    Raises:
        ConfigError: if it lacks an argument besides outputs and targets, or cannot be made.
    """
    with prefix_errors("loss"):
        if not is_class(node):
            require_arguments("loss", node, 2)
            return make({**node, "_partial_": True} if missing_arguments("loss", node) else node)
        require_arguments("loss", node, 0)
        lists = {key: node[key] for key in ("weight", "pos_weight") if isinstance(node.get(key), list)}
        rest = {key: value for key, value in node.items() if key not in lists}
        return make(rest, **{key: torch.tensor(value, dtype=torch.float64) for key, value in lists.items()})


def make_module(configs: Sequence[FrozenConfig], data: InMemoryData) -> PopulationModule:
    """Return the LightningModule of a population, with one member per configuration.

    The configurations may differ in their seeds and in the numbers of a stacked optimizer and its schedule.
    """
    seeds = [config.seed for config in configs]
    return PopulationModule(
        Population(initial_nets(net_maker(configs[0], data), seeds)),
        make_task(data, configs[0].loss),
        seeds,
        optimizer_maker([config.optimizer for config in configs]),
        scheduler_maker([with_total_steps(config) for config in configs]),
        clipping=make_clipping(configs[0].trainer),
        compiles=bool(configs[0].trainer.compile),
        **measuring_options(configs[0]),
    )


def measuring_options(config: FrozenConfig) -> dict[str, Any]:
    """Return the arguments of a :class:`PopulationModule` that concern its measurements."""
    callbacks, ends = config.callbacks, ("max_steps", "max_time")
    stops_early = callbacks.early_stopping is not None or any(key in config.trainer for key in ends)
    return {
        "statistics": config.statistics,
        "extra_metrics": {name: make_metric(str(name), node) for name, node in config.metrics.items()},
        "stats_warmup_epochs": config.stats_warmup_epochs,
        "train_eval_every": config.train_eval_every,
        "may_stop_early": stops_early or bool(callbacks.extra),
    }


def make_metric(name: str, node: FrozenConfig) -> Any:
    """Return a metric: a function of outputs and targets, or a metric of torchmetrics."""
    if not node.get("_partial_"):
        for missing in missing_arguments(f"metrics.{name}", node):
            raise ConfigError(
                f"metrics.{name}: {node._target_} needs the argument {missing}; write metrics.{name}.{missing}=…, "
                "or _partial_: true for a function of outputs and targets"
            )
    return make(node)


def make_clipping(trainer: FrozenConfig) -> Clipping | None:
    """Return the gradient clipping of a Trainer configuration, None if gradients are not clipped."""
    limit = trainer.get("gradient_clip_val")
    return None if limit is None else Clipping(limit, trainer.get("gradient_clip_algorithm", "norm"))


def make_probes(config: FrozenConfig) -> dict[str, Probe | Graph]:
    """Return the probes by name; errors are prefixed with the key of the probe."""
    probes = {}
    for name, node in config.probes.items():
        try:
            probes[str(name)] = make(node)
        except ConfigError as error:
            raise ConfigError(f"probes.{name}: {error}") from error
    return probes


def precision_of(config: FrozenConfig) -> torch.dtype:
    """Return the dtype of parameters and data: float64 for ``trainer.precision=64-true``, else float32."""
    return torch.float64 if str(config.trainer.precision).startswith("64") else torch.float32


def make_trainer(
    config: FrozenConfig, callbacks: list[pl.Callback], loggers: Sequence[Logger] = (), folder: str | None = None
) -> pl.Trainer:
    """Return the Trainer, without Lightning's default checkpoints, progress bar and model summary.

    Args:
        config: of the run.
        callbacks, loggers: of the Trainer.
        folder: the default folder of Lightning's callbacks and loggers.
        logger: called before those of ``logger.extra``.
    """
    handled_here = {"threads", "compile", "save_every"}
    if is_population(config):
        handled_here |= {"gradient_clip_val", "gradient_clip_algorithm"}
    defaults: dict[str, Any] = {
        "default_root_dir": folder,
        "log_every_n_steps": 1,
        "enable_checkpointing": any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        "enable_progress_bar": False,
        # Otherwise Lightning takes over SLURM's variables, and refuses jobs with several tasks.
        "plugins": [LightningEnvironment()],
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    node = {key: value for key, value in config.trainer.items() if key not in handled_here}
    rest = {key: value for key, value in defaults.items() if key not in node}
    with prefix_errors("trainer"):
        strategy = None if is_population(config) else strategy_of(node, lambda: make(node, logger=False, **rest))
        if strategy is not None:
            # The batch sampler selects the share of each process.
            rest |= {"strategy": strategy, "use_distributed_sampler": False}
        trainer = make(node, callbacks=callbacks, logger=list(loggers) or False, **rest)
    trainer._signal_connector = UnchangedSignals(trainer)
    return trainer


class UnchangedSignals(_SignalConnector):
    """Leaves the handlers of signals in place, which :meth:`normlab.interrupts.Interrupts.recorded` installs.

    Lightning's own handler of SIGTERM ends a training at the end of an epoch, as if Ctrl-C had been pressed.
    """

    def register_signal_handlers(self) -> None:
        """Keep only the handler of Ctrl-C, which Lightning replaces while it shuts down and then restores."""
        self._original_handlers = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
