"""From a data frame to a table: which column is the target, and what it is taken for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from normlab.config import ConfigError, nearest, require
from normlab.data.columns import Source, listing, numbers, parsed, refuse_missing, shown
from normlab.data.datamodule import InMemoryData
from normlab.data.table import Table

if TYPE_CHECKING:
    import pandas as pd

FEW = 20
"""A target of whole numbers is taken as classes if it has at most as many distinct ones."""


@dataclass(frozen=True)
class Reading:
    """A table that was read, and what a person should know about how."""

    table: Table
    notices: tuple[str, ...] = ()


@dataclass(kw_only=True, eq=False)
class FrameData(InMemoryData):
    """A dataset that somebody wrote down, a sample a row; a subclass says in :meth:`reading` where.

    A target of words or booleans is a class, one of numbers with fractions is to be predicted as a number; one of
    whole numbers is classes if there are at most 20 distinct ones, otherwise a number. ``task`` says otherwise.
    Classes are numbered in sorted order.
    """

    target_column: str | int | None = None
    task: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        tasks = ("auto", "regression", "classification")
        require(self.task in tasks, "data.task", "auto, regression or classification", self.task)

    def reading(self) -> Reading:
        """Return the whole table, and what it was taken for."""
        raise NotImplementedError(f"{type(self).__name__} must define reading()")

    def table(self) -> Table:
        """Return the whole table."""
        return self.reading().table

    @property
    def column(self) -> str | None:
        """The name of the target; one of digits comes from the command line as a number."""
        return None if self.target_column is None else str(self.target_column)

    @property
    def notices(self) -> list[str]:
        """Add what the target was taken for, and whether rows are left over."""
        reading = self.reading()
        rows, used = len(reading.table), self.train + self.val + self.test
        fifth = rows // 5
        left = (
            f"data: {used} of the {rows} rows are used; "
            f"data.train={rows - 2 * fifth} data.val={fifth} data.test={fifth} would use all"
        )
        return [*super().notices, *reading.notices, *([left] if used < rows else [])]


def table_of(frame: "pd.DataFrame", target_column: str | None, task: str, source: Source) -> Reading:
    """Return a frame's columns as inputs, the target column aside.

    Shapes:
        x: ``(N, columns − 1)``; y: ``(N, 1)``, or ``(N,)`` for classes.

    Raises:
        ConfigError: for a column that is not there, a value that is missing or no finite number, a single class.
    """
    target = frame[known_column(target_column, list(frame.columns), source)]
    inputs = frame.drop(columns=[target.name])
    x, names = inputs_of(inputs, source), tuple(map(str, inputs.columns))
    refuse_missing(target, source)
    labels: list = []
    if (task_of(target, source) if task == "auto" else task) == "regression":
        values = numbers(target, source, "use data.task=classification")
        table = Table(x, torch.tensor(values).unsqueeze(1), names=names)
    else:
        labels, y = classes_of(target, source)
        several = len(labels) > 1
        require(several, f"{source.name}: the target {target.name}", "of two classes or more", listing(labels))
        table = Table(x, y, len(labels), names)
    return Reading(table, (notice(target, labels),) if task == "auto" else ())


def known_column(name: str | None, columns: list[str], source: Source) -> str:
    """Return the name of the target, one of several columns.

    Raises:
        ConfigError: if it is not, with those there are or the nearest of them.
    """
    if name is None:
        raise ConfigError(f"data.target_column must be a column of {source.name} ({listing(columns)}), got null")
    if name not in columns:
        meant = nearest(name, columns)
        raise ConfigError(f"data.target_column={name}: {source.name} has no such column; did you mean {meant}?")
    if len(columns) == 1:
        raise ConfigError(f"{source.name} has no column beside the target {name}; it needs one to predict it from")
    return name


def inputs_of(frame: "pd.DataFrame", source: Source) -> Tensor:
    """Return all columns as numbers, ``(N, columns)``: in float32 if it holds all of them exactly, or float64."""
    x = np.zeros(frame.shape, dtype=np.float32)
    for place, name in enumerate(frame.columns):
        values = numbers(frame[name], source, "encode the column as numbers or remove it")
        # Half the memory for what needs no more, such as a large set of images in whole numbers.
        if x.dtype == np.float32 and (values.astype(np.float32) != values).any():
            x = x.astype(np.float64)
        x[:, place] = values
    return torch.from_numpy(x)


def task_of(target: "pd.Series", source: Source) -> str:
    """Return what a target is taken for if nobody says.

    Raises:
        ConfigError: for a word among many numbers: a slip, it seems, that would make all of them classes.
    """
    import pandas as pd

    if pd.api.types.is_bool_dtype(target) or isinstance(target.dtype, pd.CategoricalDtype):
        return "classification"
    values = parsed(target)
    is_number = ~np.isnan(values)
    if is_number.all():
        return "classification" if is_whole(values) and len(np.unique(values)) <= FEW else "regression"
    if is_number.any() and target.nunique() > FEW:
        row = int(is_number.argmin())
        others = "as others in this column are; correct it, or use data.task=classification"
        source.refuse(row, target.name, f"{shown(target.iloc[row])} is not a number, {others}")
    return "classification"


def classes_of(target: "pd.Series", source: Source) -> tuple[list, Tensor]:
    """Return the classes in order, numbers by their value, and each sample's place among them, ``(N,)``."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(target) and not pd.api.types.is_bool_dtype(target):
        values = numbers(target, source, "correct it")
        found, places = np.unique(values.astype(np.int64) if is_whole(values) else values, return_inverse=True)
        return found.tolist(), torch.from_numpy(places)
    words = target.astype(str).str.strip()
    labels = in_order(words.unique().tolist())
    return labels, torch.tensor(pd.Categorical(words, categories=labels).codes, dtype=torch.long)


def notice(target: "pd.Series", labels: Sequence[object]) -> str:
    """Return what a target was taken for, and what to type where that is wrong."""
    if not labels:
        other = f"data.task=classification would take its {target.nunique()} distinct values as classes"
        return f"data: target {target.name} taken as a number to predict; {other}"
    are_numbers = not np.isnan(parsed(target)).any()
    other = "; data.task=regression would predict it as a number" if are_numbers else ""
    return f"data: target {target.name} taken as {len(labels)} classes ({listing(labels)}){other}"


def in_order(labels: list[str]) -> list[str]:
    """Return labels sorted by their value if all are numbers, otherwise as words.

    >>> in_order(["10", "9"]), in_order(["10", "9", "x"])
    (['9', '10'], ['10', '9', 'x'])
    """
    try:
        return sorted(labels, key=lambda label: (float(label), label))
    except ValueError:
        return sorted(labels)


def is_whole(values: np.ndarray) -> bool:
    """Return whether no value has a fraction.

    >>> is_whole(np.array([1.0, 2.0])), is_whole(np.array([1.0, 2.5]))
    (True, False)
    """
    return bool((values == np.floor(values)).all())
