"""ProbeCallback runs the probes during training, and writes their measurements.

K is the number of members.
"""

import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import pytorch_lightning as pl
import torch
from torch import Tensor

from normlab.data.sampling import derive_seed
from normlab.errors import prefix_errors
from normlab.population.population import copy_of
from normlab.population.stacking import State
from normlab.probes.graph import Graph
from normlab.probes.preconditioning import Preconditioning
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot, folds_exactly
from normlab.results import probes as records
from normlab.results.events import EventFile
from normlab.results.probes import ProbeRecord, headlines
from normlab.training.callbacks import Timer
from normlab.training.population_module import PopulationModule
from normlab.training.run_folders import Run
from normlab.training.stability import preconditioning, stability_limit

log = logging.getLogger("normlab")


@dataclass(frozen=True)
class ProbedStep:
    """An optimizer step: parameters and buffers before and after it, ``(K, …)`` each, and its minibatch.

    Attributes:
        preconditioning: the optimizer's before the step, if it is adaptive.
    """

    before: State
    after: State
    x: Tensor
    y: Tensor
    epoch: int
    step: int
    preconditioning: Preconditioning | None


class ProbeCallback(pl.Callback):
    """Runs probes at the steps that they ask for, and keeps and writes their measurements of each member.

    Attributes:
        latest: for each member, the newest of the numbers that go into tables.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe | Graph],
        runs: Sequence[Run],
        events: Sequence[EventFile],
        flush_seconds: float,
    ) -> None:
        self.probes = {name: probe for name, probe in probes.items() if isinstance(probe, Probe)}
        self.graphs = [probe for probe in probes.values() if isinstance(probe, Graph)]
        self.runs, self.events = runs, events
        self.flush_due = Timer(flush_seconds)
        self.seeds: list[int] = [run.config.seed for run in runs]
        self.start: State = {}
        self.folds = True
        self.latest: list[dict[str, float]] = [{} for _ in runs]
        self.with_arrays: list[list[ProbeRecord]] = [[] for _ in runs]
        self.unwritten: list[list[ProbeRecord]] = [[] for _ in runs]

    def on_train_start(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Draw the graphs, run the probes with ``at_start``, and ask to be called around each step."""
        self.start = copy_of(pl_module.population)
        net, x = pl_module.population.net, pl_module.first_minibatch()[0][0]
        self.folds = folds_exactly(net, {name: tensor[0] for name, tensor in self.start.items()}, x)
        if not self.folds:
            log.warning("probes: frozen normalizers are not folded into linear layers: the net would change")
        for graph in self.graphs:
            files = graph.files(pl_module.population.alone(0), x)
            for run, name in itertools.product(self.runs, files):
                (run.folder / name).write_bytes(files[name])
        self.run_between_steps(pl_module, [name for name, probe in self.probes.items() if probe.at_start])
        pl_module.around_step = partial(self.around_step, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Write the measurements to the run folders now and then."""
        if self.flush_due():
            self.flush()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Run the probes with ``at_end``."""
        if not self.start:  # Lightning calls no on_train_start where max_epochs is 0
            self.on_train_start(trainer, pl_module)
        self.run_between_steps(pl_module, [name for name, probe in self.probes.items() if probe.at_end])

    def run_between_steps(self, module: PopulationModule, names: Sequence[str]) -> None:
        """Run probes on the state as it is, the same before and after the step."""
        if names:
            state, minibatch = copy_of(module.population), module.first_minibatch()
            epoch, step = int(module.epochs.max()), int(module.steps.max())
            self.run(
                module, names, ProbedStep(state, state, *minibatch, epoch, step, preconditioning(module.optimizer))
            )

    def around_step(
        self, module: PopulationModule, step: int, is_last: bool, x: Tensor, y: Tensor
    ) -> AbstractContextManager[None]:
        """Context manager for a step that runs the probes which are due."""
        ended = module.current_epoch if is_last else None
        due = [name for name, probe in self.probes.items() if is_due(probe, step, ended)]
        return self.before_and_after(module, due, step, x, y) if due else nullcontext()

    @contextmanager
    def before_and_after(
        self, module: PopulationModule, names: Sequence[str], step: int, x: Tensor, y: Tensor
    ) -> Iterator[None]:
        """Context manager for a step that copies the state before and after it, and runs probes on both."""
        started = time.perf_counter()
        before, of_before = copy_of(module.population), preconditioning(module.optimizer)
        module.probe_seconds += time.perf_counter() - started
        yield
        after, epoch = copy_of(module.population), module.current_epoch + 1
        self.run(module, names, ProbedStep(before, after, x, y, epoch, step, of_before))

    def run(self, module: PopulationModule, names: Sequence[str], step: ProbedStep) -> None:
        """Run probes on a step, and keep their measurements of the members that still train."""
        started = time.perf_counter()
        for name in names:
            with prefix_errors(f"probes.{name}"):
                for measurement in self.probes[name](self.snapshot(module, name, step)):
                    self.keep(name, measurement, step, (~module.frozen).nonzero().flatten().tolist())
        module.probe_seconds += time.perf_counter() - started

    def snapshot(self, module: PopulationModule, name: str, step: ProbedStep) -> TrainingSnapshot:
        """Return the snapshot of a step for a probe, with generators of its own."""
        net = module.population.net
        return TrainingSnapshot(
            net=net,
            loss=module.task.loss,
            trained=[name for name, parameter in net.named_parameters() if parameter.requires_grad],
            before=step.before,
            after=step.after,
            start=self.start,
            minibatch=(step.x, step.y),
            train=module.training_split(),
            lr=module.learning_rates(),
            stability=stability_limit(module.optimizer),
            generators=[
                torch.Generator().manual_seed(derive_seed(seed, "probe", name, step.step)) for seed in self.seeds
            ],
            epoch=step.epoch,
            step=step.step,
            folds=self.folds,
            preconditioning=step.preconditioning,
        )

    def keep(self, name: str, measurement: Measurement, step: ProbedStep, members: Sequence[int]) -> None:
        """Keep a measurement of these members."""
        now, names = time.time(), list(measurement.numbers)
        rows = torch.stack(
            [value.detach().double().cpu() for value in measurement.numbers.values()], dim=1
        ).tolist()
        arrays, histograms = (
            {key: value.detach().cpu().numpy() for key, value in values.items()}
            for values in (measurement.arrays, measurement.histograms)
        )
        for k in members:
            found = ProbeRecord(
                epoch=step.epoch,
                step=step.step,
                time=now,
                probe=name,
                mode=measurement.mode,
                numbers=dict(zip(names, rows[k], strict=True)),
                arrays={key: value[k] for key, value in arrays.items()},
                headline=tuple(measurement.headline),
                histograms={key: value[k] for key, value in histograms.items()},
            )
            self.unwritten[k].append(found)
            if arrays:
                self.with_arrays[k].append(found)
            self.latest[k] |= headlines([found])

    def flush(self) -> None:
        """Write the numbers and histograms measured since the last call."""
        for k, found in enumerate(self.unwritten):
            if found:
                records.append_probes(self.runs[k].folder, found)
                for file in self.events[k : k + 1]:
                    file.scalars(one.point() for one in found)
                    file.histograms(found)
                found.clear()

    def write_arrays(self) -> None:
        """Write the arrays of the whole training."""
        for run, found in zip(self.runs, self.with_arrays, strict=True):
            if found:
                records.write_arrays(run.folder, found)


def is_due(probe: Probe, step: int, ended: int | None) -> bool:
    """Return whether a probe looks at a step of the training, the last of epoch ``ended`` if that is given."""
    by_step = probe.every_n_steps is not None and step % probe.every_n_steps == 0
    by_epoch = probe.every_n_epochs is not None and ended is not None and (ended + 1) % probe.every_n_epochs == 0
    return by_step or by_epoch
