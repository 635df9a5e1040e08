"""A loss as a function of the parameters: of one net, or of each of K nets at once.

Letters: K members, S points of each, P parameters of a member; θ ``[K, P]`` the parameters that are looked from.
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
"""How many points are evaluated together: more leave the cache, fewer spend their time in calls from Python."""


class BatchedLoss:
    """A loss over all parameters, with its gradients and the products of its Hessian; nothing else is changed.

    All of it works on detached clones. Where the loss draws from torch's global generator, every evaluation draws
    the same numbers, and the generator stays as it was: noise is not landscape.

    Shapes:
        points θ' ``(..., K, P)``; losses ``(..., K)``; gradients ``(..., K, P)``.

    Args:
        loss: called with one member's parameters by name, and with what else is its own; returns a number ``()``.
            It must not change what it is given, and take part in ``torch.func.vmap``.
        params: the parameters by name, ``(K, …)`` each.
        context: what else each member has of its own, such as data and buffers: tensors ``(K, …)``, in any
            nesting of dicts and lists, an argument of ``loss`` each.
        mode: ``batch`` or ``frozen``, what normalizers go by, or another word for a loss without any.

    >>> bowl = BatchedLoss.of(lambda params: (params["w"] ** 2).sum() / 2, {"w": torch.tensor([3.0, 4.0])})
    >>> bowl.losses(bowl.theta), bowl.gradients(bowl.theta)
    (tensor([12.5000]), tensor([[3., 4.]]))
    """

    def __init__(self, loss: Loss, params: Params, context: Sequence[Any] = (), *, mode: str = "exact") -> None:
        self.loss, self.mode = loss, mode
        self.names = list(params)
        self.members = len(next(iter(params.values())))
        self.shapes = [param.shape[1:] for param in params.values()]
        self.theta = torch.cat([param.detach().reshape(self.members, -1) for param in params.values()], dim=1)
        self.context = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), list(context))
        self._generator = torch.get_rng_state()

    @classmethod
    def of(cls, loss: Callable[[Params], Tensor], params: Params, mode: str = "exact") -> "BatchedLoss":
        """Return the landscape of one loss of parameters by name, of a single net.

        Raises:
            ValueError: the loss is not finite at these parameters.
        """
        landscape = cls(loss, {name: param.unsqueeze(0) for name, param in params.items()}, mode=mode)
        value = landscape.losses(landscape.theta).item()
        if not value - value == 0:
            raise ValueError(f"the loss must be finite where it is probed, got {value}; probe an earlier state")
        return landscape

    def double(self) -> "BatchedLoss":
        """Return the same landscape in float64."""
        return self._copy(self.theta.double(), tree_map_only(Tensor, in_double, self.context))

    def of_member(self, k: int) -> "BatchedLoss":
        """Return the landscape of member k alone."""
        return self.of_members(slice(k, k + 1))

    def of_members(self, own: slice) -> "BatchedLoss":
        """Return the landscape of some of the members."""
        return self._copy(self.theta[own], tree_map_only(Tensor, lambda tensor: tensor[own], self.context))

    def _copy(self, theta: Tensor, context: list) -> "BatchedLoss":
        params = dict(zip(self.names, self.parts(theta), strict=True))
        copy = BatchedLoss(self.loss, params, context, mode=self.mode)
        copy._generator = self._generator
        return copy

    def parts(self, theta: Tensor) -> list[Tensor]:
        """Return the parameters that a point is made of, ``(..., *shape)`` each, sharing its memory."""
        views = theta.split([shape.numel() for shape in self.shapes], dim=-1)
        pairs = zip(views, self.shapes, strict=True)
        return [view.unflatten(-1, shape) if shape else view.squeeze(-1) for view, shape in pairs]

    def columns(self, names: Sequence[str]) -> Tensor:
        """Return which of the P entries of a point belong to these parameters, ``(P,)`` true or false."""
        pairs = zip(self.names, self.shapes, strict=True)
        return torch.cat([torch.full((shape.numel(),), name in names) for name, shape in pairs])

    def losses(self, points: Tensor) -> Tensor:
        """Return the loss at points, each member's at its own."""
        with torch.no_grad():
            return torch.cat([self._losses(part) for part in self._split(points)]).view(points.shape[:-1])

    def gradients(self, points: Tensor) -> Tensor:
        """Return the gradient at points, each member's at its own."""
        return torch.cat([self._gradients(part)[1] for part in self._split(points)]).view(points.shape)

    def losses_and_gradients(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, in one pass."""
        losses, gradients = zip(*(self._gradients(part) for part in self._split(points)), strict=True)
        return torch.cat(losses).view(points.shape[:-1]), torch.cat(gradients).view(points.shape)

    def hessian(self) -> Callable[[Tensor], Tensor]:
        """Return a function that multiplies ``(K, P)`` or ``(S, K, P)`` with each member's Hessian at θ.

        The gradient is taken down once; a product is then one pass back through it.
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
        """Return ``(S, K)`` for ``(S, K, P)``; one of a kind is not vmapped, which takes twice as long."""
        members, alone = self.members > 1, len(points) == 1
        call: Callable[..., Tensor] = vmap(self._loss, randomness="same") if members else self._loss
        if not alone:
            call = vmap(call, in_dims=(0, *[None] * len(self.context)), randomness="same")
        context = self.context if members else tree_map_only(Tensor, lambda t: t.squeeze(0), self.context)
        given = points if members else points.squeeze(1)
        with self._same_draws():
            losses = call(given.squeeze(0) if alone else given, *context)
        return losses.reshape(points.shape[:2])

    def _loss(self, theta: Tensor, *context: Any) -> Tensor:
        return self.loss(dict(zip(self.names, self.parts(theta), strict=True)), *context)

    @contextmanager
    def _same_draws(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._generator)
            yield


def in_double(tensor: Tensor) -> Tensor:
    """Return a tensor in float64; whole numbers stay."""
    return tensor.double() if tensor.is_floating_point() else tensor
