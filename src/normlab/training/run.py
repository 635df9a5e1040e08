"""Trains the runs of a population, :func:`train`, after a dry run has checked them, :func:`dry_run_once`."""

import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normlab import lightning  # noqa: F401 - comes before the other imports of Lightning
from normlab.config.frozen import FrozenConfig, KeyPath, is_population, replaced
from normlab.config.module import UNSUPPORTED_TRAINER_ARGUMENTS, check_module
from normlab.config.validation import check_targets
from normlab.data.datamodule import InMemoryData
from normlab.data.sampling import batch_sizes
from normlab.errors import ConfigError, first_line, prefix_errors, require, user_file, user_line
from normlab.interrupts import interrupts
from normlab.models.layer_lookup import call_hooks, norm_slots
from normlab.probes.snapshot import Probe
from normlab.results.folder import reusable_result
from normlab.results.result import Result
from normlab.training.build import (
    make_module,
    make_probes,
    make_trainer,
    precision_of,
    shared_data,
)
from normlab.training.extra import as_trained, make_callbacks, make_loggers
from normlab.training.lightning_parts import untaken_parts_notices
from normlab.training.optimizers import example_optimizer, needs_closure
from normlab.training.packed_runs import check_packable, is_packed
from normlab.training.population_module import PopulationModule
from normlab.training.processes import share_sizes
from normlab.training.progress import Progress
from normlab.training.resuming import check_checkpoint
from normlab.training.run_folders import Run
from normlab.training.saving import state_path
from normlab.training.schedules import check_scheduler, scheduler_maker, with_total_steps
from normlab.training.session import TrainingSession
from normlab.training.stackability import DryRun, footprint_of, population_key, without_extra
from normlab.training.step_checks import checked_steps
from normlab.training.trainer_checks import check_accelerator, check_batches

log = logging.getLogger("normlab")
NEVER = 10**12
"""An interval in steps that makes a probe measure at the first step only."""


def train(
    runs: Sequence[Run], progress: Progress | None = None, trial: DryRun | None = None, populations: int = 1
) -> list[Result]:
    """Train runs with equal population keys as one population, and return their results in order.

    Runs whose folder holds a finished result keep it.

    Args:
        runs: of the population.
        progress: the bar of a sweep; by default the population shows one.
        trial: the dry run of their population key, by default made here.
        populations: number of populations with this key in the sweep; many of them make compiling worthwhile.

    Raises:
        ConfigError: if a configuration cannot be trained, or a folder belongs to another configuration.
    """
    if progress is None:
        with Progress(runs[0].name, runs[0].config.trainer.max_epochs, len(runs)) as bar:
            return train(runs, bar, trial, populations)
    results = [reusable_result(run.folder, run.config) for run in runs]
    done = {k for k, result in enumerate(results) if result is not None and result.status.done}
    for run in runs if len(done) == len(runs) else ():
        log.info("%s is done already; its result is read from %s", run.name, run.folder)
    if len(done) < len(runs):
        trial = trial or dry_run_once(runs[0].config)
        for notice in trial.warnings:
            progress.warn_once(notice)
        # A tracking service would get the members that are done a second time.
        left = [k for k in range(len(runs)) if not (k in done and runs[0].config.logger.extra)]
        again = {place for place, k in enumerate(left) if k in done}
        trained = train_to_the_end([runs[k] for k in left], again, progress, trial, populations)
        for k, result in zip(left, trained, strict=True):
            results[k] = results[k] if k in done else result
    return [result for result in results if result is not None]


def train_to_the_end(
    runs: Sequence[Run], done: Container[int], progress: Progress, trial: DryRun, populations: int
) -> list[Result]:
    """Train the runs of a population, from its state if there is one, and return their results.

    A member may have other bits in a population of another size. Those that are done are therefore trained once
    more, in temporary folders.
    """
    with tempfile.TemporaryDirectory() as folder:
        members = [
            replace(run, folder=Path(folder) / f"{k}") if k in done and not is_packed(run) else run
            for k, run in enumerate(runs)
        ]
        session = TrainingSession(members, progress, trial, populations, state_file=state_path(runs))
        return session.run()


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
    return replace(trial, warnings=[*data.notices, *untaken_parts_notices(config), *chain(*notices)])


def check_extra(run: Run) -> None:
    """Construct the callbacks and loggers of a run, and the Trainer of a single module."""
    callbacks, loggers = make_callbacks(run), make_loggers(run)
    if not is_population(run.config):
        make_trainer(run.config, callbacks, loggers)


def check_layers(module: PopulationModule, data: InMemoryData, sizes: Iterable[int], key: str = "") -> None:
    """Pass a minibatch of each size through the net, in training and in evaluation mode.

    Args:
        module: a population of one.
        data: its dataset.
        sizes: of the minibatches.
        key: before the message of an error; by default the batch size, if it is 1.

    Raises:
        ConfigError: if a layer fails, named by path and class; if the outputs do not fit the targets; or if the
            targets are neither classes nor floating-point numbers.
    """
    table, net = data.parts[0], module.population.net
    supported = table.is_classification or table.y.is_floating_point()
    require(supported, "data: the targets", "class indices or floating-point numbers", table.y.dtype)
    with track_innermost_layer(net) as where, track_reshaping(net) as reshaped:
        for size in sizes:
            x, _ = module.cast((table.x[None, :size], table.y[None, :size]))
            try:
                outputs = module(x)
                with module.eval().evaluation.context(), torch.no_grad():
                    module(x)
                module.train()
            except Exception as error:
                key = key or (f"data.batch_size={size}: " if size == 1 else "")
                reason = f"cannot take a batch of {size}: {first_line(error)}{user_line(error)}"
                raise ConfigError(f"{key}{next(iter(reshaped), f'{where()} {reason}')}") from error
            try:
                require_output_shape(outputs, (size, table.out_features))
            except ConfigError as error:
                raise ConfigError(next(iter(reshaped), str(error))) from error


def require_output_shape(outputs: Any, expected: tuple[int, int]) -> None:
    """Raise ConfigError unless outputs have the expected shape; the loss would broadcast others silently."""
    is_tensor = isinstance(outputs, Tensor)
    shape = tuple(outputs.shape[1:]) if is_tensor else type(outputs).__name__
    hint = " (add .unsqueeze(1))" if shape == expected[:1] else ""
    require(shape == expected, "net: the outputs", f"of shape {expected}{hint}", shape)


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


@contextmanager
def track_innermost_layer(net: nn.Module) -> Iterator[Callable[[], str]]:
    """Context manager that yields a function returning name and class of the layer entered last."""
    entered = [("net", net)]
    handles = [
        layer.register_forward_pre_hook(lambda layer, _, name=name: entered.append((name, layer)))
        for name, layer in net.named_modules()
    ]
    try:
        yield lambda: f"{entered[-1][0] or 'net'} ({class_name(entered[-1][1])})"
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def track_reshaping(net: nn.Module) -> Iterator[list[str]]:
    """Context manager that yields a list of messages about normalizers that change the shape of their input.

    A net may allow for that, so they explain an error and are none by themselves.
    """
    messages: list[str] = []

    def compare(name: str, layer: nn.Module, args: tuple, kwargs: dict[str, Any], y: Any) -> None:
        expected, got = args[0].shape, y.shape if isinstance(y, Tensor) else None
        if got != expected:
            found = type(y).__name__ if got is None else tuple(got)
            messages.append(
                f"{name}.norm ({class_name(layer)}) must return a tensor of the shape of its input, "
                f"{tuple(expected)}, got {found}; correct its forward{definition(type(layer).forward)}"
            )

    with call_hooks(norm_slots(net), after=compare):
        yield messages


def class_name(layer: nn.Module) -> str:
    """Return the name of a layer's class, with its module unless that is of normlab or torch."""
    kind = type(layer)
    known = kind.__module__.partition(".")[0] in ("normlab", "torch")
    return kind.__name__ if known else f"{kind.__module__}.{kind.__qualname__}"


def definition(function: Callable[..., Any]) -> str:
    """Return " (file, line N)" of a function in a user's code; empty for another one."""
    code = getattr(function, "__code__", None)
    file = user_file(code.co_filename) if code else ""
    return f" ({file}, line {code.co_firstlineno})" if code and file else ""


@contextmanager
def explain_kept_graph(net: nn.Module) -> Iterator[None]:
    """Context manager that names the buffer with the graph of an earlier step, through which a step cannot go."""
    try:
        yield
    except RuntimeError as error:
        for name, layer in net.named_modules() if "backward through the graph a second" in str(error) else ():
            for own, buffer in layer.named_buffers(recurse=False):
                if buffer.requires_grad:
                    raise ConfigError(
                        f"{name} ({class_name(layer)}): the buffer {own} keeps the graph of a step; change it in "
                        f"place and without gradient: self.{own}.copy_(….detach())"
                    ) from error
        raise


def layer_warnings(net: nn.Module, sizes: Iterable[int]) -> list[str]:
    """Return distinct warnings of the layers' ``notices`` methods about minibatches of these sizes."""
    layers: list[Any] = [layer for layer in net.modules() if hasattr(layer, "notices")]
    return list(dict.fromkeys(notice for size in sizes for layer in layers for notice in layer.notices(size)))


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
