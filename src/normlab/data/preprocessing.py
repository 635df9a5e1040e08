"""Transforms fitted to the training samples: standardization, one-hot vectors, and means for missing values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normlab.data.parsing import drop_remedy
from normlab.data.table import Table
from normlab.errors import ConfigError

RARE = 0.01
"""The share of samples that must differ from a feature's most common value for it to be standardized."""


@dataclass(frozen=True)
class Standardizer:
    """Subtract the mean of each feature and divide by its standard deviation, ``(x − shift − mean) / std``.

    Mean and standard deviation are those of ``x − shift``, where the shift is the first sample: the mean of large
    numbers that are near each other, such as dates, would lose its last digits.

    Attributes:
        shift, mean, std: of each feature, ``(…)``.
        nearly_constant: the features in which less than a hundredth of the samples differ from the most common
            value, ``(…)`` true or false. They are only centered: a pixel that is lit in two images of a thousand
            would come out at 20 standard deviations and more.
    """

    shift: Tensor
    mean: Tensor
    std: Tensor
    nearly_constant: Tensor

    @classmethod
    def fit(cls, values: Tensor) -> "Standardizer":
        """Fit to values ``(N, …)``; a constant or nearly constant feature has a standard deviation of 1.

        Mean and standard deviation are taken over the N samples, with a divisor of N.
        """
        shift = values[0].double()
        shifted = values.to(torch.float64, copy=True).sub_(shift)
        std = shifted.std(dim=0, correction=0)
        # Where nearly all values are the same, the median of the first thousand is that value.
        common = shifted[:1001].median(dim=0).values
        rare = (shifted != common).double().mean(dim=0)
        nearly_constant = (rare > 0) & (rare < RARE)
        return cls(
            shift, shifted.mean(dim=0), torch.where((std > 0) & ~nearly_constant, std, 1.0), nearly_constant
        )

    def __call__(self, values: Tensor) -> Tensor:
        """Return values ``(N, …)`` standardized, in float64."""
        # In place, in a single copy: a table of images in float64 is large.
        return values.to(torch.float64, copy=True).sub_(self.shift).sub_(self.mean).div_(self.std)


def cast_numbers(values: Tensor, dtype: torch.dtype, name_of: Callable[[int], str]) -> Tensor:
    """Return numbers ``(N, …)`` in ``dtype``; whole numbers, which are classes, stay.

    Raises:
        ConfigError: for a number that ``dtype`` cannot hold; ``name_of`` names its feature.
    """
    if not values.is_floating_point():
        return values
    rounded = values.to(dtype)
    if rounded.numel() and not all(end.isfinite() for end in rounded.aminmax()):
        lost = (rounded.isinf() & values.isfinite()).flatten(1).nonzero()
        for sample, place in lost[:1].tolist():
            value, largest = values.flatten(1)[sample, place].item(), torch.finfo(dtype).max
            raise ConfigError(
                f"data: {name_of(place)} must be at most {largest:.2g} as it is trained on, got {value:.2g}; "
                "correct the value or leave its row out"
            )
    return rounded


def merged_notice(values: Tensor, name_of: Callable[[int], str], key: str) -> list[str]:
    """Return a warning where distinct numbers ``(N, …)`` in float64 become the same in float32.

    ``key`` is the choice that would keep them apart, by standardizing them first.
    """
    counts = {place: merged_by_float32(column) for place, column in enumerate(values.flatten(1).T)}
    merged = {place: count for place, count in counts.items() if count}
    if not merged:
        return []
    place, (before, after) = next(iter(merged.items()))
    others = f" (and so for {len(merged) - 1} more)" if len(merged) > 1 else ""
    return [
        f"data: {name_of(place)} has {before} distinct values, {after} as 32-bit numbers{others}; "
        f"{key}=true keeps them apart"
    ]


def merged_by_float32(values: Tensor) -> tuple[int, int] | None:
    """Return how many distinct values ``(N,)`` there are in float64 and in float32, if standardizing would help.

    It helps where the mean is far from 0, in standard deviations. In a long column of numbers with all digits,
    float32 merges a few that are near each other in any case. So it counts as help to keep one in a hundred more
    apart.
    """
    known = values[~values.isnan()]
    if not len(known) or torch.equal(known.float().double(), known):
        return None
    scale = Standardizer.fit(known)
    if (scale.shift + scale.mean).abs() < 3 * scale.std:
        return None
    before, after, standardized = (len(of.unique()) for of in (known, known.float(), scale(known).float()))
    return (before, after) if standardized - after > before / 100 else None


@dataclass(frozen=True)
class Encoder:
    """Transform of a table as it was read into inputs that are all numbers.

    A column of words becomes a 0/1 input for each of its words among the training samples; a word that is not
    among them is 0 in all of these. With ``imputer``, a missing value becomes the mean over the training samples:
    in a column of words, the share of each word.

    Attributes:
        words: for each column the words that its values are the places of; empty for numbers.
        one_hot: scikit-learn's encoder of each column of words, by the column's place.
    """

    words: Sequence[tuple[str, ...]]
    one_hot: Mapping[int, Any]
    imputer: Any

    @classmethod
    def fit(cls, train: Table, words: Sequence[tuple[str, ...]], imputes: bool) -> "Encoder":
        """Fit to the training samples.

        Raises:
            ConfigError: for a column without any value among them.
        """
        encoder = cls(words, {place: one_hot(train, place) for place, known in enumerate(words) if known}, None)
        if not imputes:
            return encoder
        from sklearn.impute import SimpleImputer

        encoded = encoder(train)
        x = encoded.x.double().numpy()
        empty = np.isnan(x).all(axis=0)
        if empty.any():
            refuse_empty(encoded, int(empty.argmax()))
        return replace(encoder, imputer=SimpleImputer(strategy="mean").fit(x))

    def __call__(self, part: Table) -> Table:
        """Return samples with encoded inputs ``(N, inputs)``, in float64 where there is anything to encode."""
        if not self.one_hot and self.imputer is None:
            return part
        x = part.x.double().numpy()
        blocks, names = [], []
        for place, name in enumerate(part.names):
            block = x[:, [place]]
            known = self.one_hot[place].categories_[0] if place in self.one_hot else ()
            # scikit-learn refuses a split without samples.
            if place in self.one_hot and len(x):
                missing = np.isnan(block[:, 0])
                block = self.one_hot[place].transform(block)
                block[missing] = np.nan
            blocks.append(block if len(x) else np.zeros((0, len(known) or 1)))
            names += [f"{name}={self.words[place][int(code)]}" for code in known] or [name]
        x = np.concatenate(blocks, axis=1)
        if self.imputer is not None and len(x):
            x = self.imputer.transform(x)
        return replace(part, x=torch.tensor(x), names=tuple(names))


def one_hot(train: Table, place: int) -> Any:
    """Fit scikit-learn's OneHotEncoder to a column of words of the training samples."""
    from sklearn.preprocessing import OneHotEncoder

    codes = train.x[:, place].double()
    known = codes[~codes.isnan()]
    if not len(known):
        refuse_empty(train, place)
    return OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(known.unsqueeze(1).numpy())


def refuse_empty(train: Table, place: int) -> None:
    """Raise :class:`ConfigError` for a column that has no value among the training samples."""
    raise ConfigError(
        f"data: {train.name_of(place)} has no value among the {len(train)} training samples; "
        f"leave it out with {drop_remedy(train.names[place])}"
    )
