"""Pure noise: inputs and targets that have nothing to do with each other."""

from dataclasses import dataclass

import torch

from normlab.data.datamodule import InMemoryData
from normlab.data.table import Table
from normlab.errors import require


@dataclass(kw_only=True, eq=False)
class Random(InMemoryData):
    """Independent standard normal inputs and targets: x ~ N(0, I), y ~ N(0, 1).

    The best prediction is 0 with a squared error of 1, so a lower training loss is memorization, and a held-out
    loss can only be above 1.

    Shapes:
        x: ``(train + val + test, in_features)``, y: ``(train + val + test, 1)``.
    """

    in_features: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.in_features >= 1, "data.in_features", "at least 1", self.in_features)

    def table(self) -> Table:
        """Draw the inputs, then the targets."""
        samples = self.train + self.val + self.test
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(samples, self.in_features, generator=generator)
        return Table(x, torch.randn(samples, 1, generator=generator))
