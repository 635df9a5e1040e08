"""Samples and targets as tensors (:class:`Table`), and their random split."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from normlab.data.sampling import derive_seed
from normlab.errors import require


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


def split_rows(samples: int, sizes: tuple[int, ...], seed: int) -> tuple[Tensor, ...]:
    """Return the sample indices of disjoint random splits, a pure function of ``seed``.

    Raises:
        ValueError: if the sizes add up to more than ``samples``.
    """
    if sum(sizes) > samples:
        total = " + ".join(map(str, sizes))
        raise ValueError(f"data: train + val + test must be at most {samples} samples, got {total}")
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(derive_seed(seed, "split")))
    return order[: sum(sizes)].split(sizes)
