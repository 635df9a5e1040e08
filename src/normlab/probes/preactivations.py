"""Distribution of the inputs of activations, and its change since the start of training.

Letters: K members, B samples, C units of a layer, n values of a unit: B samples, at every position of an
image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normlab.models.generators import forked_generators
from normlab.models.layer_lookup import call_hooks, mean_std
from normlab.probes.landscape import Params, in_double, side_effect_free_copy, updated_corrections
from normlab.probes.snapshot import Measurement, Probe, Tensors, TrainingSnapshot, map_members

LEVELS = {"q15": 0.15, "q50": 0.50, "q85": 0.85}
"""Quantiles of figure 1 of Ioffe and Szegedy (2015), by name."""


class ActivationInputs(NamedTuple):
    """Values of one unit and moments of all units at the input of an activation.

    Attributes:
        values: inputs of one unit, ``(K, n)``.
        mean, std: moments of each unit, ``(K, C)``; the variance is divided by n − 1.
    """

    values: Tensor
    mean: Tensor
    std: Tensor


def activation_modules(net: nn.Module, layers: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the modules named ``activation``, keyed by their layer, or ``net`` at the top level.

    Raises:
        ValueError: if a layer has no such module; the message lists the layers that do.
    """
    modules = {}
    for name, module in net.named_modules():
        layer, _, slot = name.rpartition(".")
        if slot == "activation":
            modules[layer or "net"] = module
    for layer in layers or ():
        if layer not in modules:
            known = ", ".join(modules) or "none"
            raise ValueError(f"layers must have a module named activation, got {layer}; available: {known}")
    return modules if layers is None else {layer: modules[layer] for layer in layers}


def preactivations(
    net: nn.Module, state: Params, x: Tensor, layers: Sequence[str] | None = None, unit: int = 0
) -> dict[str, ActivationInputs]:
    """Return the inputs of the activations of layers.

    Shapes:
        state ``(K, …)`` by name, parameters and buffers; x ``(K, B, …)``.

    Args:
        net: the architecture, as returned by :func:`normlab.probes.landscape.side_effect_free_copy`.
        state: parameters and buffers of each member.
        x: inputs of each member.
        layers: names of layers, or None for all; see :func:`activation_modules`.
        unit: index of the unit whose values are returned; for images, of the channel.

    Raises:
        ValueError: if the net has no such layer, or the layer no such unit.
    """
    modules = activation_modules(net, layers)

    def of_member(state: Tensors, x: Tensor) -> dict[str, ActivationInputs]:
        inputs: dict[str, ActivationInputs] = {}

        # Inputs are read and cloned before the call, because an activation may modify its input in place.
        def before(layer: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            rows = args[0].movedim(1, 0).flatten(1)
            if unit >= len(rows):
                raise ValueError(f"unit must be below {len(rows)}, the number of {layer}'s units, got {unit}")
            inputs[layer] = ActivationInputs(rows[unit].clone(), *mean_std(rows))

        with call_hooks(modules.items(), before=before):
            functional_call(net, state, (x,))
        return inputs

    # Tensors are cloned, because layers may update their buffers in place.
    copies = {name: tensor.detach().clone() for name, tensor in state.items()}
    with torch.no_grad(), forked_generators(x):
        return map_members(of_member, copies, x)


@dataclass(frozen=True, kw_only=True)
class Preactivations(Probe):
    """Percentiles and moments of the inputs of activations, and their change since the start of training.

    Numbers: ``layer/q15``, ``layer/q50``, ``layer/q85``, ``layer/mean`` and ``layer/std`` of one unit, over the
    data. With μ and σ of each unit, and μ₀ and σ₀ at the start of training on the same data: ``layer/shift``, the
    mean of ``|μ − μ₀| / σ₀`` over units, and ``layer/stretch``, the mean of ``|ln(σ / σ₀)|``; ``shift`` and
    ``stretch`` are their means over layers. Units that are constant, now or at the start, are excluded. A net
    without a module named ``activation`` yields no measurement.

    Args:
        layers: names of the layers to measure; null for all that have a module named ``activation``.
        unit: index of the unit whose percentiles are measured.
        data: ``minibatch`` or ``train``, the inputs of the net.
        double: whether to compute in float64.

    Raises:
        ValueError: if unit is negative; when called, if the net has no such layer or unit.

    Ioffe and Szegedy (2015), Batch Normalization, arXiv:1502.03167, figure 1.
    """

    layers: Sequence[str] | None = None
    unit: int = 0
    data: str = "train"
    double: bool = False
    modes: Sequence[str] = ("batch",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit < 0:
            raise ValueError(f"unit must be 0 or more, got {self.unit}")

    def check(self, net: nn.Module) -> None:
        """Check that the net has the layers.

        Raises:
            ValueError: if a layer has no module named ``activation``.
        """
        activation_modules(net, self.layers)

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield a measurement for each mode."""
        if not activation_modules(snapshot.net, self.layers):
            return
        for mode in self.modes:
            now, start = self.inputs(snapshot, snapshot.before, mode), self.inputs(snapshot, snapshot.start, mode)
            numbers: dict[str, Tensor] = {}
            for layer, inputs in now.items():
                statistics = {**unit_statistics(inputs, self.unit), **unit_drift(inputs, start[layer])}
                numbers |= {f"{layer}/{name}": values for name, values in statistics.items()}
            for name in ("shift", "stretch"):
                numbers[name] = torch.stack([numbers[f"{layer}/{name}"] for layer in now]).mean(0)
            yield Measurement(mode, numbers, headline=("shift", "stretch"))

    def inputs(self, snapshot: TrainingSnapshot, state: Params, mode: str) -> dict[str, ActivationInputs]:
        """Return the inputs of the activations for these parameters and buffers."""
        x = snapshot.data(self.data)[0]
        if self.double:
            state, x = {name: in_double(tensor) for name, tensor in state.items()}, x.double()
        if mode == "batch":
            state = updated_corrections(snapshot.net, {}, state, x)
        return preactivations(
            side_effect_free_copy(snapshot.net, mode, folds=snapshot.folds), state, x, self.layers, self.unit
        )


def unit_statistics(inputs: ActivationInputs, unit: int) -> dict[str, Tensor]:
    """Return percentiles and moments of one unit, ``(K,)`` each."""
    levels = inputs.values.new_tensor(list(LEVELS.values()))
    quantiles = dict(zip(LEVELS, inputs.values.quantile(levels, dim=1), strict=True))
    return {**quantiles, "mean": inputs.mean[:, unit], "std": inputs.std[:, unit]}


def unit_drift(now: ActivationInputs, start: ActivationInputs) -> dict[str, Tensor]:
    """Return the mean change of location and scale of a layer's units since the start, ``(K,)`` each."""
    constant = is_constant_unit(now) | is_constant_unit(start)
    shift, stretch = (now.mean - start.mean).abs() / start.std, (now.std / start.std).log().abs()
    count = (~constant).sum(1)
    return {
        "shift": shift.masked_fill(constant, 0).sum(1) / count,
        "stretch": stretch.masked_fill(constant, 0).sum(1) / count,
    }


def is_constant_unit(inputs: ActivationInputs) -> Tensor:
    """Return a mask of the units whose values differ only by rounding, ``(K, C)``."""
    return inputs.std <= 8 * torch.finfo(inputs.std.dtype).eps * inputs.mean.abs()
