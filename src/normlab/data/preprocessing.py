"""Transforms fitted to the training samples: standardization, one-hot encoding and mean imputation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from normlab.data.parsing import drop_remedy
from normlab.data.table import Table
from normlab.errors import ConfigError

MIN_VARYING_SHARE = 0.01
"""Features are only centered if a smaller share of samples differs from the most common value."""


@dataclass(frozen=True)
class Standardizer:
    """Standardize each feature, ``z = (x − shift − mean) / std``.

    The shift is the first sample, and mean and standard deviation are those of ``x − shift``. Without the shift,
    the mean of large numbers close together, such as dates, would lose its last digits.

    Attributes:
        shift, mean, std: statistics of each feature, ``(…)``.
        nearly_constant: mask ``(…)`` of the features in which under 1 % of the samples differ from the most common
            value. They are centered but not scaled: a pixel that is lit in two of a thousand images would
            otherwise reach more than 20 standard deviations.
    """

    shift: Tensor
    mean: Tensor
    std: Tensor
    nearly_constant: Tensor

    @classmethod
    def fit(cls, values: Tensor) -> "Standardizer":
        """Fit to values ``(N, …)``; ``std`` is 1 for constant and nearly constant features.

        The divisor of the variance is N.
        """
        shift = values[0].double()
        shifted = values.to(torch.float64, copy=True).sub_(shift)
        std = shifted.std(dim=0, correction=0)
        # If nearly all values are equal, the median of the first thousand is the most common value.
        most_common = shifted[:1001].median(dim=0).values
        varying_share = (shifted != most_common).double().mean(dim=0)
        nearly_constant = (varying_share > 0) & (varying_share < MIN_VARYING_SHARE)
        return cls(
            shift, shifted.mean(dim=0), torch.where((std > 0) & ~nearly_constant, std, 1.0), nearly_constant
        )

    def __call__(self, values: Tensor) -> Tensor:
        """Return standardized values ``(N, …)`` in float64."""
        # In-place operations on one copy, because images in float64 need much memory.
        return values.to(torch.float64, copy=True).sub_(self.shift).sub_(self.mean).div_(self.std)


def cast_numbers(values: Tensor, dtype: torch.dtype, name_of: Callable[[int], str]) -> Tensor:
    """Cast floating-point values ``(N, …)`` to ``dtype``; class indices stay integers.

    Raises:
        ConfigError: for a number that overflows ``dtype``; ``name_of`` maps the feature index to its name.
    """
    if not values.is_floating_point():
        return values
    rounded = values.to(dtype)
    if rounded.numel() and not all(end.isfinite() for end in rounded.aminmax()):
        overflows = (rounded.isinf() & values.isfinite()).flatten(1).nonzero()
        for sample, feature in overflows[:1].tolist():
            value, largest = values.flatten(1)[sample, feature].item(), torch.finfo(dtype).max
            raise ConfigError(
                f"data: {name_of(feature)} must be at most {largest:.2g} after preprocessing, got {value:.2g}; "
                "correct the value or leave its row out"
            )
    return rounded


def merged_values_warning(values: Tensor, name_of: Callable[[int], str], key: str) -> list[str]:
    """Return a warning if float32 merges distinct float64 values ``(N, …)`` of a feature.

    ``key`` is the option that standardizes the values before the cast, which keeps them distinct.
    """
    counts = {index: count_merged_values(column) for index, column in enumerate(values.flatten(1).T)}
    merged = {index: count for index, count in counts.items() if count}
    if not merged:
        return []
    index, (before, after) = next(iter(merged.items()))
    others = f" (similarly for {len(merged) - 1} more)" if len(merged) > 1 else ""
    return [
        f"data: {name_of(index)} has {before} distinct values, of which float32 keeps {after}{others}; "
        f"{key}=true keeps them distinct"
    ]


def count_merged_values(values: Tensor) -> tuple[int, int] | None:
    """Return the numbers of distinct values in float64 and float32, or None if standardizing cannot help.

    Standardizing helps if the mean is at least 3 standard deviations from 0. In a long column, float32 merges some
    neighbouring values in any case, so standardizing must also keep 1 % more of the values distinct.

    Shapes:
        values ``(N,)``.
    """
    known = values[~values.isnan()]
    if not len(known) or torch.equal(known.float().double(), known):
        return None
    scale = Standardizer.fit(known)
    if (scale.shift + scale.mean).abs() < 3 * scale.std:
        return None
    before, after, standardized = (len(v.unique()) for v in (known, known.float(), scale(known).float()))
    return (before, after) if standardized - after > before / 100 else None


@dataclass(frozen=True)
class Encoder:
    """One-hot encoding and optional mean imputation of a table's inputs.

    A categorical column becomes one 0/1 input per category of the training samples; any other category is 0 in all
    of them. With ``imputer``, a missing value becomes the mean over the training samples, which for a category is
    its relative frequency.

    Attributes:
        categories: the category labels of each column; empty for numeric columns.
        one_hot: the fitted ``OneHotEncoder`` of each categorical column, by column index.
        imputer: the fitted ``SimpleImputer``, or None.
    """

    categories: Sequence[tuple[str, ...]]
    one_hot: Mapping[int, Any]
    imputer: Any

    @classmethod
    def fit(cls, train: Table, categories: Sequence[tuple[str, ...]], imputes: bool) -> "Encoder":
        """Fit to the training samples.

        Raises:
            ConfigError: for a column whose values are all missing in the training samples.
        """
        one_hot = {index: fit_one_hot(train, index) for index, labels in enumerate(categories) if labels}
        encoder = cls(categories, one_hot, None)
        if not imputes:
            return encoder
        from sklearn.impute import SimpleImputer

        encoded = encoder(train)
        x = encoded.x.double().numpy()
        empty = np.isnan(x).all(axis=0)
        if empty.any():
            raise_empty_column(encoded, int(empty.argmax()))
        return replace(encoder, imputer=SimpleImputer(strategy="mean").fit(x))

    def __call__(self, part: Table) -> Table:
        """Return samples with encoded inputs ``(N, inputs)``, in float64 unless the encoder does nothing."""
        if not self.one_hot and self.imputer is None:
            return part
        x = part.x.double().numpy()
        blocks, names = [], []
        for index, name in enumerate(part.names):
            block = x[:, [index]]
            known = self.one_hot[index].categories_[0] if index in self.one_hot else ()
            # scikit-learn rejects an empty split.
            if index in self.one_hot and len(x):
                missing = np.isnan(block[:, 0])
                block = self.one_hot[index].transform(block)
                block[missing] = np.nan
            blocks.append(block if len(x) else np.zeros((0, len(known) or 1)))
            names += [f"{name}={self.categories[index][int(code)]}" for code in known] or [name]
        x = np.concatenate(blocks, axis=1)
        if self.imputer is not None and len(x):
            x = self.imputer.transform(x)
        return replace(part, x=torch.tensor(x), names=tuple(names))


def fit_one_hot(train: Table, index: int) -> Any:
    """Fit scikit-learn's ``OneHotEncoder`` to a categorical column of the training samples."""
    from sklearn.preprocessing import OneHotEncoder

    codes = train.x[:, index].double()
    known = codes[~codes.isnan()]
    if not len(known):
        raise_empty_column(train, index)
    return OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(known.unsqueeze(1).numpy())


def raise_empty_column(train: Table, index: int) -> NoReturn:
    """Raise :class:`ConfigError` for a column whose values are all missing in the training samples."""
    raise ConfigError(
        f"data: {train.name_of(index)} has no value among the {len(train)} training samples; "
        f"leave it out with {drop_remedy(train.names[index])}"
    )
