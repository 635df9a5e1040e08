"""A dataset in memory, and the random split of its samples into training, validation and test parts."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from normlab.data.sampling import derive_seed
from normlab.errors import require


@dataclass(frozen=True)
class Table:
    """Samples and their targets; a target of whole numbers is a class.

    ``names`` are those of the columns of x, for messages; a table made by hand needs none.

    Shapes:
        x: ``(N, …)`` inputs; y: ``(N, O)`` numbers to predict, or ``(N,)`` class indices.
    """

    x: Tensor
    y: Tensor
    classes: int = 0
    names: tuple[str, ...] = ()

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

    def rows(self) -> list[bytes]:
        """Return each sample with its target as bytes, to compare tables without regard to their order."""
        x, y = (part.detach().unsqueeze(-1).flatten(1).contiguous() for part in (self.x, self.y))
        bytes_of = (part.view(torch.uint8).numpy() for part in (x, y))
        return [own.tobytes() + target.tobytes() for own, target in zip(*bytes_of, strict=True)]

    def at(self, index: Tensor) -> "Table":
        """Return the samples at ``index``."""
        return replace(self, x=self.x[index], y=self.y[index])

    def name_of(self, place: int) -> str:
        """Return how messages call a feature: by its column's name, or else by its number, from 1."""
        return f"column {self.names[place]}" if self.names else f"input {place + 1}"


def split_rows(samples: int, sizes: tuple[int, ...], seed: int) -> tuple[Tensor, ...]:
    """Draw disjoint random parts of the given sizes: the indices of each, a pure function of ``seed``.

    Raises:
        ValueError: if there are fewer samples than the sizes ask for.
    """
    if sum(sizes) > samples:
        asked = " + ".join(map(str, sizes))
        raise ValueError(f"data: train + val + test = {asked} asks for more than the {samples} samples")
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(derive_seed(seed, "split")))
    return order[: sum(sizes)].split(sizes)
