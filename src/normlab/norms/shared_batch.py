"""Minibatches whose samples are shared out between processes: :func:`shared_batch`, sums over all, and shares.

Each process of ``torch.distributed`` runs the net on its share. Within :func:`shared_batch`, layers that depend on
the other samples or on the position of a sample in the minibatch compute what one process computes on the whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class SumOverProcesses(torch.autograd.Function):
    """Sums a tensor over all processes: ``s = Σ_r x_r``, and ``∂L/∂x_r = Σ_q ∂L_q/∂s`` for ``L = Σ_q L_q``.

    The functions of ``torch.distributed.nn.functional`` do the same, but torch announces their removal.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the sum, the same in every process."""
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the sum of the gradients of all processes."""
        total: Tensor = SumOverProcesses.apply(gradient)
        return total


@dataclass(frozen=True)
class Share:
    """The samples of a minibatch that this process has: ``samples`` of ``total``, from index ``start`` on."""

    start: int
    samples: int
    total: int

    @classmethod
    def of(cls, samples: int, device: torch.device | str = "cpu") -> "Share":
        """Return the share of this process, with ``samples`` samples; all processes call this together.

        Args:
            samples: of this process, at least 1.
            device: on which the processes exchange tensors.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls(0, samples, samples)
        own = torch.tensor([samples], device=device)
        everyones = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, own)
        sizes, rank = torch.cat(everyones).tolist(), dist.get_rank()
        return cls(sum(sizes[:rank]), samples, sum(sizes))

    def count(self, rows: int) -> int:
        """Return the number of rows of all processes, for ``rows`` rows of this one, as many for each sample."""
        return rows // self.samples * self.total

    def mean_over_samples(self, x: Tensor) -> Tensor:
        """Return the mean over all axes but the last, and all processes: ``(B, ..., C)`` to ``(C,)``."""
        total: Tensor = SumOverProcesses.apply(x.sum(tuple(range(x.dim() - 1))))
        return total / self.count(x.shape[:-1].numel())

    def select(self, rows: Tensor) -> Tensor:
        """Return the rows of this process from those of the whole minibatch, as many for each sample."""
        each = len(rows) // self.total
        return rows[each * self.start : each * (self.start + self.samples)]


_share: Share | None = None
"""The share of the current step; a plain global, which ``torch.compile`` can guard on."""


def current_share() -> Share | None:
    """Return the share of the current step; None if this process has whole minibatches."""
    return _share


@contextmanager
def shared_batch(share: Share) -> Iterator[None]:
    """Context manager for a forward pass on a share of a minibatch; all processes enter it together.

    Has no effect if the share is the whole minibatch.
    """
    global _share  # noqa: PLW0603 - the layers of a net have no other way to learn of it
    before, _share = _share, share if share.samples < share.total else None
    try:
        yield
    finally:
        _share = before
