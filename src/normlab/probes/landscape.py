"""The loss of one net, or of K nets at once, as a function of the parameters; the entry is `BatchedLoss`.

Letters: K members, S points of each, P parameters of a member; θ ``[K, P]`` the reference parameters.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map_only

Params = Mapping[str, Tensor]
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
        self._generator = torch.get_rng_state()

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
        copy._generator = self._generator
        return copy

    def unflatten(self, theta: Tensor) -> list[Tensor]:
        """Split a point into views of its parameters, ``(..., P)`` to ``(..., *shape)`` each."""
        views = theta.split([shape.numel() for shape in self.shapes], dim=-1)
        pairs = zip(views, self.shapes, strict=True)
        return [view.unflatten(-1, shape) if shape else view.squeeze(-1) for view, shape in pairs]

    def parameter_mask(self, names: Sequence[str]) -> Tensor:
        """Return a boolean mask of the entries of a point that belong to these parameters, ``(P,)``."""
        pairs = zip(self.names, self.shapes, strict=True)
        return torch.cat([torch.full((shape.numel(),), name in names) for name, shape in pairs])

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
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._generator)
            yield


def in_double(tensor: Tensor) -> Tensor:
    """Cast a floating-point tensor to float64; other dtypes are unchanged."""
    return tensor.double() if tensor.is_floating_point() else tensor
