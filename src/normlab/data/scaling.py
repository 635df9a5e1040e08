"""Standardization in float64, fitted to the training samples, and the one cast to the training's precision."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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


def cast(values: Tensor, dtype: torch.dtype, name_of: Callable[[int], str]) -> Tensor:
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
