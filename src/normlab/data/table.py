"""A dataset in memory, and its split into training, validation and test parts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from normlab.config import require
from normlab.data.order import stream


@dataclass(frozen=True)
class Table:
    """Samples and their targets; a target of whole numbers is a class.

    Shapes:
        x: ``(N, …)`` inputs; y: ``(N, O)`` numbers to predict, or ``(N,)`` class indices.
    """

    x: Tensor
    y: Tensor
    classes: int = 0

    def __post_init__(self) -> None:
        require(
            len(self.x) == len(self.y), "data: the targets", f"as many as the {len(self.x)} inputs", len(self.y)
        )
        if self.classes:
            known = self.y.dim() == 1 and bool(((self.y >= 0) & (self.y < self.classes)).all())
            expected = f"class indices from 0 to {self.classes - 1}, of shape (N,)"
            largest = f", up to {self.y.max()}" if self.y.numel() else ""
            require(known, "data: the targets", expected, f"shape {tuple(self.y.shape)}{largest}")
        else:
            shape = tuple(self.y.shape)
            require(self.y.dim() == 2, "data: the targets", "of shape (N, outputs), or come with classes", shape)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def is_classification(self) -> bool:
        """Whether the targets are class indices."""
        return self.classes > 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.x.shape[1:])

    @property
    def out_features(self) -> int:
        """How many numbers a net must put out for a sample."""
        return self.classes or self.y.shape[1]

    def at(self, index: Tensor) -> "Table":
        """Return the samples at ``index``."""
        return Table(self.x[index], self.y[index], self.classes)

    def split(self, sizes: tuple[int, ...], seed: int) -> tuple["Table", ...]:
        """Return disjoint random parts of the given sizes, a pure function of ``seed``.

        Raises:
            ValueError: if there are fewer samples than the sizes ask for.
        """
        if sum(sizes) > len(self):
            asked = " + ".join(map(str, sizes))
            raise ValueError(f"data: train + val + test = {asked} asks for more than the {len(self)} samples")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(stream(seed, "split")))
        return tuple(self.at(index) for index in order[: sum(sizes)].split(sizes))

    def standardized_by(self, other: "Table") -> "Table":
        """Return these samples with the inputs' mean and standard deviation in ``other`` taken out.

        A feature that is constant in ``other`` is only centered.
        """
        return Table(standardized(self.x, other.x), self.y, self.classes)

    def target_standardized_by(self, other: "Table") -> "Table":
        """Return these samples with the targets' mean and standard deviation in ``other`` taken out.

        A squared error is then in units of the variance of the targets in ``other``. A target that is constant
        there is only centered.

        Raises:
            ConfigError: if the targets are classes.
        """
        require(not self.is_classification, "data.standardize_target", "false for classes", "true")
        return Table(self.x, standardized(self.y, other.y))


def standardized(values: Tensor, reference: Tensor) -> Tensor:
    """Return values ``(N, …)`` with the mean and standard deviation over the rows of ``reference`` taken out."""
    std = reference.std(dim=0, correction=0)
    return (values - reference.mean(dim=0)) / torch.where(std > 0, std, 1.0)
