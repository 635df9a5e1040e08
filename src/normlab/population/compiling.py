"""The optimizer step of a population as one function of tensors, and its compiled form.

Letters: K members, P parameters of a member, B samples of a minibatch; θ ``[K, P]`` all parameters.
"""

import logging
import time
from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor

from normlab.errors import first_line
from normlab.population.gradients import parts
from normlab.population.hardware import is_out_of_memory
from normlab.population.optim import Clipping, StackedOptimizer
from normlab.population.population import Population

StepFunction = Callable[[Tensor, Tensor], Tensor]
log = logging.getLogger("normlab")
PROVEN = 2
"""Steps of each size that are compared with uncompiled ones."""
AGAIN = "a later step had to be compiled again, as where a layer changes its Python state at every step"


class PopulationStep:
    """Takes an optimizer step of every member: forward, backward, clipping and update.

    θ is differentiated and updated as a whole; the net's own parameters are views of it.

    Shapes:
        x ``(K, B, …)``, y ``(K, B, …)``; returns the losses before the step, ``(K,)``.
    """

    def __init__(
        self, population: Population, loss: StepFunction, optimizer: StackedOptimizer, clipping: Clipping | None
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


class Compiled:
    """A step in one compiled piece for minibatches of certain sizes, and another step for those of other sizes.

    Compiled code is for one size of its tensors; it is made when the first minibatch of a size comes, and kept on
    disk by Inductor. The first two steps of each size are also taken uncompiled, on a copy, and compared: code is
    compiled for the Python state that a layer has at the time. Where compiling fails, the steps differ, or a later
    step has to be compiled again, this is logged and the training goes on with the uncompiled step.

    Attributes:
        seconds: the time that compiling took, with the first two steps of each size.
    """

    def __init__(self, step: "PopulationStep", uncompiled: StepFunction, sizes: Iterable[int]) -> None:
        # What earlier populations left would count against the limit of variants that one function may have.
        torch.compiler.reset()
        self.step = step
        self.whole: StepFunction = torch.compile(step, dynamic=False, fullgraph=True)
        self.uncompiled = uncompiled
        self.sizes = set(sizes)
        self.proven = dict.fromkeys(self.sizes, 0)
        self.seconds = 0.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the step."""
        size = x.shape[1]
        if size not in self.sizes:
            return self.uncompiled(x, y)
        try:
            if self.proven[size] < PROVEN:
                return self.prove(x, y)
            return self.ordinary(x, y)
        except Exception as error:  # whatever Dynamo, Inductor and the C++ compiler may raise
            if is_out_of_memory(error):
                raise
            # Autograd is traced in the first steps alone, so that compiling a later one fails before it acts.
            self.give_up(first_line(error) if self.proven[size] < PROVEN else AGAIN)
            return self.uncompiled(x, y)

    def ordinary(self, x: Tensor, y: Tensor) -> Tensor:
        """Take a step that has been compiled, and give up where it was compiled again."""
        compiled, started = graphs_compiled(), time.perf_counter()
        losses = self.whole(x, y)
        if graphs_compiled() > compiled:
            self.seconds += time.perf_counter() - started
            self.give_up(AGAIN)
        return losses

    def prove(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the step compiled, and on a copy uncompiled; where they differ, keep what is uncompiled."""
        started = time.perf_counter()
        try:
            copy = deepcopy(self.step)
            expected = copy(x, y)
            with torch._dynamo.config.patch(trace_autograd_ops=True):
                losses = self.whole(x, y)
        finally:
            self.seconds += time.perf_counter() - started
        if not self.step.agrees_with(copy) or not agree(losses, expected):
            self.step.take_over(copy)
            self.give_up("the compiled step computes something else")
            return expected
        self.proven[x.shape[1]] += 1
        return losses

    def give_up(self, reason: str) -> None:
        """Go on uncompiled, and log why."""
        log.warning("trainer.compile: %s; the training goes on uncompiled", reason)
        self.sizes.clear()


def graphs_compiled() -> int:
    """Return how many graphs Dynamo has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def agree(got: Tensor, expected: Tensor) -> bool:
    """Return whether the tensors of a compiled step are those of an uncompiled one but for rounding."""
    return close(got, expected, 1e-6 if expected.dtype is torch.float64 else 1e-2)


def close(got: Tensor, expected: Tensor, tolerance: float, least: float = 0.0) -> bool:
    """Return whether tensors are equal but for rounding, relative to their largest entry or ``least``.

    Whole numbers must be the same.
    """
    if got.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(got, expected)
    finite = expected[expected.isfinite()]
    size = max(float(finite.abs().max()) if finite.numel() else 0.0, least)
    return torch.allclose(got, expected, rtol=tolerance, atol=tolerance * size, equal_nan=True)
