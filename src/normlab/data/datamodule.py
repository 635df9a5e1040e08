"""The base class of all datasets: a LightningDataModule that slices minibatches from tensors in memory.

The main entry is :class:`InMemoryData`.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from normlab.config.schema import DataConfig
from normlab.data.corruption import Corruption
from normlab.data.sampling import Split, batch_sizes, epoch_order, leaves_single_sample, split_rows
from normlab.data.table import Standardizer, Table, cast_numbers, format_list, merged_values_warning
from normlab.errors import require

EPOCH_BYTES = 2**26
"""Largest training split that is copied in the order of an epoch."""
Transform = Callable[[Table], Table]
SplitTransform = Callable[..., Table]
"""Transforms a split, with the inputs corrupted if a :class:`Corruption` is passed."""


@dataclass(frozen=True)
class WholeSplit:
    """A dataloader that yields a whole split as one batch; an empty split yields none.

    Lightning's overhead per batch then occurs only once per epoch.

    Shapes:
        x ``(M, N, …)`` and y ``(M, N, …)``: M is 1 if all K members share their samples, otherwise K.
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
    """A dataset that fits in memory; subclasses load or draw their samples in :meth:`table`.

    The dataloaders yield each split as one batch; :meth:`minibatches` slices the minibatches of an epoch from it.
    Numbers keep the precision of the source until after standardization. They are then cast once to ``dtype``:
    float32, or float64 if training sets it before the splits are made.

    Attributes:
        members: one dataset per member if the members' samples differ, see :meth:`for_members`; otherwise only
            this dataset, shared by all members.
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
        """Return a copy with another seed, which draws other samples (if generated) and another split."""
        other = copy(self)
        other.seed, other._parts, other._splits, other.members = seed, None, {}, [other]
        return other

    def for_members(self, seeds: Sequence[int]) -> "InMemoryData":
        """Return the dataset of a population, in which member i has the samples and split of ``seeds[i]``."""
        _ = self.generated  # caches a table that does not depend on the seed, so that the copies share it
        by_seed = {seed: self.with_seed(seed) for seed in seeds}
        data = by_seed[seeds[0]]
        if len(by_seed) > 1:
            data.members = [by_seed[seed] for seed in seeds]
        return data

    def table(self) -> Table:
        """Return all samples; random ones are drawn with ``self.seed``."""
        raise NotImplementedError(f"{type(self).__name__} must define table()")

    @property
    def generated(self) -> bool:
        """True if the seed determines the samples; False if it determines only their order and split.

        The default implementation compares the tables of two seeds. Subclasses may override it.
        """
        if self._generated is None:
            one, other = (self.with_seed(seed).table() for seed in (self.seed, self.seed ^ 1))
            self._fixed = one if torch.equal(one.x, other.x) and torch.equal(one.y, other.y) else None
            self._generated = self._fixed is None and sorted(one.rows()) != sorted(other.rows())
        return self._generated

    def whole_table(self) -> Table:
        """Return all samples; a table that does not depend on the seed is shared by all members."""
        return self.table() if self._fixed is None else self._fixed

    @property
    def parts(self) -> tuple[Table, ...]:
        """Training, validation and test samples after preprocessing, in ``dtype``; computed once."""
        if self._parts is None:
            table = self.whole_table()
            rows = split_rows(len(table), (self.train, self.val, self.test), self.seed)
            train, val, test = (table.at(index) for index in rows)
            transform = self.fit(train)
            self._parts = transform(train), transform(val), transform(test, self.corruption)
        return self._parts

    def description(self) -> dict[str, Any]:
        """Return the data section of a run's record: seed, generated and split sizes; see ``results.result``."""
        sizes = zip(("train", "val", "test"), map(len, self.parts), strict=True)
        return {"seed": self.seed, "generated": self.generated, **dict(sizes)}

    @property
    def shape_is_fitted(self) -> bool:
        """True if the input shape depends on the training samples, as with one-hot encoding."""
        return False

    def encoder(self, train: Table) -> Transform:
        """Fit the encoding of the inputs to the training samples; the default is the identity."""
        return lambda part: part

    @property
    def corruption(self) -> Corruption | None:
        """The corruption of the test split, if there is one."""
        return None if self.corrupt is None else Corruption(self.corrupt, cast(float, self.severity), self.seed)

    def fit(self, train: Table) -> SplitTransform:
        """Fit encoding and standardization to the training samples and return the fitted transform.

        A corruption acts on the encoded inputs before they are standardized.

        Raises:
            ConfigError: if ``standardize_target`` is set for class targets.
        """
        encode = self.encoder(train)
        scalable = not (self.standardize_target and train.is_classification)
        require(scalable, "data.standardize_target", "false for classes", "true")
        scale_x = Standardizer.fit(encode(train).x) if self.standardize else None
        scale_y = Standardizer.fit(train.y) if self.standardize_target else None

        def transform(part: Table, corruption: Corruption | None = None) -> Table:
            part = encode(part)
            x = corruption(part.x, encode(train).x) if corruption else part.x
            x = cast_numbers(scale_x(x) if scale_x else x, self.dtype, part.name_of)
            y = cast_numbers(scale_y(part.y) if scale_y else part.y, self.dtype, target_name)
            return replace(part, x=x, y=y)

        return transform

    @property
    def notices(self) -> list[str]:
        """Warnings about the data, each one line."""
        single_sample = (
            f"data: {self.train} training samples in batches of {self.batch_size} leave a single sample; "
            f"it joins the last batch, which then has {self.batch_size + 1}"
        )
        single = [single_sample] * leaves_single_sample(self.train, self.batch_size)
        corrupted = f"data.corrupt={self.corrupt}: the test split is corrupted with severity {self.severity}"
        notices = [*single, *[corrupted] * (self.corrupt is not None)]
        return [*notices, *self.merged_values_warnings(), *self.nearly_constant_warnings()]

    def nearly_constant_warnings(self) -> list[str]:
        """Return a warning that names nearly constant inputs, which are centered but not scaled."""
        if not self.standardize:
            return []
        train = self.parts[0]
        indices = Standardizer.fit(train.x).nearly_constant.flatten().nonzero().flatten().tolist()
        count = f"{len(indices)} inputs have" if len(indices) > 1 else "1 input has"
        line = (
            f"data: {count} the same value in over 99 % of the training samples, centered but not scaled: "
            f"{format_list([train.name_of(index) for index in indices])}"
        )
        return [line] if indices else []

    def merged_values_warnings(self) -> list[str]:
        """Return warnings about distinct values that float32 rounds to the same number."""
        table, notices = self.whole_table(), list[str]()
        for values, standardized, name_of, key in (
            (table.x, self.standardize, table.name_of, "data.standardize"),
            (table.y, self.standardize_target, target_name, "data.standardize_target"),
        ):
            if self.dtype == torch.float32 and values.dtype == torch.float64 and not standardized:
                notices += merged_values_warning(values, name_of, key)
        return notices

    def split(self, index: int) -> WholeSplit:
        """Return the training (0), validation (1) or test (2) split of all members; computed once."""
        if index not in self._splits:
            tables = [member.parts[index] for member in self.members]
            x, y = (stack_members(tensors) for tensors in zip(*((t.x, t.y) for t in tables), strict=True))
            self._splits[index] = WholeSplit(x, y)
        return self._splits[index]

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
        """Yield the minibatches of an epoch, with each member's samples in the order of its seed.

        Shapes:
            split: x ``(M, N, …)`` and y ``(M, N, …)``; yields x ``(K, B, …)`` and y ``(K, B, …)``.
        """
        x, y = split
        order = epoch_order(seeds, epoch, x.shape[1]).to(x.device)
        sizes = batch_sizes(x.shape[1], self.batch_size)
        if len(seeds) == 1 and x.nbytes <= EPOCH_BYTES:  # one copy takes less time than one for each minibatch
            parts = (gather_samples(part, order).split(sizes, dim=1) for part in (x, y))
            yield from zip(*parts, strict=True)
            return
        for indices in order.split(sizes, dim=1):
            yield gather_samples(x, indices), gather_samples(y, indices)


def stack_members(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors along a new leading member axis; a single tensor is not copied."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def target_name(index: int) -> str:
    """Return the name of a target column for messages."""
    return "the target" if index == 0 else f"target {index + 1}"


def gather_samples(samples: Tensor, indices: Tensor) -> Tensor:
    """Select samples by index for each member; four times as fast as indexing both axes.

    Shapes:
        samples ``(M, N, …)`` with M = 1 or K, indices ``(K, B)``; returns ``(K, B, …)``.
    """
    members, count = samples.shape[:2]
    if members > 1:
        indices = indices + count * torch.arange(members, device=indices.device).unsqueeze(1)
    return samples.flatten(0, 1).index_select(0, indices.flatten()).view(*indices.shape, *samples.shape[2:])
