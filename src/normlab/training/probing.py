"""When a training is probed, and what becomes of what is found.

K is the number of members.
"""

import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from normlab.config import naming
from normlab.data.order import derive_seed
from normlab.probes.graph import Graph
from normlab.probes.preconditioning import Preconditioning
from normlab.probes.scene import Measurement, Probe, TrainingSnapshot, folds_exactly
from normlab.results import probes as records
from normlab.results.events import EventFile
from normlab.results.probes import Found, headlines
from normlab.training.population import copy_of
from normlab.training.run_folders import Run
from normlab.training.stability import preconditioning, stability
from normlab.training.stacking import State

if TYPE_CHECKING:
    from normlab.training.module import NormModule

log = logging.getLogger("normlab")


@dataclass(frozen=True)
class Step:
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


class Probing:
    """Shows the probes the scenes that they ask for, and keeps what they find for each member.

    Attributes:
        seconds: what all of it took; it is no part of the training's time.
        latest: of each member, the newest of the numbers that go into tables.
    """

    def __init__(
        self, probes: Mapping[str, Probe | Graph], runs: Sequence[Run], events: Sequence[EventFile]
    ) -> None:
        self.probes = {name: probe for name, probe in probes.items() if isinstance(probe, Probe)}
        self.graphs = [probe for probe in probes.values() if isinstance(probe, Graph)]
        self.runs, self.events = runs, events
        self.seeds: list[int] = [run.config.seed for run in runs]
        self.seconds = 0.0
        self.start: State = {}
        self.folds = True
        self.latest: list[dict[str, float]] = [{} for _ in runs]
        self.with_arrays: list[list[Found]] = [[] for _ in runs]
        self.unwritten: list[list[Found]] = [[] for _ in runs]

    def begin(self, module: "NormModule") -> None:
        """Draw the graphs, and look before anything has trained."""
        self.start = copy_of(module.population)
        net, x = module.population.net, module.first_minibatch()[0][0]
        self.folds = folds_exactly(net, {name: tensor[0] for name, tensor in self.start.items()}, x)
        if not self.folds:
            log.warning("probes: frozen normalizers are not folded into linear layers: the net would change")
        if self.graphs:
            net, x = module.population.alone(0), module.first_minibatch()[0][0]
            for graph in self.graphs:
                files = graph.files(net, x)
                for run, name in itertools.product(self.runs, files):
                    (run.folder / name).write_bytes(files[name])
        self.look(module, [name for name, probe in self.probes.items() if probe.at_start])

    def end(self, module: "NormModule") -> None:
        """Look when all has trained."""
        self.look(module, [name for name, probe in self.probes.items() if probe.at_end])

    def look(self, module: "NormModule", names: Sequence[str]) -> None:
        """Show probes a scene in which no step is taken."""
        if names:
            state, minibatch = copy_of(module.population), module.first_minibatch()
            epoch, step = int(module.epochs.max()), int(module.steps.max())
            self.show(
                module, names, Step(state, state, *minibatch, epoch, step, preconditioning(module.optimizer))
            )

    def due(self, step: int, ended: int | None) -> list[str]:
        """Return the probes that look at a step, counted from 0; it is the last of epoch ``ended``, if any."""
        return [name for name, probe in self.probes.items() if is_due(probe, step, ended)]

    @contextmanager
    def around(
        self, module: "NormModule", names: Sequence[str], step: int, x: Tensor, y: Tensor
    ) -> Iterator[None]:
        """Show probes the step that is taken within."""
        started = time.perf_counter()
        before, of_before = copy_of(module.population), preconditioning(module.optimizer)
        self.seconds += time.perf_counter() - started
        yield
        after, epoch = copy_of(module.population), module.current_epoch + 1
        self.show(module, names, Step(before, after, x, y, epoch, step, of_before))

    def show(self, module: "NormModule", names: Sequence[str], step: Step) -> None:
        """Show probes a step, and take down what they find."""
        started = time.perf_counter()
        for name in names:
            with naming(f"probes.{name}"):
                for finding in self.probes[name](self.scene(module, name, step)):
                    self.take_down(name, finding, step, (~module.frozen).nonzero().flatten().tolist())
        self.seconds += time.perf_counter() - started

    def scene(self, module: "NormModule", name: str, step: Step) -> TrainingSnapshot:
        """Return a step as a probe sees it, with generators of its own."""
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
            stability=stability(module.optimizer),
            generators=[
                torch.Generator().manual_seed(derive_seed(seed, "probe", name, step.step)) for seed in self.seeds
            ],
            epoch=step.epoch,
            step=step.step,
            folds=self.folds,
            preconditioning=step.preconditioning,
        )

    def take_down(self, name: str, finding: Measurement, step: Step, members: Sequence[int]) -> None:
        """Keep what was found of these members."""
        now, names = time.time(), list(finding.numbers)
        rows = torch.stack([value.detach().double().cpu() for value in finding.numbers.values()], dim=1).tolist()
        arrays, histograms = (
            {key: value.detach().cpu().numpy() for key, value in values.items()}
            for values in (finding.arrays, finding.histograms)
        )
        for k in members:
            found = Found(
                epoch=step.epoch,
                step=step.step,
                time=now,
                probe=name,
                mode=finding.mode,
                numbers=dict(zip(names, rows[k], strict=True)),
                arrays={key: value[k] for key, value in arrays.items()},
                headline=tuple(finding.headline),
                histograms={key: value[k] for key, value in histograms.items()},
            )
            self.unwritten[k].append(found)
            if arrays:
                self.with_arrays[k].append(found)
            self.latest[k] |= headlines([found])

    def flush(self) -> None:
        """Write the numbers and histograms found since the last time."""
        for k, found in enumerate(self.unwritten):
            if found:
                records.append(self.runs[k].folder, found)
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
