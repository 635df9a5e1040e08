"""The LightningDataModule that every dataset is: a table in memory, sliced instead of collated."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from normlab.config.schema import DataConfig
from normlab.data.parsing import listing
from normlab.data.preprocessing import Standardizer, cast_numbers, merged_notice
from normlab.data.sampling import Split, batch_sizes, epoch_order, leaves_one_over
from normlab.data.table import Table, split_rows
from normlab.errors import require

Transform = Callable[[Table], Table]


@dataclass(frozen=True)
class WholeSplit:
    """A dataloader of one batch, a whole split: Lightning's cost per batch is then paid once an epoch.

    A split without samples has no batch.

    Shapes:
        x ``(M, N, …)`` and y ``(M, N, …)``: M is 1 where all members have the same samples, else K.
    """

    x: Tensor
    y: Tensor

    def __iter__(self) -> Iterator[Split]:
        if len(self):
            yield self.x, self.y

    def __len__(self) -> int:
        return min(self.x.shape[1], 1)


@dataclass(kw_only=True, eq=False)
class InMemoryData(DataConfig, pl.LightningDataModule):
    """A dataset that fits in memory; a subclass says in :meth:`table` where its samples come from.

    Lightning is handed each split whole; :meth:`minibatches` slices an epoch's batches out of it. Numbers keep the
    precision they were read in until they are standardized. They are then cast once, to ``dtype``: float32, or
    float64 where the training sets it before the splits are made.

    Attributes:
        members: the datasets of a population whose members have samples of their own, see :meth:`for_members`;
            otherwise this one alone, for all members.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        pl.LightningDataModule.__init__(self)
        self.dtype = torch.float32
        self._parts: tuple[Table, ...] | None = None
        self._splits: dict[int, WholeSplit] = {}
        self.members: Sequence[InMemoryData] = [self]
        self._generated: bool | None = None
        self._fixed: Table | None = None

    def with_seed(self, seed: int) -> "InMemoryData":
        """Return this dataset with another seed: other draws where samples are random, and another split."""
        other = copy(self)
        other.seed, other._parts, other._splits, other.members = seed, None, {}, [other]
        return other

    def for_members(self, seeds: Sequence[int]) -> "InMemoryData":
        """Return the dataset of a population: each member has the draws and the split of its own seed."""
        _ = self.generated  # a table that is found to be fixed is handed on to the members
        by_seed = {seed: self.with_seed(seed) for seed in seeds}
        data = by_seed[seeds[0]]
        if len(by_seed) > 1:
            data.members = [by_seed[seed] for seed in seeds]
        return data

    def table(self) -> Table:
        """Return all samples, drawn from ``self.seed`` if they are random."""
        raise NotImplementedError(f"{type(self).__name__} must define table()")

    @property
    def generated(self) -> bool:
        """Whether another seed draws other samples; otherwise it splits the same ones, in whatever order they are.

        It is found by calling :meth:`table` with two seeds. A subclass that knows may say so instead.
        """
        if self._generated is None:
            one, other = (self.with_seed(seed).table() for seed in (self.seed, self.seed ^ 1))
            self._fixed = one if torch.equal(one.x, other.x) and torch.equal(one.y, other.y) else None
            self._generated = self._fixed is None and sorted(one.rows()) != sorted(other.rows())
        return self._generated

    def whole_table(self) -> Table:
        """Return all samples; a table that does not depend on the seed is read once for all members."""
        return self.table() if self._fixed is None else self._fixed

    @property
    def parts(self) -> tuple[Table, ...]:
        """The training, validation and test parts, in ``dtype``; made once."""
        if self._parts is None:
            table = self.whole_table()
            rows = split_rows(len(table), (self.train, self.val, self.test), self.seed)
            transform = self.fit(table.at(rows[0]))
            self._parts = tuple(transform(table.at(index)) for index in rows)
        return self._parts

    def description(self) -> dict[str, Any]:
        """Return the part of a run's record that is about its samples; see ``results.result``."""
        sizes = zip(("train", "val", "test"), map(len, self.parts), strict=True)
        return {"seed": self.seed, "generated": self.generated, **dict(sizes)}

    @property
    def shape_is_fitted(self) -> bool:
        """Whether the shape of an input depends on the training samples, as one-hot encoding makes it."""
        return False

    def encoder(self, train: Table) -> Transform:
        """Fit the encoding of the inputs to the training samples; by default they stay as they are."""
        return lambda part: part

    def fit(self, train: Table) -> Transform:
        """Fit encoding and standardization to the training samples, and return the transform of all samples.

        Raises:
            ConfigError: if targets to be standardized are classes.
        """
        encode = self.encoder(train)
        scalable = not (self.standardize_target and train.is_classification)
        require(scalable, "data.standardize_target", "false for classes", "true")
        scale_x = Standardizer.fit(encode(train).x) if self.standardize else None
        scale_y = Standardizer.fit(train.y) if self.standardize_target else None

        def transform(part: Table) -> Table:
            part = encode(part)
            x = cast_numbers(scale_x(part.x) if scale_x else part.x, self.dtype, part.name_of)
            y = cast_numbers(scale_y(part.y) if scale_y else part.y, self.dtype, target_name)
            return replace(part, x=x, y=y)

        return transform

    @property
    def notices(self) -> list[str]:
        """What a person should know about this data before reading a result."""
        left_over = (
            f"data: {self.train} training samples in batches of {self.batch_size} leave one over; "
            f"it joins the last batch, which has {self.batch_size + 1}"
        )
        left = [left_over] * leaves_one_over(self.train, self.batch_size)
        return [*left, *self.merged_values(), *self.nearly_constant()]

    def nearly_constant(self) -> list[str]:
        """Return a line that names the inputs that are not standardized, as nearly all samples have the same."""
        if not self.standardize:
            return []
        train = self.parts[0]
        scale = Standardizer.fit(train.x)
        names = [train.name_of(place) for place in scale.nearly_constant.flatten().nonzero().flatten().tolist()]
        count = f"{len(names)} input{'s' * (len(names) > 1)}"
        said = f"data: {count} the same in over 99 % of the training samples, only centered: {listing(names)}"
        return [said] if names else []

    def merged_values(self) -> list[str]:
        """Return warnings of distinct numbers that become the same in float32 and are not standardized."""
        table, notices = self.whole_table(), []
        if self.dtype == torch.float32 and table.x.dtype == torch.float64 and not self.standardize:
            notices += merged_notice(table.x, table.name_of, "data.standardize")
        if self.dtype == torch.float32 and table.y.dtype == torch.float64 and not self.standardize_target:
            notices += merged_notice(table.y, target_name, "data.standardize_target")
        return notices

    def split(self, place: int) -> WholeSplit:
        """Return the training (0), validation (1) or test (2) split of all members; made once."""
        if place not in self._splits:
            tables = [member.parts[place] for member in self.members]
            self._splits[place] = WholeSplit(
                *(stack_members([getattr(t, name) for t in tables]) for name in ("x", "y"))
            )
        return self._splits[place]

    def train_dataloader(self) -> WholeSplit:
        """Return the training split as one batch."""
        return self.split(0)

    def val_dataloader(self) -> WholeSplit:
        """Return the validation split as one batch."""
        return self.split(1)

    def test_dataloader(self) -> WholeSplit:
        """Return the test split as one batch."""
        return self.split(2)

    def minibatches(self, split: Split, seeds: list[int], epoch: int) -> Iterator[Split]:
        """Yield an epoch's minibatches, each member's in the order of its own seed.

        Shapes:
            split: x ``(M, N, …)`` and y ``(M, N, …)``; yields x ``(K, B, …)`` and y ``(K, B, …)``.
        """
        x, y = split
        order = epoch_order(seeds, epoch, x.shape[1]).to(x.device)
        for places in order.split(batch_sizes(x.shape[1], self.batch_size), dim=1):
            yield taken(x, places), taken(y, places)


def stack_members(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors with a leading axis of members; of one no copy is made."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def target_name(place: int) -> str:
    """Return how messages call a target, of which tables that are read have one."""
    return "the target" if place == 0 else f"target {place + 1}"


def taken(samples: Tensor, places: Tensor) -> Tensor:
    """Return each member's samples at its places, in a quarter of the time of an index of both axes.

    Shapes:
        samples ``(M, N, …)``, places ``(K, B)``; returns ``(K, B, …)``.
    """
    members, count = samples.shape[:2]
    if members > 1:
        places = places + count * torch.arange(members, device=places.device).unsqueeze(1)
    return samples.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, *samples.shape[2:])
