"""Population, a module of K nets of one architecture, and their initialization.

Letters: K members, B samples of a batch, O outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from normlab.data.sampling import derive_seed
from normlab.models.layer_lookup import HookedLayers
from normlab.norms.counter_rng import StochasticLayer
from normlab.population import stacking
from normlab.population.seeding import seeded
from normlab.population.stacking import State


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
        return stacking.forward(self.net, named, x, watch, by_layers=self.by_layers)

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
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
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
