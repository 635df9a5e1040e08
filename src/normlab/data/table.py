"""Samples and targets as tensors (:class:`Table`), and transforms fitted to the training samples.

The transforms are :class:`Standardizer` and, for one-hot encoding and mean imputation, :class:`Encoder`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from normlab.errors import ConfigError, require

MIN_VARYING_SHARE = 0.01
"""Features are only centered if a smaller share of samples differs from the most common value."""


@dataclass(frozen=True)
class Table:
    """Inputs and targets of a dataset; ``classes`` is 0 for regression.

    ``names`` are the column names of x, for messages; they may be empty.

    Shapes:
        x: ``(N, …)`` inputs; y: ``(N, O)`` regression targets, or ``(N,)`` class indices.

    Raises:
        ConfigError: if x and y differ in length, or y does not fit ``classes``.
    """

    x: Tensor
    y: Tensor
    classes: int = 0
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(
            len(self.x) == len(self.y),
            "data: the number of targets",
            f"that of inputs, {len(self.x)}",
            len(self.y),
        )
        if self.classes:
            is_valid = self.y.dim() == 1 and bool(((self.y >= 0) & (self.y < self.classes)).all())
            expected = f"class indices from 0 to {self.classes - 1}, of shape (N,)"
            largest = f", up to {self.y.max()}" if self.y.numel() else ""
            require(is_valid, "data: the targets", expected, f"shape {tuple(self.y.shape)}{largest}")
        else:
            shape = tuple(self.y.shape)
            require(
                self.y.dim() == 2,
                "data: the targets",
                "of shape (N, outputs); for class indices pass classes",
                shape,
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def is_classification(self) -> bool:
        """True if the targets are class indices."""
        return self.classes > 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.x.shape[1:])

    @property
    def out_features(self) -> int:
        """The number of outputs that a net needs: the classes, or the target columns."""
        return self.classes or self.y.shape[1]

    def rows(self) -> list[bytes]:
        """Return each sample with its target as bytes, for comparing tables regardless of row order."""
        x, y = (part.detach().unsqueeze(-1).flatten(1).contiguous() for part in (self.x, self.y))
        bytes_of = (part.view(torch.uint8).numpy() for part in (x, y))
        return [sample.tobytes() + target.tobytes() for sample, target in zip(*bytes_of, strict=True)]

    def at(self, index: Tensor) -> "Table":
        """Return the samples at ``index``."""
        return replace(self, x=self.x[index], y=self.y[index])

    def name_of(self, index: int) -> str:
        """Return the name of a feature for messages: its column name, or its number counted from 1."""
        return f"column {self.names[index]}" if self.names else f"input {index + 1}"


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
    of them. With ``means``, a missing value becomes the mean over the training samples, which for a category is
    its relative frequency.

    Attributes:
        categories: the category labels of each column; empty for numeric columns.
        known: the categories in the training samples, as indices of labels, by index of the column.
        means: the mean of each encoded input; None without imputation.
    """

    categories: Sequence[tuple[str, ...]]
    known: Mapping[int, np.ndarray]
    means: np.ndarray | None = None

    @classmethod
    def fit(cls, train: Table, categories: Sequence[tuple[str, ...]], imputes: bool) -> "Encoder":
        """Fit to the training samples.

        Raises:
            ConfigError: for a column whose values are all missing in the training samples.
        """
        x = train.x.numpy()
        encoder = cls(categories, {i: distinct_values(x[:, i]) for i, labels in enumerate(categories) if labels})
        check_not_empty(train, [index for index, values in encoder.known.items() if not len(values)])
        if not imputes:
            return encoder
        encoded = encoder(train)
        x = encoded.x.double().numpy()
        check_not_empty(encoded, np.flatnonzero(np.isnan(x).all(axis=0)))
        return replace(encoder, means=np.nanmean(x, axis=0))

    def __call__(self, part: Table) -> Table:
        """Return samples with encoded inputs ``(N, inputs)``, in float64 unless the encoder does nothing."""
        if not self.known and self.means is None:
            return part
        x, blocks, names = part.x.double().numpy(), [], list[str]()
        for index, name in enumerate(part.names):
            block = x[:, [index]]
            if index in self.known:
                block = np.where(np.isnan(block), np.nan, block == self.known[index])
                names += [f"{name}={self.categories[index][int(code)]}" for code in self.known[index]]
            else:
                names.append(name)
            blocks.append(block)
        x = np.concatenate(blocks, axis=1)
        if self.means is not None:
            x = np.where(np.isnan(x), self.means, x)
        return replace(part, x=torch.tensor(x), names=tuple(names))


def check_not_empty(train: Table, empty: Sequence[int] | np.ndarray) -> None:
    """Raise :class:`ConfigError` for the first of the ``empty`` columns, if there are any."""
    for index in empty[:1]:
        raise ConfigError(
            f"data: {train.name_of(index)} has no value among the {len(train)} training samples; "
            f"leave it out with {drop_remedy(train.names[index])}"
        )


def distinct_values(values: np.ndarray) -> np.ndarray:
    """Return the sorted distinct values except NaN."""
    return np.unique(values[~np.isnan(values)])


def drop_remedy(name: object) -> str:
    """Return the command-line override that drops a column.

    >>> print(drop_remedy("id"), drop_remedy("blood pressure"))
    data.drop=[id] 'data.drop=["blood pressure"]'
    """
    return f"data.drop=[{name}]" if str(name).isidentifier() else f"'data.drop=[\"{name}\"]'"


def format_list(values: Sequence[object]) -> str:
    """Join values with commas; of more than seven, show the first five and the last.

    >>> format_list([1, 2]), format_list([1, 2, 3, 4, 5, 6, 7, 8])
    ('1, 2', '1, 2, 3, 4, 5, …, 8')
    """
    words = [shorten(value) for value in values]
    return ", ".join(words if len(words) <= 7 else [*words[:5], "…", words[-1]])


def shorten(value: object) -> str:
    """Return a value as one line of at most 40 characters.

    >>> shorten("two" + chr(10) + "lines"), shorten(0.5)
    ('two lines', '0.5')
    """
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:39]}…"
