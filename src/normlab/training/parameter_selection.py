"""Selects parameters of a net for ``optimizer.no_decay``, :func:`undecayed_names`, and ``optimizer.groups``,
:func:`group_names`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from torch import nn

from normlab.errors import ConfigError
from normlab.models.layer_lookup import normalizer_slots, scale_invariant_weights

NORM, BIAS, HIDDEN, SCALE_DEPENDENT = "norm", "bias", "hidden", "scale_dependent"
Select = Callable[[nn.Module], set[str]]
"""Selects parameters of a net by name."""


def undecayed_names(net: nn.Module, entries: Sequence[str]) -> list[str]:
    """Return the names of the parameters that ``optimizer.no_decay`` takes out of weight decay.

    Args:
        net: the net.
        entries: ``norm``, the parameters of normalizers; ``bias``, all biases; ``scale_dependent``, all except
            :func:`scale_invariant_weights`; others are regular expressions, searched in the parameters' names.

    Raises:
        ConfigError: for a regular expression that is malformed, or found in no name.
    """
    words: dict[str, Select] = {
        NORM: normalizer_names,
        BIAS: bias_names,
        SCALE_DEPENDENT: scale_dependent_names,
    }
    return matching_names(net, entries, "optimizer.no_decay", words)


def group_names(net: nn.Module, entries: Sequence[str], key: str, members: int = 1) -> list[str]:
    """Return the names of the parameters that the entry ``match`` of one of ``optimizer.groups`` selects.

    ``hidden`` are the weight matrices of all layers except the first and the last; see :func:`hidden_matrices`.

    Args:
        net: the net.
        entries: ``norm``, ``bias``, ``hidden`` or regular expressions, as of :func:`undecayed_names`.
        key: of the entries, for messages.
        members: of the parameters.
    """
    words: dict[str, Select] = {
        NORM: normalizer_names,
        BIAS: bias_names,
        HIDDEN: partial(hidden_matrices, members=members),
    }
    return matching_names(net, entries, key, words)


def matching_names(net: nn.Module, entries: Sequence[str], key: str, words: Mapping[str, Select]) -> list[str]:
    """Return the names of the parameters that words select, or in which a regular expression is found."""
    names = [name for name, _ in net.named_parameters()]
    chosen: set[str] = set()
    for entry in entries:
        chosen |= words[entry](net) if entry in words else searched(names, entry, key, words)
    return [name for name in names if name in chosen]


def searched(names: Sequence[str], expression: str, key: str, words: Iterable[str]) -> set[str]:
    """Return the names in which a regular expression is found."""
    try:
        found = {name for name in names if re.search(expression, name) or re.search(expression, plain(name))}
    except re.error as error:
        raise ConfigError(f"{key}: {expression} is no regular expression: {error}") from error
    if not found:
        raise ConfigError(
            f"{key} must be {', '.join(words)} or a part of a parameter's name, got {expression}; "
            f"the net has {', '.join(names)}"
        )
    return found


def bias_names(net: nn.Module) -> set[str]:
    """Return the names of all biases."""
    return {name for name, _ in net.named_parameters() if plain(name).rpartition(".")[2] == "bias"}


def plain(name: str) -> str:
    """Return the name that the original of a parametrized tensor had before; other names are unchanged.

    >>> plain("hidden1.linear.parametrizations.bias.original"), plain("output.bias")
    ('hidden1.linear.bias', 'output.bias')
    """
    return re.sub(r"parametrizations\.(\w+)\.original$", r"\1", name)


def normalizer_names(net: nn.Module) -> set[str]:
    """Return the names of the parameters of normalizers."""
    layers = {id(parameter) for _, layer in normalizer_slots(net) for parameter in layer.parameters()}
    return {name for name, parameter in net.named_parameters() if id(parameter) in layers}


def scale_dependent_names(net: nn.Module) -> set[str]:
    """Return the names of all parameters except scale-invariant weights."""
    return {name for name, _ in net.named_parameters()} - scale_invariant_weights(net)


def hidden_matrices(net: nn.Module, members: int = 1) -> set[str]:
    """Return the names of the weight matrices of all layers with weights, except the first and the last layer.

    The layers are in the order in which the net registers them. Kernels of convolutions are no matrices, and nor
    are the lengths ``(outputs, 1)`` of weight normalization.
    """
    norms, by_layer = normalizer_names(net), dict[str, list[str]]()
    shapes = {name: p.shape[1:] if members > 1 else p.shape for name, p in net.named_parameters()}
    for name, shape in shapes.items():
        if name not in norms and len(shape) > 1:
            layer = re.sub(r"\.?(parametrizations\.\w+\.)?\w+$", "", name)
            by_layer.setdefault(layer, []).append(name)
    inner = list(by_layer.values())[1:-1]
    return {name for names in inner for name in names if len(shapes[name]) == 2 and min(shapes[name]) > 1}
