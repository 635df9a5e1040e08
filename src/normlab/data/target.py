"""The target of a table: whether it is a number to predict or a class, and its values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from normlab.data.parsing import (
    Source,
    beyond_float32,
    codes_of,
    in_order,
    listing,
    missing_among_numbers,
    numbers_in,
    refuse_infinite,
    resemble_numbers,
    words_of,
)
from normlab.errors import require

if TYPE_CHECKING:
    import pandas as pd

FEW_VALUES = 20
"""A target of whole numbers is taken as classes if it has at most as many distinct ones."""


@dataclass(frozen=True)
class Target:
    """Targets ``(N, 1)`` in float64, or the class of each ``(N,)`` with the labels of the classes in order.

    Attributes:
        beyond: the line that refuses a number beyond float32, if there is one that is not standardized.
    """

    y: Tensor
    labels: tuple[object, ...] = ()
    beyond: str = ""


def parse_target(target: "pd.Series", task: str, source: Source) -> Target:
    """Return the values of a target that has no missing ones; the task is regression or classification.

    Raises:
        ConfigError: for a word among numbers to predict, an infinite number, or a single class.
    """
    import pandas as pd

    if task == "classification":
        if pd.api.types.is_numeric_dtype(target):
            refuse_infinite(numeric_values(target, source), target, source)
        labels, y = classes_of(target)
        several = len(labels) > 1
        require(several, f"{source.name}: the target {target.name}", "of two classes or more", listing(labels))
        return Target(y, tuple(labels))
    values = numeric_values(target, source)
    wrong = np.isnan(values)
    if wrong.any():
        row = int(wrong.argmax())
        source.refuse_word(target, row, "use data.task=classification")
    refuse_infinite(values, target, source)
    return Target(torch.tensor(values).unsqueeze(1), beyond=beyond_float32(values, target, source))


def numeric_values(target: "pd.Series", source: Source) -> np.ndarray:
    """Return the numbers that a target's values are, ``(N,)``, and NaN for any other."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(target):
        return target.to_numpy(np.float64, na_value=np.nan)
    return numbers_in(words_of(target), source.decimal)


def missing_targets(target: "pd.Series", task: str, source: Source) -> np.ndarray:
    """Return which targets are missing, ``(N,)``: empty ones, and among numbers also NA, NaN or null.

    A class may have any name, None among them.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(target):
        return target.isna().to_numpy(bool)
    words = words_of(target)
    empty, no_numbers = words.isna().to_numpy(bool), missing_among_numbers(words)
    are_numbers = not np.isnan(numbers_in(words, source.decimal))[~no_numbers].any() and not no_numbers.all()
    declared = isinstance(target.dtype, pd.CategoricalDtype)
    is_number = task == "regression" or (task == "auto" and are_numbers and not declared)
    return no_numbers if is_number else empty


def guess_task(target: "pd.Series", source: Source) -> str:
    """Return the task that a target without missing values is taken for unless a person chooses one.

    Raises:
        ConfigError: for a word among many numbers, or a number with another decimal sign: a slip, it seems, that
            would make all of them classes.
    """
    import pandas as pd

    if pd.api.types.is_bool_dtype(target) or isinstance(target.dtype, pd.CategoricalDtype):
        return "classification"
    values = numeric_values(target, source)
    is_number = ~np.isnan(values)
    if is_number.all():
        return (
            "classification"
            if is_integer_valued(values) and len(np.unique(values)) <= FEW_VALUES
            else "regression"
        )
    odd = ~is_number & resemble_numbers(words_of(target))
    if odd.any() or (is_number.any() and target.nunique() > FEW_VALUES):
        row = int(odd.argmax() if odd.any() else is_number.argmin())
        source.refuse_word(target, row, f"correct it{source.remedy}, or use data.task=classification")
    return "classification"


def classes_of(target: "pd.Series") -> tuple[list, Tensor]:
    """Return the classes in order, numbers by their value, and each sample's place among them, ``(N,)``."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(target) and not pd.api.types.is_bool_dtype(target):
        # Whole numbers are kept as they are: float64 would merge those beyond 2^53.
        values = target.to_numpy()
        whole = (
            np.issubdtype(values.dtype, np.floating) and is_integer_valued(values) and np.abs(values).max() < 2**53
        )
        found, places = np.unique(values.astype(np.int64) if whole else values, return_inverse=True)
        return found.tolist(), torch.tensor(places, dtype=torch.long)
    words = words_of(target)
    labels = in_order(words.unique().tolist())
    return labels, torch.tensor(codes_of(words, labels), dtype=torch.long)


def notice(target: "pd.Series", labels: Sequence[object], source: Source) -> str:
    """Return the task that a target was taken for, and what to type where that is wrong."""
    if not labels:
        other = f"data.task=classification would take its {target.nunique()} distinct values as classes"
        return f"data: target {target.name} taken as a number to predict; {other}"
    are_numbers = not np.isnan(numeric_values(target, source)).any()
    other = "; data.task=regression would predict it as a number" if are_numbers else ""
    return f"data: target {target.name} taken as {len(labels)} classes ({listing(labels)}){other}"


def is_integer_valued(values: np.ndarray) -> bool:
    """Return whether no value has a fraction.

    >>> is_integer_valued(np.array([1.0, 2.0])), is_integer_valued(np.array([1.0, 2.5]))
    (True, False)
    """
    return bool((values == np.floor(values)).all())
