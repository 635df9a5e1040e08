"""K nets that differ only in their numbers, trained as one.

Letters: K members, B samples of a batch, O outputs.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from normlab.data.order import stream
from normlab.norms.draws import Drawing
from normlab.probes.slots import Watch
from normlab.training import stacking
from normlab.training.stacking import State


def initial_nets(make_net: Callable[[], nn.Module], seeds: Sequence[int]) -> list[nn.Module]:
    """Return a net for each seed, its weights drawn as after ``torch.manual_seed(seed)``.

    Layers that draw in training have a key for each seed and name, whatever else the net holds.
    """
    nets = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = make_net()
        for name, layer in net.named_modules():
            if isinstance(layer, Drawing):
                layer.seed(stream(seed, "draws", name))
        nets.append(net)
    return nets


class Population(nn.Module):
    """K nets of one architecture; member k sees ``x[k]`` with its own parameters.

    At K = 1 the net is called as it is. For K > 1 its parameters and buffers are stacked along a leading axis.

    Shapes:
        ``(K, B, …)`` to ``(K, B, O)``.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = len(nets)
        self.net = nets[0]
        if self.members > 1:
            self._stack(list(nets))

    def _stack(self, nets: list[nn.Module]) -> None:
        """Put the stacked numbers in the place of the first net's."""
        params, buffers = stack_module_state(nets)
        for name, stacked in (params | buffers).items():
            path, _, leaf = name.rpartition(".")
            owner = self.net.get_submodule(path)
            if name in params:
                trains = self.net.get_parameter(name).requires_grad
                owner.register_parameter(leaf, nn.Parameter(stacked.detach(), requires_grad=trains))
            else:
                owner.register_buffer(leaf, stacked, persistent=leaf not in owner._non_persistent_buffers_set)

    def forward(self, x: Tensor) -> Tensor:
        """Return every member's outputs."""
        if self.members == 1:
            return self.net(x.squeeze(0)).unsqueeze(0)
        return stacking.forward(self.net, self.state(), x)[0]

    def observe(self, x: Tensor, watch: Watch) -> tuple[Tensor, State]:
        """Return every member's outputs and what is measured meanwhile, ``(K, …)`` for each layer watched."""
        if self.members > 1:
            return stacking.forward(self.net, self.state(), x, watch)
        outputs, seen = watch.observe(lambda: self.net(x.squeeze(0)))
        return outputs.unsqueeze(0), {layer: numbers.unsqueeze(0) for layer, numbers in seen.items()}

    def state(self) -> State:
        """Return parameters and buffers by name, ``(K, …)`` each, sharing memory with the population."""
        # ``state_dict`` takes longer, and leaves some buffers out.
        return {
            f"{path}.{name}" if path else name: tensor if self.members > 1 else tensor.unsqueeze(0)
            for path, layer in self.net.named_modules(remove_duplicate=False)
            for name, tensor in (*layer._parameters.items(), *layer._buffers.items())
            if tensor is not None
        }

    def alone(self, k: int) -> nn.Module:
        """Return member k's net as one that does not know of others, a copy."""
        net, state = deepcopy(self.net), self.state()
        for name, tensor in state.items() if self.members > 1 else ():
            path, _, leaf = name.rpartition(".")
            owner, own = net.get_submodule(path), tensor[k].detach().clone()
            if leaf in owner._buffers:
                owner._buffers[leaf] = own
            else:
                owner.register_parameter(leaf, nn.Parameter(own, requires_grad=tensor.requires_grad))
        return net

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """Copy parameters and buffers, ``(K, …)`` each, into the population."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def member(self, k: int, state: State | None = None) -> State:
        """Return the ``state_dict`` of member k's net alone, out of ``state`` or as it is now."""
        stacked = self.state() if state is None else state
        return {
            # What a layer adds to its ``state_dict`` by itself has no members.
            name: stacked[name][k].detach().clone() if name in stacked else value
            for name, value in self.net.state_dict().items()
        }


def copy_of(population: Population) -> State:
    """Return a copy of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in population.state().items()}
