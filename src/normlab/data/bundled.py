"""Four real datasets that are installed with scikit-learn; none is downloaded."""

from dataclasses import dataclass

import torch

from normlab.data.datamodule import InMemoryData
from normlab.data.table import Table


@dataclass(kw_only=True, eq=False)
class Digits(InMemoryData):
    """1,797 greyscale images of handwritten digits, 10 classes; pixels scaled from 0…16 to 0…1.

    Shapes:
        x: ``(1797, 1, 8, 8)``, y: ``(1797,)``.
    """

    def table(self) -> Table:
        """Load the images with scikit-learn."""
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        images = torch.tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8)
        return Table(images, torch.tensor(y, dtype=torch.long), classes=10)


@dataclass(kw_only=True, eq=False)
class BreastCancer(InMemoryData):
    """569 tumours with 30 measurements of cell nuclei: malignant (0) or benign (1).

    Shapes:
        x: ``(569, 30)``, y: ``(569,)``.
    """

    def table(self) -> Table:
        """Load the measurements with scikit-learn."""
        from sklearn.datasets import load_breast_cancer

        x, y = load_breast_cancer(return_X_y=True)
        return Table(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.long), classes=2)


@dataclass(kw_only=True, eq=False)
class Wine(InMemoryData):
    """178 wines with 13 chemical measurements; the class is one of three growers.

    Shapes:
        x: ``(178, 13)``, y: ``(178,)``.
    """

    def table(self) -> Table:
        """Load the measurements with scikit-learn."""
        from sklearn.datasets import load_wine

        x, y = load_wine(return_X_y=True)
        return Table(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.long), classes=3)


@dataclass(kw_only=True, eq=False)
class Diabetes(InMemoryData):
    """442 patients with 10 measurements; the target is disease progression after a year.

    The target ranges from 25 to 346. Features are unscaled, because scikit-learn's scaling would use held-out
    samples too.

    Shapes:
        x: ``(442, 10)``, y: ``(442, 1)``.
    """

    def table(self) -> Table:
        """Load the measurements with scikit-learn."""
        from sklearn.datasets import load_diabetes

        x, y = load_diabetes(return_X_y=True, scaled=False)
        return Table(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32).unsqueeze(1))
