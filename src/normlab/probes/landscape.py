"""The loss as a function of the parameters, :class:`BatchedLoss`, on copies of nets whose passes change nothing.

Letters: K members, S points of each, P parameters of a member; θ ``[K, P]`` the reference parameters.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map_only

from normlab.models.generators import forked_generators, generator_states, set_generator_states
from normlab.models.layer_lookup import calls_forward_alone
from normlab.norms.batch_norm import BatchNorm, BatchNorm1d
from normlab.norms.counter_rng import StochasticLayer

Params = Mapping[str, Tensor]
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
    with torch.no_grad(), forked_generators(x):
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


Loss = Callable[..., Tensor]

POINTS_AT_ONCE = 16
"""Points in a batch: more exceed the cache, fewer are dominated by the overhead of Python calls."""


class BatchedLoss:
    """A loss over all parameters of K nets, with gradients and Hessian products, evaluated without side effects.

    All evaluations use detached clones. If the loss draws from torch's global generator, every evaluation draws
    the same numbers, and the generator is restored, so that noise does not appear as curvature.

    Shapes:
        points θ' ``(..., K, P)``; losses ``(..., K)``; gradients ``(..., K, P)``.

    Args:
        loss: maps one member's parameters by name, and its slice of each item of ``context``, to a scalar ``()``.
            It must not modify its arguments, and must support ``torch.func.vmap``.
        params: the parameters by name, ``(K, …)`` each.
        context: further arguments of ``loss``, such as data and buffers: tensors ``(K, …)``, possibly nested in
            dicts and lists.

    >>> bowl = BatchedLoss.of(lambda params: (params["w"] ** 2).sum() / 2, {"w": torch.tensor([3.0, 4.0])})
    >>> bowl.losses(bowl.theta), bowl.gradients(bowl.theta)
    (tensor([12.5000]), tensor([[3., 4.]]))
    """

    def __init__(self, loss: Loss, params: Params, context: Sequence[Any] = ()) -> None:
        self.loss, self.names = loss, list(params)
        self.members = len(next(iter(params.values())))
        self.shapes = [param.shape[1:] for param in params.values()]
        self.theta = torch.cat([param.detach().reshape(self.members, -1) for param in params.values()], dim=1)
        self.context = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), list(context))
        self._generators = generator_states(self.theta)

    @classmethod
    def of(cls, loss: Callable[[Params], Tensor], params: Params) -> "BatchedLoss":
        """Create a landscape of a single net from a loss of parameters by name.

        Raises:
            ValueError: if the loss is not finite at these parameters.
        """
        landscape = cls(loss, {name: param.unsqueeze(0) for name, param in params.items()})
        value = landscape.losses(landscape.theta).item()
        if not value - value == 0:
            raise ValueError(f"the loss must be finite where it is probed, got {value}; probe an earlier state")
        return landscape

    def double(self) -> "BatchedLoss":
        """Return a copy of the landscape in float64."""
        return self._copy(self.theta.double(), tree_map_only(Tensor, in_double, self.context))

    def of_members(self, members: slice) -> "BatchedLoss":
        """Return the landscape of a slice of the members."""
        return self._copy(self.theta[members], tree_map_only(Tensor, lambda tensor: tensor[members], self.context))

    def _copy(self, theta: Tensor, context: list) -> "BatchedLoss":
        params = dict(zip(self.names, self.unflatten(theta), strict=True))
        copy = BatchedLoss(self.loss, params, context)
        copy._generators = self._generators
        return copy

    def unflatten(self, theta: Tensor) -> list[Tensor]:
        """Split a point into views of its parameters, ``(..., P)`` to ``(..., *shape)`` each."""
        views = theta.split([shape.numel() for shape in self.shapes], dim=-1)
        pairs = zip(views, self.shapes, strict=True)
        return [view.unflatten(-1, shape) if shape else view.squeeze(-1) for view, shape in pairs]

    def parameter_mask(self, names: Sequence[str]) -> Tensor:
        """Return a boolean mask of the entries of a point that belong to these parameters, ``(P,)``."""
        pairs, device = zip(self.names, self.shapes, strict=True), self.theta.device
        return torch.cat([torch.full((shape.numel(),), name in names, device=device) for name, shape in pairs])

    def normal(self, generators: Sequence[torch.Generator], samples: int = 1) -> Tensor:
        """Draw S vectors from N(0, I) for each member with its own generator, ``(S, K, P)``.

        Numbers are always drawn in float64, so that a probe repeated in float64 gets the same ones.
        """
        shape = samples, self.theta.shape[1]
        draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for generator in generators]
        return torch.stack(draws, dim=1).to(self.theta)

    def losses(self, points: Tensor) -> Tensor:
        """Return the losses of each member at its points, ``(..., K, P)`` to ``(..., K)``."""
        with torch.no_grad():
            return torch.cat([self._losses(part) for part in self._split(points)]).view(points.shape[:-1])

    def gradients(self, points: Tensor) -> Tensor:
        """Return the gradients of each member at its points, ``(..., K, P)`` to the same."""
        return torch.cat([self._gradients(part)[1] for part in self._split(points)]).view(points.shape)

    def losses_and_gradients(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses and gradients from the same forward passes."""
        losses, gradients = zip(*(self._gradients(part) for part in self._split(points)), strict=True)
        return torch.cat(losses).view(points.shape[:-1]), torch.cat(gradients).view(points.shape)

    def hessian(self) -> Callable[[Tensor], Tensor]:
        """Return a function that multiplies ``(K, P)`` or ``(S, K, P)`` by each member's Hessian at θ.

        The graph of the gradient is built once; each product is one backward pass through it.
        """
        theta = self.theta.clone().requires_grad_()
        with torch.enable_grad(), self._same_draws():
            losses = self._losses(theta.unsqueeze(0))
            (gradient,) = torch.autograd.grad(losses.sum(), theta, create_graph=True, materialize_grads=True)

        def product(vectors: Tensor) -> Tensor:
            if not gradient.requires_grad:
                return torch.zeros_like(vectors)
            return torch.autograd.grad(
                gradient,
                theta,
                vectors,
                retain_graph=True,
                materialize_grads=True,
                is_grads_batched=vectors.dim() == 3,
            )[0]

        return product

    def _split(self, points: Tensor) -> tuple[Tensor, ...]:
        return (
            points.detach()
            .reshape(-1, self.members, points.shape[-1])
            .split(max(1, POINTS_AT_ONCE // self.members))
        )

    def _gradients(self, points: Tensor) -> tuple[Tensor, Tensor]:
        points = points.clone().requires_grad_()
        with torch.enable_grad():
            losses = self._losses(points)
            (gradient,) = torch.autograd.grad(losses.sum(), points, materialize_grads=True)
        return losses.detach(), gradient

    def _losses(self, points: Tensor) -> Tensor:
        """Map points ``(S, K, P)`` to losses ``(S, K)``; axes of length 1 skip vmap, which doubles the time."""
        many_members, single_point = self.members > 1, len(points) == 1
        call: Callable[..., Tensor] = vmap(self._loss, randomness="same") if many_members else self._loss
        if not single_point:
            call = vmap(call, in_dims=(0, *[None] * len(self.context)), randomness="same")
        context = self.context if many_members else tree_map_only(Tensor, lambda t: t.squeeze(0), self.context)
        arguments = points if many_members else points.squeeze(1)
        with self._same_draws():
            losses = call(arguments.squeeze(0) if single_point else arguments, *context)
        return losses.reshape(points.shape[:2])

    def _loss(self, theta: Tensor, *context: Any) -> Tensor:
        return self.loss(dict(zip(self.names, self.unflatten(theta), strict=True)), *context)

    @contextmanager
    def _same_draws(self) -> Iterator[None]:
        with forked_generators(self.theta):
            set_generator_states(self.theta, self._generators)
            yield


def in_double(tensor: Tensor) -> Tensor:
    """Cast a floating-point tensor to float64; other dtypes are unchanged."""
    return tensor.double() if tensor.is_floating_point() else tensor
