"""Copies of nets whose hooks record activations, normalizers and gradients, without changing the net.

Letters: K members, B samples, D units of a layer, R rows: B samples, at every position of an image.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from normlab.models.layer_lookup import NORMALIZERS, activation_slots, mean_std, normalizer_slots
from normlab.norms.counter_rng import StochasticLayer
from normlab.probes.snapshot import TrainingSnapshot, side_effect_free_copy

Tensors = dict[str, Tensor]
TensorPlace = tuple[dict, str, str]
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
    places: list[TensorPlace]


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
    correct_by_batch(copy)
    if alone:
        fuse(copy, net)
    # Copies: what follows may work in place.
    recorders = (
        HookRecorder(activation_slots(copy), torch.clone, inputs=True),
        HookRecorder(activation_slots(copy), torch.clone),
        HookRecorder(normalizer_slots(copy), mean_and_std),
    )
    watched = Watched(copy, *recorders, list(tensor_places(copy)))
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


def tensor_places(net: nn.Module) -> Iterator[TensorPlace]:
    """Yield where a net has its parameters and buffers: a layer's dictionary, the key in it, the first name."""
    first: dict[int, str] = {}
    for layer, module in net.named_modules():
        for slot in (module._parameters, module._buffers):
            for key, tensor in slot.items():
                if tensor is not None:
                    yield slot, key, first.setdefault(id(tensor), f"{layer}.{key}".lstrip("."))


def mean_and_std(y: Tensor) -> Tensor:
    """Return mean and standard deviation over all entries, ``(2,)``."""
    return torch.cat(mean_std(y.reshape(1, -1)))


def correct_by_batch(net: nn.Module) -> None:
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


class Flow(NamedTuple):
    """Activations and gradients of one forward and backward pass.

    Attributes:
        inputs: the input of each activation, by layer, ``(K, R, D)``. An activation that is called again has the
            keys ``layer.2``, ``layer.3`` and so on.
        outputs: the output of each activation, by the same keys.
        activations: the module of each activation, by the same keys.
        normalized: mean and standard deviation over all entries of each normalizer's output, by layer, ``(K, 2)``.
        gradients: the gradient of the loss with respect to each weight, by its name, ``(K, …)``.
    """

    inputs: Tensors
    outputs: Tensors
    activations: dict[str, nn.Module]
    normalized: Tensors
    gradients: Tensors


def weights_by_layer(scene: TrainingSnapshot, layers: Collection[str]) -> dict[str, list[str]]:
    """Return the names of the trained weights by the layer that they are in, in the order of their making.

    Weights have two axes or more; normalizers' parameters, and the lengths of normalized weights, are none. Those
    in none of ``layers`` belong to their own linear map or convolution.
    """
    found: dict[str, list[str]] = {}
    for name in scene.trained:
        path, _, original = name.partition(".parametrizations.")
        owner, shape = path if original else name.rpartition(".")[0], scene.before[name].shape[1:]
        # The other of two originals may be a factor of the weights, such as one of low rank.
        is_length = original.endswith("original0") and shape.numel() == max(shape, default=1)
        in_norm = "norm" in owner.split(".") or isinstance(scene.net.get_submodule(owner), NORMALIZERS)
        if len(shape) < 2 or is_length or in_norm:
            continue
        around = [layer for layer in layers if owner.startswith(f"{layer}.")]
        found.setdefault(max(around, key=len, default=owner or "net"), []).append(name)
    return found


def forward_backward(scene: TrainingSnapshot, mode: str, weights: Sequence[str], data: str = "minibatch") -> Flow:
    """Pass samples through each member's net, as it is before the step, and the gradient of their loss back.

    Args:
        scene: a moment of a training.
        mode: ``batch`` or ``frozen``, what normalizers go by.
        weights: the names of the parameters whose gradient is wanted.
        data: ``minibatch`` or ``train``, what goes through the nets.

    Raises:
        ValueError: for a mode of another name.
    """
    alone = len(scene.lr) == 1
    net, *recorders, places = watched_copy(scene.net, mode, alone, folds=scene.folds)

    def call(state: Tensors, x: Tensor) -> tuple[Tensor, list[Tensors]]:
        y = net(x) if alone else functional_call(net, state, (x,))
        return y, [recorder.taken() for recorder in recorders]

    state, (x, y) = state_of(scene, places), scene.data(data)
    if alone:
        state, x = without_members(state), x.squeeze(0)
        # ``functional_call`` takes half of a small net's time.
        own = [slot[key] for slot, key, _ in places]
        for slot, key, name in places:
            slot[key] = state[name]
    leaves = [state[name].requires_grad_() for name in weights]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        outputs, seen = call(state, x) if alone else vmap(call, randomness="same")(state, x)
        loss = scene.loss(outputs.unsqueeze(0) if alone else outputs, y).sum()
        back = torch.autograd.grad(loss, leaves, materialize_grads=True) if leaves else ()
    gradients = dict(zip(weights, back, strict=True))
    if alone:
        for (slot, key, _), tensor in zip(places, own, strict=True):
            slot[key] = tensor
        *seen, gradients = map(with_members, (*seen, gradients))
    before, after, normalized = seen
    inputs_of, outputs_of = ({name: rows(h) for name, h in tensors.items()} for tensors in (before, after))
    activations = {name: recorders[1].layers[name] for name in after}
    return Flow(inputs_of, outputs_of, activations, normalized, gradients)


def without_members(tensors: Tensors) -> Tensors:
    """Remove the axis of members from tensors of one member."""
    return {name: tensor.squeeze(0) for name, tensor in tensors.items()}


def with_members(tensors: Tensors) -> Tensors:
    """Add an axis of one member to tensors."""
    return {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}


def state_of(scene: TrainingSnapshot, places: Iterable[TensorPlace]) -> Tensors:
    """Return a net's parameters and buffers before the step, each once: layers may share them."""
    # A layer that moves something in its buffers is not to move it in the scene.
    return {
        name: scene.before[name].detach() if name in scene.trained else scene.before[name].detach().clone()
        for *_, name in places
    }


def rows(h: Tensor) -> Tensor:
    """Return the outputs of a layer with its units last: ``(K, B, D, …)`` or ``(K, B)`` to ``(K, R, D)``."""
    return h.unsqueeze(2) if h.dim() == 2 else h.movedim(2, -1).flatten(1, -2)
