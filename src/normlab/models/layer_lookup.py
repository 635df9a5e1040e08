"""Lookup of normalizers and activations in a net, and measurements of layer inputs and outputs.

A net's normalizers are submodules named ``norm``. Nets without normalization have identities there, so they are
measured at the same points. The main entries are :func:`norm_slots`, :class:`HookedLayers` and, for statistics of
normalizers, :func:`batch_statistics` and :func:`pooled_statistics`.

Notation: K members, C features, T batches.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from normlab import norms
from normlab.norms.batch_norm import BatchNorm
from normlab.norms.statistics import RUNNING, mean_and_variance, pooled, running_stat_names

ACTIVATION_CLASSES = tuple({getattr(nn, name) for name in nn.modules.activation.__all__} - {nn.MultiheadAttention})
"""Classes that count as activation functions under any submodule name."""

TORCH_NORM_MODULES = (nn.modules.batchnorm, nn.modules.instancenorm, nn.modules.normalization)
NORMALIZERS: tuple[type[nn.Module], ...] = tuple(
    kind
    for module in (norms, *TORCH_NORM_MODULES)
    for kind in (getattr(module, name) for name in module.__all__)
    if isinstance(kind, type)
)
"""Classes that count as normalizers under any submodule name."""

SCALE_DEPENDENT: tuple[type[nn.Module], ...] = (
    *(norms.ActNorm, norms.BatchRenorm, norms.Derf, norms.DynamicTanh),
    *(nn.LocalResponseNorm, nn.CrossMapLRN2d),
)
"""Normalizers whose output changes if their input is multiplied by a number."""

MOMENTS = ("before_mean", "before_std", "after_mean", "after_std")

LayerMeasure = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""A function of a layer, its input and output, ``(K, …)`` each, and the feature axis; returns ``(K, …)``."""


def norm_slots(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layer name and module of each submodule named ``norm``.

    The name is that of the parent layer, or ``net`` if the parent is the net itself.
    """
    for name, module in net.named_modules():
        layer, _, slot = name.rpartition(".")
        if slot == "norm":
            yield layer or "net", module


def activation_slots(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layer name and module of each activation function.

    A submodule named ``activation`` has the name of its parent layer; other torch.nn activations have their own.
    """
    return layers_of_kind(net, "activation", ACTIVATION_CLASSES)


def normalizer_slots(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layer name and module of each normalizer, skipping identities.

    A submodule named ``norm`` has the name of its parent layer; other normalizers of torch.nn and normlab.norms
    have their own.
    """
    return ((layer, m) for layer, m in layers_of_kind(net, "norm", NORMALIZERS) if not isinstance(m, nn.Identity))


def layers_of_kind(
    net: nn.Module, slot: str, kinds: tuple[type[nn.Module], ...]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules named ``slot`` with their parent's name, and modules of ``kinds`` with their own."""
    modules = {name: (module, *name.rpartition(".")) for name, module in net.named_modules() if name}
    inside = tuple(f"{name}." for name, (*_, last) in modules.items() if last == slot)
    for name, (module, layer, _, last) in modules.items():
        if last == slot:
            yield layer or name, module
        elif isinstance(module, kinds) and not name.startswith(inside):
            yield name, module


def scale_invariant_weights(net: nn.Module) -> set[str]:
    """Return the names of the weights whose scale does not change the outputs of a net in training.

    They are those of linear maps and convolutions whose output a normalizer takes directly, in a sequence of
    layers. Normalizers in :data:`SCALE_DEPENDENT`, and classes that are not in :data:`NORMALIZERS`, do not count.
    The invariance is exact for ε = 0, and for a bias of 0 unless the normalizer subtracts each feature's mean.
    """
    found: set[str] = set()
    for path, layer in net.named_modules():
        for (name, inner), (_, norm) in pairwise(
            layer.named_children() if isinstance(layer, nn.Sequential) else ()
        ):
            maps = isinstance(inner, nn.Linear | nn.modules.conv._ConvNd)
            if maps and isinstance(norm, NORMALIZERS) and not isinstance(norm, SCALE_DEPENDENT):
                owner = f"{path}.{name}".lstrip(".")
                weights = (f"{owner}.weight", f"{owner}.parametrizations.weight.")
                found |= {
                    f"{owner}.{own}" for own, _ in inner.named_parameters() if f"{owner}.{own}".startswith(weights)
                }
    return found


def calls_forward_alone(layer: nn.Module) -> bool:
    """Return True if calling a layer runs only its class's ``forward``.

    Hooks, a ``forward`` set on the instance, and an overridden ``__call__`` may change the output.
    """
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(layer) and type(layer).__call__ is nn.Module.__call__


def input_output_moments(layer: nn.Module, x: Tensor, y: Tensor, features: int) -> Tensor:
    """Return the ``MOMENTS`` of a layer: mean and standard deviation of its input and output.

    Shapes:
        x and y ``(K, …)``; returns ``(K, 4)``, over all entries of each member.
    """
    return torch.stack([*mean_std(x.flatten(1)), *mean_std(y.flatten(1))], dim=1)


def mean_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (divisor N − 1) of each row.

    With ``torch.std_mean`` instead, the training of 96 nets on the default data takes 1.16 times as long.

    Shapes:
        x ``(K, N)``; returns two tensors ``(K,)``.
    """
    mean = x.mean(dim=1)
    return mean, torch.linalg.vector_norm(x - mean.unsqueeze(1), dim=1) / (x.shape[1] - 1) ** 0.5


@dataclass(frozen=True)
class HookedLayers:
    """A measurement and the layers to take it at, by the names of the results."""

    layers: Mapping[str, nn.Module]
    measure: LayerMeasure

    def within(self, net: nn.Module) -> "HookedLayers":
        """Return a copy with only the layers that belong to ``net``."""
        modules = set(net.modules())
        return HookedLayers({name: layer for name, layer in self.layers.items() if layer in modules}, self.measure)

    def observe(self, call: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Run ``call`` on a single net; return its result and the measurements, without the axis K."""
        measurements: dict[str, Tensor] = {}

        def record(name: str, layer: nn.Module, args: tuple, kwargs: dict[str, Any], y: Tensor) -> None:
            measurements[name] = self.measure(layer, args[0][None], y[None], 2)[0]

        with call_hooks(self.layers.items(), after=record):
            return call(), measurements


def normalizers(net: nn.Module) -> HookedLayers:
    """Return the hooks that measure :func:`input_output_moments` at a net's normalizers."""
    return HookedLayers(dict(norm_slots(net)), input_output_moments)


@contextmanager
def call_hooks(
    layers: Iterable[tuple[str, nn.Module]],
    *,
    before: Callable[..., None] | None = None,
    after: Callable[..., None] | None = None,
) -> Iterator[None]:
    """Context manager that runs functions before and after each call of named layers.

    Args:
        layers: pairs of name and layer.
        before: called with name, layer, positional and keyword arguments.
        after: called with the same and the output.
    """
    handles = []
    for name, layer in layers:
        if before is not None:
            handles.append(layer.register_forward_pre_hook(partial(before, name), with_kwargs=True))
        if after is not None:
            handles.append(layer.register_forward_hook(partial(after, name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def running_statistics(net: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return the layer and the attribute name of each running mean and variance, by full buffer name."""
    return {
        f"{path}.{name}".lstrip("."): (layer, name)
        for path, layer in net.named_modules()
        for name in running_stat_names(layer)
    }


@contextmanager
def use_batch_statistics(net: nn.Module) -> Iterator[None]:
    """Context manager in which a net in evaluation mode normalizes by the statistics of each batch.

    Running statistics are None within the context and restored afterwards, unchanged.
    """
    hidden = [(layer, name, layer._buffers[name]) for layer, name in running_statistics(net).values()]
    for layer, name, _ in hidden:
        layer._buffers[name] = None
    try:
        yield
    finally:
        for layer, name, buffer in hidden:
            layer._buffers[name] = buffer


def batch_statistics(layer: nn.Module, x: Tensor, features: int = 1) -> Tensor:
    """Return mean, biased variance and number of values of each feature of a layer's input.

    The variance is the layer's own estimate: for ℓ1 batch norm it is computed from the mean absolute deviation.

    Shapes:
        x ``(B, C, ...)``, or with C on the axis ``features``; returns ``(3, C)``.
    """
    rows = x.movedim(features, -1)
    mean, _, var = layer.statistics(rows) if isinstance(layer, BatchNorm) else mean_and_variance(rows)
    return torch.stack([mean, var, torch.full_like(mean, rows.shape[:-1].numel())])


def pooled_statistics(layer: nn.Module, batches: Tensor) -> dict[str, Tensor]:
    """Return the running mean and variance of T batches together, from :func:`batch_statistics` of each.

    Shapes:
        batches ``(T, 3, ...)``; returns tensors ``(...)`` under the names ``RUNNING``.
    """
    pool = layer.pooled if isinstance(layer, BatchNorm) else pooled
    return dict(zip(RUNNING, pool(*batches.unbind(1)), strict=True))
