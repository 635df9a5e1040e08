"""Proof, on the net at hand, that a population computes what its nets compute alone.

Stacking takes a net apart: some layers have a stacked form with a gradient written by hand, others are vmapped.
:func:`check_stacking` trains two nets for two steps as a population and each called as it is, and compares.

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
from normlab.errors import first_line
from normlab.models.layer_lookup import normalizers
from normlab.population.compiling import PopulationStep, close
from normlab.population.optim import SGD
from normlab.population.population import Population
from normlab.population.stacking import State
from normlab.population.tasks import Task

MakeNets = Callable[[torch.dtype], list[nn.Module]]

CHECK_SEEDS = [0, 1]
CHECK_STEPS = 2
MOVED = 1e-3
"""The length of a step, as a share of the length of the parameters."""

ZERO = 1e-6
"""Below this share of the largest gradient, a gradient counts as zero but for rounding."""

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
"""The largest relative difference that is rounding, in each precision."""


@dataclass(frozen=True)
class Stacking:
    """How runs of one shape can be trained together.

    Attributes:
        refused: why they are trained one by one; None if they can share a population.
        whole: why the net is vmapped as a whole; None if it is stacked layer by layer.
        draws_globally: whether layers draw from torch's global generator, so that a member draws other numbers
            than the run alone.
    """

    refused: str | None = None
    whole: str | None = None
    draws_globally: bool = False


@dataclass(frozen=True)
class StepResult:
    """One step of K nets: what the step saw, and what it left.

    Attributes:
        losses: before the step, ``(K,)``.
        gradients: of the loss by parameters, ``(K, …)`` each.
        buffers: after the step, ``(K, …)`` each.
        outputs: in evaluation mode after the step, ``(K, B, O)``.
    """

    losses: Tensor
    gradients: State
    buffers: State
    outputs: Tensor


def check_stacking(make_nets: MakeNets, task: Task, minibatches: Sequence[Split], dtype: torch.dtype) -> Stacking:
    """Train two nets for two steps, together and apart, and return how nets of this kind can be stacked.

    Both are compared in float64, and in the precision of the training where a net accepts that alone.

    Args:
        make_nets: makes the two nets in a given precision.
        task: the loss that they are trained with.
        minibatches: inputs and targets of each step, ``(2, B, …)``.
        dtype: the precision of the training.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            return compare_stackings(make_nets, task, minibatches, torch.float64)
        except Exception as error:  # of the net alone: it may take one precision only
            if dtype is torch.float64:
                return Stacking(refused=reason_of(error))
        try:
            return compare_stackings(make_nets, task, minibatches, dtype)
        except Exception as error:
            return Stacking(refused=reason_of(error))


def compare_stackings(
    make_nets: MakeNets, task: Task, minibatches: Sequence[Split], dtype: torch.dtype
) -> Stacking:
    """Return how nets can be stacked: layer by layer, else vmapped as a whole, else not at all.

    Raises:
        Exception: what a net raises that is called as it is.
    """
    minibatches = [(cast_floating(x, dtype), cast_floating(y, dtype)) for x, y in minibatches]
    nets = make_nets(dtype)
    drawn, drawn_by_torch = generators(), torch.get_rng_state()
    apart, rates = steps_apart(nets, task, minibatches, training=True)
    if generators() != drawn:
        return Stacking(refused="it draws from Python's or NumPy's generator, which has no number for each member")
    draws_globally = not torch.equal(torch.get_rng_state(), drawn_by_torch)
    if draws_globally:
        apart, rates = steps_apart(make_nets(dtype), task, minibatches, training=False)
    reasons: list[str] = []
    for by_layers in (True, False):
        population = Population(make_nets(dtype))
        population.by_layers = by_layers
        try:
            together = steps_together(population, task, minibatches, rates, training=not draws_globally)
            reason = first_difference(together, apart, TOLERANCES[dtype])
            if reason is not None or draws_globally:
                reason = (
                    lost_buffer(Population(make_nets(dtype)), make_nets(dtype)[0], minibatches[0][0]) or reason
                )
        except Exception as error:  # whatever a net or a layer from anywhere may raise under vmap
            reason = reason_of(error)
        if reason is None:
            return Stacking(None, reasons[0] if reasons else None, draws_globally)
        reasons.append(reason)
    return Stacking(reasons[1], None, draws_globally)


def reason_of(error: Exception) -> str:
    """Return the first sentence of what torch says of an error; some of its messages go on for ten lines."""
    return first_line(error).partition(". ")[0]


def generators() -> tuple:
    """Return the states of Python's and NumPy's global generators."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one is what layers use
    return random.getstate(), kind, np.asarray(keys).tobytes(), rest


def cast_floating(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another precision; whole numbers stay as they are."""
    return x.to(dtype) if x.is_floating_point() else x


def steps_apart(
    nets: Sequence[nn.Module], task: Task, minibatches: Sequence[Split], *, training: bool
) -> tuple[list[StepResult], list[float]]:
    """Train each net by gradient descent, called as it is.

    Returns:
        the result of each step, and the learning rate of each net.
    """
    if training:
        for net, x in zip(nets, minibatches[0][0], strict=True):
            Population([net.train()]).begin(x.unsqueeze(0))
    results, rates = [], list[float]()
    for x, y in minibatches:
        losses, gradients = [], []
        for k, net in enumerate(nets):
            trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
            loss = task.loss(net.train(training)(x[k]).unsqueeze(0), y[k : k + 1])
            slopes = torch.autograd.grad(loss.sum(), list(trained.values()), materialize_grads=True)
            rates += [rate(trained.values(), slopes)] if len(rates) <= k else []
            with torch.no_grad():
                for parameter, slope in zip(trained.values(), slopes, strict=True):
                    parameter.sub_(rates[k] * slope)
            losses.append(loss.detach())
            gradients.append(dict(zip(trained, slopes, strict=True)))
        buffers = [{name: buffer.clone() for name, buffer in net.named_buffers()} for net in nets]
        with torch.no_grad():
            outputs = torch.stack([net.eval()(x[k]) for k, net in enumerate(nets)])
        results.append(StepResult(torch.cat(losses), stack_states(gradients), stack_states(buffers), outputs))
    return results, rates


def steps_together(
    population: Population, task: Task, minibatches: Sequence[Split], rates: list[float], *, training: bool
) -> Iterator[StepResult]:
    """Train a population by the step that a training takes, and yield the result of each step."""
    net, watch = population.net, normalizers(population.net)
    if training:
        population.train().begin(minibatches[0][0])
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    optimizer = SGD(population.parameters(), lr=rates, members=len(rates))
    step = PopulationStep(population, task.loss, optimizer, None)
    for x, y in minibatches:
        population.train(training)
        losses = step(x, y)
        # Without momentum the velocity is the gradient.
        parts = optimizer.state["velocity"].split([shape.numel() for shape in optimizer.shapes], dim=1)
        gradients = {
            name: part.reshape(len(rates), *shape)
            for name, part, shape in zip(names, parts, optimizer.shapes, strict=True)
        }
        buffers = {name: tensor.clone() for name, tensor in population.state().items() if name not in names}
        with torch.no_grad():
            outputs, _ = population.eval().observe(x, watch)
        yield StepResult(losses, {name: part.clone() for name, part in gradients.items()}, buffers, outputs)


def rate(parameters: Iterable[Tensor], gradients: Iterable[Tensor]) -> float:
    """Return the learning rate with which a step has the length that is wanted."""
    length, slope = (
        math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))
        for tensors in (parameters, gradients)
    )
    return MOVED * length / slope if slope > 0 else MOVED


def first_difference(together: Iterable[StepResult], apart: Sequence[StepResult], tolerance: float) -> str | None:
    """Return where a population departs from its nets first, None if nowhere."""
    for number, (got, expected) in enumerate(zip(together, apart, strict=True), start=1):
        at = f"in step {number} as a population"
        if not close(got.losses, expected.losses, tolerance):
            return f"{at} the loss is {got.losses[0]:.6g}, and {expected.losses[0]:.6g} alone"
        largest = max((float(slope.abs().max()) for slope in expected.gradients.values()), default=0.0)
        for name, slope in expected.gradients.items():
            if not close(got.gradients[name], slope, tolerance, ZERO * largest):
                return f"{at} {name} has another gradient than alone"
        for name, buffer in expected.buffers.items():
            # The other names of a buffer that has several are not in the population's state.
            if name in got.buffers and not close(got.buffers[name], buffer, tolerance):
                return f"{at} the buffer {name} is not the one alone"
        if not close(got.outputs, expected.outputs, tolerance):
            return f"{at} the outputs in evaluation mode are not those alone"
    return None


@torch.no_grad()
def lost_buffer(population: Population, net: nn.Module, x: Tensor) -> str | None:
    """Return a reason if a minibatch moves a buffer in a net alone, but not in a population of its like."""
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net.train()(x[0])
    population.train()(x)
    state = population.state()
    for name, buffer in net.named_buffers():
        if not torch.equal(buffer, before[name]) and name in state and torch.equal(state[name][0], before[name]):
            return f"{name} is assigned in training; it must be changed in place"
    return None


def stack_states(states: Sequence[State]) -> State:
    """Return tensors of several nets, by their names, stacked."""
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}
