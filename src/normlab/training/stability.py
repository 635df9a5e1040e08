"""Stability limits of optimizers on a quadratic loss, to compare the sharpness of a loss with.

Along an eigenvector of the Hessian with eigenvalue h every optimizer here follows ``θ_{t+1} = B·θ_t − C·θ_{t−1}``,
and is stable if both roots of ``z² − Bz + C`` are within the unit circle. As h grows, one root leaves it at −1,
where ``1 + B + C = 0``.

Letters: K members, P parameters of a member, η learning rate, μ momentum, λ weight decay.
"""

import torch
from torch import Tensor

from normlab.population.optim import SGD, Adam
from normlab.probes.snapshot import Preconditioning


def stability_limit(optimizer: torch.optim.Optimizer) -> Tensor | None:
    r"""Return the largest stable λmax·η of stochastic gradient descent on a quadratic, ``(K,)``.

    .. math::
        \lambda_{\max}\eta \le 2(1 + \mu) - \eta\lambda \quad\text{(heavy ball)}, \qquad
        \lambda_{\max}\eta \le \frac{2 + 2\mu}{1 + 2\mu} - \eta\lambda \quad\text{(Nesterov)}

    They follow from ``B = 1 + μ − ηh, C = μ`` and ``B = (1 + μ)(1 − ηh), C = μ(1 − ηh)``. Weight decay is added to
    the gradient, so that h is an eigenvalue of H + λI. Other optimizers return None.

    Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge of stability,
    arXiv:2103.00065.
    """
    if not isinstance(optimizer, SGD):
        return None
    numbers = optimizer.param_groups[0]
    lr, momentum, decay = (numbers[name].flatten() for name in ("lr", "momentum", "weight_decay"))
    limit = 2 + 2 * momentum
    if optimizer.nesterov:
        limit = limit / (1 + 2 * momentum)
    return limit - lr * decay


def preconditioning(optimizer: torch.optim.Optimizer) -> Preconditioning | None:
    r"""Return Adam's current preconditioner and its stability limit; None for other optimizers.

    .. math::
        P = (1 - \beta_1^t)\,\mathrm{diag}(\sqrt{\hat v} + \epsilon), \qquad
        \eta\,\lambda_{\max}(P^{-1}(H + \lambda I)) \le \frac{2 + 2\beta_1}{1 - \beta_1}

    The limit follows from ``B = 1 + β₁ − (1 − β₁)ηh/p, C = β₁`` with constant P, and is 38 at β₁ = 0.9. Decoupled
    weight decay (AdamW) multiplies θ by 1 − ηλ and leaves the gradient unchanged:
    ``B = 1 − ηλ + β₁ − (1 − β₁)ηh/p, C = β₁(1 − ηλ)``, and

    .. math:: \eta\,\lambda_{\max}(P^{-1}H) \le (2 - \eta\lambda)\,\frac{1 + \beta_1}{1 - \beta_1}

    P is NaN before the first update.

    Cohen et al. (2022), Adaptive gradient methods at the edge of stability, arXiv:2207.14484.
    """
    if not isinstance(optimizer, Adam):
        return None
    numbers, updates = optimizer.param_groups[0], optimizer.state["updates"]
    root = (optimizer.state["square"].double() / (1 - numbers["beta2"] ** updates)).sqrt()
    diagonal = (1 - numbers["beta1"] ** updates) * (root + numbers["eps"])
    lr, beta1, decay = (numbers[name].flatten() for name in ("lr", "beta1", "weight_decay"))
    shrinkage = lr * decay if optimizer.decoupled else torch.zeros_like(lr)
    coupled = torch.zeros_like(decay) if optimizer.decoupled else decay.clone()
    return Preconditioning(diagonal, coupled, (2 - shrinkage) * (1 + beta1) / (1 - beta1))
