"""An optimizer step of a population as one function of tensors, which can be compiled whole.

Letters: K members, P parameters of a member, B samples of a minibatch; θ ``[K, P]`` all parameters.
"""

import torch
from torch import Tensor

from normlab.population.compiling import Step, agree
from normlab.population.gradients import parts
from normlab.population.optim import Clipping, StackedOptimizer
from normlab.population.population import Population


class PopulationStep:
    """Takes an optimizer step of every member: forward, backward, clipping and update.

    θ is differentiated and updated as a whole; the net's own parameters are views of it.

    Shapes:
        x ``(K, B, …)``, y ``(K, B, …)``; returns the losses before the step, ``(K,)``.
    """

    def __init__(
        self, population: Population, loss: Step, optimizer: StackedOptimizer, clipping: Clipping | None
    ) -> None:
        self.population, self.loss, self.optimizer, self.clipping = population, loss, optimizer, clipping
        place = {id(param): number for number, param in enumerate(optimizer.params)}
        named = population.net.named_parameters()
        self.trained = {name: place[id(param)] for name, param in named if id(param) in place}
        self.fixed = {name: tensor for name, tensor in population.state().items() if name not in self.trained}

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the step."""
        theta = self.optimizer.theta.detach().requires_grad_()
        params = parts(theta, self.optimizer.shapes)
        state = self.fixed | {name: params[number] for name, number in self.trained.items()}
        outputs, _ = self.population.run(state, x)
        losses = self.loss(outputs, y)
        (grad,) = torch.autograd.grad(losses.sum(), theta)
        with torch.no_grad():
            self.optimizer.update(grad if self.clipping is None else self.clipping(grad))
        return losses.detach()

    def agrees_with(self, other: "PopulationStep") -> bool:
        """Return whether buffers and the optimizer's moments equal those of another step, but for rounding.

        The parameters are not compared: Adam turns a gradient that is nothing but rounding into a whole step.
        """
        return all(agree(got, expected) for got, expected in zip(self.tensors(), other.tensors(), strict=True))

    @torch.no_grad()
    def take_over(self, other: "PopulationStep") -> None:
        """Put another step's parameters, buffers and moments in the place of these."""
        self.optimizer.theta.copy_(other.optimizer.theta)
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(theirs)

    def tensors(self) -> list[Tensor]:
        """Return the buffers and the optimizer's state."""
        return [*self.fixed.values(), *self.optimizer.state.values()]
