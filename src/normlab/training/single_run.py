"""A LightningModule that trains alone, seen as a population of one: :class:`SingleRun` and :class:`Observer`.

The callbacks that record a population, its probes and its session read the state of a
:class:`~normlab.training.population_module.PopulationModule`. :class:`SingleRun` holds that state for any other
LightningModule, and :class:`Observer` keeps it up to date from Lightning's hooks.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.seed import _set_rng_states
from torch import Tensor, nn

from normlab.data.datamodule import InMemoryData
from normlab.data.sampling import Split, batch_sizes, epoch_order
from normlab.models.layer_lookup import MOMENTS, normalizers
from normlab.population.evaluation import Task
from normlab.population.population import Population
from normlab.population.resources import finished_time
from normlab.training import resuming
from normlab.training.callbacks import CurveRecorder, EarlyStopping
from normlab.training.extra import TensorBoardFile
from normlab.training.median_pruning import MedianPruning
from normlab.training.population_module import PopulationModule, no_context
from normlab.training.resuming import State


class SingleRun(PopulationModule):
    """The state of a LightningModule's training as a population of one; it takes no step itself.

    Args:
        module: the LightningModule that trains.
        net: its net, from inputs to outputs; None if it has no such net. The state is then the module's.
        task, seed, options: as of a :class:`PopulationModule`.

    Attributes:
        lr: the learning rate of the latest step; None without an optimizer.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        net: nn.Module | None,
        task: Task,
        seed: int,
        data: InMemoryData,
        **options: Any,
    ) -> None:
        super().__init__(Population([net or module]), task, [seed], refuse_optimizer, **options)
        self.data, self.has_net = data, net is not None
        self.lr: Tensor | None = None

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Move to the device and precision of the module; prepare layers that need data, as a population does."""
        self.trainer = trainer
        self.to(device=module.device, dtype=module.dtype)
        if trainer.optimizers:
            self.optimizer = trainer.optimizers[0]
        self.begin_step()
        if self.has_net and trainer.ckpt_path is None:
            self.population.initialize_layers(self.first_minibatch()[0])
            self.warm_up_statistics()

    def learning_rates(self) -> Tensor:
        """Return the learning rate of the latest step, ``(1,)``; NaN without an optimizer."""
        return torch.full((1,), torch.nan, dtype=torch.float64) if self.lr is None else self.lr

    def begin_step(self) -> None:
        """Keep the learning rate of a step; Lightning changes it before the step's last hook."""
        if self.trainer.optimizers:
            self.lr = super().learning_rates()

    def whole_minibatch(self, batch: Split, batch_idx: int) -> Split:
        """Return the minibatch of a step for the probes; ``batch`` is a share of it if processes share it out."""
        if self.trainer.world_size == 1 or self.around_step is no_context:
            return batch
        x, y = self.training_split()
        order = epoch_order(self.seeds, self.current_epoch, x.shape[1])[0].to(x.device)
        rows = order.split(batch_sizes(x.shape[1], self.data.batch_size))[batch_idx]
        return x[0].index_select(0, rows), y[0].index_select(0, rows)

    def add_metrics(self, logged: dict[str, float]) -> None:
        """Add numbers that the module logged, by name."""
        self.metrics |= {name: torch.tensor([value], dtype=torch.float64) for name, value in logged.items()}

    def end_epoch(self, logged: dict[str, float], validated: dict[str, float]) -> None:
        """Count an epoch, and collect its metrics in the order that a population has.

        Args:
            logged: numbers logged in training.
            validated: numbers logged in the validation of this epoch, if there was one.
        """
        self.epochs += self.active
        self.steps = torch.where(self.active, self.trainer.global_step, self.steps)
        self.metrics, self.held_out_metrics = {}, {}
        self.add_metrics(logged)
        if self.lr is not None:
            self.metrics["train/lr"] = self.learning_rates()
        if self.has_net:
            self.measure_in_evaluation_mode(self.training_split())
        self.add_metrics(validated)
        if self.has_net and validated and self.data.val:
            self.observe_normalizers()

    @torch.no_grad()
    def observe_normalizers(self) -> None:
        """Record the activation statistics of normalizers on the validation split."""
        x, _ = self.expand_members(cast(Split, self.split(1)))
        self.eval()
        with self.evaluation.context():
            _, seen = self.population.observe(x, normalizers(self.population.net))
        self.train()
        for layer, moments in seen.items():
            for name, values in zip(MOMENTS, moments.unbind(1), strict=True):
                self.metrics[f"activation/{layer}/{name}"] = values

    def resume_state(self) -> State:
        """Return the counts, times and metrics of the training so far."""
        return {key: getattr(self, key) for key in RESUMED}

    def resume_from(self, state: State) -> None:
        """Continue from a state; a run that diverged stays stopped."""
        vars(self).update(state)
        self.active = ~self.diverged


RESUMED = ("epochs", "steps", "diverged", "seconds", "probe_seconds", "metrics", "lr")
"""Attributes of a :class:`SingleRun` that are stored in checkpoints."""


def refuse_optimizer(*arguments: Any) -> torch.optim.Optimizer:
    """Raise RuntimeError: the LightningModule makes its own optimizers."""
    raise RuntimeError("a SingleRun takes no steps")


class Observer(pl.callbacks.EarlyStopping):
    """Updates a :class:`SingleRun` at Lightning's hooks, and calls the callbacks of a population with it.

    Lightning calls a subclass of its EarlyStopping at the end of an epoch after the module, whose numbers are then
    complete, and before its checkpoints, which then hold the epoch.

    Args:
        run: the state to update.
        callbacks: called after each update.
        config: the recorded configuration, for checkpoints.

    Attributes:
        saved: further state, in a checkpoint that the repeated command goes on from.
        logged_before: names of the numbers that Lightning logged to the event files before such a checkpoint.
    """

    def __init__(self, run: SingleRun, callbacks: Sequence[pl.Callback], config: Mapping[str, Any]) -> None:
        super().__init__("train/loss")
        self.run, self.callbacks, self.config = run, callbacks, config
        self.around_step, self.evaluation = ExitStack(), ExitStack()
        self.started = 0.0
        self.validated: dict[str, float] = {}
        self.restored: State = {}
        self.sums: State = {}
        self.epoch_ended = self.uncounted = False
        self.saved: State = {}
        self.logged_before: set[str] = set()

    @property
    def state_key(self) -> str:
        """Name of the state in checkpoints."""
        return resuming.STATE_KEY

    def state_dict(self) -> State:
        """Return the state from which a resumed run continues, as tensors, strings and numbers."""
        trainer = self.run.trainer
        return {
            "config": self.config,
            "run": self.run.resume_state(),
            "callbacks": {name: callback.resume_state() for name, callback in self.resumable().items()},
            "validated": self.validated,
            "callback_metrics": dict(trainer.callback_metrics),
            "epoch_ended": self.epoch_ended,
            "sums": {} if self.epoch_ended else resuming.epoch_sums(trainer),
            "generators": resuming.generator_states(),
            "saved": self.saved,
        }

    def load_state_dict(self, state_dict: State) -> None:
        """Keep a state until Lightning has restored the optimizers."""
        self.restored = state_dict

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: State) -> None:
        """Correct the progress of the loops in a checkpoint."""
        self.uncounted = resuming.correct_loops(checkpoint)

    def count_batch(self, trainer: pl.Trainer) -> None:
        """Count the batch before a checkpoint in the loggers' steps, as Lightning does after a validation."""
        if self.uncounted:
            trainer.fit_loop.epoch_loop._batches_that_stepped += 1
        self.uncounted = False

    def resumable(self) -> dict[str, Any]:
        """Return the callbacks with a state, by the names of their classes."""
        return {type(each).__name__: each for each in self.callbacks if hasattr(each, "resume_state")}

    def restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue from the state of a checkpoint."""
        state, self.restored = self.restored, {}
        self.run.resume_from(state["run"])
        for name, callback in self.resumable().items():
            if name in state["callbacks"]:
                callback.resume_from(state["callbacks"][name])
            if isinstance(callback, EarlyStopping | MedianPruning):
                callback.deactivate(self.run)
        trainer.should_stop = not bool(self.run.active.all())
        trainer.callback_metrics.update(state["callback_metrics"])
        self.logged_before = set(state["saved"].get("logged_names", ()))
        if logged := state["saved"].get("logged"):  # by Lightning after the checkpoint
            for logger in trainer.loggers:
                logger.log_metrics(logged["numbers"], logged["step"])
        self.validated, self.sums = state["validated"], state["sums"]
        resuming.continue_epoch_sums(trainer, self.sums)
        if state["epoch_ended"]:
            resuming.step_plateau_schedulers(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepare the run, once the module is on its device and its optimizers exist."""
        self.run.begin(trainer, pl_module)
        for callback in self.callbacks:
            callback.on_fit_start(trainer, self.run)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue from a checkpoint if there is one, and begin the probes; the generators are restored last."""
        generators = self.restored.get("generators")
        if self.restored:
            self.restore(trainer, pl_module)
        for callback in self.callbacks:
            callback.on_train_start(trainer, self.run)
        if generators:
            _set_rng_states(generators)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the validation of the previous epoch."""
        self.validated, self.epoch_ended = {}, False
        # With max_steps, Lightning would take the first epoch after a checkpoint for the epoch before it.
        trainer.fit_loop.epoch_loop.restarting = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Split, batch_idx: int) -> None:
        """Enter the context of the probes around a step, and start its time."""
        self.count_batch(trainer)
        self.run.begin_step()
        last = batch_idx + 1 == trainer.num_training_batches
        x, y = (part.unsqueeze(0) for part in self.run.whole_minibatch(batch, batch_idx))
        self.around_step.enter_context(self.run.around_step(trainer.global_step, last, x, y))
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Split, batch_idx: int
    ) -> None:
        """Stop the time of a step, and run the probes that are due after it."""
        # Waiting for a GPU in each step would slow the training.
        is_last = batch_idx + 1 == trainer.num_training_batches
        ended = finished_time(pl_module.device) if is_last else time.perf_counter()
        self.run.seconds += ended - self.started
        self.around_step.close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Use the statistics that ``statistics`` selects."""
        self.uncounted = False
        self.evaluation.enter_context(self.run.evaluation.context())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics of the validation."""
        self.evaluation.close()
        self.validated = logged(trainer, "val/")
        self.run.add_metrics(self.validated)

    on_test_start = on_validation_start

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics of the test."""
        self.evaluation.close()
        self.run.add_metrics(logged(trainer, "test/"))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch, and stop once the run has diverged or an early stopping ended it."""
        self.count_batch(trainer)
        trainer.callback_metrics.update(resuming.epoch_values(self.sums))
        resuming.log_epoch_values(trainer, self.sums)
        self.sums.clear()
        train = {name: value for name, value in logged(trainer).items() if not name.startswith("val/")}
        self.run.end_epoch(train, self.validated)
        for callback in self.callbacks:
            if isinstance(callback, CurveRecorder) and any(
                isinstance(x, TensorBoardFile) for x in trainer.loggers
            ):
                callback.leave_out({*trainer.logged_metrics, *self.logged_before})
            callback.on_train_epoch_end(trainer, self.run)
        self.run.stop_members()
        # One device may round other numbers than another, but all processes must stop together.
        trainer.should_stop = trainer.strategy.broadcast(trainer.should_stop)
        self.epoch_ended = True
        # Otherwise Lightning would leave out schedulers by a metric in the first epoch after a checkpoint.
        trainer.fit_loop._restarting = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the schedulers were stepped after the last epoch."""
        self.epoch_ended = False

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the probes; Lightning does not start a training whose checkpoint has all epochs or steps."""
        if self.restored:
            self.restore(trainer, pl_module)
            if trainer.global_step > int(self.run.steps):  # max_steps ended it within an epoch
                self.on_train_epoch_end(trainer, pl_module)
        for callback in self.callbacks:
            callback.on_fit_end(trainer, self.run)


def logged(trainer: pl.Trainer, prefix: str = "") -> dict[str, float]:
    """Return the latest numbers that the module logged under names with a prefix."""
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
