"""Stops trials of a search by the median rule; the entries are :class:`MedianPruning` and :func:`write_values`.

K is the number of members.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from normlab.config.frozen import to_jsonable
from normlab.results.result import read_numbers, write_atomically
from normlab.training.population_module import PopulationModule

VALUES_FILE = Path(".normlab", "pruning.json")
"""The metric of earlier trials by epoch, in the sweep's folder, where worker processes and clusters read it."""
Values = Mapping[int, Sequence[float]]


def write_values(sweep: Path, values: Values) -> None:
    """Write the metric's values of earlier trials by epoch, before a batch of trials begins."""
    path = sweep / VALUES_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(to_jsonable({str(epoch): list(own) for epoch, own in values.items()})))


def read_values(sweep: Path) -> Values:
    """Read the metric's values of earlier trials by epoch; empty without any."""
    path = sweep / VALUES_FILE
    written = read_numbers(json.loads(path.read_text())) if path.exists() else {}
    return {int(epoch): values for epoch, values in written.items()}


@dataclass(frozen=True)
class MedianRule:
    r"""The median rule: at epoch :math:`e` a trial with the metric :math:`v` is stopped if

    .. math:: v > \operatorname{median}(E_e \cup F_e), \quad |E_e \cup F_e| \ge n, \quad e > w

    for a metric that is minimized, and if :math:`v` is below the median for one that is maximized.

    Attributes:
        direction: min or max.
        n_startup_trials: :math:`n`, the number of other trials that the rule needs.
        n_warmup_epochs: :math:`w`, the number of epochs in which no trial is stopped.
        earlier: :math:`E_e`, the values of earlier trials by epoch; :math:`F_e` are those of fellow members. A
            trial that has ended counts with its last value, and a diverged one with the worst value.
    """

    direction: str
    n_startup_trials: int
    n_warmup_epochs: int
    earlier: Values

    def stops(self, epoch: int, values: np.ndarray) -> np.ndarray:
        """Return the mask ``(K,)`` of members to stop, given the metric of each, ``(K,)``.

        >>> MedianRule("min", 2, 0, {1: [3.0, 1.0]}).stops(1, np.array([1.5, 9.0]))
        array([False,  True])
        """
        if epoch <= self.n_warmup_epochs:
            return np.zeros(len(values), dtype=bool)
        sign = 1.0 if self.direction == "min" else -1.0
        before = [number for number in self.earlier if number <= epoch]
        # A NaN is the worst value.
        own, earlier = (np.nan_to_num(sign * np.asarray(each, float), nan=np.inf, posinf=np.inf, neginf=-np.inf)
                        for each in (values, self.earlier[max(before)] if before else []))  # fmt: skip
        others = [np.concatenate([earlier, np.delete(own, k)]) for k in range(len(own))]
        return np.array([
            len(other) >= self.n_startup_trials and bool(value > median(other))
            for value, other in zip(own, others, strict=True)
        ])  # fmt: skip


class MedianPruning(pl.Callback):
    """Stops members by the median rule; they are frozen like those that stop early.

    Args:
        members: K.
        monitor: the optimized metric.
        rule: by which members stop.

    Attributes:
        pruned: mask ``(K,)`` of members that the rule has stopped.
        last: the metric of each member at its last validation, ``(K,)``; NaN for a diverged one. A stopped member
            keeps it, since the median over the others alone would stop half of them in every epoch.
    """

    def __init__(self, members: int, monitor: str, rule: MedianRule) -> None:
        self.monitor, self.rule = monitor, rule
        self.pruned = torch.zeros(members, dtype=torch.bool)
        self.last = torch.full((members,), torch.nan, dtype=torch.float64)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        """Deactivate the members that the rule stops; in the last epoch there is nothing left to stop."""
        if self.monitor not in pl_module.metrics:
            return
        values = pl_module.metrics[self.monitor].detach().cpu().double()
        self.last = torch.where(pl_module.active, values, self.last)
        self.last[pl_module.diverged] = torch.nan
        if trainer.current_epoch + 1 == trainer.max_epochs:
            return
        stopped = torch.from_numpy(self.rule.stops(trainer.current_epoch + 1, self.last.numpy()))
        self.pruned |= stopped & pl_module.active & values.isfinite()
        self.deactivate(pl_module)

    def deactivate(self, pl_module: PopulationModule) -> None:
        """Deactivate the members that the rule has stopped."""
        pl_module.pruned = self.pruned.clone()
        pl_module.active &= ~self.pruned

    def resume_state(self) -> dict[str, Any]:
        """Return the members that the rule has stopped, and the last values."""
        return {"pruned": self.pruned, "last": self.last}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.pruned, self.last = state["pruned"], state["last"]
