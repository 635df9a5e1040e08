"""The preconditioner of an adaptive optimizer, which probes of curvature use."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Preconditioning:
    """A diagonal preconditioner P of an optimizer whose steps are along ``P⁻¹(∇f + λθ)``.

    Shapes:
        K members, P parameters of a member: diagonal ``(K, P)``, decay and limit ``(K,)``, in float64.

    Attributes:
        diagonal: the diagonal of P, NaN before the first update of the optimizer.
        decay: λ, the weight decay that is added to the gradient.
        limit: the largest ``η·λmax(P⁻¹(H + λI))`` at which the optimizer is stable on a quadratic.
    """

    diagonal: Tensor
    decay: Tensor
    limit: Tensor
