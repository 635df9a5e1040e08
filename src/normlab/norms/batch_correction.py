"""Batch normalization followed by another scale and shift: a correction toward running statistics, or noise."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from normlab.norms.batch_norm import BatchNorm
from normlab.norms.counter_rng import StochasticLayer, counter_normal
from normlab.norms.shared_batch import current_share
from normlab.norms.statistics import features_last, normalize_affine


class BatchRenorm(BatchNorm):
    r"""Normalizes each feature by batch statistics, then corrects the result toward the running statistics.

    .. math::
        r = \mathrm{clip}_{[1/r_\max,\, r_\max]}\!\left(\frac{\sigma_B}{\sigma}\right), \quad
        d = \mathrm{clip}_{[-d_\max,\, d_\max]}\!\left(\frac{\mu_B - \mu}{\sigma}\right), \quad
        y_i = \gamma \left(\frac{x_i - \mu_B}{\sigma_B}\, r + d\right) + \beta

    with μ_B and ``σ_B² = var + ε`` of the batch, and μ and ``σ² = running_var + ε`` the running statistics before
    their update. The gradient treats r and d as constants. Without clipping, ``y = γ(x − μ)/σ + β``, as in
    evaluation.

    The limits widen during training. For the fraction ``warmup`` of the steps, ``r_max = 1`` and ``d_max = 0``,
    which is plain batch normalization. Then both grow linearly and reach their full values at the fractions
    ``r_end`` and ``d_end``. The defaults are the paper's 5,000, 40,000 and 25,000 of about 130,000 steps. If
    ``total_steps`` is None, the full limits apply from the first step.

    The default ``momentum = 0.01`` is the paper's: running statistics as noisy as a batch would make r and d noisy
    too. They need some hundred steps to approach the statistics of the data. The paper averages σ; this layer
    averages the unbiased σ², so that its state dict is compatible with `BatchNorm`.

    Shapes: x and y ``(B, C, ...)``; weight, bias, running_mean, running_var, r and d ``(C,)``.

    Args:
        num_features: C, the length of axis 1.
        r_max, d_max: the full limits.
        warmup, r_end, d_end: fractions of the training steps.
        total_steps: number of training steps; normlab sets it before training.
        momentum: the paper's α, the weight of the newest batch in the running statistics.
        eps, affine, device, dtype, bias, fused, sync: as in `BatchNorm`.

    Attributes:
        r, d: the correction of the last training step.
        updates_state: if False, r, d and the running statistics are not updated, so that y is a differentiable
            function of x and the parameters. Probes use this.

    Raises:
        ValueError: a limit is out of range, or not ``0 ≤ warmup < r_end, d_end``.
        ValueError, RuntimeError, NotImplementedError: as in `BatchNorm`.

    Ioffe (2017), Batch renormalization: towards reducing minibatch dependence in batch-normalized models,
    arXiv:1702.03275.
    """

    r: Tensor
    d: Tensor

    def __init__(
        self,
        num_features: int,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: float = 0.04,
        r_end: float = 0.31,
        d_end: float = 0.19,
        total_steps: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        fused: bool = False,
        sync: bool = False,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, True, device, dtype, bias=bias, fused=fused, sync=sync
        )
        if not (1 <= r_max < math.inf and 0 <= d_max < math.inf):
            raise ValueError(f"r_max must be finite and at least 1, d_max at least 0, got {r_max} and {d_max}")
        if not 0 <= warmup < min(r_end, d_end):
            raise ValueError(
                f"warmup must be a share from 0 to below r_end={r_end} and d_end={d_end}, got {warmup}"
            )
        self.r_max, self.d_max = r_max, d_max
        self.warmup, self.r_end, self.d_end = warmup, r_end, d_end
        self.total_steps = total_steps
        self.updates_state = True
        one = torch.ones(num_features, device=device, dtype=dtype)
        self.register_buffer("r", one, persistent=False)
        self.register_buffer("d", torch.zeros_like(one), persistent=False)

    def limits(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return the limits r_max and d_max at a training step, counted from 1; both ``()``."""
        if self.total_steps is None:
            return step.new_tensor(self.r_max, dtype=self.r.dtype), step.new_tensor(self.d_max, dtype=self.r.dtype)
        # The largest float16 is 65504, fewer than the steps of a long training.
        done = (step - 1).to(torch.promote_types(self.r.dtype, torch.float32)) / self.total_steps
        r_share, d_share = (
            ((done - self.warmup) / (end - self.warmup)).clamp(0, 1) for end in (self.r_end, self.d_end)
        )
        return 1 + (self.r_max - 1) * r_share, self.d_max * d_share

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x; in training mode also update r, d and the running statistics."""
        if not self.training or self.running_mean is None:
            return super().forward(x)
        self._check_input(x, by_batch=True)
        rows = features_last(x)
        fused = self.uses_kernel(x)
        if fused:
            with torch.no_grad():
                mean, _, var = self.statistics(rows)
        else:
            mean, centered, var = self.statistics(rows)
        if self.updates_state:
            self._update_correction(mean.detach(), var.detach(), self.values_of(rows))
        # Copies: the backward pass of this step needs r and d, which the next step overwrites in place.
        r, d = self.r.clone(), self.d.clone()
        gamma = r if self.weight is None else self.weight * r
        beta = d if self.weight is None else self.weight * d
        beta = beta if self.bias is None else beta + self.bias
        if fused:
            return F.batch_norm(x, None, None, gamma, beta, True, 0.0, self.eps)
        return normalize_affine(centered, var, self.eps, gamma, beta, x.dtype)

    def _update_correction(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Set r and d from the batch and the running statistics, then update the running statistics."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        step = self.num_batches_tracked + 1
        if n:
            r_max, d_max = self.limits(step)
            rate = torch.rsqrt(self.running_var.to(var.dtype) + self.eps)
            r, d = torch.sqrt(var + self.eps) * rate, (mean - self.running_mean) * rate
            self.r.copy_(torch.clamp(r, 1 / r_max, r_max))
            self.d.copy_(torch.clamp(d, -d_max, d_max))
        if self.track_running_stats:
            self.num_batches_tracked.copy_(step)
            self._track(mean, var, n, step)


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
        eps, momentum, affine, track_running_stats, device, dtype, bias, fused, sync: as in `BatchNorm`.

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
        sync: bool = False,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            bias=bias,
            fused=fused,
            sync=sync,
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
        share, dtype = current_share(), torch.promote_types(x.dtype, torch.float32)
        m, s = self.noise(len(x) if share is None else share.count(len(x)), dtype)
        if share is not None:
            m, s = share.select(m), share.select(s)
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
