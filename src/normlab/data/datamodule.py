"""The LightningDataModule that every dataset is: a table in memory, sliced instead of collated."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytorch_lightning as pl
from torch import Tensor

from normlab.config import DataConfig
from normlab.data.order import batch_sizes, epoch_order, leaves_one_over
from normlab.data.table import Table

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class WholeSplit:
    """A dataloader of one batch, the whole split: Lightning's cost per batch is then paid once an epoch.

    A split without samples has no batch.
    """

    table: Table

    def __iter__(self) -> Iterator[Split]:
        if len(self):
            yield self.table.x, self.table.y

    def __len__(self) -> int:
        return min(len(self.table), 1)


@dataclass(kw_only=True, eq=False)
class InMemoryData(DataConfig, pl.LightningDataModule):
    """A dataset that fits in memory; a subclass says in :meth:`table` where its samples come from.

    Lightning is handed each split whole; :meth:`minibatches` slices an epoch's batches out of it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        pl.LightningDataModule.__init__(self)
        self._parts: tuple[Table, ...] | None = None

    def table(self) -> Table:
        """Return all samples, drawn from ``self.seed`` if they are random."""
        raise NotImplementedError(f"{type(self).__name__} must define table()")

    @property
    def parts(self) -> tuple[Table, ...]:
        """The training, validation and test parts, made once."""
        if self._parts is None:
            parts = self.table().split((self.train, self.val, self.test), self.seed)
            if self.standardize:
                parts = tuple(part.standardized_by(parts[0]) for part in parts)
            if self.standardize_target:
                parts = tuple(part.target_standardized_by(parts[0]) for part in parts)
            self._parts = parts
        return self._parts

    @property
    def notices(self) -> list[str]:
        """What a person should know about this data before reading a result."""
        if not leaves_one_over(self.train, self.batch_size):
            return []
        return [
            f"data: {self.train} training samples in batches of {self.batch_size} leave one over; "
            f"it joins the last batch, which has {self.batch_size + 1}"
        ]

    def train_dataloader(self) -> WholeSplit:
        """Return the training split as one batch."""
        return WholeSplit(self.parts[0])

    def val_dataloader(self) -> WholeSplit:
        """Return the validation split as one batch."""
        return WholeSplit(self.parts[1])

    def test_dataloader(self) -> WholeSplit:
        """Return the test split as one batch."""
        return WholeSplit(self.parts[2])

    def minibatches(self, split: Split, seeds: list[int], epoch: int) -> Iterator[Split]:
        """Yield an epoch's minibatches, each member's in the order of its own seed.

        Shapes:
            split: x ``(N, …)`` and y ``(N, …)``; yields x ``(K, B, …)`` and y ``(K, B, …)``.
        """
        x, y = split
        order = epoch_order(seeds, epoch, len(x)).to(x.device)
        for places in order.split(batch_sizes(len(x), self.batch_size), dim=1):
            yield taken(x, places), taken(y, places)


def taken(samples: Tensor, places: Tensor) -> Tensor:
    """Return ``samples[places]``, in a quarter of its time."""
    return samples.index_select(0, places.flatten()).view(*places.shape, *samples.shape[1:])
