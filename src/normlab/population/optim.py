"""Optimizers of a population: hyperparameters can differ by member, and one step updates all members.

Letters: K members, P parameters of a member, θ ``[K, P]`` all parameters, g ``[K, P]`` their gradients. A
hyperparameter such as the learning rate is ``[K, 1]``; torch's optimizers accept only a scalar.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from normlab.population.kernels import materialized

Number = float | Sequence[float] | Tensor
Parts = list[list[nn.Parameter]]
"""Parameters that an optimizer treats differently, a list of each kind."""


def column(number: Number, members: int) -> Tensor:
    """Expand one hyperparameter value, or one per member, to ``[K, 1]`` in float64."""
    return torch.as_tensor(number, dtype=torch.float64).reshape(-1, 1).expand(members, 1).clone()


UPDATES_AHEAD = 32
"""Updates whose step sizes Adam computes at once."""


def value_of(closure: Callable[[], Any] | None) -> Any:
    """Call the closure of an optimizer's step with gradients, and return its value; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class StackedOptimizer(torch.optim.Optimizer):
    """Base class of optimizers whose trained parameters are views of one buffer θ.

    A few operations on θ update all parameters of all members. A parameter without a gradient counts as one with
    a gradient of zero. Hyperparameters change only by :meth:`set_numbers`.

    Shapes:
        params: ``(K, …)`` each; at K = 1 the net's own, ``(…)``.
    """

    # torch keys its state by parameter; here all parameters share one, keyed by name.
    state: dict[Any, Any]  # type: ignore[assignment]

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        members: int,
        numbers: dict[str, Number],
        undecayed: Iterable[nn.Parameter] = (),
    ) -> None:
        columns = {name: column(number, members) for name, number in numbers.items()}
        super().__init__([p for p in params if p.requires_grad], columns)
        (group,) = self.param_groups
        self.params: list[nn.Parameter] = group["params"]
        group.update({name: value.to(self.params[0].device) for name, value in columns.items()})
        self.members = members
        self.theta = torch.cat([p.detach().reshape(members, -1) for p in self.params], dim=1)
        self.state["updates"] = torch.zeros((), dtype=torch.float64, device=self.theta.device)
        self.shapes = [p.shape if members == 1 else p.shape[1:] for p in self.params]
        for parameter, view in zip(self.params, self.split(self.theta), strict=True):
            parameter.data = view.view(parameter.shape)
        excluded = {id(parameter) for parameter in undecayed}
        sizes = [(shape.numel(), id(p) not in excluded) for p, shape in zip(self.params, self.shapes, strict=True)]
        mask = [torch.full((1, size), float(decays), dtype=torch.float64) for size, decays in sizes]
        self.decay_mask = torch.cat(mask, dim=1).to(self.theta.device) if excluded else None

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes for copying; torch's method omits those of subclasses."""
        return vars(self).copy()

    def split(self, theta: Tensor) -> list[Tensor]:
        """Split θ, or a tensor of its shape, into views for the parameters, ``(K, …)`` each."""
        parts = theta.split([shape.numel() for shape in self.shapes], dim=1)
        return [part.view(self.members, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def number(self, name: str) -> Tensor:
        """Return the current value of a hyperparameter, ``[K, 1]``, in the parameters' precision."""
        return self.param_groups[0][name].to(self.theta.dtype)

    def decay(self) -> Tensor:
        """Return the weight decay in float64, ``[K, 1]``; ``[K, P]`` if some parameters have none."""
        decay: Tensor = self.param_groups[0]["weight_decay"]
        return decay if self.decay_mask is None else decay * self.decay_mask

    def set_numbers(self, numbers: dict[str, Tensor]) -> None:
        """Set hyperparameters, ``[K, 1]`` each; the tensors before are not changed."""
        device = self.theta.device
        # Waiting for the copies would wait for all steps that were launched on a GPU.
        moved = {name: value.to(device, non_blocking=True) for name, value in numbers.items()}
        self.param_groups[0].update(moved)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update θ in place from the parameters' gradients."""
        loss = value_of(closure)
        self.advance()
        return loss

    @torch.no_grad()
    def advance(self) -> None:
        """Take a step without torch's profiler record and hooks, which cost 3 % of a small net's step."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        self.update(torch.cat([grad.reshape(self.members, -1) for grad in grads], dim=1))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients to None, without torch's profiler record, which costs 5 % of a small net's step."""
        for parameter in self.params:
            parameter.grad = None

    def update(self, grad: Tensor) -> None:
        """Update θ in place; ``grad``, ``[K, P]``, may be overwritten."""
        raise NotImplementedError

    def resume_state(self) -> dict[str, Any]:
        """Return the state besides θ and the hyperparameters, which :meth:`resume_from` takes."""
        return dict(self.state)

    def resume_from(self, state: dict[str, Any]) -> None:
        """Continue from a state, in place: a compiled step reads the same tensors."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])


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
        undecayed: Iterable[nn.Parameter] = (),
    ) -> None:
        numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, members, numbers, undecayed)
        if nesterov and not bool((self.number("momentum") > 0).all()):
            raise ValueError("optimizer.nesterov needs optimizer.momentum > 0")
        self.nesterov = nesterov
        self.state["velocity"] = torch.zeros_like(self.theta)

    def update(self, grad: Tensor) -> None:
        """Update θ by SGD."""
        momentum = self.number("momentum")
        grad.addcmul_(self.theta, self.decay().to(grad.dtype))
        velocity = self.state["velocity"].mul_(momentum).add_(grad)
        direction = grad.addcmul_(velocity, momentum) if self.nesterov else velocity
        self.theta.addcmul_(direction, self.number("lr"), value=-1)


class Adam(StackedOptimizer):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980).

    ``m ← β₁m + (1 − β₁)g``, ``v ← β₂v + (1 − β₂)g²``, ``θ ← θ − η·m̂/(√v̂ + ε)`` with ``m̂ = m/(1 − β₁ᵗ)`` and
    ``v̂ = v/(1 − β₂ᵗ)``; weight decay λ is added to the gradient, ``g ← g + λθ``.

    Args:
        lr: η; betas: β₁ and β₂; eps: ε; weight_decay: λ, by default 0, and 0.01 in AdamW; each a number, or one
            for each member.
    """

    decoupled, default_weight_decay = False, 0.0

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number | None = None,
        members: int = 1,
        undecayed: Iterable[nn.Parameter] = (),
    ) -> None:
        beta1, beta2 = betas
        weight_decay = self.default_weight_decay if weight_decay is None else weight_decay
        numbers = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, members, numbers, undecayed)
        self.state["mean"] = torch.zeros_like(self.theta)
        self.state["square"] = torch.zeros_like(self.theta)
        self.set_numbers({"weight_decay": column(weight_decay, members)})

    def set_numbers(self, numbers: dict[str, Tensor]) -> None:
        """Set hyperparameters, and derive the weights of gradients in the running means."""
        super().set_numbers(numbers)
        if "weight_decay" in numbers:
            self._decays = bool((numbers["weight_decay"].to(self.theta.dtype) != 0).any())
        # 1 − β in float64, since in float32 it would have the rounding error of β.
        group = self.param_groups[0]
        self._gain1, self._gain2 = ((1 - group[beta]).to(self.theta.dtype) for beta in ("beta1", "beta2"))
        self._first, self._ahead = 0, cast("tuple[Tensor, Tensor] | None", None)

    def factors(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``η√(1 − β₂ᵗ)/(1 − β₁ᵗ)`` and ``ε√(1 − β₂ᵗ)``, the step size and ε of update t, ``[…, K, 1]``."""
        group, dtype = self.param_groups[0], self.theta.dtype
        # In float32, 1 − β₂ᵗ would lose four of its seven digits at the first step.
        root = (1 - group["beta2"] ** t).sqrt_()
        step_size = materialized((group["lr"] * root / (1 - group["beta1"] ** t)).to(dtype))
        return step_size, materialized((group["eps"] * root).to(dtype))

    def tabulated_factors(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return :meth:`factors` from a table of several updates: eleven small operations take 8 % of a step."""
        if torch.compiler.is_compiling() or t.device.type != "cpu":
            return self.factors(t)
        now = int(t.item())
        if self._ahead is None or not self._first <= now < self._first + UPDATES_AHEAD:
            self._ahead = self.tabulate(t)
        step_size, eps = self._ahead
        return step_size[now - self._first], eps[now - self._first]

    def tabulate(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the table of :meth:`tabulated_factors` from an update on."""
        self._first = int(first.item())
        self._ahead = self.factors(first + torch.arange(UPDATES_AHEAD, dtype=first.dtype).view(-1, 1, 1))
        return self._ahead

    def resume_state(self) -> dict[str, Any]:
        """Return the state, with the update at which the table of step sizes begins, 0 without a table."""
        return {**super().resume_state(), "table": self._first}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Continue from a state, with the same table: a power may round differently elsewhere in a vector."""
        super().resume_from(state)
        if state["table"]:
            self.tabulate(self.state["updates"].new_tensor(state["table"]))

    def update(self, grad: Tensor) -> None:
        """Update θ by Adam or AdamW."""
        group, theta = self.param_groups[0], self.theta
        updates = self.state["updates"].add_(1)
        if self._decays and self.decoupled:
            theta.mul_((1 - group["lr"] * self.decay()).to(theta.dtype))
        elif self._decays:
            grad.addcmul_(theta, self.decay().to(theta.dtype))
        mean = self.state["mean"].lerp_(grad, self._gain1)
        square = self.state["square"].lerp_(grad.square_(), self._gain2)
        step_size, eps = self.tabulated_factors(updates)
        theta.sub_(torch.div(mean, square.sqrt().add_(eps)).mul_(step_size))


class AdamW(Adam):
    """Adam with decoupled weight decay, ``θ ← θ − ηλθ`` (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    decoupled, default_weight_decay = True, 1e-2


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers of different parameters as one: a step takes a step of each.

    ``param_groups`` are those of all, and the same objects, so that schedulers change the hyperparameters of each.
    ``defaults`` has the hyperparameters that all of them have.

    Args:
        optimizers: of torch; none of them needs a closure.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        first, *others = (optimizer.defaults for optimizer in optimizers)
        common = {name: value for name, value in first.items() if all(name in other for other in others)}
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], common)
        self.share()

    def share(self) -> None:
        """Assign this optimizer's state and parameter groups to the optimizers."""
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.state = self.state
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes for copying; torch's method omits those of subclasses."""
        return vars(self).copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state, for copying and loading."""
        super().__setstate__(state)
        self.share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of each optimizer, and return the value of the closure, which is called once."""
        loss = value_of(closure)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss


class StackedTorch(StackedOptimizer):
    """Any optimizer of torch whose update is elementwise, for all members at once.

    All members have the same hyperparameters, those of ``inner``; :attr:`param_groups` shows the first of them.
    :func:`normlab.population.stacking_check.check_optimizer_stacking` tells whether an optimizer is elementwise.

    Args:
        make: makes the optimizer from parts.
        parts: of the parameters that the optimizer treats differently; by default one of all.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        members: int,
        make: Callable[[Parts], torch.optim.Optimizer],
        parts: Parts | None = None,
    ) -> None:
        params = list(params)
        number = {id(p): i for i, part in enumerate(parts or [params]) for p in part}
        # Those of a part are contiguous columns of θ.
        super().__init__(sorted(params, key=lambda parameter: number[id(parameter)]), members, {})
        self.columns = [0] * len(parts or [params])
        for parameter, shape in zip(self.params, self.shapes, strict=True):
            self.columns[number[id(parameter)]] += shape.numel()
        self.flat = [nn.Parameter(part) for part in self.theta.split(self.columns, dim=1)]
        self.inner = make([[flat] if size else [] for flat, size in zip(self.flat, self.columns, strict=True)])
        self.show_numbers()

    def show_numbers(self) -> None:
        """Copy the hyperparameters of ``inner``."""
        group = self.inner.param_groups[0]
        self.param_groups[0].update({name: value for name, value in group.items() if name != "params"})

    def update(self, grad: Tensor) -> None:
        """Update θ by ``inner``."""
        for flat, part in zip(self.flat, grad.split(self.columns, dim=1), strict=True):
            flat.grad = part
        self.inner.step()

    def resume_state(self) -> dict[str, Any]:
        """Return the state of ``inner``."""
        return self.inner.state_dict()

    def resume_from(self, state: dict[str, Any]) -> None:
        """Continue from a state of ``inner``."""
        self.inner.load_state_dict(state)
        self.show_numbers()


@dataclass(frozen=True)
class Clipping:
    """Gradient clipping of each member, by Euclidean norm or by value.

    Args:
        limit: the largest norm, or the largest absolute entry.
        algorithm: ``norm`` or ``value``.
    """

    limit: float
    algorithm: str = "norm"

    def __call__(self, grad: Tensor) -> Tensor:
        """Return the clipped gradients, ``[K, P]``."""
        if self.algorithm == "value":
            return grad.clamp(-self.limit, self.limit)
        return grad * (self.limit / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)

    def in_place(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clip the ``grad`` of one net's parameters in place."""
        if self.algorithm == "value":
            nn.utils.clip_grad_value_(parameters, self.limit)
        else:
            nn.utils.clip_grad_norm_(parameters, self.limit)
