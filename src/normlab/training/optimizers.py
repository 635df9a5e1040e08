"""Makes the optimizers of runs from the node ``optimizer``, which may have ``groups``.

:func:`optimizer_maker` makes that of a population, :class:`TorchOptimizer` those of torch.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import get_object
from torch import nn

from normlab.config.frozen import FrozenConfig
from normlab.config.schema import SELECTIONS
from normlab.config.validation import parameters_of
from normlab.errors import ConfigError, prefix_errors, require
from normlab.population.optim import CombinedOptimizer, Parts, StackedOptimizer, StackedTorch
from normlab.training.instantiate import make, require_arguments, require_instance
from normlab.training.parameter_selection import BIAS, HIDDEN, NORM, group_names, undecayed_names

MakeOptimizer = Callable[..., torch.optim.Optimizer]


def is_stacked(node: Mapping[Any, Any], base: type) -> bool:
    """Return True if an optimizer node has one number for each member: its ``_target_`` derives from ``base``.

    With ``groups``, several optimizers of torch train the parameters.
    """
    target = get_object(node["_target_"]) if node.get("_target_") and not node.get("groups") else None
    return inspect.isclass(target) and issubclass(target, base)


def per_member_arguments(nodes: Sequence[FrozenConfig]) -> dict[str, list]:
    """Return the arguments that differ between members, each as a list of the members' values.

    An argument that is a list, such as ``betas``, becomes a list with the members' values of each entry.
    """
    differing = {}
    for key in map(str, nodes[0]):
        values = [node[key] for node in nodes]
        if any(value != values[0] for value in values):
            lists = all(isinstance(value, list) for value in values)
            differing[key] = [list(entries) for entries in zip(*values, strict=True)] if lists else values
    return differing


def without_selection(node: Mapping[str, Any]) -> FrozenConfig:
    """Return an optimizer node without the keys that select parameters, which are no arguments of its target."""
    return FrozenConfig.of({key: value for key, value in node.items() if key not in (*SELECTIONS, "match")})


def torch_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node of an optimizer, with torch's class of the same name for a stacked one."""
    if not is_stacked(node, StackedOptimizer):
        return {**node, "_partial_": True}
    named = {key: value for key, value in node.items() if value is not None}
    return {**named, "_target_": f"torch.optim.{node['_target_'].rpartition('.')[2]}", "_partial_": True}


def optimizer_maker(nodes: Sequence[FrozenConfig]) -> MakeOptimizer:
    """Return a function that makes the optimizer from a net, whose parameters have K members, and K."""
    entries = nodes[0].get("no_decay") or []
    if is_stacked(nodes[0], StackedOptimizer):
        plain = [without_selection(node) for node in nodes]
        partial, numbers = make(plain[0]), per_member_arguments(plain)

        def stacked(net: nn.Module, members: int) -> torch.optim.Optimizer:
            names = set(undecayed_names(net, entries))
            undecayed = [parameter for name, parameter in net.named_parameters() if name in names]
            return partial(net.parameters(), members=members, undecayed=undecayed, **numbers)

        return stacked
    factory = TorchOptimizer(nodes[0])

    def of_torch(net: nn.Module, members: int) -> torch.optim.Optimizer:
        parts = factory.parts(net, members)
        return (
            factory.make(parts) if members == 1 else StackedTorch(net.parameters(), members, factory.make, parts)
        )

    return of_torch


@dataclass(frozen=True)
class OptimizerGroup:
    """An optimizer of some parameters.

    Attributes:
        key: of its node.
        node: its ``_target_`` with arguments.
        match: entries that select its parameters; empty for the optimizer of all others.
    """

    key: str
    node: FrozenConfig
    match: Sequence[str] = ()

    @property
    def may_be_empty(self) -> bool:
        """Whether it may have no parameter: nets without normalizers or biases are arms of a comparison."""
        return all(entry in (NORM, BIAS) for entry in self.match)

    @property
    def decays(self) -> bool:
        """Whether its optimizer has weight decay."""
        return "weight_decay" in parameters_of(self.key, self.node["_target_"])


def optimizer_groups(node: Mapping[str, Any]) -> list[OptimizerGroup]:
    """Return the optimizer of an ``optimizer`` node, then those of its ``groups``.

    A group without a ``_target_`` has that of ``optimizer``, with its arguments where the group has none.
    """
    rest = without_selection(node)
    groups = [OptimizerGroup("optimizer", rest)]
    for name, group in (node.get("groups") or {}).items():
        arguments = without_selection(group)
        own = arguments if "_target_" in group else FrozenConfig.of({**rest, **arguments})
        groups.append(OptimizerGroup(f"optimizer.groups.{name}", own, group["match"]))
    return groups


class TorchOptimizer:
    """Makes torch's optimizer of a net: of all parameters, or one for each of ``optimizer.groups``.

    Raises:
        ConfigError: if an optimizer lacks an argument, or ``no_decay`` has no effect.
    """

    def __init__(self, node: Mapping[str, Any]) -> None:
        self.no_decay: Sequence[str] = node.get("no_decay") or ()
        self.groups = optimizer_groups(node)
        for group in self.groups:
            require_arguments(group.key, group.node, 1)
        if self.no_decay and not any(group.decays for group in self.groups):
            targets = ", ".join(group.node["_target_"] for group in self.groups)
            raise ConfigError(f"optimizer.no_decay has no effect: {targets} has no weight_decay; remove it")
        self.partials = [make(torch_node(group.node)) for group in self.groups]

    @property
    def selects(self) -> bool:
        """Whether it treats some parameters of a net differently."""
        return len(self.groups) > 1 or bool(self.no_decay)

    def parts(self, net: nn.Module, members: int = 1) -> Parts:
        """Return for each optimizer the parameters with weight decay, and those without.

        Args:
            net: the net.
            members: of its parameters.

        Raises:
            ConfigError: if an optimizer has no parameter, or two have the same one.
        """
        undecayed = set(undecayed_names(net, self.no_decay))
        owner: dict[str, int] = {}
        for number, group in enumerate(self.groups[1:], start=1):
            key = f"{group.key}.match"
            names = group_names(net, group.match, key, members)
            if not (names or group.may_be_empty):
                raise_unmatched(net, key, group.match)
            for name in names:
                if name in owner:
                    both = f"{self.groups[owner[name]].key}.match and {key}"
                    raise ConfigError(f"{both} must select different parameters, but both select {name}")
                owner[name] = number
        parts: Parts = [[] for _ in range(2 * len(self.groups))]
        for name, parameter in net.named_parameters():
            parts[2 * owner.get(name, 0) + (name in undecayed)].append(parameter)
        if self.groups[1:]:
            target = f"optimizer._target_={self.groups[0].node['_target_']}"
            expected = f"some parameters to {target}"
            require(bool(parts[0] or parts[1]), "optimizer.groups", f"such that they leave {expected}", "all")
        return parts

    def make(self, parts: Parts) -> torch.optim.Optimizer:
        """Return the optimizer of these parts; see :meth:`parts`."""
        optimizers = []
        for group, partial, *pair in zip(self.groups, self.partials, parts[::2], parts[1::2], strict=True):
            decayed, undecayed = pair if group.decays else ([*pair[0], *pair[1]], [])
            if not (decayed or undecayed):
                continue
            kinds: list[dict[str, Any]] = [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]
            with prefix_errors(group.key):
                made = partial([kind for kind in kinds if kind["params"]] if undecayed else decayed)
            optimizers.append(require_instance(group.key, group.node, torch.optim.Optimizer, made))
            if self.groups[1:] and needs_closure(optimizers[-1]):
                target = group.node["_target_"]
                raise ConfigError(f"{group.key}: {target} needs a closure, so it must train all parameters")
        return optimizers[0] if len(optimizers) == 1 else CombinedOptimizer(optimizers)

    def of(self, parameters: Iterable[nn.Parameter], net: nn.Module | None) -> torch.optim.Optimizer:
        """Return the optimizer of some parameters; those that do not belong to the net are not selected.

        Raises:
            ConfigError: if parameters are selected, but there is no net.
        """
        given = list(parameters)
        if not self.selects:
            return self.make([given, []])
        if net is None:
            key = "optimizer.no_decay" if self.no_decay else "optimizer.groups"
            raise ConfigError(f"{key} has no effect: the module takes no net; remove it")
        wanted, parts = {id(parameter) for parameter in given}, self.parts(net)
        inside = {id(parameter) for part in parts for parameter in part}
        parts = [[parameter for parameter in part if id(parameter) in wanted] for part in parts]
        parts[0] += [parameter for parameter in given if id(parameter) not in inside]
        return self.make(parts)


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return True if the step of an optimizer has a required closure."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def example_optimizer(node: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return the optimizer of a node for dummy parameters, one for each of its groups."""
    if is_stacked(node, StackedOptimizer):
        with prefix_errors("optimizer"):
            return optimizer_maker([without_selection(node)])(nn.Linear(2, 2, bias=False), 1)
    factory = TorchOptimizer({key: value for key, value in node.items() if key != "no_decay"})
    dummies = [[nn.Parameter(torch.zeros(2, 2))] for _ in factory.groups]
    return factory.make([part for dummy in dummies for part in (dummy, [])])


def raise_unmatched(net: nn.Module, key: str, match: Sequence[str]) -> None:
    """Raise ConfigError for a group that selects no parameter of a net."""
    hint = f"{HIDDEN} are the weight matrices of all layers except the first and the last; use a deeper net; "
    hint *= HIDDEN in match
    names = ", ".join(name for name, _ in net.named_parameters())
    raise ConfigError(f"{key} must select a parameter, got {', '.join(match)}; {hint}the net has {names}")
