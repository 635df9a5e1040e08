"""The LightningModule of a population, :class:`PopulationModule`.

Letters: K members, N samples, B samples of a minibatch, O outputs.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from normlab.data.datamodule import InMemoryData, WholeSplit
from normlab.data.sampling import Split, batch_sizes
from normlab.errors import prefix_errors
from normlab.interrupts import interrupts
from normlab.models.layer_lookup import MOMENTS, normalizers
from normlab.norms.counter_rng import StochasticLayer
from normlab.population import State
from normlab.population.compiling import Compiled, PopulationStep, StepFunction
from normlab.population.evaluation import (
    EvaluationStatistics,
    MetricFunction,
    Task,
    per_member_metrics,
    reestimate,
)
from normlab.population.optim import Clipping, StackedOptimizer
from normlab.population.population import Population
from normlab.population.resources import finished_time
from normlab.population.schedulers import PopulationScheduler

log = logging.getLogger("normlab")
MakeOptimizer = Callable[..., torch.optim.Optimizer]
MakeScheduler = Callable[..., PopulationScheduler]
AroundStep = Callable[[int, bool, Tensor, Tensor], AbstractContextManager[None]]
"""Returns the context manager around a step, given its number, whether it is the epoch's last, and x and y."""


@dataclass
class EpochSteps:
    """The steps of an epoch taken so far.

    Attributes:
        losses: before each step, ``(K,)`` each.
        sizes: of the minibatches.
        rates: learning rates of the last step of the epoch, ``(K,)``; None before it.
        seconds: time of the steps before this process went on with the epoch.
    """

    losses: list[Tensor] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    rates: Tensor | None = None
    seconds: float = 0.0


def no_context(step: int, is_last: bool, x: Tensor, y: Tensor) -> AbstractContextManager[None]:
    """Return a null context, the default of ``around_step``."""
    return nullcontext()


class PopulationModule(pl.LightningModule):
    """Trains K nets in one set of tensors; a single run is a population of one.

    The loss is the sum over members of each member's mean over its minibatch, so that no gradient depends on K. A
    Lightning batch is a whole split: ``training_step`` takes all optimizer steps of an epoch (manual
    optimization), because Lightning's overhead per batch exceeds an optimizer step of a small net.

    Attributes:
        data: the datamodule; optimizer: without Lightning's wrapper; both are set when a training begins.
        metrics: of the current epoch, ``(K,)`` each, under keys such as ``val/loss``.
        moved: splits on the training device, with their source, by index.
        held_out_metrics: in the last epochs, on the test split; with ``statistics=reestimated`` also on the
            validation split. They are not part of the curves.
        active: mask ``(K,)`` of members that still train; stopping: of members that a callback stops after this
            epoch; diverged: of members with a non-finite loss; pruned: of members stopped by the median rule;
            frozen: of members that have stopped, whose state is in ``frozen_state``.
        steps, epochs: optimizer steps and epochs that each member has trained, ``(K,)``.
        seconds: wall-clock time of all optimizer steps, without compiling and probing.
        taken: the steps of the current epoch.
        around_step: makes the context manager around each step; set by ``ProbeCallback``.
        between_steps: called after each step, with whether it is the epoch's last; before_steps: called once,
            before the first one. :class:`~normlab.training.population_state.PopulationSaver` sets both.
        probe_seconds, save_seconds: wall-clock time of the probes, and of saving the state.
    """

    data: InMemoryData
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        population: Population,
        task: Task,
        seeds: Sequence[int],
        make_optimizer: MakeOptimizer,
        make_scheduler: MakeScheduler | None = None,
        clipping: Clipping | None = None,
        compiles: bool = False,
        statistics: str = "running",
        extra_metrics: Mapping[str, MetricFunction] | None = None,
        stats_warmup_epochs: int = 0,
        train_eval_every: int | None = None,
        may_stop_early: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.population = population
        self.task = task
        self.seeds = list(seeds)
        self.make_optimizer, self.make_scheduler = make_optimizer, make_scheduler
        self.clipping = clipping
        self.compiles = compiles
        self.evaluation = EvaluationStatistics(population, statistics)
        self.extra_metrics = extra_metrics or {}
        self.step: StepFunction = self.take_step
        self.stats_warmup_epochs = stats_warmup_epochs
        self.train_eval_every, self.may_stop_early = train_eval_every, may_stop_early
        self.around_step: AroundStep = no_context
        self.between_steps: Callable[[bool], None] = lambda is_last: interrupts.check()
        self.before_steps: Callable[[], None] | None = None
        self.probe_seconds = self.save_seconds = 0.0
        self.metrics: dict[str, Tensor] = {}
        self.held_out_metrics: dict[str, Tensor] = {}
        self.moved: dict[int, tuple[WholeSplit, Split]] = {}
        self.active = torch.ones(population.members, dtype=torch.bool)
        self.stopping, self.diverged, self.frozen, self.pruned = torch.zeros(
            4, population.members, dtype=torch.bool
        )
        self.frozen_state: State = {}
        self.steps, self.epochs = torch.zeros(2, population.members, dtype=torch.long)
        self.taken, self.epoch_started = EpochSteps(), 0.0
        self.seconds = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(K, B, …)`` to every member's outputs, ``(K, B, O)``."""
        return self.population(x)

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]  # the scheduler is ours
        """Return the optimizer, and the scheduler if there is one."""
        members = self.population.members
        self.optimizer = self.make_optimizer(self.population.net, members)
        if self.make_scheduler is None:
            return {"optimizer": self.optimizer}
        return {"optimizer": self.optimizer, "lr_scheduler": self.make_scheduler(self.optimizer, members)}

    def setup(self, stage: str) -> None:
        """Store the Trainer's datamodule."""
        self.data = self.trainer.datamodule  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        """Switch to training mode, which Lightning does not, and prepare the first step."""
        self.train()
        self.population.initialize_layers(self.first_minibatch()[0])
        self.warm_up_statistics()
        self.prepare_step()

    def prepare_step(self) -> None:
        """Select the step function: eager on the net, one function of all members, or compiled."""
        self.advance: Callable[[], Any] = getattr(self.optimizer, "advance", self.optimizer.step)
        inner = getattr(self.optimizer, "inner", self.optimizer)
        if self.compiles and not isinstance(inner, StackedOptimizer):
            log.warning(
                "trainer.compile: %s is not compiled; only normlab's optimizers can be", type(inner).__name__
            )
            self.compiles = False
        if not isinstance(self.optimizer, StackedOptimizer):
            return
        whole = PopulationStep(self.population, self.task.loss, self.optimizer, self.clipping)
        if self.population.members > 1:
            self.step = whole
        if self.compiles:
            self.step = Compiled(whole, self.step, batch_sizes(self.data.train, self.data.batch_size))

    @torch.no_grad()
    def warm_up_statistics(self) -> None:
        """Update only running statistics, by ``stats_warmup_epochs`` passes over the training split."""
        drawing = [layer for layer in self.population.modules() if isinstance(layer, StochasticLayer)]
        for layer in drawing:
            layer.updates_state = False
        for epoch in range(self.stats_warmup_epochs):
            for x, _ in self.data.minibatches(self.training_split(), self.seeds, epoch):
                self(x)
        for layer in drawing:
            layer.updates_state = True

    def training_split(self) -> Split:
        """Return the training split on the training device and in its precision, ``(M, N, …)``, M = 1 or K."""
        return cast(Split, self.split(0))

    def split(self, index: int) -> Split | None:
        """Return the training (0), validation (1) or test (2) split as :meth:`training_split`; None if empty."""
        split = self.data.split(index)
        source, moved = self.moved.get(index, (None, None))
        if moved is None or source is not split or moved[0].device != self.device:
            with torch.inference_mode(False):  # as a later training step may use them
                x, y = (part.to(self.device) for part in self.cast((split.x, split.y)))
            self.moved[index] = split, (x, y)
            return (x, y) if len(split) else None
        return moved if len(split) else None

    def transfer_batch_to_device(self, batch: Split, device: torch.device, dataloader_idx: int) -> Split:
        """Return a split that has been moved before, which Lightning would copy again in every epoch."""
        for index in range(3):
            if batch[0] is self.data.split(index).x:
                return cast(Split, self.split(index))
        moved: Split = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved

    def first_minibatch(self) -> Split:
        """Return the first minibatch of the current epoch, ``(K, B, …)``."""
        return next(iter(self.data.minibatches(self.training_split(), self.seeds, self.current_epoch)))

    def on_train_epoch_start(self) -> None:
        """Clear the metrics of the previous epoch, and compute the schedule of this one."""
        self.metrics, self.held_out_metrics = {}, {}
        if self.scheduler is not None:
            self.scheduler.prepare(self.scheduler.due(self.current_epoch, self.steps_per_epoch))

    def take_step(self, x: Tensor, y: Tensor) -> Tensor:
        """Take an eager optimizer step, and return the losses before it, ``(K,)``."""
        self.optimizer.zero_grad()
        loss = self.task.loss(self.population(x), y)
        loss.sum().backward()  # a backward with a gradient would import SymPy, which takes 0.6 s
        if self.clipping is not None:
            self.clipping.in_place(self.population.parameters())
        self.advance()
        return loss.detach()

    def training_step(self, batch: Split, batch_idx: int) -> None:
        """Take all optimizer steps of an epoch; ``batch`` is the whole training split."""
        self.take_steps(batch)
        taken, losses, sizes = self.taken, self.taken.losses, self.taken.sizes
        self.metrics["train/loss"] = torch.stack(losses, dim=1) @ (losses[0].new_tensor(sizes) / sum(sizes))
        self.metrics["train/lr"] = cast(Tensor, taken.rates)
        self.steps += len(sizes) * self.active
        self.count_steps(len(sizes))
        self.epochs += self.active
        self.seconds += self.epoch_seconds
        self.taken = EpochSteps()
        self.measure_in_evaluation_mode(batch)
        # Lightning's loop would take four times as long; it runs if a callback may listen.
        every = self.trainer.check_val_every_n_epoch
        if self.trainer.limit_val_batches == 0 and every and (self.current_epoch + 1) % every == 0:
            self.validate_members()
        self.publish_metrics()

    def take_steps(self, batch: Split) -> None:
        """Take the optimizer steps of an epoch; those that a resumed epoch has taken already are skipped."""
        self.epoch_started = finished_time(self.device) - self.overhead_seconds
        if self.before_steps is not None:
            self.before_steps()
            self.before_steps = None
        taken, first = self.taken, int(self.steps.max())
        last, begun = first + self.steps_per_epoch - 1, len(taken.sizes)
        scheduler = self.scheduler if self.scheduler is not None and self.scheduler.interval == "step" else None
        for step, (x, y) in enumerate(islice(self.minibatches(batch), begun, None), first + begun):
            with self.around_step(step, step == last, x, y):
                taken.losses.append(self.step(x, y))
            taken.sizes.append(x.shape[1])
            taken.rates = self.learning_rates() if step == last else None
            if scheduler is not None and (step - first + 1) % scheduler.frequency == 0:
                scheduler.step()
            self.between_steps(step == last)

    @property
    def epoch_seconds(self) -> float:
        """Wall-clock time of the steps of the current epoch so far."""
        return self.taken.seconds + finished_time(self.device) - self.epoch_started - self.overhead_seconds

    @torch.no_grad()
    def measure_in_evaluation_mode(self, train: Split) -> None:
        """Evaluate the training split at its interval, and held-out splits in the last epochs.

        The training split is evaluated with statistics re-estimated on all of it, whatever ``statistics`` says.
        ``train/loss`` is no substitute: it averages over changing parameters, in training mode.
        """
        epoch, epochs = self.current_epoch + 1, self.trainer.max_epochs or 0
        is_final = self.may_stop_early or 10 * epoch > 9 * epochs
        every = self.train_eval_every or max(1, epochs // 10)
        if not (is_final or epoch % every == 0):
            return
        x, y = self.expand_members(train)
        self.eval()
        with self.evaluation.reestimated(x, self.data.batch_size):
            self.metrics |= self.split_metrics("train_eval", self(x), y)
            if is_final and self.evaluation.kind == "reestimated":
                self.measure_held_out(("val", 1), ("test", 2))
        if is_final and self.evaluation.kind != "reestimated":
            self.measure_held_out(("test", 2))
        self.train()

    def measure_held_out(self, *splits: tuple[str, int]) -> None:
        """Evaluate every member on splits, given by name and index; empty ones are skipped."""
        for name, index in splits:
            split = self.split(index)
            if split is None:
                continue
            x, y = self.expand_members(split)
            with self.evaluation.context():
                self.held_out_metrics |= self.split_metrics(name, self(x), y)

    @torch.inference_mode()
    def validate_members(self) -> None:
        """Evaluate every member on the validation split, if there is one, without Lightning's loop."""
        split = self.split(1)
        if split is not None:
            self.eval()
            self.validation_step(split, 0)
            self.train()

    def validation_step(self, batch: Split, batch_idx: int) -> None:
        """Evaluate every member on the validation split, and record the activation statistics of normalizers."""
        x, y = self.expand_members(batch)
        with self.evaluation.context():
            outputs, seen = self.population.observe(x, normalizers(self.population.net))
        self.metrics |= self.split_metrics("val", outputs, y)
        for layer, moments in seen.items():
            for name, values in zip(MOMENTS, moments.unbind(1), strict=True):
                self.metrics[f"activation/{layer}/{name}"] = values
        self.publish_metrics()

    def test_step(self, batch: Split, batch_idx: int) -> None:
        """Evaluate every member on the test split."""
        x, y = self.expand_members(batch)
        with self.evaluation.context():
            outputs = self(x)
        self.metrics |= self.split_metrics("test", outputs, y)

    def on_train_epoch_end(self) -> None:
        """Freeze diverged members, and step a scheduler by epochs, with its metric or else the loss."""
        self.stop_members()
        scheduler = self.scheduler
        if scheduler is not None and scheduler.interval == "epoch" and scheduler.due(self.current_epoch):
            metric = scheduler.monitor or ("val/loss" if self.data.val else "train/loss")
            scheduler.step(self.metrics.get(metric))

    def stop_members(self) -> None:
        """Freeze diverged and stopped members, and end the training once none trains."""
        losses = [self.metrics[key].isfinite().cpu() for key in ("train/loss", "val/loss") if key in self.metrics]
        finite = torch.stack([~self.diverged, *losses]).all(dim=0)
        # A member that early stopping has just deactivated may have diverged as well.
        self.diverged |= ~self.frozen & ~finite
        self.active &= finite & ~self.stopping
        self.freeze_inactive()
        self.trainer.should_stop = self.trainer.should_stop or not bool(self.active.any())

    @torch.no_grad()
    def freeze_inactive(self) -> None:
        """Restore members that have stopped, since the steps of the epoch updated them, too."""
        if bool(self.active.all()):
            return
        state = self.population.state()
        stopping, stopped = self.frozen ^ ~self.active, ~self.active
        for name, tensor in state.items():
            frozen = self.frozen_state.setdefault(name, tensor.detach().clone())
            frozen[stopping] = tensor[stopping]
            tensor[stopped] = frozen[stopped]
        self.frozen = stopped

    def reestimate(self, data: InMemoryData) -> None:
        """Replace running statistics by those of the whole training split."""
        split = data.split(0)
        x, _ = self.expand_members((split.x.to(self.device), split.y))
        with prefix_errors("statistics=reestimated"):
            reestimate(self.population, x.split(batch_sizes(x.shape[1], data.batch_size), dim=1))

    @property
    def overhead_seconds(self) -> float:
        """Wall-clock time of compiling, probing and saving so far."""
        compiling = self.step.seconds if isinstance(self.step, Compiled) else 0.0
        return compiling + self.probe_seconds + self.save_seconds

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch, at most ``fast_dev_run`` if that is set."""
        limit: int = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        steps = len(batch_sizes(self.data.train, self.data.batch_size))
        return min(limit, steps) if limit else steps

    @property
    def scheduler(self) -> PopulationScheduler | None:
        """The learning-rate scheduler; None if none is configured."""
        return cast(PopulationScheduler | None, self.lr_schedulers())

    def count_steps(self, number: int) -> None:
        """Add steps to ``trainer.global_step``, which Lightning's optimizer wrapper would do.

        The wrapper and ``manual_backward`` also call unused hooks, which cost a quarter of a small net's step.
        """
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.total.ready += number
        progress.total.completed += number

    def publish_metrics(self) -> None:
        """Give the metrics of a single run to Lightning's callbacks; those of a population are by member.

        ``self.log`` would do the same, but takes as long for one number as an optimizer step.
        """
        if self.population.members == 1:
            self.trainer.callback_metrics.update({name: value[0] for name, value in self.metrics.items()})

    def minibatches(self, batch: Split) -> Iterator[Split]:
        """Yield the epoch's minibatches, ``(K, B, …)``."""
        return islice(
            self.data.minibatches(self.cast(batch), self.seeds, self.current_epoch), self.steps_per_epoch
        )

    def expand_members(self, batch: Split) -> Split:
        """Expand a split that members share, ``(M, N, …)`` to ``(K, N, …)``."""
        members = self.population.members
        x, y = (part.expand(members, *part.shape[1:]) for part in self.cast(batch))
        return x, y

    def cast(self, batch: Split) -> Split:
        """Convert floating-point tensors to the training precision; class indices stay integers."""
        x, y = (part.to(self.dtype) if part.is_floating_point() else part for part in batch)
        return x, y

    def split_metrics(self, split: str, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return loss and metrics of a split, ``(K,)`` each, under keys such as ``val/loss``."""
        values = {"loss": self.task.loss(outputs, targets), **self.task.metrics(outputs, targets)}
        values |= per_member_metrics(self.extra_metrics, outputs, targets)
        return {f"{split}/{name}": value for name, value in values.items()}

    def learning_rates(self) -> Tensor:
        """Return each member's current learning rate, ``(K,)``."""
        lr = self.optimizer.param_groups[0]["lr"]
        return torch.as_tensor(lr, dtype=torch.float64).expand(self.population.members, 1).flatten()
