"""A copy of a net that changes nothing and records its activations' inputs and outputs, and its normalizers."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from normlab.models.layer_lookup import activation_slots, mean_std, normalizer_slots
from normlab.norms.counter_rng import StochasticLayer
from normlab.probes.snapshot import side_effect_free_copy

Tensors = dict[str, Tensor]
Place = tuple[dict, str, str]
"""Where a parameter or a buffer is: a layer's dictionary, the key in it, and the first name of the tensor."""


class HookRecorder:
    """Records the outputs of layers, or their inputs; of one that is called again as ``layer.2`` and so on."""

    def __init__(
        self,
        layers: Iterable[tuple[str, nn.Module]],
        take: Callable[[Tensor], Tensor],
        *,
        inputs: bool = False,
    ) -> None:
        self.take, self.seen = take, dict[str, Tensor]()
        self.layers: dict[str, nn.Module] = {}
        for layer, module in layers:
            if inputs:
                # Before the call: a layer may work in place.
                module.register_forward_pre_hook(partial(self.note_input, layer))
            else:
                module.register_forward_hook(partial(self.note_output, layer))

    def note_input(self, layer: str, module: nn.Module, inputs: tuple) -> None:
        """Record an input."""
        self.note(layer, module, inputs[0])

    def note_output(self, layer: str, module: nn.Module, inputs: tuple, y: Tensor) -> None:
        """Record an output."""
        self.note(layer, module, y)

    def note(self, layer: str, module: nn.Module, x: Tensor) -> None:
        """Record a tensor under the name of its layer."""
        names = chain([layer], (f"{layer}.{number}" for number in count(2)))
        name = next(name for name in names if name not in self.seen)
        self.seen[name], self.layers[name] = self.take(x.detach()), module

    def taken(self) -> Tensors:
        """Return the outputs recorded since the last call."""
        taken, self.seen = self.seen, {}
        return taken


class Watched(NamedTuple):
    """A still copy of a net of which activations and normalizers are watched.

    Attributes:
        places: where it has each parameter and each buffer, under which key, and the first name of that tensor.
    """

    net: nn.Module
    preactivations: HookRecorder
    activations: HookRecorder
    normalizers: HookRecorder
    places: list[Place]


WATCHED: WeakKeyDictionary[nn.Module, dict[tuple[str, bool], tuple[list, list, Watched]]] = WeakKeyDictionary()
OWN = frozenset(vars(nn.Module()))
"""What every module has."""


def watched_copy(net: nn.Module, mode: str, alone: bool, *, folds: bool = True) -> Watched:
    """Return a watched copy of a net, the same the next time: making it takes longer than a small net's pass.

    A net is copied anew where anything but tensors was set otherwise since, in it or by the copy's own pass, and
    where that cannot be told.
    """
    kept, now = WATCHED.setdefault(net, {}), list(plain_settings(net))
    if (mode, alone) in kept:
        before, of_copy, watched = kept[mode, alone]
        if before == now and of_copy == list(plain_settings(watched.net, watched=True)):
            for recorder in (watched.preactivations, watched.activations, watched.normalizers):
                recorder.taken()
            return watched
    copy = side_effect_free_copy(net, mode, folds=folds)
    correct(copy)
    if alone:
        fuse(copy, net)
    # Copies: what follows may work in place.
    recorders = (
        HookRecorder(activation_slots(copy), torch.clone, inputs=True),
        HookRecorder(activation_slots(copy), torch.clone),
        HookRecorder(normalizer_slots(copy), moments),
    )
    watched = Watched(copy, *recorders, list(places_of(copy)))
    # A copy that is never used again is not kept, as its hooks may hold on to the net.
    kept.pop((mode, alone), None)
    if now == list(plain_settings(net)):
        kept[mode, alone] = now, list(plain_settings(copy, watched=True)), watched
    return watched


def plain_settings(net: nn.Module, *, watched: bool = False) -> Iterator[Any]:
    """Yield the layers of a net and the numbers and words that they were set to.

    What else is set, a tensor or a function, and what hangs on a layer unless it is ``watched``, may change
    unseen: for that comes something that is equal to nothing.
    """
    for layer in net.modules():
        yield id(layer)
        if not watched and (layer._forward_hooks or layer._forward_pre_hooks):
            yield object()
        for name, value in vars(layer).items():
            if name not in OWN or name == "training":
                yield name
                yield value if is_plain(value) else object()


def is_plain(value: object) -> bool:
    """Return whether a value is a number or a word, nothing, or a row of such."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return type(value) in (bool, int, float, str, type(None))


def places_of(net: nn.Module) -> Iterator[Place]:
    """Yield where a net has its parameters and buffers: a layer's dictionary, the key in it, the first name."""
    first: dict[int, str] = {}
    for layer, module in net.named_modules():
        for slot in (module._parameters, module._buffers):
            for key, tensor in slot.items():
                if tensor is not None:
                    yield slot, key, first.setdefault(id(tensor), f"{layer}.{key}".lstrip("."))


def moments(y: Tensor) -> Tensor:
    """Return mean and standard deviation over all entries, ``(2,)``."""
    return torch.cat(mean_std(y.reshape(1, -1)))


def correct(net: nn.Module) -> None:
    """Let a still copy's layers that correct by the batch do so: in one pass, with one derivative, they may."""
    layers: Iterable[Any] = net.modules()
    for layer in layers:
        if hasattr(layer, "held") and not isinstance(layer, StochasticLayer):
            layer.held = False


def fuse(net: nn.Module, like: nn.Module) -> None:
    """Let a still copy take the kernels that its net takes: for one net and one derivative they are faster."""
    for layer, original in zip(net.modules(), like.modules(), strict=True):
        if "fused" in vars(original):
            layer.fused = original.fused
