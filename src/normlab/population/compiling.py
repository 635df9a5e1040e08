"""The optimizer step of a population as one function, :class:`PopulationStep`, and its compiled form.

Letters: K members, P parameters of a member, B samples of a minibatch; θ ``[K, P]`` all parameters.
"""

import logging
import time
from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor

from normlab.errors import first_line
from normlab.population.kernels import materialized
from normlab.population.optim import Clipping, StackedOptimizer
from normlab.population.population import Population
from normlab.population.resources import is_out_of_memory

StepFunction = Callable[[Tensor, Tensor], Tensor]
log = logging.getLogger("normlab")
VERIFIED_STEPS = 2
"""Number of compiled steps of each batch size that are compared with uncompiled ones."""
RECOMPILED = "a later step was recompiled, for example because a layer changes its Python state at every step"


class PopulationStep:
    """Takes an optimizer step of every member: forward, backward, clipping and update.

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
        """Take the step on a minibatch."""
        # Inductor fuses the loops that read a parameter only if it is contiguous, which a part of θ is not.
        parts = self.optimizer.split(self.optimizer.theta.detach())
        params = [materialized(part.contiguous()).requires_grad_() for part in parts]
        state = self.fixed | {name: params[number] for name, number in self.trained.items()}
        outputs, _ = self.population.run(state, x)
        losses = self.loss(outputs, y)
        grads = torch.autograd.grad(losses.sum(), params, materialize_grads=True)
        with torch.no_grad():
            grad = torch.cat([grad.reshape(len(grad), -1) for grad in grads], dim=1)
            self.optimizer.update(grad if self.clipping is None else self.clipping(grad))
        return losses.detach()

    def agrees_with(self, other: "PopulationStep") -> bool:
        """Return True if buffers and optimizer state equal those of another step up to rounding.

        Parameters are not compared, since Adam scales a gradient of pure rounding error to a full step.
        """
        return all(agree(got, expected) for got, expected in zip(self.tensors(), other.tensors(), strict=True))

    @torch.no_grad()
    def copy_state_from(self, other: "PopulationStep") -> None:
        """Copy parameters, buffers and optimizer state from another step."""
        self.optimizer.theta.copy_(other.optimizer.theta)
        for target, source in zip(self.tensors(), other.tensors(), strict=True):
            target.copy_(source)

    def tensors(self) -> list[Tensor]:
        """Return the buffers and the optimizer's state."""
        return [*self.fixed.values(), *self.optimizer.state.values()]


class Compiled:
    """Takes compiled steps for the given batch sizes, and uncompiled steps for all others.

    Each batch size is compiled at its first minibatch; Inductor caches the code on disk. The first two steps of
    each size are also taken uncompiled, on a copy, and compared, because code is compiled for the Python state
    that a layer has at that time. If compilation fails, the steps differ, or a later step is recompiled, a warning
    is logged and training continues uncompiled.

    Attributes:
        verified: number of steps of each size that were compared.
        warmed_up: number of steps of each size that were taken first without a comparison, in a resumed training.
        seconds: wall-clock time of compiling, including the first two steps of each size.
    """

    def __init__(self, step: "PopulationStep", uncompiled: StepFunction, sizes: Iterable[int]) -> None:
        # Variants compiled for earlier populations would count against the recompile limit.
        torch.compiler.reset()
        self.step = step
        self.compiled_step: StepFunction = torch.compile(step, dynamic=False, fullgraph=True)
        self.uncompiled = uncompiled
        self.sizes = set(sizes)
        self.verified = dict.fromkeys(self.sizes, 0)
        self.warmed_up = dict.fromkeys(self.sizes, VERIFIED_STEPS)
        self.seconds = 0.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the step on a minibatch."""
        size = x.shape[1]
        if size not in self.sizes:
            return self.uncompiled(x, y)
        try:
            if self.verified[size] < VERIFIED_STEPS:
                return self.verify(x, y)
            if self.warmed_up[size] < VERIFIED_STEPS:
                return self.warm_up(x, y)
            return self.take_compiled(x, y)
        except Exception as error:  # Dynamo, Inductor and the C++ compiler raise many types
            if is_out_of_memory(error):
                raise
            # Autograd is traced in the first steps only: a later compilation fails before any state changes.
            begins = min(self.verified[size], self.warmed_up[size]) < VERIFIED_STEPS
            self.fall_back(first_line(error) if begins else RECOMPILED)
            return self.uncompiled(x, y)

    def take_compiled(self, x: Tensor, y: Tensor) -> Tensor:
        """Take a step with code that was verified; fall back to uncompiled steps if it was recompiled."""
        graphs, started = compiled_graph_count(), time.perf_counter()
        losses = self.compiled_step(x, y)
        if compiled_graph_count() > graphs:
            self.seconds += time.perf_counter() - started
            self.fall_back(RECOMPILED)
        return losses

    def verify(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the step compiled, and uncompiled on a copy; if they differ, keep the uncompiled result."""
        started = time.perf_counter()
        try:
            copy = deepcopy(self.step)
            expected = copy(x, y)
            with torch._dynamo.config.patch(trace_autograd_ops=True):
                losses = self.compiled_step(x, y)
        finally:
            self.seconds += time.perf_counter() - started
        if not self.step.agrees_with(copy) or not agree(losses, expected):
            self.step.copy_state_from(copy)
            self.fall_back("the compiled step differs from the uncompiled one")
            return expected
        self.verified[x.shape[1]] += 1
        return losses

    def warm_up(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the step compiled; an earlier process has verified steps of this size.

        A comparison could have another outcome than in the training before, where later steps are not compared.
        """
        started = time.perf_counter()
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            losses = self.compiled_step(x, y)
        self.seconds += time.perf_counter() - started
        self.warmed_up[x.shape[1]] += 1
        return losses

    def resume_state(self) -> dict[int, int]:
        """Return the number of steps of each compiled size that were verified; empty once it fell back."""
        return {size: self.verified[size] for size in self.sizes}

    def resume_from(self, state: dict[int, int]) -> None:
        """Continue from a state of another process."""
        self.sizes = set(state)
        self.verified.update(state)
        self.warmed_up = {size: 0 if steps == VERIFIED_STEPS else VERIFIED_STEPS for size, steps in state.items()}

    def fall_back(self, reason: str) -> None:
        """Log a warning, and take only uncompiled steps from now on."""
        log.warning("trainer.compile: %s; training continues uncompiled", reason)
        self.sizes.clear()


def compiled_graph_count() -> int:
    """Return the number of graphs that Dynamo has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def agree(got: Tensor, expected: Tensor) -> bool:
    """Return True if tensors of a compiled and an uncompiled step are equal up to rounding."""
    return all_close(got, expected, 1e-6 if expected.dtype is torch.float64 else 1e-2)


def all_close(got: Tensor, expected: Tensor, tolerance: float, least: float = 0.0) -> bool:
    """Return True if tensors are equal up to ``tolerance``, relative to their largest entry or ``least``.

    Integers must be equal.
    """
    if got.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(got, expected)
    finite = expected[expected.isfinite()]
    size = max(float(finite.abs().max()) if finite.numel() else 0.0, least)
    return torch.allclose(got, expected, rtol=tolerance, atol=tolerance * size, equal_nan=True)
