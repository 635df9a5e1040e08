"""Times optimizer steps of a sweep's configurations, interleaved in rounds in this process.

Training seconds cannot compare arms: members share the time of their population, and populations train one after
the other. The entry is :func:`time_configurations`.
"""

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import torch

from normlab.config.frozen import FOLDER_KEYS, TRAINER_FOLDER_KEYS, FrozenConfig
from normlab.data.datamodule import InMemoryData
from normlab.data.sampling import Split, batch_sizes
from normlab.errors import prefix_errors
from normlab.interrupts import interrupts
from normlab.population.compiling import Compiled
from normlab.population.kernels import tune_malloc
from normlab.population.resources import threads, threads_for
from normlab.results.folder import run_names
from normlab.results.provenance import environment, require_same_sources
from normlab.results.result import read_numbers
from normlab.results.sweep import (
    TIMING_FILE,
    Record,
    TimedConfiguration,
    Timing,
    overrides,
    read_sweep,
    representatives,
)
from normlab.training.build import data_seed, make_data, make_module, make_trainer, precision_of
from normlab.training.dry_run import dry_run_once
from normlab.training.stackability import choose_stacking, without_extra

log = logging.getLogger("normlab")
TIMING_ROUNDS = 20
BLOCK_SECONDS = 0.05
"""Approximate time of an arm's block of steps in one round."""

MIN_STEPS, WARMUP_STEPS = 5, 2
"""Smallest number of steps in a block, and untimed steps before it, which fill the caches."""

MAX_NAMED = 8
"""Largest number of configurations in the log line."""


def time_configurations(folder: Path, rounds: int = TIMING_ROUNDS) -> None:
    """Time the steps of all configurations of a sweep, and write ``timing.json`` into it.

    Raises:
        ConfigError: if code or data of a run have changed since it was trained.
        KeyboardInterrupt: on Ctrl-C; then nothing is written.
    """
    records = representatives(read_sweep(folder))
    if len(records) < 2:
        log.info("timing: nothing to compare, because no two finished configurations differ in the cost of a step")
        return
    started, names = datetime.now(UTC).isoformat(timespec="seconds"), configuration_names(records)
    log.info("timing: %d configurations in %d rounds, a second or more each", len(records), rounds)
    with interrupts.recorded():
        steppers = make_steppers(records, names)
        with raised_recompile_limit(steppers):
            for stepper in steppers:
                stepper.prepare()
            timed = interleaved([stepper.seconds_per_step for stepper in steppers], rounds)
    arms = [
        TimedConfiguration(
            run=record.folder.relative_to(folder).as_posix(),
            config=record.result.config,
            choices=record.result.choices,
            sources=record.result.sources,
            threads=stepper.threads,
            compiled=stepper.is_compiled,
            steps_per_block=stepper.steps,
            seconds_per_step=seconds,
        )
        for record, stepper, seconds in zip(records, steppers, timed, strict=True)
    ]
    Timing(started, arms, environment()).write(folder)
    log.info("timing: %s, %d rounds interleaved: %s", timing_summary(names, timed), rounds, folder / TIMING_FILE)


def interleaved(timers: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Call each timer once per round, in random order; return the values of each timer by round.

    The orders are the same in every call.
    """
    generator = np.random.default_rng(0)
    values: list[list[float]] = [[] for _ in timers]
    for _ in range(rounds):
        for index in generator.permutation(len(timers)):
            values[index].append(timers[index]())
    return values


def make_steppers(records: Sequence[Record], names: Sequence[str]) -> list["Stepper"]:
    """Make a stepper for each run; runs with equal data share one datamodule."""
    tune_malloc()
    datasets: dict[str, InMemoryData] = {}
    steppers = []
    for record, name in zip(records, names, strict=True):
        result = record.result
        require_same_sources(record.folder, result, result.config)
        with prefix_errors(f"timing: {name}"):
            config = FrozenConfig.of(read_numbers(result.config))
            key = json.dumps([result.config["data"], data_seed(config), str(precision_of(config))])
            if key not in datasets:
                datasets[key] = make_data(config)
            steppers.append(Stepper(config, datasets[key]))
    return steppers


@contextmanager
def raised_recompile_limit(steppers: "Sequence[Stepper]") -> Iterator[None]:
    """Context manager that raises Dynamo's recompile limit, so that all compiled steps are kept."""
    steps = [stepper.module.step for stepper in steppers if isinstance(stepper.module.step, Compiled)]
    if not steps:
        yield  # importing Dynamo takes a second
        return
    limit = torch._dynamo.config.recompile_limit + sum(len(step.sizes) for step in steps)
    with torch._dynamo.config.patch(recompile_limit=limit):
        yield


def configuration_names(records: Sequence[Record]) -> list[str]:
    """Return a name for each configuration, made of the overrides in which they differ, without seeds."""
    unnamed = ("seed", *FOLDER_KEYS, *(f"trainer.{key}" for key in TRAINER_FOLDER_KEYS))
    explicit = [
        {key: value for key, value in overrides(record.result).items() if key not in unnamed} for record in records
    ]
    names = run_names([[f"{key}={value}" for key, value in each.items()] for each in explicit])
    return [name.removeprefix("model=") for name in names]


def timing_summary(names: Sequence[str], timed: Sequence[Sequence[float]]) -> str:
    """Return the median milliseconds per step of each arm.

    >>> timing_summary(["bn", "nobn"], [[4e-4, 5e-4, 3e-4], [2e-4] * 3])
    'bn 0.4 ms per step, nobn 0.2 ms'
    """
    parts = [f"{name} {1000 * median(seconds):.3g} ms" for name, seconds in zip(names, timed, strict=True)]
    more = [f"and {len(parts) - MAX_NAMED} more"] * (len(parts) > MAX_NAMED)
    return ", ".join([f"{parts[0]} per step", *parts[1:MAX_NAMED], *more])


class Stepper:
    """Takes the optimizer steps of a single run, without validation and probes.

    Attributes:
        threads: number of torch threads.
        steps: number of steps in a timed block, set by :meth:`prepare`.
    """

    def __init__(self, config: FrozenConfig, data: InMemoryData) -> None:
        trial = dry_run_once(config)
        config = without_extra(config)
        self.trainer = make_trainer(config, [])
        self.device = self.trainer.strategy.root_device
        self.module = make_module([config], data)
        choose_stacking(self.module, trial, log.warning)
        self.module.to(self.device, precision_of(config))
        self.module.data = data
        self.module.configure_optimizers()
        self.module.on_fit_start()
        self.threads: int = config.trainer.threads or threads_for(trial.footprint, 1)
        self.steps = MIN_STEPS
        self.steps_per_epoch = len(batch_sizes(data.train, data.batch_size))
        self.minibatches = self.endless_minibatches()

    @property
    def is_compiled(self) -> bool:
        """True if the steps are compiled."""
        return isinstance(self.module.step, Compiled) and bool(self.module.step.sizes)

    def endless_minibatches(self) -> Iterator[Split]:
        """Yield minibatches of the training split forever, in the epoch orders of the run's seed."""
        split = self.module.training_split()
        for epoch in itertools.count():
            yield from self.module.data.minibatches(split, self.module.seeds, epoch)

    def prepare(self) -> None:
        """Take steps with each batch size, and set the block length: whole epochs if it holds at least one."""
        epoch = list(itertools.islice(self.minibatches, self.steps_per_epoch))
        of_each_size = {x.shape[1]: (x, y) for x, y in epoch}
        self.seconds([minibatch for minibatch in of_each_size.values() for _ in range(MIN_STEPS)])
        while (seconds := self.steps * self.seconds_per_step()) < BLOCK_SECONDS / 2:
            self.steps *= 2
        fitting = max(MIN_STEPS, round(self.steps * BLOCK_SECONDS / seconds))
        self.steps = fitting // self.steps_per_epoch * self.steps_per_epoch or fitting

    def seconds_per_step(self) -> float:
        """Return the seconds per step, averaged over a block."""
        self.seconds(itertools.islice(self.minibatches, WARMUP_STEPS))
        return self.seconds(itertools.islice(self.minibatches, self.steps)) / self.steps

    def seconds(self, minibatches: Iterable[Split]) -> float:
        """Return the total seconds of a step on each minibatch, including the slicing of minibatches."""
        with threads(self.threads), self.trainer.precision_plugin.train_step_context():
            self.synchronize()
            started = time.perf_counter()
            for x, y in minibatches:
                self.module.step(x, y)
                interrupts.check()
            self.synchronize()
            return time.perf_counter() - started

    def synchronize(self) -> None:
        """Wait for the device to finish all queued work."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
