"""Noisy batch normalization: random shifts and scales after batch normalization."""

import torch
from torch import Tensor

from normlab.norms.batch_norm import BatchNorm
from normlab.norms.counter_rng import StochasticLayer, counter_normal


class NoisyBatchNorm(BatchNorm, StochasticLayer):
    r"""Applies batch normalization, then a random shift and scale whose distribution changes at every step.

    In training mode, with y' the output of `BatchNorm`, for feature c and sample i:

    .. math::
        \mu_c \sim U(-n_\mu, n_\mu), \quad \sigma_c \sim U(1, n_\sigma), \quad
        m_{ic} \sim U(\mu_c - r_\mu, \mu_c + r_\mu), \quad s_{ic} \sim N(\sigma_c, r_\sigma^2), \quad
        y_{ic} = s_{ic}\, y'_{ic} + m_{ic}

    In evaluation ``y = y'``. The running statistics are those of x. At all positions of a channel of an image the
    noise of a sample is the same. `StochasticLayer` draws the random numbers, from the layer's key and step.

    Shapes: x and y ``(B, C, ...)``; m and s ``(B, C)``; buffers as in `BatchNorm` and `StochasticLayer`.

    Args:
        num_features: C, the length of axis 1.
        n_mean, n_std: n_μ and n_σ, bounds on the shift and the scale of each feature's noise.
        r_mean, r_std: r_μ and r_σ, spread of the samples' noise around that of their feature.
        eps, momentum, affine, track_running_stats, device, dtype, bias, fused: as in `BatchNorm`.

    Raises:
        ValueError: n_mean, r_mean or r_std is negative, or n_std is below 1.
        ValueError, RuntimeError, NotImplementedError: as in `BatchNorm`.

    Santurkar, Tsipras, Ilyas and Madry (2018), How does batch normalization help optimization?, arXiv:1805.11604,
    appendix A.
    """

    def __init__(
        self,
        num_features: int,
        n_mean: float = 0.5,
        n_std: float = 1.25,
        r_mean: float = 0.1,
        r_std: float = 0.1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        fused: bool = False,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, fused=fused
        )
        if min(n_mean, r_mean, r_std) < 0 or n_std < 1:
            got = f"{n_mean}, {r_mean}, {r_std} and {n_std}"
            raise ValueError(f"n_mean, r_mean and r_std must be 0 or more and n_std 1 or more, got {got}")
        self.n_mean, self.n_std, self.r_mean, self.r_std = n_mean, n_std, r_mean, r_std

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x; in training mode also update the running statistics and advance the step."""
        y = super().forward(x)
        if not self.training:
            return y
        m, s = self.noise(len(x), torch.promote_types(x.dtype, torch.float32))
        self.advance()
        shape = (*m.shape, *[1] * (x.dim() - 2))
        return torch.addcmul(m.view(shape), y, s.view(shape)).to(x.dtype)

    def noise(self, samples: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return m and s of the current step, ``(B, C)`` each."""
        features, entries = self.num_features, samples * self.num_features
        even = entries + entries % 2
        # One call draws everything: in small layers a call costs more than the numbers themselves.
        drawn = self.uniform((2 * features + entries + even,), dtype)
        u_mean, u_std, u_m, u_s = drawn.split([features, features, entries, even])
        mean = self.n_mean * (2 * u_mean - 1)
        std = 1 + (self.n_std - 1) * u_std
        m = mean + self.r_mean * (2 * u_m.view(samples, features) - 1)
        return m, std + self.r_std * counter_normal(u_s)[:entries].view(samples, features)
