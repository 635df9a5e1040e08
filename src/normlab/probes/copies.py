"""Copies of nets whose forward passes change nothing; the entry is `side_effect_free_copy`."""

from collections import Counter, OrderedDict
from copy import deepcopy
from functools import partial
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from normlab.models.layer_lookup import calls_forward_alone
from normlab.norms.batch_norm import BatchNorm, BatchNorm1d
from normlab.norms.counter_rng import StochasticLayer
from normlab.probes.landscape import Params, in_double

MODES = ("batch", "frozen")
"""Statistics that normalizers over the batch use: those of the batch, or the running statistics, unchanged."""

PLAIN_TYPES = (bool, int, float, str, type(None), torch.dtype, torch.device, type)
"""Types of immutable values, which copies share."""


def require_mode(mode: str) -> None:
    """Raise ValueError if the mode is unknown."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode}")


def side_effect_free_copy(
    net: nn.Module, mode: str, state: Params | None = None, *, folds: bool = True, corrections: bool = False
) -> nn.Module:
    """Return a copy of a net whose forward pass changes no statistics and repeats the same random draws.

    In mode ``batch`` the copy is in training mode, but tracks no running statistics. In mode ``frozen`` it is in
    evaluation mode; with ``folds``, each linear layer also applies the normalizer after it.

    Args:
        net: the original.
        mode: ``batch`` or ``frozen``.
        state: parameters and buffers of the copy by name; None to share those of the net, so that the copy can be
            called with other tensors through ``functional_call``.
        folds: whether frozen normalizers are folded.
        corrections: whether a pass updates the corrections of batch renormalization and similar layers, those with
            an attribute ``updates_state`` that do not draw.

    Raises:
        ValueError: if the mode is unknown.
    """
    require_mode(mode)
    copy: Any = copy_with_tensors(net, state).train(mode == "batch")
    for layer in copy.modules():
        if hasattr(layer, "updates_state"):
            layer.updates_state = corrections and has_corrections(layer)
        if mode == "batch" and hasattr(layer, "track_running_stats"):
            layer.track_running_stats = False
        if isinstance(layer, BatchNorm):
            # The fused kernel has no forward-mode second derivative, and is slower than the formula under vmap.
            layer.fused = False
    if mode == "frozen" and folds:
        fold_normalizers(copy)
    return copy


def copy_with_tensors(net: nn.Module, state: Params | None = None) -> nn.Module:
    """Return a copy of a net with the tensors of ``state`` by name, or with those of the net.

    ``deepcopy`` would take half of the time of probing a small net.
    """
    tensors = chain(net.named_parameters(), net.named_buffers())
    return copy_module(net, {id(tensor): tensor if state is None else state[name] for name, tensor in tensors})


def copy_module(module: nn.Module, memo: dict[int, Any]) -> Any:
    """Return a copy of a module that has the objects in ``memo``, which is keyed by id as in ``deepcopy``."""
    custom_copy = hasattr(module, "__deepcopy__") or type(module).__setstate__ is not nn.Module.__setstate__
    if custom_copy or id(module) in memo:
        return deepcopy(module, memo)
    copy = memo[id(module)] = module.__new__(type(module))
    for name, value in vars(module).items():
        if name == "_modules":
            vars(copy)[name] = {key: child and copy_module(child, memo) for key, child in value.items()}
        elif name in ("_parameters", "_buffers"):
            vars(copy)[name] = {key: None if t is None else memo[id(t)] for key, t in value.items()}
        elif type(value) in (dict, OrderedDict, set, list) and not value:
            vars(copy)[name] = type(value)()
        else:
            vars(copy)[name] = value if isinstance(value, PLAIN_TYPES) else deepcopy(value, memo)
    return copy


def has_corrections(layer: nn.Module) -> bool:
    """Return True for layers such as batch renormalization, whose corrections belong to the newest minibatch."""
    return hasattr(layer, "updates_state") and not isinstance(layer, StochasticLayer)


def updated_corrections(net: nn.Module, params: Params, fixed: Params, x: Tensor) -> Params:
    """Return the buffers after layers with corrections have updated them for these parameters and inputs."""
    if not any(map(has_corrections, net.modules())):
        return fixed
    copy = side_effect_free_copy(net, "batch", corrections=True)
    state = {name: tensor.detach().clone() for name, tensor in {**fixed, **params}.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        vmap(partial(functional_call, copy), randomness="same")(state, x)
    return {name: state[name] for name in fixed}


def fold_normalizers(net: nn.Module) -> None:
    """Fold each frozen normalizer of a sequence into the linear layer before it, which halves the time.

    With frozen statistics ``γ (W x + b − μ)/√(σ² + ε) + β = (a W) x + a (b − μ) + β``, ``a = γ/√(σ² + ε)``.
    Layers that occur in several places, or have hooks, are not folded.
    """
    places = Counter(id(layer) for _, layer in net.named_modules(remove_duplicate=False))
    for container in net.modules():
        if type(container).forward is not nn.Sequential.forward:
            continue
        for linear, norm in pairwise(filter(None, container._modules.values())):
            frozen = type(norm) in (BatchNorm1d, nn.BatchNorm1d) and norm._buffers["running_mean"] is not None
            alone = all(places[id(layer)] == 1 and calls_forward_alone(layer) for layer in (linear, norm))
            if type(linear) is nn.Linear and frozen and alone:
                linear.forward = partial(folded_forward, linear, norm)  # type: ignore[method-assign]
                norm.forward = nn.Identity().forward


def folds_exactly(net: nn.Module, state: Params, x: Tensor) -> bool:
    """Return True if a folded copy of a net has the outputs of the net itself in evaluation mode.

    Shapes:
        state: tensors of one member, by name; x ``(B, …)``.
    """
    copies = copy_with_tensors(net).eval(), side_effect_free_copy(net, "frozen")

    def agree(state: Params, x: Tensor, tolerance: float) -> bool:
        with torch.no_grad():
            expected, got = (functional_call(copy, dict(state), (x,)) for copy in copies)
        size = float(expected.abs().max())
        return torch.allclose(got, expected, rtol=tolerance, atol=tolerance * size, equal_nan=True)

    try:
        return agree({name: in_double(tensor) for name, tensor in state.items()}, in_double(x), 1e-6)
    except (RuntimeError, TypeError):  # a net with casts of its own may accept a single precision
        return agree(state, x, 1e-3)


def folded_forward(linear: nn.Linear, norm: Any, x: Tensor) -> Tensor:
    """Apply a linear layer and its frozen normalizer to x as one linear map."""
    rate = torch.rsqrt(norm.running_var + norm.eps)
    a = rate if norm.weight is None else rate * norm.weight
    bias = -norm.running_mean if linear.bias is None else linear.bias - norm.running_mean
    shift = a * bias if norm.bias is None else a * bias + norm.bias
    return F.linear(x, linear.weight * a.unsqueeze(1), shift)
