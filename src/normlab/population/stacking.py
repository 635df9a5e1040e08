"""The forward pass of K nets at once, :func:`forward`.

Any net runs under ``torch.func.vmap``. In a sequence of layers, each layer with a stacked form in this module uses
that instead: a few large operations for all members are faster.

Letters: K members, B samples, D features in, E features out. Between stacked layers the batch is the last axis,
``[K, D, B]``, so that a batch statistic is a sum over adjacent numbers.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from normlab.models.layer_lookup import HookedLayers, calls_forward_alone
from normlab.norms import BatchNorm1d
from normlab.population.gradients import affine, batch_normalized

State = dict[str, Tensor]

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
            running.add_(factor * (batch.detach() - running))
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


def run_vmapped(layer: nn.Module, state: State, x: Tensor, watch: HookedLayers | None) -> tuple[Tensor, State]:
    """Run a layer under vmap, ``(K, B, …)`` to ``(K, B, …)``, and return outputs and measurements."""
    # ``functional_call`` accepts only one name per tied tensor, and replaces it under all names.
    unique = {id(tensor): name for name, tensor in reversed(state.items())}
    own = {name: state[name] for name in unique.values()} if len(unique) < len(state) else state
    return vmap(partial(run_member, layer, watch), randomness="different")(own, x)


def run_member(layer: nn.Module, watch: HookedLayers | None, state: State, x: Tensor) -> tuple[Tensor, State]:
    """Run a layer for one member, and return outputs and measurements."""
    if watch is None:
        return functional_call(layer, state, (x,)), {}
    return watch.within(layer).observe(lambda: functional_call(layer, state, (x,)))


def layers_of(net: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield names and layers of nested sequences in call order; any other net is a single layer.

    A layer that occurs in a sequence twice is yielded twice.
    """
    if type(net).forward is not nn.Sequential.forward or not calls_forward_alone(net):
        yield path, net
        return
    # ``named_children`` omits repeated layers.
    for name, child in net._modules.items():
        if child is not None:
            yield from layers_of(child, f"{path}.{name}" if path else name)


def forward(
    net: nn.Module, state: State, x: Tensor, watch: HookedLayers | None = None, *, by_layers: bool = True
) -> tuple[Tensor, State]:
    """Return every member's outputs, and the measurements of watched layers.

    Args:
        net: the architecture.
        state: parameters and buffers under all of their names, ``(K, …)`` each.
        x: inputs, ``(K, B, …)``.
        watch: the layers to measure, and the measurement.
        by_layers: whether layers with a stacked form use it; otherwise the whole net is vmapped.

    Returns:
        outputs, ``(K, B, O)``, and measurements, ``(K, …)`` for each watched layer.
    """
    if not by_layers:
        return run_vmapped(net, state, x, watch)
    features_first = False
    seen: State = {}
    names = {id(layer): name for name, layer in watch.layers.items()} if watch else {}
    for path, layer in layers_of(net):
        prefix = f"{path}." if path else ""
        own = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
        form = stacked_form(layer) if x.dim() == 3 else None
        if features_first != (form is not None):
            # A product with a non-contiguous matrix may take twice as long.
            x, features_first = x.transpose(1, 2).contiguous(), form is not None
        if form is None:
            x, within = run_vmapped(layer, own, x, watch)
            seen |= within
            continue
        y = form(layer, own, x)
        if watch and id(layer) in names:
            seen[names[id(layer)]] = watch.measure(layer, x, y, 1)
        x = y
    return x.transpose(1, 2) if features_first else x, seen
