"""Checks on a given net that training in a population equals separate training.

Stacking replaces some layers by a stacked form with a gradient written by hand, and runs others under vmap.
:func:`check_stacking` trains two nets for two steps as a population and separately, and compares them.

Letters: K members, B samples, O outputs.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from normlab.data.sampling import Split
from normlab.errors import first_line, user_line
from normlab.models.layer_lookup import normalizers
from normlab.population import State
from normlab.population.compiling import PopulationStep, all_close
from normlab.population.evaluation import Task
from normlab.population.optim import SGD, StackedTorch
from normlab.population.population import Population

MakeNets = Callable[[torch.dtype], list[nn.Module]]

CHECK_SEEDS = [0, 1]
CHECK_STEPS = 2
STEP_LENGTH = 1e-3
"""Norm of a step, relative to the norm of the parameters."""

ZERO_GRADIENT = 1e-6
"""A gradient below this share of the largest one counts as rounding error."""

RULES = "to be stacked, a layer must compute with tensors alone and change its buffers in place"
LOSS, GRADIENT = "the loss", "the gradient of "

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest relative difference that counts as rounding error, by precision."""


@dataclass(frozen=True)
class Stacking:
    """The way in which runs with one population key can be stacked.

    Attributes:
        unstackable_reason: the reason to train them one by one; None if they can share a population.
        vmap_reason: the reason to vmap the net as a whole; None if it is stacked layer by layer.
        draws_globally: whether layers draw from torch's global generator, so that random numbers of a member
            differ from those of a run trained alone.
    """

    unstackable_reason: str | None = None
    vmap_reason: str | None = None
    draws_globally: bool = False


StepResult = State
"""Losses before a step ``(K,)``, gradients, buffers after it, and outputs in evaluation mode, by a description."""


def check_stacking(make_nets: MakeNets, task: Task, minibatches: Sequence[Split], dtype: torch.dtype) -> Stacking:
    """Train two nets for two steps, stacked and separately, and return their stacking.

    The comparison is in float64, or in the training precision if the net fails in float64.

    Args:
        make_nets: makes the two nets in a given dtype.
        task: provides the loss.
        minibatches: inputs and targets of each step, ``(2, B, …)``.
        dtype: of the training.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            return compare_stackings(make_nets, task, minibatches, torch.float64)
        except Exception as error:  # the net itself may support only one precision
            if dtype is torch.float64:
                return Stacking(unstackable_reason=reason_of(error))
        try:
            return compare_stackings(make_nets, task, minibatches, dtype)
        except Exception as error:
            return Stacking(unstackable_reason=reason_of(error))


def compare_stackings(
    make_nets: MakeNets, task: Task, minibatches: Sequence[Split], dtype: torch.dtype
) -> Stacking:
    """Compare stacking layer by layer, then vmap of the whole net, with separate training.

    Raises:
        Exception: any error of a net that is called on its own.
    """
    minibatches = [(cast_floating(x, dtype), cast_floating(y, dtype)) for x, y in minibatches]
    nets = make_nets(dtype)
    generator_states, torch_state = global_generator_states(), torch.get_rng_state()
    separate, rates = train_separately(nets, task, minibatches, training=True)
    if global_generator_states() != generator_states:
        return Stacking("it draws from Python's or NumPy's generator: all members would get the same numbers")
    draws_globally = not torch.equal(torch.get_rng_state(), torch_state)
    if draws_globally:
        separate, rates = train_separately(make_nets(dtype), task, minibatches, training=False)
    reasons: list[str] = []
    for by_layers in (True, False):
        population = Population(make_nets(dtype))
        population.by_layers = by_layers
        try:
            stacked = train_stacked(population, task, minibatches, rates, training=not draws_globally)
            reason = first_difference(stacked, separate, TOLERANCES[dtype])
            if reason is not None or draws_globally:
                reason = (
                    lost_buffer(Population(make_nets(dtype)), make_nets(dtype)[0], minibatches[0][0]) or reason
                )
        except Exception as error:  # layers may raise any error under vmap
            reason = reason_of(error)
        if reason is None:
            return Stacking(None, reasons[0] if reasons else None, draws_globally)
        reasons.append(reason)
    return Stacking(f"{reasons[1]}; {RULES}", None, draws_globally)


def check_optimizer_stacking(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], *, matrices: bool = False
) -> str | None:
    """Return a reason if an optimizer does not train stacked members as each alone; None if it does.

    Three steps of two members with gradients of unequal scale, in float64.

    Args:
        make: makes the optimizer.
        matrices: whether it trains matrices only.
    """
    shapes = [(6, 5), (4, 6)] if matrices else [(6, 5), (6,), (4, 6)]
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[Tensor]:
        return [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in shapes]

    start, scale = draw(), torch.tensor([1.0, 100.0], dtype=torch.float64)
    gradients = [[g * scale.view(2, *[1] * (g.dim() - 1)) for g in draw()] for _ in range(3)]
    together = [nn.Parameter(tensor.clone()) for tensor in start]
    alone = [[nn.Parameter(tensor[k].clone()) for tensor in start] for k in range(2)]
    try:
        optimizers = [StackedTorch(together, 2, lambda parts: make(parts[0])), *(make(params) for params in alone)]
        for step in gradients:
            for parameters, member in ((together, slice(None)), (alone[0], 0), (alone[1], 1)):
                for parameter, gradient in zip(parameters, step, strict=True):
                    parameter.grad = gradient[member].clone()
            for optimizer in optimizers:
                optimizer.step()
    except Exception as error:  # an optimizer may refuse the shape of the stacked parameters
        return reason_of(error)
    pairs = zip(together, *alone, strict=True)
    equal = all(all_close(both.detach(), torch.stack([a, b]).detach(), 1e-9) for both, a, b in pairs)
    return None if equal else "its step of a parameter depends on the other parameters and members"


def reason_of(error: Exception) -> str:
    """Return the first sentence of an error message, with the user's line; some of torch's have ten lines."""
    return f"{first_line(error).partition('. ')[0]}{user_line(error)}"


def global_generator_states() -> tuple:
    """Return the states of Python's and NumPy's global generators, in a comparable form."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - layers use the global one
    return random.getstate(), kind, np.asarray(keys).tobytes(), rest


def cast_floating(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a floating-point tensor to another precision; integers are unchanged."""
    return x.to(dtype) if x.is_floating_point() else x


def train_separately(
    nets: Sequence[nn.Module], task: Task, minibatches: Sequence[Split], *, training: bool
) -> tuple[list[StepResult], list[float]]:
    """Train each net separately by gradient descent.

    Args:
        training: whether the nets are in training mode.

    Returns:
        The result of each step, and the learning rate of each net.
    """
    if training:
        for net, x in zip(nets, minibatches[0][0], strict=True):
            Population([net.train()]).initialize_layers(x.unsqueeze(0))
    results, rates = list[StepResult](), list[float]()
    for x, y in minibatches:
        losses, gradients = [], []
        for k, net in enumerate(nets):
            trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
            loss = task.loss(net.train(training)(x[k]).unsqueeze(0), y[k : k + 1])
            grads = torch.autograd.grad(loss.sum(), list(trained.values()), materialize_grads=True)
            rates += [learning_rate(trained.values(), grads)] if len(rates) <= k else []
            with torch.no_grad():
                for parameter, grad in zip(trained.values(), grads, strict=True):
                    parameter.sub_(rates[k] * grad)
            losses.append(loss.detach())
            gradients.append(dict(zip(trained, grads, strict=True)))
        buffers = [{name: buffer.clone() for name, buffer in net.named_buffers()} for net in nets]
        with torch.no_grad():
            outputs = torch.stack([net.eval()(x[k]) for k, net in enumerate(nets)])
        results.append(describe(torch.cat(losses), stack_states(gradients), stack_states(buffers), outputs))
    return results, rates


def train_stacked(
    population: Population, task: Task, minibatches: Sequence[Split], rates: list[float], *, training: bool
) -> Iterator[StepResult]:
    """Train a population with :class:`PopulationStep`, and yield the result of each step."""
    net, watch = population.net, normalizers(population.net)
    if training:
        population.train().initialize_layers(minibatches[0][0])
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    optimizer = SGD(population.parameters(), lr=rates, members=len(rates))
    step = PopulationStep(population, task.loss, optimizer, None)
    for x, y in minibatches:
        population.train(training)
        losses = step(x, y)
        # Without momentum the velocity is the gradient.
        gradients = dict(zip(names, optimizer.split(optimizer.state["velocity"]), strict=True))
        buffers = {name: tensor.clone() for name, tensor in population.state().items() if name not in names}
        with torch.no_grad():
            outputs, _ = population.eval().observe(x, watch)
        yield describe(losses, gradients, buffers, outputs)


def describe(losses: Tensor, gradients: State, buffers: State, outputs: Tensor) -> StepResult:
    """Return the result of a step; a difference in the first entries explains one in the later ones."""
    return {
        LOSS: losses,
        **{f"{GRADIENT}{name}": gradient.clone() for name, gradient in gradients.items()},
        **{f"the buffer {name}": buffer for name, buffer in buffers.items()},
        "the output in evaluation mode": outputs,
    }


def learning_rate(parameters: Iterable[Tensor], gradients: Iterable[Tensor]) -> float:
    """Return the learning rate of a step with the relative length ``STEP_LENGTH``."""
    length, grad_norm = (
        math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))
        for tensors in (parameters, gradients)
    )
    return STEP_LENGTH * length / grad_norm if grad_norm > 0 else STEP_LENGTH


def first_difference(
    stacked: Iterable[StepResult], separate: Sequence[StepResult], tolerance: float
) -> str | None:
    """Return a description of the first difference between stacked and separate training, or None."""
    for number, (got, expected) in enumerate(zip(stacked, separate, strict=True), start=1):
        gradients = [values for name, values in expected.items() if name.startswith(GRADIENT)]
        largest = max((float(gradient.abs().max()) for gradient in gradients), default=0.0)
        for name, values in expected.items():
            least = ZERO_GRADIENT * largest if name.startswith(GRADIENT) else 0.0
            # The population's state has only the first name of a tied buffer.
            if name in got and not all_close(got[name], values, tolerance, least):
                differs = f"is {got[name][0]:.6g} instead of {values[0]:.6g}" if name == LOSS else "differs"
                return f"stacking changes step {number}: {name} {differs}"
    return None


@torch.no_grad()
def lost_buffer(population: Population, net: nn.Module, x: Tensor) -> str | None:
    """Return a reason if a minibatch changes a buffer of a net, but not of the population; None otherwise."""
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net.train()(x[0])
    population.train()(x)
    state = population.state()
    for name, buffer in net.named_buffers():
        if not torch.equal(buffer, before[name]) and name in state and torch.equal(state[name][0], before[name]):
            return f"{name} is reassigned in training; update it in place, for example with copy_()"
    return None


def stack_states(states: Sequence[State]) -> State:
    """Stack the states of several nets, by name."""
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}
