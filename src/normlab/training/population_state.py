"""The state of a population between two steps: :class:`PopulationSaver` saves it, and restores it at the start.

Batch order and noise are functions of seed and step, so that a training that goes on from the state ends bit by
bit as one that was not interrupted.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.seed import _set_rng_states

from normlab.interrupts import Preempted, interrupts
from normlab.population.compiling import Compiled
from normlab.population.optim import StackedOptimizer
from normlab.population.resources import finished_time
from normlab.training.callbacks import CurveRecorder
from normlab.training.member_callbacks import MemberCallbacks
from normlab.training.packed_runs import PackedRuns
from normlab.training.population_module import EpochSteps, PopulationModule
from normlab.training.probe_callback import ProbeCallback
from normlab.training.progress import Progress
from normlab.training.resuming import generator_states
from normlab.training.run_folders import RunFolders
from normlab.training.saving import SaveTimer, State, StateFile

MASKS = ("active", "stopping", "diverged", "frozen", "pruned", "steps", "epochs")
TIMES = ("seconds", "probe_seconds", "save_seconds")


class PopulationSaver(pl.Callback):
    """Saves the state of a population between steps, at its interval and when a signal ends the training.

    It is the first callback of the population, so that the others begin with the restored state.

    Args:
        file: of the state.
        timer: of the interval.
        callbacks: of the population; those with a state are saved.
        members: the callbacks of the members, if they have some.
        folders: of the runs.
        progress: the bar, which may end the training after an epoch.
    """

    def __init__(
        self,
        file: StateFile,
        timer: SaveTimer,
        callbacks: Sequence[pl.Callback],
        members: MemberCallbacks | None,
        folders: RunFolders | PackedRuns,
        progress: Progress,
    ) -> None:
        self.file, self.timer, self.folders, self.progress = file, timer, folders, progress
        self.stateful: dict[str, Any] = {
            type(each).__name__: each for each in callbacks if hasattr(each, "resume_state")
        }
        if members is not None:
            self.stateful[type(members).__name__] = members
        if isinstance(folders, PackedRuns):
            self.stateful[type(folders).__name__] = folders
        self.writers = writers_of(callbacks)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Restore a state, and save it between steps from now on."""
        state, self.file.found = self.file.found, None
        if state is not None:
            restore_loops(trainer, state["epoch"], state["global_step"])
            restore_module(pl_module, state["module"])
            for name, callback in self.stateful.items():
                # Those of the members began with it when they were set up.
                if name in state["callbacks"] and not isinstance(callback, MemberCallbacks):
                    callback.resume_from(state["callbacks"][name])
            pl_module.before_steps = partial(_set_rng_states, state["generators"])
        self.timer.restart()
        pl_module.between_steps = partial(self.between_steps, trainer, pl_module)

    def between_steps(self, trainer: pl.Trainer, module: PopulationModule, is_last: bool) -> None:
        """Save the state if it is due, or if a signal ends the training.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Preempted: after another signal.
        """
        try:
            interrupts.check()
            if is_last:
                self.progress.check()
        except (KeyboardInterrupt, Preempted):
            if not self.timer.every.never:
                self.save(trainer, module)
            raise
        if self.timer.due(trainer.current_epoch, is_last):
            self.save(trainer, module)

    def save(self, trainer: pl.Trainer, module: PopulationModule) -> None:
        """Save the state."""
        started = finished_time(module.device)
        module.taken.seconds, before = module.epoch_seconds, module.taken.seconds
        for writer in self.writers:
            writer.flush()
        self.file.write(partial(torch.save, self.state(trainer, module)))
        module.taken.seconds = before
        module.save_seconds += time.perf_counter() - started
        self.timer.restart()

    def state(self, trainer: pl.Trainer, module: PopulationModule) -> State:
        """Return the state, as tensors, strings and numbers."""
        return {
            **self.file.header(self.folders, trainer.current_epoch),
            "compiles": module.compiles,
            "global_step": trainer.global_step,
            "module": module_state(module),
            "callbacks": {name: callback.resume_state() for name, callback in self.stateful.items()},
            "generators": generator_states(),
        }


def writers_of(callbacks: Sequence[pl.Callback]) -> list[ProbeCallback | CurveRecorder]:
    """Return the callbacks that write files before a state is saved; the curves last, as they flush all events."""
    writers = [each for each in callbacks if isinstance(each, ProbeCallback | CurveRecorder)]
    return sorted(writers, key=lambda each: isinstance(each, CurveRecorder))


def module_state(module: PopulationModule) -> State:
    """Return the state of a population, its optimizer, its scheduler and its compiled step."""
    taken, optimizer = module.taken, module.optimizer
    return {
        "tensors": module.population.state(),
        "extra": extra_state(module),
        "frozen_state": module.frozen_state,
        "masks": {name: getattr(module, name) for name in MASKS},
        "times": {name: getattr(module, name) for name in TIMES},
        "can_reestimate": module.evaluation.can_reestimate,
        "taken": {**vars(taken), "losses": torch.stack(taken.losses)},
        "optimizer": (
            optimizer.resume_state() if isinstance(optimizer, StackedOptimizer) else optimizer.state_dict()
        ),
        "scheduler": module.scheduler.state_dict() if module.scheduler else None,
        "compiled": module.step.resume_state() if isinstance(module.step, Compiled) else None,
    }


def restore_module(module: PopulationModule, state: Mapping[str, Any]) -> None:
    """Restore a state in place: parameters are views of θ, and a compiled step reads the same tensors."""
    population, device = module.population, module.device
    population.load_state(state["tensors"])
    if state["extra"]:
        population.net.load_state_dict(state["extra"], strict=False)
    module.frozen_state = {name: tensor.to(device) for name, tensor in state["frozen_state"].items()}
    vars(module).update(state["masks"])
    vars(module).update(state["times"])
    module.evaluation.can_reestimate = state["can_reestimate"]
    taken = EpochSteps(**state["taken"])
    taken.losses = [*state["taken"]["losses"].to(device)]
    module.taken = taken
    if module.scheduler is not None:
        module.scheduler.load_state_dict(state["scheduler"])
    optimizer = module.optimizer
    if isinstance(optimizer, StackedOptimizer):
        optimizer.resume_from(state["optimizer"])
    else:
        optimizer.load_state_dict(state["optimizer"])
    if isinstance(module.step, Compiled):
        module.step.resume_from(state["compiled"])


def extra_state(module: PopulationModule) -> State:
    """Return the extra state of layers (``get_extra_state``), which is not stacked."""
    tensors = module.population.net.state_dict()
    return {name: value for name, value in tensors.items() if name.endswith("_extra_state")}


def restore_loops(trainer: pl.Trainer, epoch: int, steps: int) -> None:
    """Set the progress of Lightning's loops to the start of an epoch; the batch of a population is an epoch."""
    fit = trainer.fit_loop
    progress: list[Any] = [fit.epoch_progress, fit.epoch_loop.batch_progress]
    for counts in (part for each in progress for part in (each.total, each.current)):
        counts.ready = counts.started = counts.processed = counts.completed = epoch
    optimizer_steps = fit.epoch_loop.manual_optimization.optim_step_progress.total
    optimizer_steps.ready = optimizer_steps.completed = steps
    fit.epoch_loop._batches_that_stepped = epoch
