"""What goes into and comes out of a net's layers, and of its normalizers above all.

A net calls the place of a normalizer ``norm``; the identity stands there when there is none, so that a net
without normalization is measured at the same points.

Letters: K members.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normlab import norms

ACTIVATION_CLASSES = tuple({getattr(nn, name) for name in nn.modules.activation.__all__} - {nn.MultiheadAttention})
"""What is an activation function where a net has none by the name ``activation``."""

TORCH = (nn.modules.batchnorm, nn.modules.instancenorm, nn.modules.normalization)
NORMALIZERS: tuple[type[nn.Module], ...] = tuple(
    kind
    for module in (norms, *TORCH)
    for kind in (getattr(module, name) for name in module.__all__)
    if isinstance(kind, type)
)
"""What is a normalizer where a net has none by the name ``norm``."""

MOMENTS = ("before_mean", "before_std", "after_mean", "after_std")

LayerMeasure = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""Of a layer, what it takes and gives, ``(K, ...)`` each, and the axis of the features: numbers, ``(K, ...)``."""


def norm_slots(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each normalizer's place with the name of the layer that it is in, ``net`` if in none."""
    for name, module in net.named_modules():
        layer, _, slot = name.rpartition(".")
        if slot == "norm":
            yield layer or "net", module


def activation_slots(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each activation function with the name of the layer that it is in.

    It is what a layer calls ``activation``; elsewhere, each activation function of torch.nn is a layer itself.
    """
    return layers_of_kind(net, "activation", ACTIVATION_CLASSES)


def normalizer_slots(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each normalizer with the name of the layer that it is in; an identity in its place is none.

    It is what a layer calls ``norm``; elsewhere, each normalizer of torch.nn or normlab.norms is a layer itself.
    """
    return ((layer, m) for layer, m in layers_of_kind(net, "norm", NORMALIZERS) if not isinstance(m, nn.Identity))


def layers_of_kind(
    net: nn.Module, slot: str, kinds: tuple[type[nn.Module], ...]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield layers under ``slot`` by the name of their parent, and others of these kinds by their own."""
    modules = {name: (module, *name.rpartition(".")) for name, module in net.named_modules() if name}
    inside = tuple(f"{name}." for name, (*_, last) in modules.items() if last == slot)
    for name, (module, layer, _, last) in modules.items():
        if last == slot:
            yield layer or name, module
        elif isinstance(module, kinds) and not name.startswith(inside):
            yield name, module


def calls_forward_alone(layer: nn.Module) -> bool:
    """Return whether calling a layer runs its class's ``forward`` and nothing else.

    Hooks, a ``forward`` set on the object, and a ``__call__`` of its own may change what comes out.
    """
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(layer) and type(layer).__call__ is nn.Module.__call__


def input_output_moments(layer: nn.Module, x: Tensor, y: Tensor, features: int) -> Tensor:
    """Return mean and standard deviation, over all entries, of what a layer takes and gives.

    Shapes:
        x and y ``(K, …)``; returns ``(K, 4)``, a row for each member.
    """
    return torch.stack([*mean_std(x.flatten(1)), *mean_std(y.flatten(1))], dim=1)


def mean_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (divided by N − 1) of each row, in a tenth of ``torch.std_mean``'s time.

    Shapes:
        x ``(K, N)``; returns twice ``(K,)``.
    """
    mean = x.mean(dim=1)
    return mean, torch.linalg.vector_norm(x - mean.unsqueeze(1), dim=1) / (x.shape[1] - 1) ** 0.5


@dataclass(frozen=True)
class HookedLayers:
    """What to measure at which layers, by the names under which it is wanted."""

    layers: Mapping[str, nn.Module]
    measure: LayerMeasure

    def within(self, net: nn.Module) -> "HookedLayers":
        """Return the part of this that is about layers of a net."""
        own = set(net.modules())
        return HookedLayers({name: layer for name, layer in self.layers.items() if layer in own}, self.measure)

    def observe(self, call: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the result of ``call`` and the measurements made meanwhile; of a net alone, without K."""
        seen: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
            def measured(layer: nn.Module, inputs: tuple, y: Tensor) -> None:
                seen[name] = self.measure(layer, inputs[0][None], y[None], 2)[0]

            return measured

        handles = [layer.register_forward_hook(hook(name)) for name, layer in self.layers.items()]
        try:
            return call(), seen
        finally:
            for handle in handles:
                handle.remove()


def normalizers(net: nn.Module) -> HookedLayers:
    """Watch the :func:`moments` at a net's normalizers."""
    return HookedLayers(dict(norm_slots(net)), input_output_moments)
