"""Datasets that need no file: four installed with scikit-learn, and two drawn from a seed."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from normlab.data.datamodule import InMemoryData
from normlab.data.table import Table
from normlab.errors import require

LOWEST, HIGHEST = 109.0, 186.0
"""Rounded noiseless scores of the smallest (1.2 m, 30 kg, 2 l) and largest person (2.0 m, 120 kg, 5 l)."""


def load(name: str, classes: int = 0, **options: Any) -> Table:
    """Load one of scikit-learn's datasets; ``classes`` is 0 for regression."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True, **options)
    target = torch.tensor(y, dtype=torch.long) if classes else torch.tensor(y, dtype=torch.float32).unsqueeze(1)
    return Table(torch.tensor(x, dtype=torch.float32), target, classes)


@dataclass(kw_only=True, eq=False)
class Digits(InMemoryData):
    """1,797 greyscale images of handwritten digits, 10 classes; pixels scaled from 0…16 to 0…1.

    Shapes:
        x: ``(1797, 1, 8, 8)``, y: ``(1797,)``.
    """

    def table(self) -> Table:
        """Load the images."""
        table = load("digits", classes=10)
        return replace(table, x=table.x.view(-1, 1, 8, 8) / 16)


@dataclass(kw_only=True, eq=False)
class BreastCancer(InMemoryData):
    """569 tumours with 30 measurements of cell nuclei: malignant (0) or benign (1).

    Shapes:
        x: ``(569, 30)``, y: ``(569,)``.
    """

    def table(self) -> Table:
        """Load the measurements."""
        return load("breast_cancer", classes=2)


@dataclass(kw_only=True, eq=False)
class Wine(InMemoryData):
    """178 wines with 13 chemical measurements; the class is one of three growers.

    Shapes:
        x: ``(178, 13)``, y: ``(178,)``.
    """

    def table(self) -> Table:
        """Load the measurements."""
        return load("wine", classes=3)


@dataclass(kw_only=True, eq=False)
class Diabetes(InMemoryData):
    """442 patients with 10 measurements; the target is disease progression after a year.

    The target ranges from 25 to 346. Features are unscaled, because scikit-learn's scaling would use held-out
    samples too.

    Shapes:
        x: ``(442, 10)``, y: ``(442, 1)``.
    """

    def table(self) -> Table:
        """Load the measurements."""
        return load("diabetes", scaled=False)


@dataclass(kw_only=True, eq=False)
class Random(InMemoryData):
    """Independent standard normal inputs and targets: x ~ N(0, I), y ~ N(0, 1).

    The best predictor is the constant 0, with an expected squared error of 1. A lower training loss is
    memorization, and the expected held-out loss is at least 1.

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


@dataclass(kw_only=True, eq=False)
class Fitness(InMemoryData):
    """Regression of a fitness score in [0, 100] on height, weight and vital capacity.

    ``base = 35·height + 15·ln(weight) + 0.008·capacity``, with height ~ U(1.2, 2.0) m, weight ~ U(30, 120) kg and
    capacity ~ U(2000, 5000) ml. The target is one of

    - ``calibrated``: ``100·(base − 109)/(186 − 109) + N(0, 10)``, clamped to [0, 100]; the noise alone gives
      a squared error of about 95;
    - ``clipped``: ``base + N(0, 10)``, clamped to [0, 100]. ``base`` is never below 109, so nearly every target
      is exactly 100 and the best predictor is almost constant.

    Shapes:
        x: ``(samples, 3)``, y: ``(samples, 1)``.
    """

    samples: int = 1000
    target: str = "calibrated"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.samples >= 1, "data.samples", "at least 1", self.samples)
        require(self.target in ("calibrated", "clipped"), "data.target", "calibrated or clipped", self.target)

    def table(self) -> Table:
        """Draw height, weight, capacity and noise, in that order."""
        generator = torch.Generator().manual_seed(self.seed)

        def uniform(low: float, high: float) -> Tensor:
            return torch.rand(self.samples, 1, generator=generator) * (high - low) + low

        height, weight, capacity = uniform(1.2, 2.0), uniform(30, 120), uniform(2000, 5000)
        base = 35 * height + 15 * weight.log() + 0.008 * capacity
        if self.target == "calibrated":
            base = 100 * (base - LOWEST) / (HIGHEST - LOWEST)
        y = (base + 10 * torch.randn(self.samples, 1, generator=generator)).clamp(0, 100)
        return Table(torch.cat([height, weight, capacity], dim=1), y)

    @property
    def notices(self) -> list[str]:
        """Add a warning with the share of clipped targets that are exactly 100."""
        if self.target != "clipped":
            return super().notices
        saturated = (self.table().y == 100).double().mean().item()
        return [
            *super().notices,
            f"data.target=clipped: {saturated:.1%} of the targets are exactly 100, so only a constant can be "
            "learned; use data.target=calibrated for a target that depends on the inputs",
        ]
