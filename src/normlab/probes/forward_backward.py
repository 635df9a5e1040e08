"""One pass through K nets and back: inputs and outputs of activations, normalizers, and the gradient of weights.

Letters: K members, B samples, D units of a layer, R rows: B samples, at every position of an image.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from normlab.models.layer_lookup import NORMALIZERS
from normlab.probes.hooked_copy import Place, Tensors, watched_copy
from normlab.probes.snapshot import TrainingSnapshot


class Flow(NamedTuple):
    """What is left of one pass forward and back.

    Attributes:
        inputs: of each activation by layer, ``(K, R, D)``; of one that is called again by ``layer.2``,
            ``layer.3`` and so on.
        outputs: likewise.
        activations: what it came out of, by the same names.
        normalized: mean and standard deviation, over all entries, of what came out of each normalizer by layer,
            ``(K, 2)``.
        gradients: of the loss by weights, by their names, ``(K, …)``.
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


def state_of(scene: TrainingSnapshot, places: Iterable[Place]) -> Tensors:
    """Return a net's parameters and buffers before the step, each once: layers may share them."""
    # A layer that moves something in its buffers is not to move it in the scene.
    return {
        name: scene.before[name].detach() if name in scene.trained else scene.before[name].detach().clone()
        for *_, name in places
    }


def rows(h: Tensor) -> Tensor:
    """Return the outputs of a layer with its units last: ``(K, B, D, …)`` or ``(K, B)`` to ``(K, R, D)``."""
    return h.unsqueeze(2) if h.dim() == 2 else h.movedim(2, -1).flatten(1, -2)
