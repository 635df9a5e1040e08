"""Checks before the first step that a configuration can be trained: :func:`dry_run_once`."""

import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from normlab import lightning  # noqa: F401 - comes before the other imports of Lightning
from normlab.config.frozen import FrozenConfig, KeyPath, is_population, replaced
from normlab.config.module import UNSUPPORTED_TRAINER_ARGUMENTS, check_module
from normlab.config.validation import check_targets
from normlab.data.datamodule import InMemoryData
from normlab.data.sampling import batch_sizes
from normlab.errors import ConfigError, prefix_errors, require
from normlab.interrupts import interrupts
from normlab.probes.snapshot import Probe
from normlab.results.result import Result
from normlab.training.build import (
    make_module,
    make_probes,
    make_trainer,
    precision_of,
    shared_data,
)
from normlab.training.extra import as_trained, make_callbacks, make_loggers
from normlab.training.layer_checks import batch_dependence, check_layers, explain_kept_graph, layer_warnings
from normlab.training.lightning_parts import untaken_parts_notices
from normlab.training.optimizers import example_optimizer, needs_closure
from normlab.training.packed_runs import check_packable
from normlab.training.population_module import PopulationModule
from normlab.training.processes import share_sizes
from normlab.training.progress import Progress
from normlab.training.resuming import check_checkpoint
from normlab.training.run_folders import Run
from normlab.training.schedules import check_scheduler, scheduler_maker, with_total_steps
from normlab.training.session import TrainingSession
from normlab.training.stackability import DryRun, footprint_of, population_key, without_extra
from normlab.training.step_checks import checked_steps
from normlab.training.trainer_checks import check_accelerator, check_batches

NEVER = 10**12
"""An interval in steps that makes a probe measure at the first step only."""

_passed: dict[str, DryRun] = {}


def dry_run_once(config: FrozenConfig) -> DryRun:
    """Check that a configuration can be trained, once per population key.

    Optimizer and scheduler are constructed for each configuration. Everything else is checked once for all runs
    that could share a population: minibatches of each size pass through the net, and a training on a few samples
    takes a step with each size, validates, tests and probes.

    Raises:
        ConfigError: if the configuration cannot be trained, with the reason in one line.
    """
    interrupts.check()
    check_targets(config)
    if config.get("records") == "packed":
        check_packable(config)
    check_accelerator(config.trainer)
    trained = as_trained(config)
    if is_population(trained):
        keys = ("optimizer", "scheduler", "data", "trainer")
        check_optimizer(json.dumps({key: config[key] for key in keys}))
    else:
        check_module(trained)
        check_batches(trained)
    key = population_key(config)
    if key not in _passed:
        with hide_warnings():
            _passed[key] = dry_run(config)
    if config.get("ckpt_path"):
        check_checkpoint(trained, shared_data(config))
    return _passed[key]


@lru_cache(maxsize=4096)
def check_optimizer(text: str) -> None:
    """Construct the optimizer and the scheduler for a dummy parameter.

    Args:
        text: the nodes optimizer, scheduler, data and trainer as JSON, so that equal ones are checked once.

    Raises:
        ConfigError: if construction fails, or if the optimizer's step needs a closure.
    """
    config = FrozenConfig.of(json.loads(text))
    optimizer = example_optimizer(config.optimizer)
    make_scheduler = scheduler_maker([with_total_steps(config)])
    if make_scheduler is not None:
        check_scheduler(config, make_scheduler(optimizer, 1))
    if needs_closure(optimizer):
        target = config.optimizer._target_
        raise ConfigError(
            f"optimizer._target_={target} needs a closure, which a population lacks; use module=lightning"
        )


def dry_run(config: FrozenConfig) -> DryRun:
    """Pass minibatches through the net, then train on a few samples in a temporary folder."""
    typed, config = config, as_trained(config)
    data, short = shared_data(config), dry_run_config(config)
    processes = 1 if is_population(config) else make_trainer(config, []).world_size
    sizes = sorted(set(batch_sizes(len(data.parts[0]), data.batch_size)))
    few = first_samples(data, sum(sizes))
    module = make_module([short], few).to(precision_of(config))
    check_layers(module, data, sizes)
    shares = share_sizes(config, sizes, processes, module.population.net)
    check_layers(module, data, shares, f"trainer.devices={config.trainer.devices}: ")
    dependence = batch_dependence(module, data, sizes[-1])
    trial = DryRun.of(typed, data, footprint_of(module, data, precision_of(config)))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(short, Path(folder) / "run", "dry run", {}, [])
        check_extra(Run(config, run.folder, run.name, {}, []))
        tried = module if is_population(config) else None
        session = TrainingSession([run], Progress("", 0, shown=False), trial, data=few, module=tried)
        for name, probe in make_probes(config).items():
            with prefix_errors(f"probes.{name}"):
                probe.check(module.population.net)
        prefix_part_errors(module)
        if is_population(config):
            with prefix_errors("dry run"), explain_kept_graph(module.population.net):
                (result,) = session.run()
        else:
            with checked_steps(session.trained, config.module._target_):
                (result,) = session.run()
    require_metrics(config, result)
    notices = layer_warnings(module.population.net, sizes), metric_warnings(config, result), epoch_warnings(typed)
    return replace(trial, warnings=[*data.notices, *untaken_parts_notices(config), *dependence, *chain(*notices)])


def check_extra(run: Run) -> None:
    """Construct the callbacks and loggers of a run, and the Trainer of a single module."""
    callbacks, loggers = make_callbacks(run), make_loggers(run)
    if not is_population(run.config):
        make_trainer(run.config, callbacks, loggers)


def first_samples(data: InMemoryData, samples: int) -> InMemoryData:
    """Return the data with only the first ``samples`` rows of the training split."""
    few = data.with_seed(data.seed)
    train, *rest = data.parts
    few.train, few._parts = samples, (train.at(torch.arange(samples)), *rest)
    return few


def dry_run_config(config: FrozenConfig) -> FrozenConfig:
    """Return the configuration with one epoch, one measurement per probe, and no ``extra``."""
    trainer = {"max_epochs": 1, "check_val_every_n_epoch": 1, "fast_dev_run": False, "compile": False}
    if not is_population(config) and config.trainer.devices not in (1, "1"):
        trainer["devices"] = 1
    once = {"at_start": False, "at_end": False, "every_n_epochs": None, "every_n_steps": NEVER}
    names = [name for name, probe in make_probes(config).items() if isinstance(probe, Probe)]
    kept = {key: value for key, value in config.trainer.items() if key not in UNSUPPORTED_TRAINER_ARGUMENTS}
    changes: dict[KeyPath, Any] = {("trainer",): FrozenConfig.of(kept | trainer), ("ckpt_path",): None}
    changes |= {("probes", name, key): value for name in names for key, value in once.items()}
    return without_extra(FrozenConfig.of(replaced(config, changes)))


def prefix_part_errors(module: PopulationModule) -> None:
    """Prefix errors raised by the loss and by the optimizer's step with ``loss`` or ``optimizer``."""

    def named(key: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            with prefix_errors(key):
                return call(*arguments, **keywords)

        return wrapped

    make = module.make_optimizer

    def make_optimizer(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = make(*arguments)
        for step in ("step", "advance"):
            if hasattr(optimizer, step):
                setattr(optimizer, step, named("optimizer", getattr(optimizer, step)))
        return optimizer

    module.make_optimizer = make_optimizer
    module.task.loss = named("loss", module.task.loss)  # type: ignore[method-assign]


@contextmanager
def hide_warnings() -> Iterator[None]:
    """Context manager that hides log lines and warnings, which the training repeats."""
    log, level = logging.getLogger("normlab"), logging.getLogger("normlab").level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def metric_warnings(config: FrozenConfig, result: Result) -> list[str]:
    """Return a warning if the optimized metric is NaN although the training loss is not."""
    metric = config.optimized_metric
    metrics = result.last.metrics if result.last else {}
    if not math.isnan(metrics.get(metric, 0.0)) or math.isnan(metrics.get("train/loss", math.nan)):
        return []
    return [f"{metric} is NaN after the first epoch of the dry run; a run with only NaN has no best epoch"]


def epoch_warnings(config: FrozenConfig) -> list[str]:
    """Return a warning if a run has no epochs, and no probe that measures its initial net."""
    if config.trainer.max_epochs > 0 or config.probes:
        return []
    return ["trainer.max_epochs=0: nothing is trained and no metric is measured; probes=… measure the initial net"]


def require_metrics(config: FrozenConfig, result: Result) -> None:
    """Raise ConfigError if a run never has the optimized metric or the metric of early stopping."""
    measured = result.last.metrics if result.last else {}
    known = [name for name in measured if name.startswith(("train/", "val/")) and name != "train/lr"]
    stopping = config.callbacks.early_stopping
    monitored = {"optimized_metric": config.optimized_metric}
    monitored |= {"callbacks.early_stopping.monitor": stopping.monitor} if stopping else {}
    if config.scheduler.get("monitor"):
        monitored["scheduler.monitor"] = config.scheduler.monitor
    for key, metric in monitored.items():
        if not known:
            target = config.module._target_
            raise ConfigError(f"{key}={metric}: {target} logs no metrics of training; log them with self.log")
        require(metric in known, key, f"one of {', '.join(known)} with this data", metric)
    every, epochs = config.trainer.check_val_every_n_epoch, config.trainer.max_epochs
    validated = epochs == 0 or every <= epochs or config.optimized_metric.startswith("train/")
    require(validated, "trainer.check_val_every_n_epoch", f"at most trainer.max_epochs={epochs}", every)
