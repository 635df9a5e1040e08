"""Learning-rate schedulers of a population, stepped once per epoch; each member's equals torch's.

Letters: K members; a hyperparameter is ``[K, 1]``, as in :mod:`normlab.population.optim`.
"""

import torch
from torch import Tensor

from normlab.population.optim import Number, column


class Scheduler:
    """Base class of schedulers, with the initial learning rate and the number of epochs since.

    Args:
        optimizer: stacked, or any other optimizer of a single run, whose learning rate is a float.
        members: K.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, members: int) -> None:
        self.optimizer = optimizer
        self.members = members
        self.epoch = 0
        self.base_lr = self.lr

    @property
    def lr(self) -> Tensor:
        """Current learning rate of each member, ``(K, 1)``."""
        return column(self.optimizer.param_groups[0]["lr"], self.members)

    def step(self, loss: Tensor | None) -> None:
        """Set the learning rates of the next epoch.

        Args:
            loss: of each member in the finished epoch, ``(K,)``; None if it was not measured.
        """
        self.epoch += 1
        lr = self.next_lr(loss)
        for group in self.optimizer.param_groups:
            group["lr"] = lr.to(group["lr"].device) if isinstance(group["lr"], Tensor) else lr.item()

    def next_lr(self, loss: Tensor | None) -> Tensor:
        """Return the learning rate of each member in epoch ``self.epoch``, ``(K, 1)``."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor | int]:
        """Return the state for :meth:`load_state_dict`."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor | int)}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Restore a state that :meth:`state_dict` returned."""
        vars(self).update(state)


class StepLR(Scheduler):
    """Step decay: ``η_t = η₀·γ^⌊t / step_size⌋``."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, step_size: Number = 30, gamma: Number = 0.1, members: int = 1
    ) -> None:
        super().__init__(optimizer, members)
        self.step_size = column(step_size, members)
        self.gamma = column(gamma, members)
        if not bool((self.step_size >= 1).all()):
            raise ValueError(f"scheduler.step_size must be at least 1, got {step_size}")

    def next_lr(self, loss: Tensor | None) -> Tensor:
        """Multiply by gamma every ``step_size`` epochs."""
        return self.base_lr * self.gamma ** (self.epoch // self.step_size)


class CosineAnnealingLR(Scheduler):
    """Cosine annealing: ``η_t = η_min + ½(η₀ − η_min)(1 + cos(π·t / T_max))`` (arXiv:1608.03983)."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, T_max: Number, eta_min: Number = 0.0, members: int = 1
    ) -> None:
        super().__init__(optimizer, members)
        self.T_max = column(T_max, members)
        self.eta_min = column(eta_min, members)

    def next_lr(self, loss: Tensor | None) -> Tensor:
        """Return the rate of cosine annealing."""
        phase = torch.pi * self.epoch / self.T_max.clamp(min=1)
        return self.eta_min + (self.base_lr - self.eta_min) * (1 + phase.cos()) / 2


class ReduceLROnPlateau(Scheduler):
    """Multiplies a member's η by ``factor`` after more than ``patience`` epochs without improvement.

    An improvement is a loss below ``best·(1 − threshold)``. ``cooldown`` epochs after a reduction do not count.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        factor: Number = 0.1,
        patience: Number = 10,
        threshold: Number = 1e-4,
        cooldown: Number = 0,
        min_lr: Number = 0.0,
        members: int = 1,
    ) -> None:
        super().__init__(optimizer, members)
        self.factor, self.patience = column(factor, members), column(patience, members)
        self.threshold, self.cooldown = column(threshold, members), column(cooldown, members)
        self.min_lr = column(min_lr, members)
        self.best = torch.full((members, 1), torch.inf, dtype=torch.float64)
        self.bad_epochs = torch.zeros(members, 1, dtype=torch.float64)
        self.cooling = torch.zeros(members, 1, dtype=torch.float64)

    def next_lr(self, loss: Tensor | None) -> Tensor:
        """Reduce the rate after too many epochs without improvement; epochs without a loss do not count."""
        if loss is None:
            return self.lr
        loss = column(loss, self.members)
        better = loss < self.best * (1 - self.threshold)
        self.best = torch.where(better, loss, self.best)
        self.bad_epochs = torch.where(better, 0.0, self.bad_epochs + 1)
        # As in torch, bad epochs are reset before the cooldown is decremented.
        self.bad_epochs = torch.where(self.cooling > 0, 0.0, self.bad_epochs)
        self.cooling = (self.cooling - 1).clamp(min=0)
        reduce = self.bad_epochs > self.patience
        self.cooling = torch.where(reduce, self.cooldown, self.cooling)
        self.bad_epochs = torch.where(reduce, 0.0, self.bad_epochs)
        lower = torch.maximum(self.lr * self.factor, self.min_lr)
        # As in torch, reductions of at most 1e-8 are skipped.
        return torch.where(reduce & (self.lr - lower > 1e-8), lower, self.lr)
