"""Frozen statistics that follow the parameters: at every point those of the data there.

Letters: K members, N samples of the statistics, B samples of the loss, C features.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normlab.norms.batch_norm import BatchNorm
from normlab.norms.statistics import RUNNING, features_last, mean_and_variance, pooled, running_stat_names
from normlab.probes.landscape import BatchedLoss, Params
from normlab.probes.snapshot import TrainingSnapshot, side_effect_free_copy, structure


def reestimated(
    scene: TrainingSnapshot, data: str = "train", *, statistics: str = "train", double: bool = False
) -> BatchedLoss:
    """Return the loss by frozen statistics that are estimated anew at every point, from the whole of some data.

    Frozen at θ, the statistics would be those of another net wherever else the loss is looked at. Here all samples
    go through the net at the point, in evaluation mode and in one batch, normalized by their own statistics; what
    each layer takes then stands for its running mean and its running variance, the unbiased one, divided by N − 1,
    as training stores it. Over the same samples this loss is that of batch statistics but for this factor, and for
    what evaluation leaves out: dropout, noise, r and d of batch renormalization.

    Args:
        scene: the net, and where to look from.
        data: ``minibatch`` or ``train``, what the loss is over.
        statistics: likewise, what the statistics are of.
        double: whether in float64.
    """
    forward = with_statistics_of(scene.net, folds=scene.folds)
    params = {name: scene.before[name] for name in scene.trained}
    fixed = {name: tensor for name, tensor in scene.before.items() if name not in params}

    def loss(params: Params, fixed: Params, samples: Tensor, x: Tensor, y: Tensor) -> Tensor:
        outputs = forward({**fixed, **params}, samples, x)
        return scene.loss(outputs.unsqueeze(0), y.unsqueeze(0)).squeeze(0)

    context = [fixed, scene.data(statistics)[0], *scene.data(data)]
    landscape = BatchedLoss(loss, params, context, mode="frozen")
    return landscape.double() if double else landscape


def with_statistics_of(net: nn.Module, *, folds: bool = True) -> Callable[[Params, Tensor, Tensor], Tensor]:
    """Return a net in evaluation mode as a function of its state, of samples for the statistics, and of x.

    Shapes:
        of one member, without K: samples ``(N, …)``, x ``(B, …)``; returns ``(B, O)``.
    """
    frozen, estimating = side_effect_free_copy(net, "frozen", folds=folds), batch_statistics_copy(net)
    layers = {name: layer for name, layer in net.named_modules() if running_stat_names(layer)}
    running = {
        f"{name}.{kept}".lstrip(".") for name, layer in layers.items() for kept in running_stat_names(layer)
    }

    def forward(state: Params, samples: Tensor, x: Tensor) -> Tensor:
        if not layers:
            return functional_call(frozen, dict(state), (x,))
        seen: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[[nn.Module, tuple], None]:
            def estimate(layer: nn.Module, inputs: tuple) -> None:
                values = dict(zip(RUNNING, statistics_of(layer, inputs[0]), strict=True))
                seen.update(
                    {f"{name}.{kept}".lstrip("."): values[kept] for kept in running_stat_names(layers[name])}
                )

            return estimate

        handles = [estimating.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
        try:
            own = {name: tensor for name, tensor in state.items() if name not in running}
            functional_call(estimating, own, (samples,))
        finally:
            for handle in handles:
                handle.remove()
        return functional_call(frozen, {**state, **seen}, (x,))

    return forward


def batch_statistics_copy(net: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that has only the batch's own statistics to go by."""
    copy: Any = structure(net).eval()
    for layer in copy.modules():
        for name in running_stat_names(layer):
            layer._buffers[name] = None
        if isinstance(layer, BatchNorm):
            # The kernel is slow under vmap.
            layer.fused = False
    return copy


def statistics_of(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance that a layer would have of x alone, ``(C,)`` each.

    The variance is what the layer takes for one: an ℓ1 batch norm's is that of its mean absolute deviation.
    """
    rows, ours = features_last(x), isinstance(layer, BatchNorm)
    mean, _, var = layer.statistics(rows) if ours else mean_and_variance(rows)
    one_batch = mean[None], var[None], torch.full_like(mean[None], rows.shape[:-1].numel())
    return layer.pooled(*one_batch) if ours else pooled(*one_batch)
