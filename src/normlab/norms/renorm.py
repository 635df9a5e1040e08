"""Batch renormalization: training on what evaluation will see."""

import math

import torch
from torch import Tensor

from normlab.norms.batch_norm import BatchNorm
from normlab.norms.statistics import features_last, normalize_affine


class BatchRenorm(BatchNorm):
    r"""Normalizes by the batch, and corrects what comes out toward the running statistics.

    .. math::
        r = \mathrm{clip}_{[1/r_\max,\, r_\max]}\!\left(\frac{\sigma_B}{\sigma}\right), \quad
        d = \mathrm{clip}_{[-d_\max,\, d_\max]}\!\left(\frac{\mu_B - \mu}{\sigma}\right), \quad
        y_i = \gamma \left(\frac{x_i - \mu_B}{\sigma_B}\, r + d\right) + \beta

    with μ_B and ``σ_B² = var + ε`` of the batch, and μ and ``σ² = running_var + ε`` the running statistics before
    it. r and d are constants in the gradient. Where they are not clipped, ``y = γ(x − μ)/σ + β`` as in evaluation.

    The limits open as the training goes on: ``r_max = 1`` and ``d_max = 0``, plain batch normalization, for the
    share ``warmup`` of its steps; from there on they grow evenly and are reached at the shares r_end and d_end.
    The defaults are the paper's 5,000, 40,000 and 25,000 of about 130,000 steps. A layer that is not told the
    number of steps, ``total_steps``, has the full limits at once.

    The running statistics are averages with the paper's weight of the newest batch, ``momentum = 0.01``: they have
    to be steadier than the batch, or r and d follow its noise. They take some hundred steps to arrive. The paper
    averages σ, this layer σ², unbiased, as `BatchNorm` does, so that a state dict goes either way.

    Shapes: x and y ``(B, C, ...)``; weight, bias, running_mean, running_var, r and d ``(C,)``.

    Args:
        num_features: C, the length of axis 1.
        r_max, d_max: the limits in the end.
        warmup, r_end, d_end: shares of the training's steps.
        total_steps: the number of the training's steps; normlab's training sets it.
        momentum: the paper's α, the weight of the newest batch in the running statistics.
        eps, affine, device, dtype, bias, fused: as in `BatchNorm`.

    Attributes:
        r, d: of the last training step. While ``held`` is true they stay, and the running statistics with them, so
            that y is a function of x and the parameters that can be differentiated.

    Raises:
        ValueError: a limit or share is out of order, and what else `BatchNorm` raises.

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
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, True, device, dtype, bias=bias, fused=fused)
        if not (1 <= r_max < math.inf and 0 <= d_max < math.inf):
            raise ValueError(f"r_max must be finite and at least 1, d_max at least 0, got {r_max} and {d_max}")
        if not 0 <= warmup < min(r_end, d_end):
            raise ValueError(
                f"warmup must be a share from 0 to below r_end={r_end} and d_end={d_end}, got {warmup}"
            )
        self.r_max, self.d_max = r_max, d_max
        self.warmup, self.r_end, self.d_end = warmup, r_end, d_end
        self.total_steps = total_steps
        self.held = False
        one = torch.ones(num_features, device=device, dtype=dtype)
        self.register_buffer("r", one, persistent=False)
        self.register_buffer("d", torch.zeros_like(one), persistent=False)

    def limits(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return r_max and d_max at a step, counted from 1."""
        if self.total_steps is None:
            return step.new_tensor(self.r_max, dtype=self.r.dtype), step.new_tensor(self.d_max, dtype=self.r.dtype)
        # 16 bits would count to 65504 only.
        done = (step - 1).to(torch.promote_types(self.r.dtype, torch.float32)) / self.total_steps
        r_share, d_share = (
            ((done - self.warmup) / (end - self.warmup)).clamp(0, 1) for end in (self.r_end, self.d_end)
        )
        return 1 + (self.r_max - 1) * r_share, self.d_max * d_share

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x; in training mode also move the running statistics."""
        if not self.training or self.running_mean is None:
            return super().forward(x)
        self._check_input(x, by_batch=True)
        rows = features_last(x)
        fused = self.takes_kernel(x)
        if fused:
            with torch.no_grad():
                mean, _, var = self.statistics(rows)
        else:
            mean, centered, var = self.statistics(rows)
        if not self.held:
            self._correct(mean.detach(), var.detach(), rows.shape[:-1].numel())
        # Copies: the next step must not overwrite what this one's gradient is made of.
        r, d = self.r.clone(), self.d.clone()
        gamma = r if self.weight is None else self.weight * r
        beta = d if self.weight is None else self.weight * d
        beta = beta if self.bias is None else beta + self.bias
        if fused:
            cudnn = torch.backends.cudnn.enabled
            return torch.batch_norm(x, gamma, beta, None, None, True, 0.0, self.eps, cudnn)
        return normalize_affine(centered, var, self.eps, gamma, beta).to(x.dtype).movedim(-1, 1)

    def _correct(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Take r and d from the batch and the running statistics, then move these."""
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
