"""Corruptions of the test inputs, after Hendrycks and Dietterich; the entry is :class:`Corruption`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from normlab.data.sampling import derive_seed
from normlab.errors import require


@dataclass(frozen=True)
class Corruption:
    """A corruption of inputs x at severity s, in the units of the inputs before standardization.

    Images, with pixels from l to h in the training images:

    - ``noise``: ``clip(x + s·(h − l)·z, l, h)``, z ~ N(0, 1) for each pixel;
    - ``blur``: each channel is convolved with ``exp(−(i² + j²)/(2s²))``, normalized to sum 1 and cut at 4s pixels;
      pixels beyond the border are those at the border;
    - ``contrast``: ``clip(m + (1 − s)·(x − m), l, h)``, m the mean of the image in each channel.

    Rows of features: ``noise`` alone, ``x + s·σ·z``, σ the standard deviation of each feature in the training
    samples.

    z is drawn from the data seed, the same for every severity. On pixels from 0 to 1 these are corruptions of the
    paper, whose code has s = 0.08, 0.12, 0.18, 0.26, 0.38 for noise, 1 − s = 0.4, 0.3, 0.2, 0.1, 0.05 for
    contrast, and s = 1, 2, 3, 4, 6 to blur images of 224 × 224 pixels.

    Hendrycks and Dietterich (2019), Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations, arXiv:1903.12261.

    Args:
        kind: ``noise``, ``blur`` or ``contrast``.
        severity: s > 0; at most 1 for ``contrast``.
        seed: of the data.
    """

    kind: str
    severity: float
    seed: int

    def __call__(self, x: Tensor, train: Tensor) -> Tensor:
        """Return the corrupted inputs in float64.

        Shapes:
            x ``(N, C, H, W)`` or ``(N, features)``, train the same with another N; returns the shape of x.

        Raises:
            ConfigError: if the corruption is one of images and the inputs are rows.
        """
        is_image = x.dim() == 4
        require(
            is_image or self.kind == "noise",
            "data.corrupt",
            "null or noise, as the inputs are no images",
            self.kind,
        )
        x, train = x.double(), train.double()
        if self.kind == "blur":
            from scipy.ndimage import gaussian_filter

            blurred = gaussian_filter(x.numpy(), self.severity, mode="nearest", truncate=4.0, axes=(2, 3))
            return torch.from_numpy(blurred)
        if not is_image:
            return x + self.severity * train.std(dim=0, correction=0) * self.normal(x)
        low, high = train.aminmax()
        if self.kind == "noise":
            return (x + self.severity * (high - low) * self.normal(x)).clamp(low, high)
        mean = x.mean(dim=(2, 3), keepdim=True)
        return (mean + (1 - self.severity) * (x - mean)).clamp(low, high)

    def normal(self, x: Tensor) -> Tensor:
        """Draw standard normal numbers in the shape of x."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "corrupt"))
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)
