"""Selects the parameters that ``optimizer.no_decay`` takes out of weight decay: :func:`undecayed_names`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from normlab.config.frozen import FrozenConfig
from normlab.errors import ConfigError
from normlab.models.layer_lookup import normalizer_slots

NORM, BIAS = "norm", "bias"


def undecayed_names(net: nn.Module, entries: Sequence[str]) -> list[str]:
    """Return the names of the parameters that ``optimizer.no_decay`` names.

    Args:
        net: the net.
        entries: ``norm``, the parameters of normalizers; ``bias``, all biases; others are regular expressions,
            searched in the parameters' names.

    Raises:
        ConfigError: for a regular expression that is malformed, or found in no name.
    """
    names = [name for name, _ in net.named_parameters()]
    layers = {id(parameter) for _, layer in normalizer_slots(net) for parameter in layer.parameters()}
    chosen = {name for name, parameter in net.named_parameters() if NORM in entries and id(parameter) in layers}
    chosen |= {name for name in names if BIAS in entries and name.rpartition(".")[2] == BIAS}
    for entry in entries:
        if entry in (NORM, BIAS):
            continue
        try:
            found = {name for name in names if re.search(entry, name)}
        except re.error as error:
            raise ConfigError(f"optimizer.no_decay: {entry} is no regular expression: {error}") from error
        if not found:
            raise ConfigError(
                f"optimizer.no_decay must be norm, bias or a part of a parameter's name, got {entry}; "
                f"the net has {', '.join(names)}"
            )
        chosen |= found
    return [name for name in names if name in chosen]


def without_no_decay(node: Mapping[str, Any]) -> FrozenConfig:
    """Return the node of an optimizer without ``no_decay``, which is no argument of its ``_target_``."""
    return FrozenConfig.of({key: value for key, value in node.items() if key != "no_decay"})


def split_by_decay(net: nn.Module, entries: Sequence[str]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters with weight decay, and those without, as ``optimizer.no_decay`` says."""
    without = set(undecayed_names(net, entries))
    named = list(net.named_parameters())
    return [p for name, p in named if name not in without], [p for name, p in named if name in without]


def decay_groups(net: nn.Module, entries: Sequence[str]) -> Any:
    """Return the parameters of a net for an optimizer of torch, in two groups if some have no weight decay."""
    if not entries:
        return list(net.parameters())
    decayed, undecayed = split_by_decay(net, entries)
    groups: list[Mapping[str, Any]] = [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
