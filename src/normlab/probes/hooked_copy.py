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
TensorLocation = tuple[dict, str, str]
"""Location of a parameter or buffer: the dictionary of its layer, the key, and the first name of the tensor."""


class HookRecorder:
    """Records the outputs or inputs of layers; a second call of a layer is recorded as ``layer.2``, and so on."""

    def __init__(
        self,
        layers: Iterable[tuple[str, nn.Module]],
        transform: Callable[[Tensor], Tensor],
        *,
        inputs: bool = False,
    ) -> None:
        self.transform, self.records = transform, dict[str, Tensor]()
        self.layers: dict[str, nn.Module] = {}
        for layer, module in layers:
            if inputs:
                # A pre-hook, because a layer may modify its input in place.
                module.register_forward_pre_hook(partial(self.record_input, layer))
            else:
                module.register_forward_hook(partial(self.record_output, layer))

    def record_input(self, layer: str, module: nn.Module, inputs: tuple) -> None:
        """Forward pre-hook: record the first input."""
        self.record(layer, module, inputs[0])

    def record_output(self, layer: str, module: nn.Module, inputs: tuple, y: Tensor) -> None:
        """Forward hook: record the output."""
        self.record(layer, module, y)

    def record(self, layer: str, module: nn.Module, x: Tensor) -> None:
        """Record a tensor under the name of its layer and the number of the call."""
        names = chain([layer], (f"{layer}.{number}" for number in count(2)))
        name = next(name for name in names if name not in self.records)
        self.records[name], self.layers[name] = self.transform(x.detach()), module

    def pop_records(self) -> Tensors:
        """Return the tensors recorded since the last call, and clear them."""
        records, self.records = self.records, {}
        return records


class HookedCopy(NamedTuple):
    """A side-effect-free copy of a net with hooks on its activations and normalizers.

    Attributes:
        net: the copy.
        preactivations, activations: recorders of the inputs and the outputs of activations.
        normalizers: recorder of the mean and standard deviation of normalizer outputs.
        locations: the location of each parameter and buffer of the copy.
    """

    net: nn.Module
    preactivations: HookRecorder
    activations: HookRecorder
    normalizers: HookRecorder
    locations: list[TensorLocation]


HOOKED_COPIES: WeakKeyDictionary[nn.Module, dict[tuple[str, bool], tuple[list, list, HookedCopy]]] = (
    WeakKeyDictionary()
)
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
"""Attributes of every ``nn.Module``."""


def hooked_copy(net: nn.Module, mode: str, alone: bool, *, folds: bool = True) -> HookedCopy:
    """Return a copy of a net with recording hooks, cached because copying takes longer than a small net's pass.

    The cached copy is used again only if no attribute other than tensors has changed since, in the net or in the
    copy. Attributes that cannot be compared prevent reuse.

    Args:
        net: the original.
        mode: ``batch`` or ``frozen``.
        alone: whether the copy runs a single member, without vmap.
        folds: whether frozen normalizers are folded; see :func:`normlab.probes.snapshot.side_effect_free_copy`.
    """
    cached, settings = HOOKED_COPIES.setdefault(net, {}), list(plain_settings(net))
    if (mode, alone) in cached:
        old_settings, copy_settings, hooked = cached[mode, alone]
        if old_settings == settings and copy_settings == list(plain_settings(hooked.net, hooked=True)):
            for recorder in (hooked.preactivations, hooked.activations, hooked.normalizers):
                recorder.pop_records()
            return hooked
    copy = side_effect_free_copy(net, mode, folds=folds)
    enable_corrections(copy)
    if alone:
        copy_fused_flags(copy, net)
    # Outputs are cloned, because later layers may modify them in place.
    recorders = (
        HookRecorder(activation_slots(copy), torch.clone, inputs=True),
        HookRecorder(activation_slots(copy), torch.clone),
        HookRecorder(normalizer_slots(copy), mean_and_std),
    )
    hooked = HookedCopy(copy, *recorders, list(tensor_locations(copy)))
    # A copy that cannot be reused is not cached, because its hooks may keep the net alive.
    cached.pop((mode, alone), None)
    if settings == list(plain_settings(net)):
        cached[mode, alone] = settings, list(plain_settings(copy, hooked=True)), hooked
    return hooked


def plain_settings(net: nn.Module, *, hooked: bool = False) -> Iterator[Any]:
    """Yield the identities of a net's layers and their attributes of plain types, to detect changes.

    Other attributes and hooks can change without a trace, so each is replaced by an object that equals no other.
    With ``hooked``, hooks are ignored.
    """
    for layer in net.modules():
        yield id(layer)
        if not hooked and (layer._forward_hooks or layer._forward_pre_hooks):
            yield object()
        for name, value in vars(layer).items():
            if name not in MODULE_ATTRIBUTES or name == "training":
                yield name
                yield value if is_plain(value) else object()


def is_plain(value: object) -> bool:
    """Return True for numbers, strings, None, and tuples or lists of them."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return type(value) in (bool, int, float, str, type(None))


def tensor_locations(net: nn.Module) -> Iterator[TensorLocation]:
    """Yield the location of each parameter and buffer of a net; a shared tensor keeps its first name."""
    first: dict[int, str] = {}
    for layer, module in net.named_modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    yield tensors, key, first.setdefault(id(tensor), f"{layer}.{key}".lstrip("."))


def mean_and_std(y: Tensor) -> Tensor:
    """Return mean and standard deviation over all entries, ``(2,)``."""
    return torch.cat(mean_std(y.reshape(1, -1)))


def enable_corrections(net: nn.Module) -> None:
    """Enable updates of the corrections of batch renormalization and similar layers in a copy.

    This is safe because the copy runs a single pass.
    """
    layers: Iterable[Any] = net.modules()
    for layer in layers:
        if hasattr(layer, "updates_state") and not isinstance(layer, StochasticLayer):
            layer.updates_state = True


def copy_fused_flags(net: nn.Module, like: nn.Module) -> None:
    """Use the fused kernels of the original, which are faster for one net and first derivatives."""
    for layer, original in zip(net.modules(), like.modules(), strict=True):
        if "fused" in vars(original):
            layer.fused = original.fused


class ForwardBackward(NamedTuple):
    """Activations and gradients of one forward and backward pass.

    Attributes:
        inputs: the input of each activation, by layer, ``(K, R, D)``. Further calls of an activation have the keys
            ``layer.2``, ``layer.3`` and so on.
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


def weights_by_layer(snapshot: TrainingSnapshot, layers: Collection[str]) -> dict[str, list[str]]:
    """Return the names of the trained weights, grouped by layer, in order of construction.

    Weights are parameters with two or more axes, except those of normalizers and the lengths of weight
    normalization. Weights outside of all ``layers`` are grouped by their own module.
    """
    by_layer: dict[str, list[str]] = {}
    for name in snapshot.trained:
        path, _, original = name.partition(".parametrizations.")
        owner, shape = path if original else name.rpartition(".")[0], snapshot.before[name].shape[1:]
        # original0 of another parametrization may be a factor of the weights, as in a low-rank product.
        is_length = original.endswith("original0") and shape.numel() == max(shape, default=1)
        in_norm = "norm" in owner.split(".") or isinstance(snapshot.net.get_submodule(owner), NORMALIZERS)
        if len(shape) < 2 or is_length or in_norm:
            continue
        enclosing = [layer for layer in layers if owner.startswith(f"{layer}.")]
        by_layer.setdefault(max(enclosing, key=len, default=owner or "net"), []).append(name)
    return by_layer


def forward_backward(
    snapshot: TrainingSnapshot, mode: str, weights: Sequence[str], data: str = "minibatch"
) -> ForwardBackward:
    """Run a forward and a backward pass of each member at the parameters before the step.

    Args:
        snapshot: the nets and their data.
        mode: ``batch`` or ``frozen``, the statistics of the normalizers.
        weights: the names of the parameters to differentiate with respect to.
        data: ``minibatch`` or ``train``.

    Raises:
        ValueError: if the mode is unknown.
    """
    alone = len(snapshot.lr) == 1
    net, *recorders, locations = hooked_copy(snapshot.net, mode, alone, folds=snapshot.folds)

    def call(state: Tensors, x: Tensor) -> tuple[Tensor, list[Tensors]]:
        predictions = net(x) if alone else functional_call(net, state, (x,))
        return predictions, [recorder.pop_records() for recorder in recorders]

    state, (x, y) = state_before_step(snapshot, locations), snapshot.data(data)
    if alone:
        state, x = squeeze_members(state), x.squeeze(0)
        # Set tensors directly, because ``functional_call`` would take half of a small net's time.
        saved = [tensors[key] for tensors, key, _ in locations]
        for tensors, key, name in locations:
            tensors[key] = state[name]
    leaves = [state[name].requires_grad_() for name in weights]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        predictions, records = call(state, x) if alone else vmap(call, randomness="same")(state, x)
        loss = snapshot.loss(predictions.unsqueeze(0) if alone else predictions, y).sum()
        back = torch.autograd.grad(loss, leaves, materialize_grads=True) if leaves else ()
    gradients = dict(zip(weights, back, strict=True))
    if alone:
        for (tensors, key, _), tensor in zip(locations, saved, strict=True):
            tensors[key] = tensor
        *records, gradients = map(unsqueeze_members, (*records, gradients))
    before, after, normalized = records
    inputs, outputs = ({name: flatten_positions(h) for name, h in tensors.items()} for tensors in (before, after))
    activations = {name: recorders[1].layers[name] for name in after}
    return ForwardBackward(inputs, outputs, activations, normalized, gradients)


def squeeze_members(tensors: Tensors) -> Tensors:
    """Remove the member axis: ``(1, …)`` to ``(…)``."""
    return {name: tensor.squeeze(0) for name, tensor in tensors.items()}


def unsqueeze_members(tensors: Tensors) -> Tensors:
    """Add a member axis: ``(…)`` to ``(1, …)``."""
    return {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}


def state_before_step(snapshot: TrainingSnapshot, locations: Iterable[TensorLocation]) -> Tensors:
    """Return the parameters and buffers before the step, one entry for each shared tensor."""
    # Buffers are cloned, because layers may update them in place.
    return {
        name: snapshot.before[name].detach()
        if name in snapshot.trained
        else snapshot.before[name].detach().clone()
        for *_, name in locations
    }


def flatten_positions(h: Tensor) -> Tensor:
    """Merge samples and positions into rows, units last: ``(K, B, D, …)`` or ``(K, B)`` to ``(K, R, D)``."""
    return h.unsqueeze(2) if h.dim() == 2 else h.movedim(2, -1).flatten(1, -2)
