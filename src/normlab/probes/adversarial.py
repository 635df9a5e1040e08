"""Loss and accuracy on adversarial test inputs; the entry is :class:`FastGradientSign`.

Letters: K members, N samples, O outputs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from normlab.data.sampling import Split
from normlab.models.generators import forked_generators
from normlab.probes.landscape import in_double, side_effect_free_copy, updated_corrections
from normlab.probes.snapshot import Measurement, Probe, Tensors, TrainingSnapshot, map_members

Outputs = Callable[[Tensor], Tensor]
"""Maps inputs ``(K, N, …)`` to outputs ``(K, N, O)``."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs ``(K, N, O)`` and targets ``(K, N, …)`` to the loss of each member, ``(K,)``."""


def input_gradient_sign(outputs: Outputs, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
    """Return the sign of the gradient of each member's loss with respect to its inputs, ``(K, N, …)``."""
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(outputs(leaf), y).sum(), leaf, materialize_grads=True)
    return gradient.sign()


@dataclass(frozen=True, kw_only=True)
class FastGradientSign(Probe):
    """Loss and accuracy on the test split under the fast gradient sign attack, ``x + ε·sign(∇ₓL)``.

    L is the loss of the training, at the inputs x and targets of the whole test split. Inputs are in the units
    that the net receives, standardized ones if ``data.standardize`` is set, and are not clipped to their range.

    Numbers: ``loss`` on the unchanged inputs and ``loss_eps0.1`` with ε = 0.1, and so on for each ε; for classes
    also ``acc``, ``acc_eps0.1``, and ``acc_drop_eps0.1``, their difference.

    Args:
        epsilons: the values of ε.
        double: whether to compute in float64.

    Raises:
        ValueError: if epsilons is no list of different finite numbers > 0; when called, if there is no test split.

    Goodfellow et al. (2015), Explaining and Harnessing Adversarial Examples, arXiv:1412.6572.
    """

    epsilons: Sequence[float] = (0.05, 0.1, 0.2)
    double: bool = False
    modes: Sequence[str] = ("frozen",)

    def __post_init__(self) -> None:
        super().__post_init__()
        is_list = isinstance(self.epsilons, Sequence) and not isinstance(self.epsilons, str)
        if not (is_list and self.epsilons):
            raise ValueError(f"epsilons must be a list of numbers, as [0.1], got {self.epsilons}")
        for epsilon in self.epsilons:
            if not (isinstance(epsilon, int | float) and math.isfinite(epsilon) and epsilon > 0):
                raise ValueError(f"epsilons must be finite numbers > 0, got {epsilon}")
        if len({f"{epsilon:g}" for epsilon in self.epsilons}) < len(self.epsilons):
            raise ValueError(f"epsilons must differ in six digits, got {list(self.epsilons)}")

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield a measurement for each mode."""
        x, y = self.test_split(snapshot)
        for mode in self.modes:
            outputs = self.outputs(snapshot, mode, x)
            sign = input_gradient_sign(outputs, snapshot.loss, x, y)
            numbers = scores(outputs(x), y, snapshot.loss)
            clean = numbers.get("acc")
            for epsilon in self.epsilons:
                attacked = scores(outputs(x + epsilon * sign), y, snapshot.loss)
                numbers |= {f"{name}_eps{epsilon:g}": value for name, value in attacked.items()}
                if clean is not None:
                    numbers[f"acc_drop_eps{epsilon:g}"] = clean - attacked["acc"]
            first, attack = ("loss", "loss") if clean is None else ("acc", "acc_drop")
            headline = [first, *(f"{attack}_eps{epsilon:g}" for epsilon in self.epsilons)]
            yield Measurement(mode, numbers, headline=headline)

    def test_split(self, snapshot: TrainingSnapshot) -> Split:
        """Return the test inputs and targets of each member, ``(K, N, …)``.

        Raises:
            ValueError: if the test split is empty.
        """
        if snapshot.test is None:
            raise ValueError("data.test must be at least 1, as the attack is on the test split, got 0")
        x, y = snapshot.test
        x, y = (part.expand(len(snapshot.lr), *part.shape[1:]) for part in (x, y))
        return (in_double(x), in_double(y)) if self.double else (x, y)

    def outputs(self, snapshot: TrainingSnapshot, mode: str, x: Tensor) -> Outputs:
        """Return the nets before the step as a function of inputs; in batch mode, x updates corrections."""
        net = side_effect_free_copy(snapshot.net, mode, folds=snapshot.folds)
        state = {name: tensor.detach() for name, tensor in snapshot.before.items()}
        if self.double:
            state = {name: in_double(tensor) for name, tensor in state.items()}
        if mode == "batch":
            state = dict(updated_corrections(snapshot.net, {}, state, x))

        def of_member(state: Tensors, x: Tensor) -> Tensor:
            return functional_call(net, state, (x,))

        def outputs(x: Tensor) -> Tensor:
            # Clones, because layers may update buffers in place; every pass repeats the same random draws.
            copies = {name: tensor.clone() for name, tensor in state.items()}
            with forked_generators(x):
                return map_members(of_member, copies, x)

        return outputs


def scores(outputs: Tensor, y: Tensor, loss: Loss) -> Tensors:
    """Return loss and, for classes, accuracy of each member, ``(K,)`` each; both NaN if the loss is not finite.

    Shapes:
        outputs ``(K, N, O)``, y ``(K, N, O)`` or class indices ``(K, N)``.
    """
    outputs = outputs.detach()
    losses = loss(outputs, y)
    finite = losses.isfinite()
    values = {"loss": losses}
    if not y.is_floating_point():
        values["acc"] = (outputs.argmax(2) == y).to(losses.dtype).mean(1)
    return {name: torch.where(finite, value, torch.nan) for name, value in values.items()}
