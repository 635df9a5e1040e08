"""The DataLoaders of a LightningModule serve the minibatches of a population member."""

from itertools import chain, islice

import pytest
import pytorch_lightning as pl
import torch

from normlab.data import Random
from normlab.data.loaders import EpochSampler, MinibatchData, MinibatchSampler


def random_data(train: int = 41, batch_size: int = 8, val: int = 5, test: int = 0) -> MinibatchData:
    data = Random(train=train, val=val, test=test, batch_size=batch_size, seed=3)
    return MinibatchData(data, seed=7)


def indices_of(rows: torch.Tensor, table: torch.Tensor) -> list[int]:
    """Return the index in the table of each row."""
    return [int((table == row).all(1).nonzero()) for row in rows]


def member_indices(data: MinibatchData, epoch: int) -> list[list[int]]:
    """Return the sample indices of the minibatches that the member of seed 7 in a population gets."""
    split = data.data.split(0)
    minibatches = data.data.minibatches((split.x, split.y), [1, 7], epoch)
    return [indices_of(x[1], split.x[0]) for x, _ in minibatches]


class Recorded(pl.LightningModule):
    """Records the samples of each minibatch, and trains nothing."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table
        self.epochs: list[list[list[int]]] = []
        self.automatic_optimization = False

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch, batch_idx):
        self.epochs[-1].append(indices_of(batch[0], self.table))

    def configure_optimizers(self):
        return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("train", "sizes"), [(41, [8, 8, 8, 8, 9]), (40, [8] * 5), (42, [8] * 5 + [2])])
def test_lightning_gets_the_minibatches_of_a_member_in_three_epochs(train, sizes, tmp_path):
    data = random_data(train)
    module = Recorded(data.data.parts[0].x)
    off = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, default_root_dir=tmp_path, **off)
    trainer.fit(module, train_dataloaders=data.train_dataloader())

    assert [[len(batch) for batch in epoch] for epoch in module.epochs] == [sizes] * 3
    assert module.epochs == [member_indices(data, epoch) for epoch in range(3)]
    assert module.epochs[0] != module.epochs[1]


@pytest.mark.parametrize("served", [0, 2, 5])
def test_position_in_the_epoch_is_restored(served):
    data = random_data()
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(1)
    assert len(list(islice(loader, served))) == served

    resumed = data.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    iterator = iter(resumed)
    resumed.batch_sampler.sampler.set_epoch(1)
    table = data.data.parts[0].x
    rest = [indices_of(x, table) for x, _ in iterator]
    assert rest == member_indices(data, 1)[served:]
    assert [indices_of(x, table) for x, _ in resumed] == member_indices(data, 1)


def test_position_of_another_epoch_is_not_used():
    data = random_data()
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(1)
    list(islice(loader, 4))  # as with trainer.limit_train_batches=4

    resumed = data.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    resumed.batch_sampler.sampler.set_epoch(2)
    table = data.data.parts[0].x
    assert [indices_of(x, table) for x, _ in resumed] == member_indices(data, 2)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_each_minibatch(processes):
    data = random_data()  # minibatches of 8, the last of 9
    whole = list(data.train_dataloader().batch_sampler)
    shares = [list(MinibatchSampler(EpochSampler(41, data.seed), 8, rank, processes)) for rank in range(processes)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert list(chain(*parts)) == batch
        sizes = list(map(len, parts))
        assert max(sizes) - min(sizes) <= 1


def test_iterating_does_not_draw_from_the_global_generator():
    data = random_data()
    _ = data.data.parts
    state = torch.get_rng_state()
    list(data.train_dataloader()), list(data.val_dataloader())
    assert torch.equal(state, torch.get_rng_state())


def test_evaluation_splits_are_one_batch_and_empty_ones_none():
    data = random_data()
    ((x, y),) = data.val_dataloader()
    assert torch.equal(x, data.data.parts[1].x)
    assert torch.equal(y, data.data.parts[1].y)
    assert list(data.test_dataloader()) == []
