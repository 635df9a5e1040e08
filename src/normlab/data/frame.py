"""Datasets that are read from a data frame: what a person chooses about them, and what is said of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from normlab.data.columns import listing
from normlab.data.datamodule import InMemoryData, Transform
from normlab.data.encoding import Encoder
from normlab.data.reading import Choices, Reading, present
from normlab.data.table import Table, split_rows
from normlab.errors import ConfigError, require


@dataclass(kw_only=True, eq=False)
class FrameData(InMemoryData):
    """A dataset that somebody wrote down, a sample a row; a subclass says in :meth:`reading` where.

    A target of words or booleans is a class, one of numbers with fractions is to be predicted as a number; one of
    whole numbers is classes if there are at most 20 distinct ones, otherwise a number. ``task`` says otherwise.
    Classes are numbered in sorted order. All other columns are inputs: numbers as they are, true and false as 1
    and 0, words one-hot encoded.

    Args:
        target_column: the column to predict.
        task: auto, regression or classification.
        drop: columns to leave out.
        missing: error refuses a missing value, drop leaves its row out, mean takes the training split's mean.
    """

    target_column: str | int | None = None
    task: str = "auto"
    drop: list[str] = field(default_factory=list)
    missing: str = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        tasks = ("auto", "regression", "classification")
        require(self.task in tasks, "data.task", "auto, regression or classification", self.task)
        policies = ("error", "drop", "mean")
        require(self.missing in policies, "data.missing", "error, drop or mean", self.missing)
        listed = isinstance(self.drop, Sequence) and not isinstance(self.drop, str)
        require(listed, "data.drop", "a list of columns, as [id]", self.drop)

    def reading(self) -> Reading:
        """Return the whole table as it was read, and what it was taken for."""
        raise NotImplementedError(f"{type(self).__name__} must define reading()")

    def table(self) -> Table:
        """Return the whole table as it was read, before its words are encoded.

        Raises:
            ConfigError: for a number beyond float32 that is not standardized.
        """
        reading = self.reading()
        beyond = "" if self.standardize else reading.beyond_inputs
        beyond = beyond or ("" if self.standardize_target else reading.beyond_target)
        if beyond:
            raise ConfigError(beyond)
        return reading.table

    def encoder(self, train: Table) -> Transform:
        """Fit the one-hot encoding of words, and the means for missing values, to the training samples."""
        return Encoder.fit(train, self.reading().words, self.missing == "mean")

    @property
    def shape_is_fitted(self) -> bool:
        """Whether there are columns of words: a word that the training samples lack has no input."""
        return any(self.reading().words)

    @property
    def generated(self) -> bool:
        """False: a seed splits the rows that were read."""
        return False

    @property
    def choices(self) -> Choices:
        """The choices that the table is read by; names of digits come from the command line as numbers."""
        return Choices(
            target_column=None if self.target_column is None else str(self.target_column),
            task=self.task,
            drop=tuple(map(str, self.drop)),
            missing=self.missing,
        )

    @property
    def notices(self) -> list[str]:
        """Add what the columns were taken for, and whether rows are left over."""
        reading = self.reading()
        rows, used = len(reading.table), self.train + self.val + self.test
        fifth = rows // 5
        left = (
            f"data: {used} of the {rows} rows are used; "
            f"data.train={rows - 2 * fifth} data.val={fifth} data.test={fifth} would use all"
        )
        return [*super().notices, *reading.notices, *self.unknown_words(), *([left] if used < rows else [])]

    def unknown_words(self) -> list[str]:
        """Return a warning of words that held-out samples have and the training split does not."""
        reading = self.reading()
        table, rows = reading.table, split_rows(len(reading.table), (self.train, self.val, self.test), self.seed)
        unknown = []
        for place, words in ((place, words) for place, words in enumerate(reading.words) if words):
            train, held_out = (present(table.x[index, place].numpy()) for index in (rows[0], torch.cat(rows[1:])))
            codes = np.setdiff1d(held_out, train)
            unknown += [f"{table.names[place]}={words[int(code)]}" for code in codes]
        said = f"data: {listing(unknown)} not among the training samples: 0 in all inputs of the column"
        return [said] if unknown else []
