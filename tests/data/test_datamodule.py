from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from normlab.data import CSV, BreastCancer, Diabetes, Digits, Fitness, InMemoryData, Random, Table, Wine


@dataclass(kw_only=True, eq=False)
class TensorData(InMemoryData):
    """A user-defined dataset with given inputs; the target is the row number."""

    x: torch.Tensor

    def table(self) -> Table:
        return Table(self.x, torch.arange(len(self.x), dtype=torch.float32).unsqueeze(1))


def random_data(train: int, batch_size: int) -> Random:
    return Random(train=train, val=0, test=0, batch_size=batch_size, seed=0)


def numbered_split(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    number = torch.arange(samples)
    return number.float().view(1, -1, 1), -number.unsqueeze(0)


@given(
    train=st.integers(1, 60),
    batch_size=st.integers(1, 60),
    seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_each_member_sees_each_sample_once_per_epoch(train, batch_size, seeds):
    batch_size = min(batch_size, train)
    batches = list(random_data(train, batch_size).minibatches(numbered_split(train), seeds, epoch=2))

    for x, y in batches:
        assert x.shape == (len(seeds), y.shape[1], 1)
        assert torch.equal(x.squeeze(2), -y.float()), "inputs and targets are misaligned"
    for member in range(len(seeds)):
        seen = torch.cat([-y[member] for _, y in batches])
        assert sorted(seen.tolist()) == list(range(train))


def test_single_remaining_sample_joins_last_batch():
    sizes = [x.shape[1] for x, _ in random_data(601, 100).minibatches(numbered_split(601), [0], 0)]

    assert sizes == [100, 100, 100, 100, 100, 101]


def test_member_batches_are_independent_of_other_members():
    data = random_data(50, 8)
    population = list(data.minibatches(numbered_split(50), [4, 0, 7], epoch=3))

    for member, seed in enumerate([4, 0, 7]):
        single = list(data.minibatches(numbered_split(50), [seed], epoch=3))
        for (xs, ys), (x, y) in zip(population, single, strict=True):
            assert torch.equal(xs[member], x[0])
            assert torch.equal(ys[member], y[0])


def test_order_depends_on_seed_and_epoch():
    def seen(seed: int, epoch: int) -> list[int]:
        return [
            n for _, y in random_data(50, 8).minibatches(numbered_split(50), [seed], epoch) for n in y[0].tolist()
        ]

    assert seen(0, 1) == seen(0, 1)
    assert len({tuple(seen(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_order_is_independent_of_data_seed():
    one, other = (Random(train=20, val=0, test=0, batch_size=5, seed=seed) for seed in (0, 1))

    for (a, _), (b, _) in zip(
        *(data.minibatches(numbered_split(20), [3], 0) for data in (one, other)), strict=True
    ):
        assert torch.equal(a, b)


def test_dataloader_yields_whole_split_without_copy():
    data = Fitness(train=30, val=20, test=10, batch_size=8, seed=0)

    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    for part, loader in zip(data.parts, loaders, strict=True):
        ((x, y),) = loader
        assert len(loader) == 1
        assert torch.equal(x, part.x.unsqueeze(0))
        assert torch.equal(y, part.y.unsqueeze(0))
        assert x.data_ptr() == part.x.data_ptr(), "no copy"


def test_population_members_equal_single_datasets():
    data = Fitness(train=30, val=20, test=10, batch_size=8, seed=5)
    population = data.for_members([3, 1, 3])
    for index in range(3):
        x, y = population.split(index).x, population.split(index).y
        for member, seed in enumerate([3, 1, 3]):
            part = Fitness(train=30, val=20, test=10, batch_size=8, seed=seed).parts[index]
            assert torch.equal(x[member], part.x)
            assert torch.equal(y[member], part.y)
    minibatches = list(population.minibatches((population.split(0).x, population.split(0).y), [0, 1, 2], epoch=1))
    for member, (data_seed, seed) in enumerate(zip([3, 1, 3], [0, 1, 2], strict=True)):
        single = data.for_members([data_seed])
        expected = single.minibatches((single.split(0).x, single.split(0).y), [seed], epoch=1)
        for (x, y), (expected_x, expected_y) in zip(minibatches, expected, strict=True):
            assert torch.equal(x[member], expected_x[0])
            assert torch.equal(y[member], expected_y[0])
    assert data.for_members([4, 4]).split(0).x.shape[0] == 1, "equal seeds share their samples"


TABLES = {
    "drawn": (lambda self, rows: rows + torch.randn(rows.shape, generator=self.generator()), True),
    "drawn from few values": (
        lambda self, rows: torch.randint(2, rows.shape, generator=self.generator()) + 0.0,
        True,
    ),
    "drawn from the global generator": (lambda self, rows: torch.randn(rows.shape), True),
    "fixed": (lambda self, rows: rows, False),
    "fixed, with missing values": (lambda self, rows: torch.where(rows > 3, rows, torch.nan), False),
    "fixed, in another order": (lambda self, rows: rows[torch.randperm(40, generator=self.generator())], False),
    "images": (lambda self, rows: rows.view(40, 1, 1, 2), False),
}


@dataclass(kw_only=True, eq=False)
class CountingData(InMemoryData):
    """A user-defined dataset that records the seed of each call of table()."""

    kind: str
    reads: list[int]

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def table(self) -> Table:
        self.reads.append(self.seed)
        rows = torch.arange(80.0).view(40, 2)
        x = TABLES[self.kind][0](self, rows)
        return Table(x, x.flatten(1).sum(1, keepdim=True))


def counting_data(kind: str) -> CountingData:
    return CountingData(train=20, val=10, test=10, batch_size=5, seed=7, kind=kind, reads=[])


@pytest.mark.parametrize("kind", TABLES)
def test_generated_is_detected_and_cached(kind):
    data = counting_data(kind)

    assert data.generated is TABLES[kind][1]
    assert data.with_seed(2**63 - 1).generated is data.generated
    assert len(data.reads) == 2, "the result is cached"


@pytest.mark.parametrize("kind", [kind for kind in TABLES if "global" not in kind])
def test_members_equal_single_datasets_and_share_table(kind):
    data = counting_data(kind)
    population = data.for_members([3, 1, 3, 2])
    for index in range(3):
        split = population.split(index)
        for member, seed in enumerate([3, 1, 3, 2]):
            expected = counting_data(kind).with_seed(seed).parts[index]
            assert_close(split.x[member], expected.x, rtol=0, atol=0, equal_nan=True)
            assert_close(split.y[member], expected.y, rtol=0, atol=0, equal_nan=True)
    assert population.members[0] is population.members[2], "members with the same seed share their samples"
    if kind in ("fixed", "images"):
        assert len(data.reads) == 2


def test_generated_flag_of_package_datasets():
    sizes = {"train": 60, "val": 20, "test": 20, "batch_size": 10}
    drawn = {
        kind.__name__: kind(**sizes).generated for kind in (Random, Fitness, Digits, BreastCancer, Wine, Diabetes)
    }

    assert [name for name, generated in drawn.items() if generated] == ["Random", "Fitness"]
    assert Fitness(**sizes, target="clipped").generated
    assert not CSV(**sizes, path="missing.csv", target_column="y").generated, "without reading the file"


def test_description_has_seed_and_split_sizes():
    data = counting_data("fixed").with_seed(5)

    assert data.description() == {"seed": 5, "generated": False, "train": 20, "val": 10, "test": 10}


def test_standardization_uses_only_training_split():
    generator = torch.Generator().manual_seed(0)
    x = 5 + 3 * torch.randn(100, 4, generator=generator)
    plain = TensorData(train=60, val=20, test=20, batch_size=10, seed=1, x=x)
    held_out = torch.cat([part.y for part in plain.parts[1:]]).flatten().long()
    changed_x = x.clone()
    changed_x[held_out] = 1000 * torch.rand(40, 4, generator=generator)

    before, after = (
        TensorData(train=60, val=20, test=20, batch_size=10, seed=1, standardize=True, x=samples).parts
        for samples in (x, changed_x)
    )

    assert torch.equal(before[0].x, after[0].x), "held-out samples leak into the training inputs"
    train = plain.parts[0].x
    std = train.std(0, correction=0)
    assert_close(before[0].x, (train - train.mean(0)) / std)
    for part, raw in zip(after[1:], (changed_x[p.y.flatten().long()] for p in after[1:]), strict=True):
        assert_close(part.x, (raw - train.mean(0)) / std)


def test_standardized_targets_use_training_statistics():
    sizes = {"train": 600, "val": 200, "test": 200, "batch_size": 32, "seed": 42}
    raw, scaled = (Fitness(**sizes, standardize_target=standardize).parts for standardize in (False, True))
    mean, std = raw[0].y.mean(), raw[0].y.std(correction=0)

    for before, after in zip(raw, scaled, strict=True):
        assert torch.equal(before.x, after.x)
        assert_close(after.y, (before.y - mean) / std)
    # Predicting the mean has a squared error of 1.
    assert_close(scaled[0].y.square().mean(), torch.tensor(1.0), rtol=1e-4, atol=0)
    assert scaled[1].y.mean().abs() > 1e-3, "statistics are not those of the validation split"


def test_data_is_unscaled_by_default():
    data = Fitness(train=600, val=200, test=200, batch_size=32, seed=42)

    assert data.parts[0].x[:, 2].mean() > 3000
    assert data.parts[0].y.max() == 100


TIMESTAMPS = 1.7e9 + torch.arange(100, dtype=torch.float64).unsqueeze(1)


def timestamp_data(**options) -> TensorData:
    return TensorData(train=60, val=20, test=20, batch_size=10, x=TIMESTAMPS, **options)


def test_bug_large_inputs_were_merged_before_standardizing():
    small = TensorData(train=60, val=20, test=20, batch_size=10, x=TIMESTAMPS - 1.7e9, standardize=True)

    for part, expected in zip(timestamp_data(standardize=True).parts, small.parts, strict=True):
        assert torch.equal(part.x, expected.x)
        assert part.x.dtype == torch.float32
        assert len(part.x.unique()) == len(part)


def test_splits_have_requested_dtype():
    data = timestamp_data()
    data.dtype = torch.float64

    assert torch.equal(data.parts[0].x.flatten() - 1.7e9, data.parts[0].y.flatten())
    assert data.parts[0].x.dtype == data.parts[0].y.dtype == torch.float64
    assert data.notices == []


def test_merged_inputs_give_notice_unless_standardized():
    line = (
        "data: input 1 has 100 distinct values, of which float32 keeps 2; "
        "data.standardize=true keeps them distinct"
    )

    assert timestamp_data().notices == [line]
    assert timestamp_data(standardize=True).notices == []


def test_notice_reports_single_remaining_sample():
    assert random_data(64, 32).notices == random_data(66, 32).notices == random_data(5, 1).notices == []
    (notice,) = random_data(65, 32).notices
    assert notice == (
        "data: 65 training samples in batches of 32 leave a single sample; "
        "it joins the last batch, which then has 33"
    )


def test_splits_are_cached():
    data = random_data(10, 5)

    assert data.parts is data.parts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, "data.train must be at least 1"),
        ({"val": -1}, "data.val must be 0 or more"),
        ({"test": -1}, "data.test must be 0 or more"),
        ({"seed": -1}, "data.seed must be an integer from 0"),
        ({"batch_size": 0}, "data.batch_size must be at least 1"),
        ({"batch_size": 11}, "data.batch_size must be at most the 10 training samples, got 11"),
    ],
)
def test_invalid_sizes_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Random(**({"train": 10, "val": 5, "test": 5, "batch_size": 5, "seed": 0} | options))


def test_missing_table_method_raises():
    with pytest.raises(NotImplementedError, match=r"InMemoryData must define table\(\)"):
        _ = InMemoryData(train=1, val=0, test=0, batch_size=1, seed=0).parts


@pytest.mark.parametrize(
    ("x", "y", "classes", "reason"),
    [
        (torch.zeros(5, 2), torch.zeros(4, 1), 0, "that of inputs, 5, got 4"),
        (torch.zeros(5, 2), torch.zeros(5), 0, r"of shape \(N, outputs\); for class indices pass classes"),
        (torch.zeros(5, 2), torch.tensor([0, 1, 2, 3, 1]), 3, "class indices from 0 to 2"),
    ],
)
def test_invalid_targets_raise(x, y, classes, reason):
    with pytest.raises(ValueError, match=reason):
        Table(x, y, classes)


def test_notice_names_nearly_constant_inputs():
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0.0
    x[0, 1] = 5.0
    data = TensorData(train=298, val=1, test=1, batch_size=10, seed=1, x=x, standardize=True)
    rare = bool((data.parts[0].x[:, 1] > 1).any())
    line = (
        "data: 1 input has the same value in over 99 % of the training samples, centered but not scaled: input 2"
    )
    assert data.notices == [line] * rare
    assert rare
    assert TensorData(train=298, val=1, test=1, batch_size=10, seed=1, x=x).notices == []
