"""PopulationModule, the LightningModule that trains a population epoch by epoch.

Letters: K members, N samples, B samples of a minibatch, O outputs.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import islice
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from normlab.data.datamodule import InMemoryData
from normlab.data.sampling import Split, batch_sizes
from normlab.errors import ConfigError, first_line, prefix_errors, require
from normlab.models.layer_lookup import MOMENTS, normalizers
from normlab.norms.counter_rng import StochasticLayer
from normlab.population.compiling import Compiled, PopulationStep, StepFunction
from normlab.population.evaluation import reestimate, use_batch_statistics, with_reestimated
from normlab.population.optim import Clipping, StackedOptimizer
from normlab.population.population import Population
from normlab.population.schedulers import Scheduler
from normlab.population.stacking import State
from normlab.population.tasks import Task
from normlab.training.interrupts import Interrupts

log = logging.getLogger("normlab")
SAMPLES_AT_ONCE = 1024
"""Samples of the training split that its statistics are re-estimated on at once, as many as a small split has."""
MakeOptimizer = Callable[..., torch.optim.Optimizer]
MakeScheduler = Callable[..., Scheduler]
MetricFunction = Callable[[Tensor, Tensor], Tensor]
AroundStep = Callable[[int, bool, Tensor, Tensor], AbstractContextManager[None]]
"""Makes the context manager of a step from its number, whether it is the epoch's last, and its minibatch."""


def no_context(step: int, is_last: bool, x: Tensor, y: Tensor) -> AbstractContextManager[None]:
    """Return a context manager that does nothing."""
    return nullcontext()


class PopulationModule(pl.LightningModule):
    """Trains K nets as one; a single run is a population of one.

    The loss is the sum over members of each member's mean over its batch, so that no member's gradient depends on
    K. Lightning hands over each split whole: a training step takes all of an epoch's optimizer steps
    (manual optimization), because what Lightning does around a batch costs more than a step of a small net.

    Attributes:
        data: what is trained on; optimizer: without Lightning's wrapper; both are set when a training begins.
        metrics: of the epoch that runs, each ``(K,)``, under keys such as ``val/loss``.
        held_out_metrics: in the last epochs, on the test split; with ``statistics=reestimated`` also on the
            validation split. No curve has them.
        active: the members that still train, ``(K,)``; diverged: those with a loss that was not finite;
            frozen: those that stay as they are, with their state in ``kept``.
        steps: the optimizer steps that each member has taken, ``(K,)``; epochs: likewise.
        seconds: the time that all optimizer steps took, without compiling and probing.
        around_step: makes the context manager that each step is taken in; set by ``ProbeCallback``.
        probe_seconds: the time that probes took, added by ``ProbeCallback``.
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
        self.statistics = statistics
        self.extra_metrics = extra_metrics or {}
        self.step: StepFunction = self.take_step
        self.stats_warmup_epochs = stats_warmup_epochs
        self.train_eval_every, self.may_stop_early = train_eval_every, may_stop_early
        self.around_step: AroundStep = no_context
        self.probe_seconds = 0.0
        self.interrupts = Interrupts()
        self.can_reestimate = True
        self.metrics: dict[str, Tensor] = {}
        self.held_out_metrics: dict[str, Tensor] = {}
        members = population.members
        self.active = torch.ones(members, dtype=torch.bool)
        self.diverged = torch.zeros(members, dtype=torch.bool)
        self.frozen = torch.zeros(members, dtype=torch.bool)
        self.kept: State = {}
        self.steps = torch.zeros(members, dtype=torch.long)
        self.epochs = torch.zeros(members, dtype=torch.long)
        self.seconds = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Return every member's outputs: ``(K, B, …)`` to ``(K, B, O)``."""
        return self.population(x)

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]  # the scheduler is ours
        """Return the optimizer, and the scheduler if there is one."""
        parameters, members = self.population.parameters(), self.population.members
        self.optimizer = self.make_optimizer(parameters, members)
        if self.make_scheduler is None:
            return {"optimizer": self.optimizer}
        return {"optimizer": self.optimizer, "lr_scheduler": self.make_scheduler(self.optimizer, members)}

    def setup(self, stage: str) -> None:
        """Take the data that Lightning's Trainer was given."""
        self.data = self.trainer.datamodule  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        """Go into training mode: Lightning would train a net that was left in evaluation mode as it is."""
        self.train()
        self.population.begin(self.first_minibatch()[0])
        self.warm_up()
        self.prepare_step()

    def prepare_step(self) -> None:
        """Choose how a step is taken: by the net as it is, as one function of all members, or compiled."""
        if not isinstance(self.optimizer, StackedOptimizer):
            if self.compiles:
                name = type(self.optimizer).__name__
                log.warning("trainer.compile: %s is not compiled, only normlab's own optimizers are", name)
            return
        whole = PopulationStep(self.population, self.task.loss, self.optimizer, self.clipping)
        if self.population.members > 1:
            self.step = whole
        if self.compiles:
            self.step = Compiled(whole, self.step, batch_sizes(self.data.train, self.data.batch_size))

    @torch.no_grad()
    def warm_up(self) -> None:
        """Pass the training split through the nets ``stats_warmup_epochs`` times: only running statistics move."""
        drawing = [layer for layer in self.population.modules() if isinstance(layer, StochasticLayer)]
        for layer in drawing:
            layer.held = True
        for epoch in range(self.stats_warmup_epochs):
            for x, _ in self.data.minibatches(self.training_split(), self.seeds, epoch):
                self(x)
        for layer in drawing:
            layer.held = False

    def training_split(self) -> Split:
        """Return the training split where and as the training has it, ``(M, N, …)``."""
        split = self.data.split(0)
        x, y = self.cast((split.x, split.y))
        return x.to(self.device), y.to(self.device)

    def first_minibatch(self) -> Split:
        """Return the first minibatch of the epoch that is on, or would be next, ``(K, B, …)``."""
        return next(iter(self.data.minibatches(self.training_split(), self.seeds, self.current_epoch)))

    def on_train_epoch_start(self) -> None:
        """Forget the metrics of the epoch before."""
        self.metrics, self.held_out_metrics = {}, {}

    def take_step(self, x: Tensor, y: Tensor) -> Tensor:
        """Take an optimizer step by the net and the optimizer as they are, and return the loss, ``(1,)``."""
        self.optimizer.zero_grad()
        loss = self.task.loss(self(x), y)
        loss.sum().backward()
        if self.clipping is not None:
            self.clipping.in_place(self.population.parameters())
        self.optimizer.step()
        return loss.detach()

    def training_step(self, batch: Split, batch_idx: int) -> None:
        """Take an epoch's optimizer steps; ``batch`` is the whole training split."""
        started, beside = time.perf_counter(), self.overhead_seconds
        losses, sizes, first = [], [], int(self.steps.max())
        last = first + self.steps_per_epoch - 1
        for step, (x, y) in enumerate(self.minibatches(batch), first):
            with self.around_step(step, step == last, x, y):
                losses.append(self.step(x, y))
            self.interrupts.check()
            sizes.append(x.shape[1])
        self.metrics["train/loss"] = torch.stack(losses, dim=1) @ (losses[0].new_tensor(sizes) / sum(sizes))
        self.metrics["train/lr"] = self.learning_rates()
        self.steps += len(sizes) * self.active
        self.count_steps(len(sizes))
        self.epochs += self.active
        self.seconds += time.perf_counter() - started - (self.overhead_seconds - beside)
        self.measure_in_evaluation_mode(batch)

    @torch.no_grad()
    def measure_in_evaluation_mode(self, train: Split) -> None:
        """Measure the training split in evaluation mode where that is due, and in the last epochs the test split.

        The training split is measured by the statistics of the whole of it, whatever evaluation otherwise goes
        by. The loss of an epoch's steps is no substitute: it is of moving parameters, in training mode.
        """
        epoch, epochs = self.current_epoch + 1, self.trainer.max_epochs or 0
        is_final = self.may_stop_early or 10 * epoch > 9 * epochs
        every = self.train_eval_every or max(1, epochs // 10)
        if not (is_final or epoch % every == 0):
            return
        x, y = self.for_all(train)
        self.eval()
        with self.reestimated(x):
            self.metrics |= self.measured("train_eval", self(x), y)
            if is_final and self.statistics == "reestimated":
                self.measure_held_out(("val", 1), ("test", 2))
        if is_final and self.statistics != "reestimated":
            self.measure_held_out(("test", 2))
        self.train()

    @contextmanager
    def reestimated(self, x: Tensor) -> Iterator[None]:
        """Context manager for evaluation by statistics re-estimated on a split, or running ones if that fails."""
        at_once = min(x.shape[1], max(self.data.batch_size, SAMPLES_AT_ONCE))
        minibatches = x.split(batch_sizes(x.shape[1], at_once), dim=1)
        with ExitStack() as stack:
            try:
                stack.enter_context(with_reestimated(self.population, minibatches if self.can_reestimate else []))
            except Exception as error:  # of a layer that cannot do without its running statistics
                if self.statistics == "reestimated":
                    raise ConfigError(f"statistics=reestimated: {first_line(error)}") from error
                self.can_reestimate = False
                log.warning("train_eval/loss goes by running statistics: %s", first_line(error))
            yield

    def measure_held_out(self, *splits: tuple[str, int]) -> None:
        """Measure every member on some splits, given by name and place; those without samples are left out."""
        for name, place in splits:
            split = self.data.split(place)
            if not len(split):
                continue
            x, y = self.for_all((split.x.to(self.device), split.y.to(self.device)))
            with self.evaluating():
                self.held_out_metrics |= self.measured(name, self(x), y)

    def validation_step(self, batch: Split, batch_idx: int) -> None:
        """Measure every member on the validation split."""
        x, y = self.for_all(batch)
        with self.evaluating():
            outputs, seen = self.population.observe(x, normalizers(self.population.net))
        self.measure("val", outputs, y)
        for layer, moments in seen.items():
            for name, values in zip(MOMENTS, moments.unbind(1), strict=True):
                self.metrics[f"activation/{layer}/{name}"] = values

    def test_step(self, batch: Split, batch_idx: int) -> None:
        """Measure every member on the test split."""
        x, y = self.for_all(batch)
        with self.evaluating():
            outputs = self(x)
        self.measure("test", outputs, y)

    def on_train_epoch_end(self) -> None:
        """Set diverged members aside, and let the scheduler see the loss, of validation where there is a split."""
        self.publish_metrics()
        losses = torch.stack([self.metrics[key] for key in ("train/loss", "val/loss") if key in self.metrics])
        finite = losses.isfinite().all(dim=0).cpu()
        # Also one that early stopping has just set aside.
        self.diverged |= ~self.frozen & ~finite
        self.active &= finite
        self.freeze_inactive()
        self.trainer.should_stop = self.trainer.should_stop or not bool(self.active.any())
        if self.scheduler is not None:
            judged = "val/loss" if self.data.val else "train/loss"
            self.scheduler.step(self.metrics.get(judged))

    @torch.no_grad()
    def freeze_inactive(self) -> None:
        """Put members that no longer train back to where they stopped; the steps since went on with them."""
        if bool(self.active.all()):
            return
        state = self.population.state()
        stopping, stopped = self.frozen ^ ~self.active, ~self.active
        for name, tensor in state.items():
            kept = self.kept.setdefault(name, tensor.detach().clone())
            kept[stopping] = tensor[stopping]
            tensor[stopped] = kept[stopped]
        self.frozen = stopped

    def evaluating(self) -> AbstractContextManager[None]:
        """Context manager for evaluation; hides the running statistics with ``statistics=batch``."""
        return use_batch_statistics(self.population.net) if self.statistics == "batch" else nullcontext()

    def reestimate(self, data: InMemoryData) -> None:
        """Put the statistics of the whole training split in the place of the running ones."""
        split = data.split(0)
        x, _ = self.for_all((split.x, split.y))
        with prefix_errors("statistics=reestimated"):
            reestimate(self.population, x.split(batch_sizes(x.shape[1], data.batch_size), dim=1))

    @property
    def overhead_seconds(self) -> float:
        """The time that compiling and probing have taken so far."""
        compiling = self.step.seconds if isinstance(self.step, Compiled) else 0.0
        return compiling + self.probe_seconds

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in an epoch; at most as many as asked for by ``fast_dev_run``."""
        only: int = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        steps = len(batch_sizes(self.data.train, self.data.batch_size))
        return min(only, steps) if only else steps

    @property
    def scheduler(self) -> Scheduler | None:
        """The learning-rate schedule, if there is one."""
        return cast(Scheduler | None, self.lr_schedulers())

    def count_steps(self, number: int) -> None:
        """Let ``trainer.global_step`` know of steps that did not go through Lightning's wrapper.

        The wrapper and ``manual_backward`` call hooks that nothing here uses, at a quarter of a small net's step.
        """
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.total.ready += number
        progress.total.completed += number

    def publish_metrics(self) -> None:
        """Hand the epoch's metrics, the median over members, to Lightning's own callbacks and loggers.

        ``self.log`` does the same, but takes as long for one number as an optimizer step does.
        """
        medians = {name: values.median() for name, values in self.metrics.items()}
        self.trainer.callback_metrics.update(medians)
        for logger in self.loggers:
            logger.log_metrics({name: value.item() for name, value in medians.items()}, self.global_step)

    def minibatches(self, batch: Split) -> Iterator[Split]:
        """Yield the epoch's minibatches, ``(K, B, …)``."""
        every = self.data.minibatches(self.cast(batch), self.seeds, self.current_epoch)
        return islice(every, self.steps_per_epoch)

    def for_all(self, batch: Split) -> Split:
        """Return a split as every member sees it, ``(M, N, …)`` to ``(K, N, …)``."""
        members = self.population.members
        x, y = (part.expand(members, *part.shape[1:]) for part in self.cast(batch))
        return x, y

    def cast(self, batch: Split) -> Split:
        """Return a split in the precision of the training; classes stay whole numbers."""
        x, y = (part.to(self.dtype) if part.is_floating_point() else part for part in batch)
        return x, y

    def measure(self, split: str, outputs: Tensor, targets: Tensor) -> None:
        """Add loss and metrics of a split to those of the epoch."""
        self.metrics |= self.measured(split, outputs, targets)

    def measured(self, split: str, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return loss and metrics of a split, ``(K,)`` each."""
        values = {"loss": self.task.loss(outputs, targets), **self.values(outputs, targets)}
        return {f"{split}/{name}": value for name, value in values.items()}

    def values(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the metrics, the task's and those of the configuration, ``(K,)`` each."""
        values = self.task.metrics(outputs, targets)
        for name, metric in self.extra_metrics.items():
            with prefix_errors(f"metrics.{name}"):
                of_members = [torch.as_tensor(metric(*member)) for member in zip(outputs, targets, strict=True)]
                shape = tuple(of_members[0].shape)
                require(shape == (), f"metrics.{name}", "one number for each net", f"shape {shape}")
                values[name] = torch.stack(of_members).to(outputs.dtype)
        return values

    def learning_rates(self) -> Tensor:
        """Return each member's learning rate now, ``(K,)``."""
        lr = self.optimizer.param_groups[0]["lr"]
        return torch.as_tensor(lr, dtype=torch.float64).expand(self.population.members, 1).flatten()
