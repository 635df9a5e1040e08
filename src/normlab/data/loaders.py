"""DataLoaders for a LightningModule that trains by minibatches, with the order a population has.

The main entry is :class:`MinibatchData`.
"""

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from normlab.data.datamodule import InMemoryData
from normlab.data.sampling import Split, batch_sizes, epoch_order
from normlab.data.table import Table


class EpochSampler(Sampler[int]):
    """Samples in the order of a seed and an epoch; Lightning calls :meth:`set_epoch`.

    Args:
        samples: number of samples.
        seed: of the run.
    """

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed, self.epoch = samples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Select the order of an epoch, counted from 0."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return the permutation of the epoch, ``(N,)``; the same as a population member with this seed has."""
        return epoch_order([self.seed], self.epoch, self.samples)[0]

    def __iter__(self) -> Iterator[int]:
        yield from self.order().tolist()

    def __len__(self) -> int:
        return self.samples


class MinibatchSampler(Sampler[list[int]]):
    """Minibatches of an epoch, from a position on; a single leftover sample joins the last minibatch.

    Several processes share out each minibatch in contiguous parts, whose sizes differ by at most one.

    Args:
        sampler: gives the order of the samples.
        batch_size: of the whole minibatches.
        rank: number of this process, from 0.
        processes: that share out each minibatch.

    Attributes:
        sampler: gives the order of the samples.
        epoch, position: the latest epoch that was iterated, and the number of its minibatches that were served.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        self.rank, self.processes = rank, processes
        self.epoch = self.position = 0
        self.resumed = False

    def __iter__(self) -> Iterator[list[int]]:
        # Lightning calls set_epoch after iter, and this generator first runs at the first minibatch.
        continues = self.resumed and self.epoch == self.sampler.epoch
        self.position = self.position if continues else 0
        self.epoch, self.resumed = self.sampler.epoch, False
        sizes = batch_sizes(self.sampler.samples, self.batch_size)
        for indices in self.sampler.order().split(sizes)[self.position :]:
            self.position += 1
            yield indices.tensor_split(self.processes)[self.rank].tolist()

    def __len__(self) -> int:
        return len(batch_sizes(self.sampler.samples, self.batch_size))


class SplitDataset(Dataset[Split]):
    """Inputs and targets of a split; a DataLoader selects a whole minibatch at once."""

    def __init__(self, table: Table) -> None:
        self.x, self.y = table.x, table.y

    def __getitem__(self, index: int) -> Split:
        return self.x[index], self.y[index]

    def __getitems__(self, indices: list[int]) -> Split:
        """Return the minibatch of these samples."""
        rows = torch.tensor(indices)
        return self.x.index_select(0, rows), self.y.index_select(0, rows)

    def __len__(self) -> int:
        return len(self.x)


def keep(batch: Any) -> Any:
    """Return a minibatch unchanged: :class:`SplitDataset` has stacked its samples."""
    return batch


class ResumableLoader(DataLoader[Split]):
    """A DataLoader whose position in the epoch Lightning stores in checkpoints."""

    batch_sampler: MinibatchSampler

    def state_dict(self) -> dict[str, int]:
        """Return the latest epoch that was iterated, and the number of its minibatches that were served."""
        return {"epoch": self.batch_sampler.epoch, "position": self.batch_sampler.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue this epoch from its position; any other epoch starts at its first minibatch."""
        self.batch_sampler.epoch, self.batch_sampler.position = state["epoch"], state["position"]
        self.batch_sampler.resumed = True


class MinibatchData(pl.LightningDataModule):
    """The splits of a dataset as DataLoaders: shuffled minibatches to train, each other split as one batch.

    Several processes share out the minibatches; each evaluates the whole of the other splits.

    The training minibatches are those that :meth:`InMemoryData.minibatches` gives a population member with this
    seed. Evaluation takes a split at once, as a population does, so that ``statistics=batch`` means the same.

    Args:
        data: the dataset of one run.
        seed: of the run.
    """

    def __init__(self, data: InMemoryData, seed: int) -> None:
        super().__init__()
        self.data, self.seed = data, seed

    def train_dataloader(self) -> ResumableLoader:
        """Return the training minibatches."""
        table = self.data.parts[0]
        order = EpochSampler(len(table), self.seed)
        share = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else ()
        sampler = MinibatchSampler(order, self.data.batch_size, *share)
        # Without a generator of its own, every iterator would draw from the global one.
        generator = torch.Generator()
        return ResumableLoader(SplitDataset(table), batch_sampler=sampler, collate_fn=keep, generator=generator)

    def val_dataloader(self) -> DataLoader[Split] | list[Any]:
        """Return the validation split as one batch; nothing if it is empty."""
        return whole(self.data.parts[1])

    def test_dataloader(self) -> DataLoader[Split] | list[Any]:
        """Return the test split as one batch; nothing if it is empty."""
        return whole(self.data.parts[2])


def whole(table: Table) -> DataLoader[Split] | list[Any]:
    """Return a DataLoader that yields a whole split as one batch; an empty list if the split is empty."""
    if not len(table):
        return []
    return DataLoader(SplitDataset(table), batch_size=len(table), collate_fn=keep, generator=torch.Generator())
