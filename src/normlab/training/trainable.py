"""Restricts training to some parameters of a net, as ``trainable`` says: :func:`restrict_training`."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlab.data.sampling import derive_seed
from normlab.errors import ConfigError
from normlab.training.parameter_selection import NORM, Select, matching_names, normalizer_names

ALL, RANDOM = "all", "random:"


def restrict_training(net: nn.Module, trainable: str, seed: int) -> nn.Module:
    """Freeze all parameters of a net except those that ``trainable`` selects, and return the net.

    Args:
        net: the net, which is modified; its initial outputs do not change.
        trainable: ``all``; ``norm``, the parameters of normalizers; a regular expression, searched in the
            parameters' names; or one of these after ``random:``, which trains as many random entries of the
            parameters that it does not select and that do not belong to normalizers.
        seed: of the random entries.

    Raises:
        ConfigError: if no parameter is selected, or too few are left to draw from.

    Frankle, Schwab and Morcos (2021), Training BatchNorm and only BatchNorm, arXiv:2003.00152.
    """
    if trainable == ALL:
        return net
    words: dict[str, Select] = {ALL: parameter_names, NORM: normalizer_names}
    names = matching_names(net, [trainable.removeprefix(RANDOM)], "trainable", words)
    if not names:
        raise ConfigError(
            f"trainable={trainable} selects no parameter, as the net's normalizers have none; choose another model"
        )
    parameters = dict(net.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(parameter.requires_grad and name in names)
    if trainable.startswith(RANDOM):
        entries = sum(parameters[name].numel() for name in names)
        others = [name for name in parameters if name not in {*names, *normalizer_names(net)}]
        for name in names:
            parameters[name].requires_grad_(False)
        train_random_entries(net, others, entries, trainable, seed)
    return net


def parameter_names(net: nn.Module) -> set[str]:
    """Return the names of all parameters."""
    return {name for name, _ in net.named_parameters()}


class PartlyTrained(nn.Module):
    """Parametrizes a tensor such that only the entries of a mask are trained; the others keep their initial value.

    Shapes: initial, mask and the parameter have the shape of the tensor.

    Args:
        initial: the values of the entries that are not trained.
        mask: true for the entries that are trained.
    """

    initial: Tensor
    mask: Tensor

    def __init__(self, initial: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("initial", initial)
        self.register_buffer("mask", mask)

    def forward(self, parameter: Tensor) -> Tensor:
        """Return the tensor; the gradient of an entry that is not trained is 0."""
        return torch.where(self.mask, parameter, self.initial)


def train_random_entries(net: nn.Module, names: list[str], entries: int, trainable: str, seed: int) -> None:
    """Train random entries of some parameters, drawn without replacement from all entries alike."""
    tensors = {name: net.get_parameter(name) for name in names}
    sizes = [tensor.numel() for tensor in tensors.values()]
    if entries > sum(sizes):
        raise ConfigError(
            f"trainable={trainable} must select at most as many entries as the other weights have, got {entries} "
            f"and {sum(sizes)}; select fewer parameters"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "trainable"))
    mask = torch.zeros(sum(sizes), dtype=torch.bool)
    mask[torch.randperm(len(mask), generator=generator)[:entries]] = True
    for (name, tensor), part in zip(tensors.items(), mask.split(sizes), strict=True):
        path, _, leaf = name.rpartition(".")
        # Also where no entry was drawn, since members of a population have the same layers.
        masked = PartlyTrained(tensor.detach().clone(), part.view(tensor.shape).clone())
        parametrize.register_parametrization(net.get_submodule(path), leaf, masked)
        net.get_parameter(f"{path}.parametrizations.{leaf}.original".lstrip(".")).requires_grad_(True)
