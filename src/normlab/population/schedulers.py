"""Schedulers of a population: torch's, on small optimizers that hold the hyperparameters of one member each.

The entry is :class:`PopulationScheduler`. K is the number of members.
"""

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normlab.population.optim import StackedOptimizer, StackedTorch, column

MakeScheduler = Callable[[torch.optim.Optimizer], Any]
"""Makes a scheduler of torch for an optimizer."""
Groups = list[dict[str, Any]]
"""The hyperparameters of each parameter group of an optimizer."""


class Hyperparameters(torch.optim.Optimizer):
    """An optimizer that trains nothing: it holds hyperparameters, which a scheduler changes."""

    def __init__(self, groups: Groups) -> None:
        first, *others = groups
        common = {name: value for name, value in first.items() if all(name in other for other in others)}
        super().__init__([{**group, "params": [nn.Parameter(torch.zeros(()))]} for group in groups], common)

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Do nothing; schedulers warn if this is never called."""

    @property
    def numbers(self) -> Groups:
        """The current hyperparameters."""
        return [{name: value for name, value in group.items() if name != "params"} for group in self.param_groups]


class PopulationScheduler:
    """Drives the hyperparameters of each member by a scheduler of torch.

    Every hyperparameter that a scheduler changes, such as the learning rate, the momentum or the betas, is written
    to the population's optimizer. Schedules without a metric are computed ahead by :meth:`prepare`, and once for
    members with the same schedule and hyperparameters.

    Args:
        optimizer: of the population.
        make: of each member; members with equal schedules have the same object.
        interval: ``epoch`` or ``step``, the unit of time of the schedule.
        frequency: number of intervals between two steps of the scheduler.
        monitor: the metric that the scheduler is stepped with, if it takes one; None: the validation loss.

    Attributes:
        needs_metric: whether the schedule depends on a metric.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        make: Sequence[MakeScheduler],
        interval: str = "epoch",
        frequency: int = 1,
        monitor: str | None = None,
    ) -> None:
        self.optimizer, self.make = optimizer, list(make)
        self.interval, self.frequency, self.monitor = interval, frequency, monitor
        self.initial = groups_of(optimizer, range(len(self.make)))
        self.start()

    def start(self) -> None:
        """Make the schedulers for the initial hyperparameters."""
        self.schedulers: list[Any] = []
        self.holders: list[Hyperparameters] = []
        self.of_member: list[int] = []
        self.ahead: deque[Groups] = deque()
        self.steps = 0
        numbers: dict[tuple[int, str], int] = {}
        for make, groups in zip(self.make, self.initial, strict=True):
            key = id(make), repr(groups)
            if key not in numbers or self.needs_metric:
                numbers[key] = len(self.schedulers)
                self.holders.append(Hyperparameters(groups))
                self.schedulers.append(make(self.holders[-1]))
            self.of_member.append(numbers[key])
        # A scheduler such as OneCycleLR changes the hyperparameters when it is made.
        self.last = [[dict(group) for group in groups] for groups in self.initial]
        self.write(self.changes())

    @property
    def needs_metric(self) -> bool:
        """Whether the schedule depends on a metric."""
        return "metrics" in inspect.signature(self.schedulers[0].step).parameters

    def due(self, epoch: int, steps_per_epoch: int = 1) -> int:
        """Return the number of steps of the scheduler in an epoch, counted from 0.

        As in Lightning, ``frequency`` counts the optimizer steps of each epoch from its start.
        """
        if self.interval == "step":
            return steps_per_epoch // self.frequency
        return int((epoch + 1) % self.frequency == 0)

    def prepare(self, steps: int) -> None:
        """Compute the hyperparameters of the next steps of the scheduler, if they depend on no metric."""
        while not self.needs_metric and len(self.ahead) < steps:
            self.ahead.append(self.advance(None))

    def step(self, metric: Tensor | None = None) -> None:
        """Write the hyperparameters of the next epoch or step to the optimizer.

        Args:
            metric: of each member, ``(K,)``; None if it was not measured, so that a schedule with a metric waits.
        """
        if self.needs_metric and metric is None:
            return
        self.steps += 1
        if self.needs_metric:
            self.write(self.advance(metric))
        else:
            self.prepare(1)
            self.write(self.ahead.popleft())

    def advance(self, metric: Tensor | None) -> Groups:
        """Step the schedulers, and return the hyperparameters that change, with a value for each member."""
        self.step_schedulers(metric)
        return self.changes()

    def step_schedulers(self, metric: Tensor | None) -> None:
        """Step the scheduler of each member, or of members with the same schedule."""
        values = [None] * len(self.schedulers) if metric is None else metric.tolist()
        for holder, scheduler, value in zip(self.holders, self.schedulers, values, strict=True):
            holder.step()
            scheduler.step(*([] if value is None else [value]))

    def changes(self) -> Groups:
        """Return the hyperparameters that differ from the last ones, with a value for each member."""
        now = [self.holders[number].numbers for number in self.of_member]
        changed = []
        for number, group in enumerate(self.initial[0]):
            names = [name for name in group if any(new[number][name] != old[number][name]
                                                   for new, old in zip(now, self.last, strict=True))]  # fmt: skip
            changed.append({name: [member[number][name] for member in now] for name in names})
        self.last = now
        return changed

    def write(self, changed: Groups) -> None:
        """Write changed hyperparameters to the population's optimizer."""
        if type(self.optimizer) is not StackedTorch and isinstance(self.optimizer, StackedOptimizer):
            values = dict(changed[0])
            if "betas" in values:
                values["beta1"], values["beta2"] = zip(*values.pop("betas"), strict=True)
            self.optimizer.set_numbers({name: column(value, len(self.make)) for name, value in values.items()})
            return
        for group, values in zip(torch_groups(self.optimizer), changed, strict=True):
            group.update({name: value[0] for name, value in values.items()})
        if isinstance(self.optimizer, StackedTorch):
            self.optimizer.show_numbers()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for :meth:`load_state_dict`; a schedule without a metric is repeated from its start."""
        if not self.needs_metric:
            return {"steps": self.steps}
        states = [scheduler.state_dict() for scheduler in self.schedulers]
        return {"steps": self.steps, "schedulers": states, "numbers": [holder.numbers for holder in self.holders]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that :meth:`state_dict` returned."""
        self.start()
        self.steps = state["steps"]
        if not self.needs_metric:
            for _ in range(self.steps):
                self.step_schedulers(None)
            self.write(self.changes())
            return
        for scheduler, own in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(own)
        for holder, numbers in zip(self.holders, state["numbers"], strict=True):
            for group, values in zip(holder.param_groups, numbers, strict=True):
                group.update(values)
        self.write(self.changes())


def torch_groups(optimizer: torch.optim.Optimizer) -> Groups:
    """Return the parameter groups of an optimizer of torch, or of the one that trains a population."""
    return optimizer.inner.param_groups if isinstance(optimizer, StackedTorch) else optimizer.param_groups


def groups_of(optimizer: torch.optim.Optimizer, members: Sequence[int]) -> list[Groups]:
    """Return the hyperparameters of each of these members, under the names of torch's optimizers."""
    if not isinstance(optimizer, StackedOptimizer) or isinstance(optimizer, StackedTorch):
        groups = torch_groups(optimizer)
        return [
            [{name: value for name, value in group.items() if name != "params"} for group in groups]
            for _ in members
        ]
    (group,) = optimizer.param_groups
    # One copy from a GPU for all members.
    columns = {name: value.flatten().tolist() for name, value in group.items() if name != "params"}
    if "beta1" in columns:
        columns["betas"] = list(zip(columns.pop("beta1"), columns.pop("beta2"), strict=True))
    return [[{name: values[k] for name, values in columns.items()}] for k in members]
