"""Stability limits and equilibrium angles of optimizers: :func:`stability_limit` and :func:`preconditioning`.

The probes compare the sharpness of the loss with them. Along an eigenvector of the Hessian with eigenvalue h every
optimizer here follows ``θ_{t+1} = B·θ_t − C·θ_{t−1}``, and is stable if both roots of ``z² − Bz + C`` are within
the unit circle. As h grows, one root leaves it at −1, where ``1 + B + C = 0``.

Letters: K members, P parameters of a member, η learning rate, μ momentum, λ weight decay.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normlab.population.optim import SGD, Adam
from normlab.probes.snapshot import Preconditioning


def stability_limit(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter] = ()) -> Tensor | None:
    r"""Return the largest stable λmax·η of stochastic gradient descent on a quadratic, ``(K,)``.

    .. math::
        \lambda_{\max}\eta \le 2(1 + \mu) - \eta\lambda \quad\text{(heavy ball)}, \qquad
        \lambda_{\max}\eta \le \frac{2 + 2\mu}{1 + 2\mu} - \eta\lambda \quad\text{(Nesterov)}

    They follow from ``B = 1 + μ − ηh, C = μ`` and ``B = (1 + μ)(1 − ηh), C = μ(1 − ηh)``. Weight decay is added to
    the gradient, so that h is an eigenvalue of H + λI. torch's SGD without dampening is the same; other optimizers
    return None, and so does one that decays only some parameters, which has a limit for H + Λ; see
    :func:`preconditioning`.

    Args:
        optimizer: of the training.
        parameters: that are trained, in the order of θ; by default those of the optimizer.

    Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge of stability,
    arXiv:2103.00065.
    """
    limit, decay = gradient_descent_limit(optimizer), parameter_decay(optimizer, parameters)
    if limit is None or decay.shape[1] > 1:
        return None
    return limit - columns(optimizer.param_groups[0]["lr"]).flatten() * decay.flatten()


def gradient_descent_limit(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Return the largest stable product of η and an eigenvalue of H + λI, ``(K,)``; None for other optimizers."""
    numbers = optimizer.param_groups[0]
    is_sgd = isinstance(optimizer, SGD | torch.optim.SGD) and have_equal_numbers(optimizer)
    if not is_sgd or numbers.get("dampening"):
        return None
    limit = 2 + 2 * columns(numbers["momentum"]).flatten()
    if optimizer.nesterov if isinstance(optimizer, SGD) else numbers["nesterov"]:
        limit = limit / (limit - 1)
    return limit


def equilibrium_angle(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter] = ()) -> Tensor | None:
    r"""Return the angular update per step at which scale-invariant weights settle, ``(K,)``, in radians.

    .. math:: \sqrt{2\eta\lambda / (1 + \mu)}

    It holds for stochastic gradient descent with heavy-ball momentum μ and constant rates, if the gradients on the
    unit sphere are independent and their size does not change. None for other optimizers, and for one that decays
    only some parameters.

    Wan, Zhu, Zhang and Sun (2020), Spherical motion dynamics, arXiv:2006.08419.
    """
    limit, decay = gradient_descent_limit(optimizer), parameter_decay(optimizer, parameters)
    numbers = optimizer.param_groups[0]
    nesterov = optimizer.nesterov if isinstance(optimizer, SGD) else numbers.get("nesterov")
    if limit is None or decay.shape[1] > 1 or nesterov:
        return None
    return (4 * columns(numbers["lr"]).flatten() * decay.flatten() / limit).sqrt()


def preconditioning(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter] = ()
) -> Preconditioning | None:
    r"""Return Adam's current preconditioner and its stability limit; None for other optimizers.

    .. math::
        P = (1 - \beta_1^t)\,\mathrm{diag}(\sqrt{\hat v} + \epsilon), \qquad
        \eta\,\lambda_{\max}(P^{-1}(H + \lambda I)) \le \frac{2 + 2\beta_1}{1 - \beta_1}

    The limit follows from ``B = 1 + β₁ − (1 − β₁)ηh/p, C = β₁`` with constant P, and is 38 at β₁ = 0.9. Decoupled
    weight decay (AdamW) multiplies θ by 1 − ηλ and leaves the gradient unchanged:
    ``B = 1 − ηλ + β₁ − (1 − β₁)ηh/p, C = β₁(1 − ηλ)``, and

    .. math:: \eta\,\lambda_{\max}(P^{-1}H) \le (2 - \eta\lambda)\,\frac{1 + \beta_1}{1 - \beta_1}

    P is NaN before the first update. If only some parameters decay, λI is a diagonal matrix Λ, the factor
    ``1 − ηΛ/2`` is part of AdamW's P, and SGD has a limit for H + Λ, with P = I.

    Args:
        optimizer: of the training.
        parameters: that are trained, in the order of θ; by default those of the optimizer.

    Cohen et al. (2022), Adaptive gradient methods at the edge of stability, arXiv:2207.14484.
    """
    group, decay = optimizer.param_groups[0], parameter_decay(optimizer, parameters)
    if isinstance(optimizer, Adam):
        numbers, decoupled = group, optimizer.decoupled
        square, updates = optimizer.state["square"], optimizer.state["updates"]
    elif isinstance(optimizer, torch.optim.Adam) and not group["amsgrad"] and have_equal_numbers(optimizer):
        beta1, beta2 = group["betas"]
        square, updates = second_moments(optimizer, parameters)
        numbers = {
            name: columns(value).to(square.device)
            for name, value in ({**group, "beta1": beta1, "beta2": beta2}).items()
            if name in ("lr", "beta1", "beta2", "eps")
        }
        decay, decoupled = decay.to(square.device), group["decoupled_weight_decay"]
    else:
        limit = gradient_descent_limit(optimizer)
        partial_decay = limit is not None and decay.shape[1] > 1
        return (
            Preconditioning(torch.ones_like(decay), decay, limit) if partial_decay and limit is not None else None
        )
    root = (square.double() / (1 - numbers["beta2"] ** updates)).sqrt()
    diagonal = (1 - numbers["beta1"] ** updates) * (root + numbers["eps"])
    lr, first = (numbers[name].flatten() for name in ("lr", "beta1"))
    shrinkage = numbers["lr"] * decay if decoupled else torch.zeros_like(numbers["lr"])
    if shrinkage.shape[1] > 1:
        diagonal, shrinkage = diagonal * (1 - shrinkage / 2), torch.zeros_like(numbers["lr"])
    coupled = torch.zeros_like(lr) if decoupled else decay.clone()
    if coupled.shape[-1] == 1:
        coupled = coupled.flatten()
    return Preconditioning(diagonal, coupled, (2 - shrinkage.flatten()) * (1 + first) / (1 - first))


def have_equal_numbers(optimizer: torch.optim.Optimizer) -> bool:
    """Return True if the parameter groups of an optimizer differ in the weight decay at most."""
    first, *others = (
        {name: value for name, value in group.items() if name not in ("params", "weight_decay")}
        for group in optimizer.param_groups
    )
    return all(other == first for other in others)


def parameter_decay(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the weight decay in float64, ``(K, 1)``; that of each entry of θ, ``(K, P)``, if it differs."""
    if isinstance(optimizer, SGD | Adam):
        decay = optimizer.decay()
        return decay[:, :1] if bool((decay == decay[:, :1]).all()) else decay
    groups = [(group.get("weight_decay", 0.0), group["params"]) for group in optimizer.param_groups]
    if len({decay for decay, _ in groups}) == 1:
        return columns(groups[0][0])
    of_parameter = {id(parameter): decay for decay, params in groups for parameter in params}
    entries = [
        torch.full((1, p.numel()), of_parameter.get(id(p), 0.0)).double() for p in parameters or all_of(optimizer)
    ]
    return torch.cat(entries, dim=1)


def all_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the trained parameters of an optimizer."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def columns(number: float | Tensor) -> Tensor:
    """Return a hyperparameter as ``(K, 1)`` in float64; that of one of torch's optimizers is a single number."""
    return torch.as_tensor(number, dtype=torch.float64).reshape(-1, 1)


def second_moments(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """Return the second moments of torch's Adam, ``(1, P)``, and its number of updates."""
    parameters = parameters or all_of(optimizer)
    states = [optimizer.state.get(p, {}) for p in parameters]
    moments = [state.get("exp_avg_sq", torch.zeros_like(p)) for state, p in zip(states, parameters, strict=True)]
    steps = [state["step"] for state in states if state]
    updates = torch.as_tensor(max(steps, default=0), dtype=torch.float64, device=parameters[0].device)
    return torch.cat([moment.reshape(1, -1) for moment in moments], dim=1), updates
