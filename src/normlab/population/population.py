"""Population, a module of K nets of one architecture: their initialization, state and forward pass.

Any net runs under ``torch.func.vmap``. In a sequence of layers, each layer that has a stacked form in
:mod:`normlab.population.kernels` uses that instead: a few large operations for all members are faster.

Letters: K members, B samples of a batch, D features, O outputs. Between stacked layers the batch is the last axis,
``[K, D, B]``.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from normlab.data.sampling import derive_seed
from normlab.models.generators import forked_generators
from normlab.models.layer_lookup import HookedLayers, calls_forward_alone
from normlab.norms.counter_rng import StochasticLayer
from normlab.population import State
from normlab.population.kernels import stacked_form


def seed_globally(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python.

    NumPy's generator gets the lower 32 bits of the seed, the most it accepts.
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - user code draws from the global generator
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context manager that seeds the global generators, and restores them on exit."""
    numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        seed_globally(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)


def initial_nets(make_net: Callable[[], nn.Module], seeds: Sequence[int]) -> list[nn.Module]:
    """Make a net for each seed, with weights drawn as after ``torch.manual_seed(seed)``.

    The global generators of NumPy and Python are seeded as well, and all are restored afterwards. The key of a
    stochastic layer is derived from seed and layer name, so that the other layers do not affect it.
    """
    nets = []
    for seed in seeds:
        with seeded(seed):
            net = make_net()
        for name, layer in net.named_modules():
            if isinstance(layer, StochasticLayer):
                layer.seed(derive_seed(seed, "draws", name))
        nets.append(net)
    return nets


class Population(nn.Module):
    """K nets of one architecture; member k maps ``x[k]`` with its own parameters.

    For K > 1 parameters and buffers are stacked along a leading axis. At K = 1 the net itself is called.

    Attributes:
        by_layers: whether layers with a stacked form use it; otherwise the whole net is vmapped.
        aliases: further names of tied parameters and buffers, each mapped to the first name.

    Shapes:
        ``(K, B, …)`` to ``(K, B, O)``.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = len(nets)
        self.net = nets[0]
        self.by_layers = True
        self.aliases = aliases_of(self.net)
        if self.members > 1:
            self._stack(list(nets))

    def _stack(self, nets: list[nn.Module]) -> None:
        """Replace the first net's tensors by the stacked tensors of all nets."""
        params, buffers = stack_module_state(nets)
        stacked = {
            **{
                name: nn.Parameter(tensor.detach(), requires_grad=self.net.get_parameter(name).requires_grad)
                for name, tensor in params.items()
            },
            **buffers,
        }
        for name, first in [*((name, name) for name in stacked), *self.aliases.items()]:
            replace(self.net, name, stacked[first])

    def forward(self, x: Tensor) -> Tensor:
        """Return every member's outputs."""
        if self.members == 1:
            return self.net(x.squeeze(0)).unsqueeze(0)
        return self.run(self.state(), x)[0]

    def run(self, state: State, x: Tensor, watch: HookedLayers | None = None) -> tuple[Tensor, State]:
        """Return every member's outputs with the given state, and the measurements of ``watch``."""
        # Running statistics are missing from the state in evaluation by batch statistics.
        others = {name: state[first] for name, first in self.aliases.items() if first in state}
        named = state | others if others else state
        return stacked_forward(self.net, named, x, watch, by_layers=self.by_layers)

    def observe(self, x: Tensor, watch: HookedLayers) -> tuple[Tensor, State]:
        """Return every member's outputs and the measurements of watched layers, ``(K, …)`` each."""
        if self.members > 1:
            return self.run(self.state(), x, watch)
        outputs, seen = watch.observe(lambda: self.net(x.squeeze(0)))
        return outputs.unsqueeze(0), {layer: numbers.unsqueeze(0) for layer, numbers in seen.items()}

    def state(self) -> State:
        """Return parameters and buffers by their first name, ``(K, …)`` each, without copying."""
        # ``state_dict`` is slower, and omits non-persistent buffers.
        return {
            name: tensor if self.members > 1 else tensor.unsqueeze(0)
            for name, tensor in tensors_of(self.net)
            if name not in self.aliases
        }

    @torch.no_grad()
    def initialize_layers(self, x: Tensor) -> None:
        """Initialize layers that depend on the first minibatch, before a step is compiled.

        Other parameters, buffers and random generators do not change.
        """
        waiting = {name for name, layer in self.net.named_modules() if getattr(layer, "needs_init", False)}
        if not waiting:
            return
        before = copy_of(self)
        with forked_generators(x):
            self(x)
        initialized = {name: tensor for name, tensor in self.state().items() if name.rpartition(".")[0] in waiting}
        self.load_state(before | initialized)

    def member_net(self, k: int) -> nn.Module:
        """Return a copy of member k as a plain net."""
        net = deepcopy(self.net)
        if self.members == 1:
            return net
        own = {
            name: nn.Parameter(tensor[k].detach().clone(), requires_grad=tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else tensor[k].detach().clone()
            for name, tensor in self.state().items()
        }
        for name, first in [*((name, name) for name in own), *self.aliases.items()]:
            replace(net, name, own[first])
        return net

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """Copy parameters and buffers, ``(K, …)`` each, into the population in place."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def member(self, k: int, state: State | None = None) -> State:
        """Return the ``state_dict`` of member k's net, from ``state`` or from the current state."""
        stacked = self.state() if state is None else state
        first = {name: self.aliases.get(name, name) for name in self.net.state_dict()}
        return {
            # The extra state of a layer (``get_extra_state``) is not stacked.
            name: stacked[first[name]][k].detach().clone() if first[name] in stacked else value
            for name, value in self.net.state_dict().items()
        }


def tensors_of(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a net's parameters and buffers with their names; tied ones once for each name."""
    for path, layer in net.named_modules(remove_duplicate=False):
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def aliases_of(net: nn.Module) -> dict[str, str]:
    """Return the further names of tied parameters and buffers, each mapped to the first name."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors_of(net)}
    return {name: original for name, original in names.items() if name != original}


def replace(net: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace the parameter or buffer with this name by a tensor."""
    path, _, leaf = name.rpartition(".")
    owner = net.get_submodule(path)
    tensors: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
    tensors[leaf] = tensor


def copy_of(population: Population) -> State:
    """Return a copy of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in population.state().items()}


def state_on_cpu(state: State) -> State:
    """Return parameters and buffers on the CPU, where a file of them can be read on any machine."""
    return {name: tensor.detach().cpu() for name, tensor in state.items()}


def run_vmapped(layer: nn.Module, state: State, x: Tensor, watch: HookedLayers | None) -> tuple[Tensor, State]:
    """Run a layer under vmap, ``(K, B, …)`` to ``(K, B, …)``, and return outputs and measurements."""
    # ``functional_call`` accepts only one name per tied tensor, and replaces it under all names.
    unique = {id(tensor): name for name, tensor in reversed(state.items())}
    own = {name: state[name] for name in unique.values()} if len(unique) < len(state) else state
    return vmap(partial(run_member, layer, watch), randomness="different")(own, x)


def run_member(layer: nn.Module, watch: HookedLayers | None, state: State, x: Tensor) -> tuple[Tensor, State]:
    """Run a layer for one member, and return outputs and measurements."""
    if watch is None:
        return functional_call(layer, state, (x,)), {}
    return watch.within(layer).observe(lambda: functional_call(layer, state, (x,)))


def layers_of(net: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield names and layers of nested sequences in call order; any other net is a single layer.

    A layer that occurs in a sequence twice is yielded twice.
    """
    if type(net).forward is not nn.Sequential.forward or not calls_forward_alone(net):
        yield path, net
        return
    # ``named_children`` omits repeated layers.
    for name, child in net._modules.items():
        if child is not None:
            yield from layers_of(child, f"{path}.{name}" if path else name)


def stacked_forward(
    net: nn.Module, state: State, x: Tensor, watch: HookedLayers | None = None, *, by_layers: bool = True
) -> tuple[Tensor, State]:
    """Return every member's outputs, and the measurements of watched layers.

    Args:
        net: the architecture.
        state: parameters and buffers under all of their names, ``(K, …)`` each.
        x: inputs, ``(K, B, …)``.
        watch: the layers to measure, and the measurement.
        by_layers: whether layers with a stacked form use it; otherwise the whole net is vmapped.

    Returns:
        outputs, ``(K, B, O)``, and measurements, ``(K, …)`` for each watched layer.
    """
    if not by_layers:
        return run_vmapped(net, state, x, watch)
    features_first = False
    seen: State = {}
    names = {id(layer): name for name, layer in watch.layers.items()} if watch else {}
    for path, layer in layers_of(net):
        prefix = f"{path}." if path else ""
        own = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
        form = stacked_form(layer) if x.dim() == 3 else None
        if features_first != (form is not None):
            # A product with a non-contiguous matrix may take twice as long.
            x, features_first = x.transpose(1, 2).contiguous(), form is not None
        if form is None:
            x, within = run_vmapped(layer, own, x, watch)
            seen |= within
            continue
        y = form(layer, own, x)
        if watch and id(layer) in names:
            seen[names[id(layer)]] = watch.measure(layer, x, y, 1)
        x = y
    return x.transpose(1, 2) if features_first else x, seen
