"""Callbacks of a population: early stopping, best state, curves, final metrics, progress bar.

Lightning's callbacks handle a single run; these decide for each member separately. K is the number of members.
Those with ``resume_state`` and ``resume_from`` have a state that a resumed run continues from; see
:mod:`normlab.training.resuming`.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from normlab.population.population import Population, copy_of
from normlab.results.events import EventWriter, scalars, tag_of
from normlab.results.result import EpochMetrics, worst_value
from normlab.results.series import Point
from normlab.stats.estimates import final_mean
from normlab.training.population_module import PopulationModule
from normlab.training.progress import Progress
from normlab.training.run_series import RunSeries

EVALUATION = ("val/", "test/", "train_eval/")
"""Prefixes of metrics measured in evaluation mode."""


class Timer:
    """Returns True at most once per interval.

    Args:
        seconds: the interval.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started = time.monotonic()

    def __call__(self) -> bool:
        """Return True if the interval has passed, and then start the next one."""
        now = time.monotonic()
        passed = now - self.started > self.seconds
        self.started = now if passed else self.started
        return passed


def improved(metric: Tensor, best: Tensor, direction: str, min_delta: float = 0.0) -> Tensor:
    """Return a mask ``(K,)`` of metrics that beat the best by more than ``min_delta``; NaN never does."""
    return metric < best - min_delta if direction == "min" else metric > best + min_delta


class CallbackList(pl.Callback):
    """Calls callbacks in order, as one: Lightning takes some microseconds for each callback and hook."""

    def __init__(self, callbacks: Sequence[pl.Callback]) -> None:
        self.callbacks = callbacks

    def on_fit_start(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Call the hook."""
        for callback in self.callbacks:
            callback.on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Call the hook."""
        for callback in self.callbacks:
            callback.on_train_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Call the hook."""
        for callback in self.callbacks:
            callback.on_train_epoch_end(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Call the hook."""
        for callback in self.callbacks:
            callback.on_fit_end(trainer, pl_module)


class EarlyStopping(pl.Callback):
    """Stops a member whose metric has not improved for ``patience`` validations."""

    def __init__(self, members: int, monitor: str, direction: str, patience: int, min_delta: float) -> None:
        self.monitor, self.direction = monitor, direction
        self.patience, self.min_delta = patience, min_delta
        self.best = torch.full((members,), worst_value(direction), dtype=torch.float64)
        self.waited = torch.zeros(members, dtype=torch.long)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Deactivate members without an improvement in the last ``patience`` validations."""
        if self.monitor not in pl_module.metrics:
            return
        metric = pl_module.metrics[self.monitor].cpu()
        better = improved(metric, self.best, self.direction, self.min_delta)
        self.best = torch.where(better, metric.double(), self.best)
        self.waited = torch.where(better, 0, self.waited + 1)
        self.deactivate(pl_module)

    def deactivate(self, pl_module: PopulationModule) -> None:
        """Deactivate members that have waited for ``patience`` validations."""
        pl_module.active &= self.waited < self.patience

    def resume_state(self) -> dict[str, Any]:
        """Return the best metrics and the numbers of validations since."""
        return {"best": self.best, "waited": self.waited}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.best, self.waited = state["best"], state["waited"]


class BestState(pl.Callback):
    """Keeps each member's parameters and buffers at the epoch where its metric was best.

    Attributes:
        value, epoch, step: best metric, its epoch and its optimizer step, ``(K,)`` each; epoch is 0 for a member
            that never had a finite metric, whose state is its initial one.
        metrics: all metrics of that epoch, ``(K,)`` each.
        state: the parameters and buffers, ``(K, …)`` each.
    """

    def __init__(self, population: Population, monitor: str, direction: str) -> None:
        self.monitor, self.direction = monitor, direction
        self.value = torch.full((population.members,), worst_value(direction), dtype=torch.float64)
        self.epoch, self.step = torch.zeros(2, population.members, dtype=torch.long)
        self.metrics: dict[str, Tensor] = {}
        self.state = copy_of(population)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Copy the initial state once it is on the training device and in the training precision."""
        self.state = copy_of(pl_module.population)

    def epoch_metrics(self, k: int) -> EpochMetrics | None:
        """Return epoch, step and metrics of member k's best epoch; None without a finite metric."""
        if self.epoch[k] == 0:
            return None
        metrics = {name: values[k].item() for name, values in self.metrics.items()}
        return EpochMetrics(int(self.epoch[k]), int(self.step[k]), metrics)

    def revise(self, population: Population, metrics: dict[str, Tensor]) -> None:
        """Replace state and metrics after re-estimating statistics; epochs and steps stay."""
        self.state = copy_of(population)
        self.metrics |= {name: values.detach().clone() for name, values in metrics.items()}

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Copy state and metrics of members that improved."""
        if self.monitor not in pl_module.metrics:
            return
        metric = pl_module.metrics[self.monitor].cpu()
        better = improved(metric, self.value, self.direction) & pl_module.active
        if not bool(better.any()):
            return
        self.value[better] = metric.double()[better]
        self.epoch[better], self.step[better] = pl_module.epochs[better], pl_module.steps[better]
        for kept, now in ((self.metrics, pl_module.metrics), (self.state, pl_module.population.state())):
            for name, tensor in now.items():
                # A resumed run has read them on the CPU.
                kept[name] = kept[name].to(tensor.device) if name in kept else torch.zeros_like(tensor)
                mask = better.to(tensor.device)
                kept[name][mask] = tensor[mask]

    def resume_state(self) -> dict[str, Any]:
        """Return the best state with its metric, epoch and step."""
        return {key: getattr(self, key) for key in ("value", "epoch", "step", "metrics", "state")}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        vars(self).update(state)


class CurveRecorder(pl.Callback):
    """Records each member's metrics of every epoch, and writes them every ``flush_seconds``.

    Args:
        series, events, flush_seconds: of the runs.
        keeps: whether the points are kept for :meth:`resume_state` after they were written.
        continues: whether the files hold the points of the state that a resumed training begins with.

    Attributes:
        logged: names of the metrics that Lightning's logger writes to the event file.
    """

    def __init__(
        self,
        series: Sequence[RunSeries],
        events: Sequence[EventWriter],
        flush_seconds: float,
        keeps: bool = False,
        continues: bool = False,
    ) -> None:
        self.series, self.events, self.keeps, self.continues = series, events, keeps, continues
        self.logged: set[str] = set()
        self.written: list[Point] = []
        self.flush_due = Timer(flush_seconds)
        self.points: list[list[Point]] = [[] for _ in series]
        self.last: list[Point | None] = [None] * len(series)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Record the epoch's metrics of the members that still train."""
        now, names = time.time(), list(pl_module.metrics)
        rows = torch.stack([m.double().cpu() for m in pl_module.metrics.values()], dim=1).tolist()
        epochs, steps = pl_module.epochs.tolist(), pl_module.steps.tolist()
        for k in pl_module.active.nonzero().flatten().tolist():
            self.last[k] = Point(epochs[k], steps[k], now, dict(zip(names, rows[k], strict=True)))
            self.points[k].append(self.last[k])
        if self.flush_due():
            self.flush()

    def epoch_metrics(self, k: int) -> EpochMetrics | None:
        """Return epoch, step and metrics of the last epoch recorded for member k, or None."""
        point = self.last[k]
        return EpochMetrics(point.epoch, point.step, point.metrics) if point else None

    def revise(self, metrics: dict[str, Tensor]) -> None:
        """Replace metrics of each member's last epoch; the recorded curves keep the old values."""
        for k, point in enumerate(self.last):
            if point is not None:
                revised = {name: values[k].item() for name, values in metrics.items()}
                self.last[k] = replace(point, metrics=point.metrics | revised)

    def flush(self) -> None:
        """Append the recorded points to the curve and event files."""
        for series, points in zip(self.series, self.points, strict=True):
            series.append_points(points)
        for file, points in zip(self.events, self.points, strict=bool(self.events)):
            for point in points:
                file.add_event(scalars(point, self.tag_of))
            file.flush()
        for points in self.points:
            if self.keeps:
                self.written += points
            points.clear()

    def leave_out(self, names: Iterable[str]) -> None:
        """Leave these metrics out of the event file from now on, as Lightning's logger writes them."""
        if self.logged != set(names):
            self.flush()
            self.logged = set(names)

    def tag_of(self, name: str) -> str:
        """Return the tag of a metric in the event file; empty if Lightning's logger writes it."""
        return "" if name in self.logged else tag_of(name)

    def resume_state(self) -> dict[str, Any]:
        """Return the last point of each run; of a single run all points."""
        kept = {"points": [asdict(point) for point in (*self.written, *self.points[0])]} if self.keeps else {}
        return {"last": [asdict(point) if point else None for point in self.last], **kept}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Continue after the points of a state; write them, if they stand in another folder."""
        self.last = [Point(**point) if point else None for point in state["last"]]
        if self.keeps:
            points = [Point(**point) for point in state["points"]]
            self.written, self.points = (points, [[]]) if self.continues else ([], [points])
            self.flush()


class FinalMetrics(pl.Callback):
    """Records metrics in evaluation mode, and averages them over the last tenth of a run's epochs."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Record the epoch's metrics in evaluation mode, on the splits measured in this epoch."""
        metrics = pl_module.metrics | pl_module.held_out_metrics
        measured = {name: value.double().cpu() for name, value in metrics.items() if name.startswith(EVALUATION)}
        self.epochs.append(measured)

    def means(self, epochs: Tensor) -> dict[str, np.ndarray]:
        """Return each metric's mean over the last tenth of a member's own epochs, ``(K,)`` by name.

        Args:
            epochs: number of epochs that each member trained, ``(K,)``.
        """
        names = dict.fromkeys(name for metrics in self.epochs for name in metrics)
        own = epochs.clamp(1, max(1, len(self.epochs))).numpy()
        unknown = torch.full((len(epochs),), torch.nan, dtype=torch.float64)
        return {
            name: final_mean(torch.stack([e.get(name, unknown) for e in self.epochs], dim=1).numpy(), own)
            for name in names
        }

    def resume_state(self) -> dict[str, Any]:
        """Return the number of epochs, and the epochs and values of each metric as one tensor each.

        Thousands of small tensors would take longer to save than all parameters.
        """
        names = dict.fromkeys(name for metrics in self.epochs for name in metrics)
        measured = {name: [n for n, metrics in enumerate(self.epochs) if name in metrics] for name in names}
        values = {name: torch.stack([self.epochs[n][name] for n in measured[name]]) for name in names}
        return {"number": len(self.epochs), "measured": measured, "values": values}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.epochs = [{} for _ in range(state["number"])]
        for name, numbers in state["measured"].items():
            for n, values in zip(numbers, state["values"][name].unbind(), strict=True):
                self.epochs[n][name] = values


class ProgressCallback(pl.Callback):
    """Advances the progress bar by one epoch of every member."""

    def __init__(self, progress: Progress, monitor: str) -> None:
        self.progress, self.monitor = progress, monitor

    def on_train_start(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Advance the bar by the epochs before a checkpoint."""
        self.progress.advance(int(pl_module.epochs.sum()))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Advance the bar, and show the metric's median over members."""
        metric = pl_module.metrics.get(self.monitor)
        status = "" if metric is None else f"{self.monitor}={metric.median():.4g}"
        self.progress.advance(pl_module.population.members, status)
