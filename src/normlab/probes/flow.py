"""One pass through K nets and back: what comes out of their activations, and what gradient their weights get.

Letters: K members, B samples of a minibatch, D units of a layer, R rows: B samples, at every position of an image.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from normlab.probes.scene import Scene, still

ACTIVATIONS = tuple({getattr(nn, name) for name in nn.modules.activation.__all__} - {nn.MultiheadAttention})
"""What is an activation function where a net has none by the name ``activation``."""

Calls = dict[str, list[Tensor]]


class Flow(NamedTuple):
    """What is left of one pass forward and back.

    Attributes:
        outputs: what came out of each activation by layer, ``(K, R, D)``; of one that is called again by
            ``layer.2``, ``layer.3`` and so on.
        activations: what it came out of, by the same names.
        gradients: of the loss by weights, by their names, ``(K, …)``.
    """

    outputs: dict[str, Tensor]
    activations: dict[str, nn.Module]
    gradients: dict[str, Tensor]


def activation_slots(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each activation function with the name of the layer that it is in.

    It is what a layer calls ``activation``; elsewhere, each activation function of torch.nn is a layer itself.
    """
    named = {name: module for name, module in net.named_modules() if name.rpartition(".")[2] == "activation"}
    inside = tuple(f"{name}." for name in named)
    for name, module in net.named_modules():
        if name in named:
            yield name.rpartition(".")[0] or name, module
        elif name and isinstance(module, ACTIVATIONS) and not name.startswith(inside):
            yield name, module


def weights_by_layer(scene: Scene, layers: Collection[str]) -> dict[str, list[str]]:
    """Return the names of the trained weights by the layer that they are in, in the order of their making.

    Weights have two axes or more; normalizers' parameters, and the lengths of normalized weights, are none. Those
    in none of ``layers`` belong to their own linear map or convolution.
    """
    found: dict[str, list[str]] = {}
    for name in scene.trained:
        path, _, original = name.partition(".parametrizations.")
        owner = path if original else name.rpartition(".")[0]
        is_length = original.endswith("original0") and f"{name[:-1]}1" in scene.before
        in_norm = "norm" in owner.split(".") or isinstance(
            scene.net.get_submodule(owner), nn.LayerNorm | nn.RMSNorm
        )
        if scene.before[name].dim() < 3 or is_length or in_norm:
            continue
        around = [layer for layer in layers if owner.startswith(f"{layer}.")]
        found.setdefault(max(around, key=len, default=owner or "net"), []).append(name)
    return found


def flow(scene: Scene, mode: str, weights: Sequence[str]) -> Flow:
    """Pass each member's minibatch through its net, as it is before the step, and its loss's gradient back.

    Args:
        scene: a moment of a training.
        mode: ``batch`` or ``frozen``, what normalizers go by.
        weights: the names of the parameters whose gradient is wanted.

    Raises:
        ValueError: for a mode of another name.
    """
    net, alone = still(scene.net, mode), len(scene.lr) == 1
    if alone:
        fuse(net, scene.net)
    slots = dict(activation_slots(net))
    seen = watched(slots)

    def call(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Calls]:
        return net(x) if alone else functional_call(net, state, (x,)), seen

    # A layer that moves something in its buffers is not to move it in the scene.
    state = {name: t.detach() if name in scene.trained else t.detach().clone() for name, t in scene.before.items()}
    x, y = scene.minibatch
    if alone:
        state, x = {name: tensor.squeeze(0) for name, tensor in state.items()}, x.squeeze(0)
        put(net, state)
    leaves = [state[name].requires_grad_() for name in weights]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        found = call(state, x) if alone else vmap(call, randomness="same")(state, x)
        outputs, through = tree_map(lambda tensor: tensor.unsqueeze(0), found) if alone else found
        loss = scene.loss(outputs, y).sum()
        back = torch.autograd.grad(loss, leaves, materialize_grads=True) if leaves else ()
    gradients = {name: g.unsqueeze(0) if alone else g for name, g in zip(weights, back, strict=True)}
    named = [
        (layer, layer if number == 1 else f"{layer}.{number}", h)
        for layer, calls in through.items()
        for number, h in enumerate(calls, start=1)
    ]
    return Flow(
        {name: rows(h) for _, name, h in named}, {name: slots[layer] for layer, name, _ in named}, gradients
    )


def watched(slots: Mapping[str, nn.Module]) -> Calls:
    """Return where it is taken down, from now on, what comes out of activations, in the order of the calls."""
    seen: Calls = {}

    def watch(layer: str, module: nn.Module) -> None:
        # A copy: what follows may work in place.
        module.register_forward_hook(lambda _, inputs, y: seen.setdefault(layer, []).append(y.detach().clone()))

    for layer, module in slots.items():
        watch(layer, module)
    return seen


def put(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of a net's own for good: ``functional_call`` takes half of a small net's time."""
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        owner = net.get_submodule(path)
        (owner._buffers if leaf in owner._buffers else owner._parameters)[leaf] = tensor  # type: ignore[assignment]


def fuse(net: nn.Module, like: nn.Module) -> None:
    """Let a still copy take the kernels that its net takes: for one net and one derivative they are faster."""
    for layer, original in zip(net.modules(), like.modules(), strict=True):
        if "fused" in vars(original):
            layer.fused = original.fused


def rows(h: Tensor) -> Tensor:
    """Return what came out of a layer with its units last, ``(K, B, D, …)`` to ``(K, R, D)``."""
    return h if h.dim() == 3 else h.movedim(2, -1).flatten(1, -2)
