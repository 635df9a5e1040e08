"""An optimizer step of a population as one function of tensors, which can be compiled whole.

Letters: K members, P parameters of a member, B samples of a minibatch; θ ``[K, P]`` all parameters.
"""

import torch
from torch import Tensor

from normlab.training import stacking
from normlab.training.compiling import Step
from normlab.training.gradients import parts
from normlab.training.optim import StackedOptimizer, clipped
from normlab.training.population import Population


class PopulationStep:
    """Takes an optimizer step of every member: forward, backward, clipping and update.

    θ is differentiated and updated as a whole; the net's own parameters are views of it.

    Shapes:
        x ``(K, B, …)``, y ``(K, B, …)``; returns the losses before the step, ``(K,)``.
    """

    def __init__(
        self, population: Population, loss: Step, optimizer: StackedOptimizer, max_norm: float | None
    ) -> None:
        self.net, self.loss, self.optimizer, self.max_norm = population.net, loss, optimizer, max_norm
        place = {id(param): number for number, param in enumerate(optimizer.params)}
        named = dict(self.net.named_parameters(remove_duplicate=False))
        self.trained = {name: place[id(param)] for name, param in named.items() if id(param) in place}
        self.fixed = {name: tensor for name, tensor in population.state().items() if name not in self.trained}

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the step."""
        theta = self.optimizer.theta.detach().requires_grad_()
        params = parts(theta, self.optimizer.shapes)
        state = self.fixed | {name: params[number] for name, number in self.trained.items()}
        outputs, _ = stacking.forward(self.net, state, x)
        losses = self.loss(outputs, y)
        (grad,) = torch.autograd.grad(losses.sum(), theta)
        with torch.no_grad():
            self.optimizer.update(grad if self.max_norm is None else clipped(grad, self.max_norm))
        return losses.detach()
