"""Loss with normalization statistics that are re-estimated at every point; the entry is `reestimated`.

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
from normlab.probes.snapshot import TrainingSnapshot, copy_sharing_tensors, side_effect_free_copy


def reestimated(
    snapshot: TrainingSnapshot, data: str = "train", *, statistics: str = "train", double: bool = False
) -> BatchedLoss:
    """Return the evaluation loss as a function of the parameters, with statistics re-estimated at every point.

    Statistics that are frozen at θ are wrong for other parameters. Here all samples pass through the net at each
    point in evaluation mode, as one batch normalized by its own statistics. These then replace the running mean
    and the running variance, which is unbiased (divided by N − 1) as in training. On the same samples, this loss
    equals
    the loss with batch statistics except for that factor and for the parts that evaluation disables: dropout,
    noise, and the corrections r and d of batch renormalization.

    Args:
        snapshot: the nets and their data.
        data: ``minibatch`` or ``train``, the data of the loss.
        statistics: ``minibatch`` or ``train``, the data of the statistics.
        double: whether to compute in float64.
    """
    forward = reestimating_forward(snapshot.net, folds=snapshot.folds)
    params = {name: snapshot.before[name] for name in snapshot.trained}
    fixed = {name: tensor for name, tensor in snapshot.before.items() if name not in params}

    def loss(params: Params, fixed: Params, samples: Tensor, x: Tensor, y: Tensor) -> Tensor:
        outputs = forward({**fixed, **params}, samples, x)
        return snapshot.loss(outputs.unsqueeze(0), y.unsqueeze(0)).squeeze(0)

    context = [fixed, snapshot.data(statistics)[0], *snapshot.data(data)]
    landscape = BatchedLoss(loss, params, context, mode="frozen")
    return landscape.double() if double else landscape


def reestimating_forward(net: nn.Module, *, folds: bool = True) -> Callable[[Params, Tensor, Tensor], Tensor]:
    """Return the evaluation pass of a net as a function of its state, samples for the statistics, and x.

    Shapes:
        for one member, without K: samples ``(N, …)``, x ``(B, …)``; returns ``(B, O)``.
    """
    frozen, estimator = side_effect_free_copy(net, "frozen", folds=folds), batch_statistics_copy(net)
    layers = {name: layer for name, layer in net.named_modules() if running_stat_names(layer)}
    running = {
        f"{name}.{kept}".lstrip(".") for name, layer in layers.items() for kept in running_stat_names(layer)
    }

    def forward(state: Params, samples: Tensor, x: Tensor) -> Tensor:
        if not layers:
            return functional_call(frozen, dict(state), (x,))
        estimates: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[[nn.Module, tuple], None]:
            def estimate(layer: nn.Module, inputs: tuple) -> None:
                values = dict(zip(RUNNING, batch_statistics_of(layer, inputs[0]), strict=True))
                estimates.update(
                    {f"{name}.{kept}".lstrip("."): values[kept] for kept in running_stat_names(layers[name])}
                )

            return estimate

        handles = [estimator.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
        try:
            parameters = {name: tensor for name, tensor in state.items() if name not in running}
            functional_call(estimator, parameters, (samples,))
        finally:
            for handle in handles:
                handle.remove()
        return functional_call(frozen, {**state, **estimates}, (x,))

    return forward


def batch_statistics_copy(net: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode without running statistics, so that layers use those of the batch."""
    copy: Any = copy_sharing_tensors(net).eval()
    for layer in copy.modules():
        for name in running_stat_names(layer):
            layer._buffers[name] = None
        if isinstance(layer, BatchNorm):
            # The fused kernel is slow under vmap.
            layer.fused = False
    return copy


def batch_statistics_of(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance that a layer would estimate from x alone, ``(C,)`` each.

    The variance is the one that the layer defines; that of an ℓ1 batch norm comes from the mean absolute
    deviation.
    """
    rows, from_normlab = features_last(x), isinstance(layer, BatchNorm)
    mean, _, var = layer.statistics(rows) if from_normlab else mean_and_variance(rows)
    one_batch = mean[None], var[None], torch.full_like(mean[None], rows.shape[:-1].numel())
    return layer.pooled(*one_batch) if from_normlab else pooled(*one_batch)
