"""Regression data from a random net; the entry is :class:`Teacher`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from normlab.data.datamodule import InMemoryData
from normlab.data.sampling import derive_seed
from normlab.data.table import Table
from normlab.errors import require

WEIGHT_GAIN, BIAS_STD = 2.0, 0.3
"""σ_w and σ_b of the hidden layers: in the chaotic phase of tanh nets, where depth makes the function rougher."""
REFERENCE_SAMPLES = 10_000
"""Inputs over which the output of a teacher is standardized."""


@dataclass(kw_only=True, eq=False)
class Teacher(InMemoryData):
    """Regression on the output of a random tanh net, the teacher, plus noise.

    ``x = Q diag(√λ) z`` with z ~ N(0, I), Q a random rotation and ``λ_i ∝ i^−spectrum`` with mean 1: λ are the
    eigenvalues of the inputs' covariance. With ``h_0 = x`` and
    ``h_l = tanh(W_l h_{l−1} + b_l)`` for l = 1…depth, W ~ N(0, 4/fan_in) and b ~ N(0, 0.3²),
    ``f(x) = v·h_depth``, v ~ N(0, I), and

        ``y = (s(f(x)) + noise·e) / √(1 + noise²)``, e ~ N(0, 1).

    s standardizes f over 10,000 further inputs, so that y has mean 0 and variance 1 up to sampling. No predictor
    has an expected squared error below ``noise²/(1 + noise²)``; the best constant has 1.

    Teacher, inputs and noise have random streams of their own, derived from the data seed: sizes of splits and
    ``noise`` do not change the teacher. Everything is drawn and computed in float64.

    Poole et al. (2016), Exponential expressivity in deep neural networks through transient chaos,
    arXiv:1606.05340.

    Args:
        in_features: number of inputs.
        depth: hidden layers of the teacher; 0 is a linear teacher.
        width: units of each hidden layer.
        noise: standard deviation of the noise, as a multiple of that of the teacher's output.
        spectrum: exponent of the decay of the eigenvalues; 0 for uncorrelated inputs.

    Shapes:
        x: ``(train + val + test, in_features)``, y: ``(train + val + test, 1)``.
    """

    in_features: int = 10
    depth: int = 2
    width: int = 32
    noise: float = 0.1
    spectrum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.in_features >= 1, "data.in_features", "at least 1", self.in_features)
        require(self.depth >= 0, "data.depth", "0 or more hidden layers", self.depth)
        require(self.width >= 1, "data.width", "at least 1", self.width)
        for name in ("noise", "spectrum"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"data.{name}", "a finite number, 0 or more", value)

    def table(self) -> Table:
        """Draw inputs, teacher and noise."""
        samples = self.train + self.val + self.test
        f = self.draw_teacher()
        x, reference = self.draw_inputs(samples), f(self.draw_inputs(REFERENCE_SAMPLES, "reference"))
        signal = (f(x) - reference.mean()) / reference.std()
        noise = self.noise * normal(self.generator("noise"), samples, 1)
        return Table(x, (signal + noise) / math.sqrt(1 + self.noise**2))

    @property
    def generated(self) -> bool:
        """True, because every seed draws other samples."""
        return True

    def generator(self, name: str) -> torch.Generator:
        """Return the generator of a random stream of this dataset."""
        return torch.Generator().manual_seed(derive_seed(self.seed, "teacher", name))

    def eigenvalues(self) -> Tensor:
        """Return the eigenvalues of the inputs' covariance in descending order, ``(in_features,)``; mean 1."""
        decay = torch.arange(1, self.in_features + 1, dtype=torch.float64) ** -self.spectrum
        return decay / decay.mean()

    def draw_inputs(self, samples: int, name: str = "inputs") -> Tensor:
        """Draw inputs from N(0, Q diag(λ) Qᵀ), ``(samples, in_features)``."""
        # The orthogonal factor of a Gaussian matrix, with the signs that make it uniform over rotations.
        q, r = torch.linalg.qr(normal(self.generator("rotation"), self.in_features, self.in_features))
        z = normal(self.generator(name), samples, self.in_features)
        return (z * self.eigenvalues().sqrt()) @ (q * r.diagonal().sign()).T

    def draw_teacher(self) -> Callable[[Tensor], Tensor]:
        """Draw the teacher, a function from inputs ``(N, in_features)`` to outputs ``(N, 1)``."""
        generator, fan_in, layers = self.generator("weights"), self.in_features, []
        for _ in range(self.depth):
            weight = WEIGHT_GAIN / math.sqrt(fan_in) * normal(generator, fan_in, self.width)
            layers.append((weight, BIAS_STD * normal(generator, self.width)))
            fan_in = self.width
        output = normal(generator, fan_in, 1)

        def teacher(h: Tensor) -> Tensor:
            for weight, bias in layers:
                h = torch.tanh(h @ weight + bias)
            return h @ output

        return teacher


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
