"""Optimizers of a population: each of K members has numbers of its own, and one step updates all of them.

Letters: K members, P parameters of a member, θ ``[K, P]`` all parameters, g ``[K, P]`` their gradients. A number
such as the learning rate is ``[K, 1]``. torch's optimizers refuse a learning rate with more than one element.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Number = float | Sequence[float] | Tensor


def column(number: Number, members: int) -> Tensor:
    """Return a per-member number as ``[K, 1]`` in float64: one value for all, or one for each."""
    return torch.as_tensor(number, dtype=torch.float64).reshape(-1, 1).expand(members, 1).clone()


class StackedOptimizer(torch.optim.Optimizer):
    """What the stacked optimizers share: every parameter is a view of one buffer θ, every gradient of one g.

    A few operations on θ then update all parameters of all members. At K = 1 the parameters are a net's own; for
    K > 1 each has a leading axis of members.

    Shapes:
        params: ``(K, …)`` each, or ``(…)`` at K = 1.
    """

    def __init__(self, params: Iterable[nn.Parameter], members: int, numbers: dict[str, Number]) -> None:
        columns = {name: column(number, members) for name, number in numbers.items()}
        super().__init__(params, columns)
        (group,) = self.param_groups
        self.members = members
        self.theta = torch.cat([p.detach().reshape(members, -1) for p in group["params"]], dim=1)
        self.grad = torch.zeros_like(self.theta)
        self.updates = 0
        sizes = [p.numel() // members for p in group["params"]]
        self._grads = []
        views = zip(group["params"], self.theta.split(sizes, 1), self.grad.split(sizes, 1), strict=True)
        for parameter, theta, grad in views:
            parameter.data = theta.view(parameter.shape)
            parameter.grad = grad.view(parameter.shape)
            self._grads.append(parameter.grad)
            group.update({name: value.to(parameter.device) for name, value in columns.items()})

    def number(self, name: str) -> Tensor:
        """Return a per-member number ``[K, 1]`` as it stands now, in the parameters' precision."""
        return self.param_groups[0][name].to(self.theta.dtype)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set g to zero; the gradients stay views of it."""
        self.grad.zero_()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update θ in place from g."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._gather_strayed_gradients()
        self.updates += 1
        self.update(self.theta, self.grad)
        return loss

    def update(self, theta: Tensor, grad: Tensor) -> None:
        """Update ``theta`` in place; ``grad`` may be used up."""
        raise NotImplementedError

    def _gather_strayed_gradients(self) -> None:
        """Copy gradients into g that somebody put into ``.grad`` in place of its view."""
        for parameter, view in zip(self.param_groups[0]["params"], self._grads, strict=True):
            if parameter.grad is not view:
                view.zero_() if parameter.grad is None else view.copy_(parameter.grad)
                parameter.grad = view


class SGD(StackedOptimizer):
    """Stochastic gradient descent with heavy-ball or Nesterov momentum.

    ``g ← g + λθ``, ``b ← μb + g``, ``θ ← θ − η·b``, or ``θ ← θ − η(g + μb)`` with Nesterov.

    Args:
        lr: η; momentum: μ; weight_decay: λ; each a number, or one for each member.

    Raises:
        ValueError: for Nesterov with a member without momentum.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: Number = 1e-3,
        momentum: Number = 0.0,
        weight_decay: Number = 0.0,
        nesterov: bool = False,
        members: int = 1,
    ) -> None:
        super().__init__(params, members, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if nesterov and not bool((self.number("momentum") > 0).all()):
            raise ValueError("optimizer.nesterov needs optimizer.momentum > 0")
        self.nesterov = nesterov
        self.velocity = torch.zeros_like(self.theta)

    def update(self, theta: Tensor, grad: Tensor) -> None:
        """Take one step."""
        momentum = self.number("momentum")
        grad = grad.addcmul_(theta, self.number("weight_decay"))
        self.velocity.mul_(momentum).add_(grad)
        direction = grad.addcmul_(self.velocity, momentum) if self.nesterov else self.velocity
        theta.addcmul_(direction, self.number("lr"), value=-1)


class Adam(StackedOptimizer):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980).

    ``m ← β₁m + (1 − β₁)g``, ``v ← β₂v + (1 − β₂)g²``, ``θ ← θ − η·m̂/(√v̂ + ε)`` with ``m̂ = m/(1 − β₁ᵗ)`` and
    ``v̂ = v/(1 − β₂ᵗ)``; weight decay λ is added to the gradient, ``g ← g + λθ``.

    Args:
        lr: η; betas: β₁ and β₂; eps: ε; weight_decay: λ; each a number, or one for each member.
    """

    decoupled = False

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        members: int = 1,
    ) -> None:
        beta1, beta2 = betas
        numbers = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, members, numbers)
        self.mean = torch.zeros_like(self.theta)
        self.square = torch.zeros_like(self.theta)
        self._decays = bool((self.number("weight_decay") != 0).any())
        # 1 − β taken in float64: in float32 it would be off by the rounding of β.
        group = self.param_groups[0]
        self._gain1, self._gain2 = ((1 - group[beta]).to(self.theta.dtype) for beta in ("beta1", "beta2"))

    def update(self, theta: Tensor, grad: Tensor) -> None:
        """Take one step."""
        group = self.param_groups[0]
        if self._decays and self.decoupled:
            theta.mul_(1 - self.number("lr") * self.number("weight_decay"))
        elif self._decays:
            grad.addcmul_(theta, self.number("weight_decay"))
        self.mean.lerp_(grad, self._gain1)
        self.square.lerp_(grad.square_(), self._gain2)
        # In float32, 1 − β₂ᵗ would lose four of its seven digits at the first step.
        root = (1 - group["beta2"] ** self.updates).sqrt_()
        step_size = group["lr"] * root / (1 - group["beta1"] ** self.updates)
        denominator = self.square.sqrt().add_((group["eps"] * root).to(theta.dtype))
        theta.sub_(torch.div(self.mean, denominator).mul_(step_size.to(theta.dtype)))


class AdamW(Adam):
    """Adam with decoupled weight decay, ``θ ← θ − ηλθ`` (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 1e-2,
        members: int = 1,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, members=members)


@torch.no_grad()
def clip_grad_norm(params: Iterable[nn.Parameter], members: int, max_norm: float) -> Tensor:
    """Scale each member's gradient so that its Euclidean norm over all parameters is at most ``max_norm``.

    Returns:
        The norms before, ``(K,)``.
    """
    grads = [p.grad.view(members, -1) for p in params if p.grad is not None]
    norms = torch.stack([grad.norm(dim=1) for grad in grads]).norm(dim=0)
    scale = (max_norm / (norms + 1e-6)).clamp(max=1).unsqueeze(1)
    for grad in grads:
        grad.mul_(scale)
    return norms
