"""A dataset in memory, and its split into training, validation and test parts."""

from dataclasses import dataclass

import torch
from torch import Tensor

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
        std = other.x.std(dim=0, correction=0)
        return Table((self.x - other.x.mean(dim=0)) / torch.where(std > 0, std, 1.0), self.y, self.classes)
