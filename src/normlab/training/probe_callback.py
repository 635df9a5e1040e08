"""Runs probes during a training and writes their measurements; the entry is :class:`ProbeCallback`.

Letters: K members.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.optimizer import _optimizers_to_device
from torch import Tensor, nn

from normlab.data.sampling import derive_seed
from normlab.errors import prefix_errors
from normlab.population import State
from normlab.population.population import copy_of
from normlab.population.resources import finished_time
from normlab.probes.graph import Graph
from normlab.probes.landscape import folds_exactly
from normlab.probes.snapshot import Measurement, Preconditioning, Probe, TrainingSnapshot
from normlab.results.events import EventWriter, histograms, scalars
from normlab.results.series import ProbeRecord, headlines
from normlab.training.callbacks import Timer
from normlab.training.population_module import PopulationModule
from normlab.training.run_folders import Run
from normlab.training.run_series import RunSeries
from normlab.training.stability import equilibrium_angle, preconditioning, stability_limit

log = logging.getLogger("normlab")


@dataclass(frozen=True)
class ProbedStep:
    """An optimizer step, with the state before and after it.

    Attributes:
        before, after: parameters and buffers, ``(K, …)`` each.
        x, y: the minibatch, ``(K, B, …)``.
        preconditioning: of an adaptive optimizer before the step, otherwise None.
    """

    before: State
    after: State
    x: Tensor
    y: Tensor
    epoch: int
    step: int
    preconditioning: Preconditioning | None


@dataclass(frozen=True)
class ArraysOfMembers:
    """The arrays that a probe measured at one step, ``(K, …)`` each, and the members that they were recorded of.

    One array for all members is saved much faster than one for each.
    """

    epoch: int
    step: int
    probe: str
    mode: str
    arrays: dict[str, np.ndarray]
    members: list[int]

    def record(self, k: int) -> ProbeRecord:
        """Return the arrays of member k."""
        own = {name: values[k] for name, values in self.arrays.items()}
        return ProbeRecord(self.epoch, self.step, 0.0, self.probe, self.mode, {}, own)

    @classmethod
    def of(cls, row: ProbeRecord) -> "ArraysOfMembers":
        """Return the arrays of a record of a single run."""
        arrays = {name: values[None] for name, values in row.arrays.items()}
        return cls(row.epoch, row.step, row.probe, row.mode, arrays, [0])


class ProbeCallback(pl.Callback):
    """Runs probes at their steps, and records and writes their measurements of each member.

    Args:
        probes, runs, series, events, flush_seconds: by name, and of the runs.
        keeps: whether the records are kept for :meth:`resume_state` after they were written.
        continues: whether the files hold the records of the state that a resumed training begins with.

    Attributes:
        latest: each member's newest headline numbers, for tables.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe | Graph],
        runs: Sequence[Run],
        series: Sequence[RunSeries],
        events: Sequence[EventWriter],
        flush_seconds: float,
        keeps: bool = False,
        continues: bool = False,
    ) -> None:
        self.probes = {name: probe for name, probe in probes.items() if isinstance(probe, Probe)}
        self.graphs = [probe for probe in probes.values() if isinstance(probe, Graph)]
        self.series, self.events = series, events
        self.flush_due = Timer(flush_seconds)
        self.seeds: list[int] = [run.config.seed for run in runs]
        self.start: State = {}
        self.folds = True
        self.latest: list[dict[str, float]] = [{} for _ in runs]
        self.measured: list[ArraysOfMembers] = []
        self.unwritten: list[list[ProbeRecord]] = [[] for _ in runs]
        self.keeps, self.continues, self.written = keeps, continues, list[ProbeRecord]()

    def on_train_start(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Draw the graphs, run the probes with ``at_start``, and install the hook around each step."""
        resumed, now = bool(self.start), copy_of(pl_module.population)
        self.start = {name: self.start.get(name, tensor).to(tensor.device) for name, tensor in now.items()}
        net, x = pl_module.population.net, pl_module.first_minibatch()[0][0]
        if not resumed:
            self.folds = folds_exactly(net, {name: tensor[0] for name, tensor in self.start.items()}, x)
        if not self.folds:
            log.warning("probes: frozen normalizers are not folded into linear layers, which would change the net")
        for graph in self.graphs:
            files = graph.files(pl_module.population.member_net(0), x)
            for series, name in itertools.product(self.series, files):
                series.write_file(name, files[name])
        due = [name for name, probe in self.probes.items() if probe.at_start and not resumed]
        self.run_between_steps(pl_module, due)
        pl_module.around_step = partial(self.around_step, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Write the measurements every ``flush_seconds``."""
        if self.flush_due():
            self.flush()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Run the probes with ``at_end``."""
        return_to_device(pl_module, trainer)
        if not self.start:  # Lightning calls no on_train_start where max_epochs is 0
            self.on_train_start(trainer, pl_module)
        self.run_between_steps(pl_module, [name for name, probe in self.probes.items() if probe.at_end])

    def run_between_steps(self, module: PopulationModule, names: Sequence[str]) -> None:
        """Run probes on the current state, which is both before and after the step."""
        if names:
            state, minibatch = copy_of(module.population), module.first_minibatch()
            epoch, step = int(module.epochs.max()), int(module.steps.max())
            current = preconditioning(module.optimizer, trained(module))
            self.run(module, names, ProbedStep(state, state, *minibatch, epoch, step, current))

    def around_step(
        self, module: PopulationModule, step: int, is_last: bool, x: Tensor, y: Tensor
    ) -> AbstractContextManager[None]:
        """Context manager around a step, after which the probes that are due run."""
        epoch_done = module.current_epoch if is_last else None
        due = [name for name, probe in self.probes.items() if is_due(probe, step, epoch_done)]
        return self.probe_step(module, due, step, x, y) if due else nullcontext()

    @contextmanager
    def probe_step(
        self, module: PopulationModule, names: Sequence[str], step: int, x: Tensor, y: Tensor
    ) -> Iterator[None]:
        """Context manager that copies the state before and after a step, and then runs probes on both."""
        started = finished_time(module.device)
        before = copy_of(module.population)
        preconditioning_before = preconditioning(module.optimizer, trained(module))
        module.probe_seconds += finished_time(module.device) - started
        yield
        after, epoch = copy_of(module.population), module.current_epoch + 1
        self.run(module, names, ProbedStep(before, after, x, y, epoch, step, preconditioning_before))

    def run(self, module: PopulationModule, names: Sequence[str], step: ProbedStep) -> None:
        """Run probes on a step, and record their measurements of members that are not frozen."""
        started = finished_time(module.device)
        for name in names:
            with prefix_errors(f"probes.{name}"):
                for measurement in self.probes[name](self.snapshot(module, name, step)):
                    self.record(name, measurement, step, (~module.frozen).nonzero().flatten().tolist())
        module.probe_seconds += finished_time(module.device) - started

    def snapshot(self, module: PopulationModule, name: str, step: ProbedStep) -> TrainingSnapshot:
        """Return the snapshot of a step for a probe, with generators seeded by run, probe and step."""
        net, device = module.population.net, module.device
        stability = stability_limit(module.optimizer, trained(module))
        equilibrium = equilibrium_angle(module.optimizer, trained(module))
        return TrainingSnapshot(
            net=net,
            loss=module.task.loss,
            trained=[name for name, parameter in net.named_parameters() if parameter.requires_grad],
            before=step.before,
            after=step.after,
            start=self.start,
            minibatch=(step.x, step.y),
            train=module.training_split(),
            lr=module.learning_rates().to(device),
            stability=None if stability is None else stability.to(device),
            generators=[
                torch.Generator().manual_seed(derive_seed(seed, "probe", name, step.step)) for seed in self.seeds
            ],
            epoch=step.epoch,
            step=step.step,
            folds=self.folds,
            preconditioning=step.preconditioning,
            test=module.split(2),
            equilibrium=None if equilibrium is None else equilibrium.to(device),
        )

    def record(self, name: str, measurement: Measurement, step: ProbedStep, members: Sequence[int]) -> None:
        """Record a measurement of these members."""
        now, names = time.time(), list(measurement.numbers)
        rows = torch.stack(
            [value.detach().double().cpu() for value in measurement.numbers.values()], dim=1
        ).tolist()
        arrays, histograms = (
            {key: value.detach().cpu().numpy() for key, value in values.items()}
            for values in (measurement.arrays, measurement.histograms)
        )
        for k in members:
            row = ProbeRecord(
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
            self.unwritten[k].append(row)
            self.latest[k] |= headlines([row])
        if arrays:
            mode = measurement.mode
            self.measured.append(ArraysOfMembers(step.epoch, step.step, name, mode, arrays, list(members)))

    def flush(self) -> None:
        """Write the numbers and histograms recorded since the last call."""
        for k, rows in enumerate(self.unwritten):
            if rows:
                self.series[k].append_records(rows)
                for file in self.events[k : k + 1]:
                    for row in rows:
                        file.add_event(scalars(row.point()))
                        if row.histograms:
                            file.add_event(histograms(row))
                    file.flush()
                self.written += rows if self.keeps else ()
                rows.clear()

    def write_arrays(self) -> None:
        """Write the arrays of the whole training."""
        for k, series in enumerate(self.series):
            rows = [each.record(k) for each in self.measured if k in each.members]
            if rows:
                series.write_arrays(rows)

    def resume_state(self) -> dict[str, Any]:
        """Return the initial state, the arrays and the newest numbers; of a single run all records."""
        state = {"start": self.start, "folds": self.folds}
        if self.keeps:
            rows = [asdict(row) for row in (*self.written, *self.unwritten[0])]
            return {**state, "records": [map_arrays(torch.as_tensor, row) for row in rows]}
        measured = [map_arrays(torch.as_tensor, vars(each)) for each in self.measured]
        return {**state, "latest": self.latest, "measured": measured}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Continue from a state; write its records, if they stand in another folder."""
        self.start, self.folds = state["start"], state["folds"]
        if not self.keeps:
            self.latest = state["latest"]
            self.measured = [ArraysOfMembers(**map_arrays(np.asarray, each)) for each in state["measured"]]
            return
        rows = [ProbeRecord(**map_arrays(np.asarray, row)) for row in state["records"]]
        self.measured = [ArraysOfMembers.of(row) for row in rows if row.arrays]
        self.latest = [headlines(rows)]
        self.written, self.unwritten = (rows, [[]]) if self.continues else ([], [rows])
        self.flush()


def return_to_device(module: PopulationModule, trainer: pl.Trainer) -> None:
    """Move a module and its optimizers to the training device, from which Lightning moves them at the end."""
    device = trainer.strategy.root_device
    module.to(device)
    _optimizers_to_device(trainer.optimizers, device)


def map_arrays(convert: Callable[[Any], Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record with its arrays and histograms converted."""
    kinds = [key for key in ("arrays", "histograms") if key in row]
    return {**row, **{key: {name: convert(value) for name, value in row[key].items()} for key in kinds}}


def is_due(probe: Probe, step: int, epoch_done: int | None) -> bool:
    """Return True if a probe measures at a step; ``epoch_done`` is the epoch that the step completes."""
    by_step = probe.every_n_steps is not None and step % probe.every_n_steps == 0
    by_epoch = (
        probe.every_n_epochs is not None
        and epoch_done is not None
        and (epoch_done + 1) % probe.every_n_epochs == 0
    )
    return by_step or by_epoch


def trained(module: PopulationModule) -> list[nn.Parameter]:
    """Return the parameters that are trained, in the order of θ."""
    return [parameter for parameter in module.population.net.parameters() if parameter.requires_grad]
