"""Code written for speed: stacked forms of layers, gradients by hand, a hint to the compiler, and malloc.

Each trick names its plain version, which the tests compare it to, and its gain, measured on two cores in trainings
of 96 nets on the default data.

Letters: K members, P parameters of a member, B samples, D features in, E features out. The batch is the last axis,
so that a batch statistic is a sum over adjacent numbers.
"""

import ctypes
import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from normlab.models.layer_lookup import calls_forward_alone
from normlab.norms import BatchNorm1d
from normlab.population import State

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Constants of glibc's malloc.h."""


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return plain_affine(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # The stride of an axis of length 1 is arbitrary; view() sets it, since bmm chooses its algorithm by it.
        grad = grad.contiguous().view(grad.shape)
        grad_x = torch.bmm(weight.transpose(1, 2), grad) if ctx.needs_input_grad[0] else None
        grad_weight = torch.bmm(x, grad.transpose(1, 2)).transpose(1, 2)
        return grad_x, grad_weight, grad.sum(2) if ctx.needs_input_grad[2] else None


def plain_affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `affine` with autograd's gradient."""
    return torch.bmm(weight, x) if bias is None else torch.baddbmm(bias.unsqueeze(2), weight, x)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``W x + b`` for each member, with the gradient of W as ``(x gᵀ)ᵀ`` instead of ``g xᵀ``.

    Plain version: `plain_affine`, with which the training takes 1.03 times as long.

    Shapes:
        x ``(K, D, B)``, weight ``(K, E, D)``, bias ``(K, E)``; returns ``(K, E, B)``.
    """
    return _Affine.apply(x, weight, bias)


class _BatchNormalized(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean = materialized(x.mean(2, keepdim=True))
        centered = x - mean
        var = centered.square().mean(2, keepdim=True)
        inverse_std = materialized(torch.rsqrt(var + eps))
        return torch.addcmul(beta, centered, inverse_std * gamma), mean, var, inverse_std

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], inputs[1], output[1], output[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, mean, inverse_std = ctx.saved_tensors
        centered = x - mean
        grad_beta = grad.sum(2, keepdim=True)
        grad_gamma = (grad * centered).sum(2, keepdim=True) * inverse_std
        scale = inverse_std * gamma / x.shape[2]
        shift, slope = materialized(grad_beta * scale), materialized(grad_gamma * inverse_std * scale)
        grad_x = (grad * materialized(inverse_std * gamma)).addcmul_(centered, slope, value=-1).sub_(shift)
        return grad_x, grad_gamma, grad_beta, None


def plain_batch_normalized(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `batch_normalized` with autograd's gradient."""
    mean = x.mean(2, keepdim=True)
    var = (x - mean).square().mean(2, keepdim=True)
    return gamma * (x - mean) / torch.sqrt(var + eps) + beta, mean.detach(), var.detach()


def batch_normalized(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``γ (x − μ)/√(σ² + ε) + β`` with mean μ and variance σ² over the batch; return y, μ and σ².

    With ``g = ∂L/∂y``: ``∂L/∂x = γ/√(σ² + ε) · (g − mean(g) − x̂·mean(g·x̂))`` (arXiv:1502.03167); the
    returned μ and σ² have no gradient.

    Plain version: `plain_batch_normalized`, with which the training takes 1.10 times as long, and its steps 1.34
    times.

    Shapes:
        x ``(K, D, B)``, gamma and beta ``(K, D, 1)``; returns ``(K, D, B)`` and twice ``(K, D, 1)``.
    """
    y, mean, var, _ = _BatchNormalized.apply(x, gamma, beta, eps)
    return y, mean, var


ELEMENTWISE = (
    *(nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish),
    *(nn.LeakyReLU, nn.ReLU6, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid),
)
"""Elementwise activations, which accept any shape."""


def linear(layer: nn.Linear, state: State, x: Tensor) -> Tensor:
    """Compute ``W x + b`` for each member: ``[K, D, B]`` to ``[K, E, B]``."""
    return affine(x, state["weight"], state.get("bias"))


def batch_norm(layer: BatchNorm1d | nn.BatchNorm1d, state: State, x: Tensor) -> Tensor:
    """Normalize each member's features, ``[K, D, B]``, and update its running statistics like the layer."""
    own = {name: tensor.unsqueeze(-1) for name, tensor in state.items()}
    one = x.new_ones(1, 1, 1)
    gamma, beta = own.get("weight", one), own.get("bias", one - 1)
    if not layer.training and "running_mean" in own:
        inverse_std = torch.rsqrt(own["running_var"] + layer.eps)
        return torch.addcmul(beta, x - own["running_mean"], inverse_std * gamma)
    samples = x.shape[2]
    if samples == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got {samples} sample")
    y, mean, var = batch_normalized(x, gamma, beta, layer.eps)
    if layer.training and layer.track_running_stats and "running_mean" in own:
        count = own["num_batches_tracked"].add_(1)
        factor = 1 / count.to(x.dtype).unsqueeze(-1) if layer.momentum is None else layer.momentum
        for running, batch in ((own["running_mean"], mean), (own["running_var"], var * (samples / (samples - 1)))):
            running.add_(factor * (batch - running))
    return y


def stacked_form(layer: nn.Module) -> Callable[[nn.Module, State, Tensor], Tensor] | None:
    """Return the stacked form of a layer, or None; subclasses have none, since they may override forward."""
    if not calls_forward_alone(layer):
        return None
    if type(layer) is nn.Linear:
        return linear  # type: ignore[return-value]
    if type(layer) is nn.BatchNorm1d or (type(layer) is BatchNorm1d and layer.fused):
        return batch_norm  # type: ignore[return-value]
    return (lambda layer, state, x: layer(x)) if type(layer) in ELEMENTWISE else None


def materialized(x: Tensor) -> Tensor:
    """Return x; in compiled code it is computed once and stored.

    Inductor would otherwise recompute cheap per-feature values, such as a root, for every sample.

    Plain version: x itself, with which compiled steps take 1.12 times as long.
    """
    return x.as_strided(x.shape, x.stride()) if torch.compiler.is_compiling() else x


@cache
def tune_malloc() -> None:
    """Make glibc keep up to 1 GB of freed memory, which the next step needs again.

    By default glibc maps large blocks and unmaps freed ones, so that the system fills their pages with zeros at
    each step. M_MMAP_THRESHOLD is at most 32 MB; therefore mapping is switched off. Other C libraries are not
    changed.

    Plain version: no call; a sweep then takes 1.15 times as long with small blocks, and 1.5 times with blocks
    above 32 MB, which 180 members with a batch of 1,000 have.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
