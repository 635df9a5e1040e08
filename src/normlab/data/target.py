"""Parsing of the target column: inference of the task, class labels and values.

The main entries are :func:`infer_task` and :func:`parse_target`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from normlab.data.parsing import (
    Source,
    check_finite,
    encode_labels,
    float32_overflow,
    format_list,
    is_missing_number,
    looks_numeric,
    sort_labels,
    to_numbers,
    to_words,
)
from normlab.errors import require

if TYPE_CHECKING:
    import pandas as pd

MAX_INTEGER_CLASSES = 20
"""The largest number of distinct integers for which ``task="auto"`` infers classification."""


@dataclass(frozen=True)
class Target:
    """Regression targets ``(N, 1)`` in float64, or class indices ``(N,)`` with the sorted class labels.

    Attributes:
        overflow: the error message for a number beyond float32, or ""; it applies only if the target is not
            standardized.
    """

    y: Tensor
    labels: tuple[object, ...] = ()
    overflow: str = ""


def parse_target(target: "pd.Series", task: str, source: Source) -> Target:
    """Parse a target without missing values for the task "regression" or "classification".

    Raises:
        ConfigError: for text in a regression target, an infinite number, or a single class.
    """
    import pandas as pd

    if task == "classification":
        if pd.api.types.is_numeric_dtype(target):
            check_finite(numeric_values(target, source), target, source)
        labels, y = encode_classes(target)
        require(
            len(labels) > 1,
            f"{source.name}: the target {target.name}",
            "of two classes or more",
            format_list(labels),
        )
        return Target(y, tuple(labels))
    values = numeric_values(target, source)
    invalid = np.isnan(values)
    if invalid.any():
        row = int(invalid.argmax())
        source.reject_word(target, row, "use data.task=classification")
    check_finite(values, target, source)
    return Target(torch.tensor(values).unsqueeze(1), overflow=float32_overflow(values, target, source))


def numeric_values(target: "pd.Series", source: Source) -> np.ndarray:
    """Return the target as numbers, ``(N,)``, with NaN for text and missing values."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(target):
        return target.to_numpy(np.float64, na_value=np.nan)
    return to_numbers(to_words(target), source.decimal)


def missing_targets(target: "pd.Series", task: str, source: Source) -> np.ndarray:
    """Return a mask of the missing targets, ``(N,)``: empty values, and NA, NaN or null among numbers.

    Among class labels, such words are valid names.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(target):
        return target.isna().to_numpy(bool)
    words = to_words(target)
    empty, missing = words.isna().to_numpy(bool), is_missing_number(words)
    are_numbers = not np.isnan(to_numbers(words, source.decimal))[~missing].any() and not missing.all()
    declared = isinstance(target.dtype, pd.CategoricalDtype)
    is_numeric = task == "regression" or (task == "auto" and are_numbers and not declared)
    return missing if is_numeric else empty


def infer_task(target: "pd.Series", source: Source) -> str:
    """Infer the task of a target without missing values: "classification" or "regression".

    Raises:
        ConfigError: for text among many numbers, or a number with the other decimal sign. It is probably a typing
            error, which would otherwise turn all numbers into classes.
    """
    import pandas as pd

    if pd.api.types.is_bool_dtype(target) or isinstance(target.dtype, pd.CategoricalDtype):
        return "classification"
    values = numeric_values(target, source)
    is_number = ~np.isnan(values)
    if is_number.all():
        return (
            "classification"
            if is_integer_valued(values) and len(np.unique(values)) <= MAX_INTEGER_CLASSES
            else "regression"
        )
    mistyped = ~is_number & looks_numeric(to_words(target))
    if mistyped.any() or (is_number.any() and target.nunique() > MAX_INTEGER_CLASSES):
        row = int(mistyped.argmax() if mistyped.any() else is_number.argmin())
        source.reject_word(target, row, f"correct it{source.remedy}, or use data.task=classification")
    return "classification"


def encode_classes(target: "pd.Series") -> tuple[list, Tensor]:
    """Return the sorted class labels (numbers by value) and the class index of each sample, ``(N,)``."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(target) and not pd.api.types.is_bool_dtype(target):
        # Integers stay integers, because float64 would merge those beyond 2^53.
        values = target.to_numpy()
        whole = (
            np.issubdtype(values.dtype, np.floating) and is_integer_valued(values) and np.abs(values).max() < 2**53
        )
        classes, indices = np.unique(values.astype(np.int64) if whole else values, return_inverse=True)
        return classes.tolist(), torch.tensor(indices, dtype=torch.long)
    words = to_words(target)
    labels = sort_labels(words.unique().tolist())
    return labels, torch.tensor(encode_labels(words, labels), dtype=torch.long)


def task_notice(target: "pd.Series", labels: Sequence[object], source: Source) -> str:
    """Return a notice about the inferred task, with the override that selects the other task."""
    if not labels:
        other = f"data.task=classification would take its {target.nunique()} distinct values as classes"
        return f"data: target {target.name} taken as a regression target; {other}"
    are_numbers = not np.isnan(numeric_values(target, source)).any()
    other = "; data.task=regression would take it as a regression target" if are_numbers else ""
    return f"data: target {target.name} taken as {len(labels)} classes ({format_list(labels)}){other}"


def is_integer_valued(values: np.ndarray) -> bool:
    """Return True if all values are integers.

    >>> is_integer_valued(np.array([1.0, 2.0])), is_integer_valued(np.array([1.0, 2.5]))
    (True, False)
    """
    return bool((values == np.floor(values)).all())
