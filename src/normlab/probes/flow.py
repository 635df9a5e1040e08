"""One pass through K nets and back: what comes out of activations and normalizers, and the gradient of weights.

Letters: K members, B samples, D units of a layer, R rows: B samples, at every position of an image.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from normlab import norms
from normlab.norms.draws import Drawing
from normlab.probes.scene import Scene, still
from normlab.probes.slots import mean_std

ACTIVATIONS = tuple({getattr(nn, name) for name in nn.modules.activation.__all__} - {nn.MultiheadAttention})
"""What is an activation function where a net has none by the name ``activation``."""

TORCH = (nn.modules.batchnorm, nn.modules.instancenorm, nn.modules.normalization)
NORMALIZERS: tuple[type[nn.Module], ...] = tuple(
    kind
    for module in (norms, *TORCH)
    for kind in (getattr(module, name) for name in module.__all__)
    if isinstance(kind, type)
)
"""What is a normalizer where a net has none by the name ``norm``."""

Tensors = dict[str, Tensor]


class Flow(NamedTuple):
    """What is left of one pass forward and back.

    Attributes:
        outputs: what came out of each activation by layer, ``(K, R, D)``; of one that is called again by
            ``layer.2``, ``layer.3`` and so on.
        activations: what it came out of, by the same names.
        normalized: mean and standard deviation, over all entries, of what came out of each normalizer by layer,
            ``(K, 2)``.
        gradients: of the loss by weights, by their names, ``(K, …)``.
    """

    outputs: Tensors
    activations: dict[str, nn.Module]
    normalized: Tensors
    gradients: Tensors


def activation_slots(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each activation function with the name of the layer that it is in.

    It is what a layer calls ``activation``; elsewhere, each activation function of torch.nn is a layer itself.
    """
    return slots(net, "activation", ACTIVATIONS)


def normalizer_slots(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each normalizer with the name of the layer that it is in; an identity in its place is none.

    It is what a layer calls ``norm``; elsewhere, each normalizer of torch.nn or normlab.norms is a layer itself.
    """
    return ((layer, m) for layer, m in slots(net, "norm", NORMALIZERS) if not isinstance(m, nn.Identity))


def slots(net: nn.Module, slot: str, kinds: tuple[type[nn.Module], ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yield what layers call ``slot`` by the layer, and what else is of these kinds by its own name."""
    modules = {name: (module, *name.rpartition(".")) for name, module in net.named_modules() if name}
    inside = tuple(f"{name}." for name, (*_, last) in modules.items() if last == slot)
    for name, (module, layer, _, last) in modules.items():
        if last == slot:
            yield layer or name, module
        elif isinstance(module, kinds) and not name.startswith(inside):
            yield name, module


def weights_by_layer(scene: Scene, layers: Collection[str]) -> dict[str, list[str]]:
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


def flow(scene: Scene, mode: str, weights: Sequence[str], data: str = "minibatch") -> Flow:
    """Pass samples through each member's net, as it is before the step, and the gradient of their loss back.

    Args:
        scene: a moment of a training.
        mode: ``batch`` or ``frozen``, what normalizers go by.
        weights: the names of the parameters whose gradient is wanted.
        data: ``minibatch`` or ``train``, what goes through the nets.

    Raises:
        ValueError: for a mode of another name.
    """
    net, alone = still(scene.net, mode), len(scene.lr) == 1
    correct(net)
    if alone:
        fuse(net, scene.net)
    # Copies: what follows may work in place.
    seen, called = watched(activation_slots(net), torch.clone)
    normalized, _ = watched(normalizer_slots(net), moments)

    def call(state: Tensors, x: Tensor) -> tuple[Tensor, Tensors, Tensors]:
        return net(x) if alone else functional_call(net, state, (x,)), seen, normalized

    state, (x, y) = state_of(scene), scene.data(data)
    if alone:
        state, x = {name: tensor.squeeze(0) for name, tensor in state.items()}, x.squeeze(0)
        put(net, state)
    leaves = [state[name].requires_grad_() for name in weights]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        found = call(state, x) if alone else vmap(call, randomness="same")(state, x)
        outputs, through, within = tree_map(lambda tensor: tensor.unsqueeze(0), found) if alone else found
        loss = scene.loss(outputs, y).sum()
        back = torch.autograd.grad(loss, leaves, materialize_grads=True) if leaves else ()
    gradients = {name: g.unsqueeze(0) if alone else g for name, g in zip(weights, back, strict=True)}
    return Flow({name: rows(h) for name, h in through.items()}, called, within, gradients)


def watched(
    layers: Iterable[tuple[str, nn.Module]], take: Callable[[Tensor], Tensor]
) -> tuple[Tensors, dict[str, nn.Module]]:
    """Return where it is taken down, from now on, what comes out of layers, and which layer it came out of."""
    seen: Tensors = {}
    called: dict[str, nn.Module] = {}

    def watch(layer: str, module: nn.Module) -> None:
        numbers = count(1)

        def hook(_: nn.Module, inputs: tuple, y: Tensor) -> None:
            number = next(numbers)
            name = layer if number == 1 else f"{layer}.{number}"
            seen[name], called[name] = take(y.detach()), module

        module.register_forward_hook(hook)

    for layer, module in layers:
        watch(layer, module)
    return seen, called


def moments(y: Tensor) -> Tensor:
    """Return mean and standard deviation over all entries, ``(2,)``."""
    return torch.cat(mean_std(y.reshape(1, -1)))


def state_of(scene: Scene) -> Tensors:
    """Return a net's parameters and buffers before the step, each once: layers may share them."""
    own = [name for name, _ in chain(scene.net.named_parameters(), scene.net.named_buffers())]
    # A layer that moves something in its buffers is not to move it in the scene.
    return {
        name: scene.before[name].detach() if name in scene.trained else scene.before[name].detach().clone()
        for name in own
    }


def put(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of a net's own for good: ``functional_call`` takes half of a small net's time."""
    own = {id(old): state[name] for name, old in chain(net.named_parameters(), net.named_buffers())}
    for layer in net.modules():
        for slot in (layer._parameters, layer._buffers):
            slot.update({name: own[id(old)] for name, old in slot.items() if old is not None})  # type: ignore[misc]


def correct(net: nn.Module) -> None:
    """Let a still copy's layers that correct by the batch do so: in one pass, with one derivative, they may."""
    layers: Iterable[Any] = net.modules()
    for layer in layers:
        if hasattr(layer, "held") and not isinstance(layer, Drawing):
            layer.held = False


def fuse(net: nn.Module, like: nn.Module) -> None:
    """Let a still copy take the kernels that its net takes: for one net and one derivative they are faster."""
    for layer, original in zip(net.modules(), like.modules(), strict=True):
        if "fused" in vars(original):
            layer.fused = original.fused


def rows(h: Tensor) -> Tensor:
    """Return what came out of a layer with its units last: ``(K, B, D, …)`` or ``(K, B)`` to ``(K, R, D)``."""
    return h.unsqueeze(2) if h.dim() == 2 else h.movedim(2, -1).flatten(1, -2)
