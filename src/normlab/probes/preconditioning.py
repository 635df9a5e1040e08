"""The preconditioner of an adaptive optimizer, as probes see it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Preconditioning:
    """A preconditioner P, with which an optimizer descends along ``P⁻¹(∇f + λθ)``.

    Shapes:
        K members, P parameters of a member: diagonal ``(K, P)``, decay and limit ``(K,)``, in float64.

    Attributes:
        diagonal: of P, NaN before the optimizer's first update.
        decay: λ, weight decay that is part of the gradient.
        limit: the largest ``η·λmax(P⁻¹(H + λI))`` at which the optimizer is stable on a quadratic.
    """

    diagonal: Tensor
    decay: Tensor
    limit: Tensor
