"""How the distribution of what goes into the activations moves through training.

Letters: K members, B samples, C units of a layer, n numbers of a unit: the samples, at every position of an
image.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from normlab.models.layer_lookup import mean_std
from normlab.probes.landscape import Params, in_double
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot, corrected, side_effect_free_copy

LEVELS = {"q15": 0.15, "q50": 0.50, "q85": 0.85}
"""The quantiles of Ioffe's figure, by what they are called."""


class Inputs(NamedTuple):
    """What goes into one activation.

    Attributes:
        values: of one unit, ``(K, n)``.
        mean, std: of each unit, ``(K, C)``, the standard deviation divided by n − 1.
    """

    values: Tensor
    mean: Tensor
    std: Tensor


def activation_modules(net: nn.Module, layers: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the modules called ``activation`` by the layer that each is in, ``net`` if in none.

    Raises:
        ValueError: for a layer without one, with the list of those with one.
    """
    places = {}
    for name, module in net.named_modules():
        layer, _, slot = name.rpartition(".")
        if slot == "activation":
            places[layer or "net"] = module
    for layer in layers or ():
        if layer not in places:
            known = ", ".join(places) or "none"
            raise ValueError(f"layers: there is no {layer} with a module activation; the net has {known}")
    return places if layers is None else {layer: places[layer] for layer in layers}


def preactivations(
    net: nn.Module, state: Params, x: Tensor, layers: Sequence[str] | None = None, unit: int = 0
) -> dict[str, Inputs]:
    """Return the inputs of the activations of layers, after the normalizer where it comes before.

    Shapes:
        state ``(K, …)`` by name, parameters and buffers; x ``(K, B, …)``.

    Args:
        net: the architecture, as :func:`normlab.probes.snapshot.still` returns it.
        state: of each member.
        x: of each member.
        layers: which, all if None; see :func:`activations`.
        unit: the one whose values are returned, counted from 0; of an image a unit is a channel.

    Raises:
        ValueError: for a layer that is not there, or a unit that a layer does not have.
    """
    places = activation_modules(net, layers)

    def of_member(state: Params, x: Tensor) -> dict[str, Inputs]:
        return observed(places, unit, lambda: functional_call(net, dict(state), (x,)))

    # A layer that moves something in its buffers is not to move it in the state.
    own = {name: tensor.detach().clone() for name, tensor in state.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        if len(x) > 1:
            return vmap(of_member, randomness="same")(own, x)
        seen = of_member({name: tensor.squeeze(0) for name, tensor in own.items()}, x.squeeze(0))
    return {layer: Inputs(*(part.unsqueeze(0) for part in inputs)) for layer, inputs in seen.items()}


def observed(places: Mapping[str, nn.Module], unit: int, call: Callable[[], Tensor]) -> dict[str, Inputs]:
    """Return the inputs of activations of one member while ``call`` runs."""
    seen: dict[str, Inputs] = {}

    def hook(layer: str) -> Callable[[nn.Module, tuple], None]:
        def measure(module: nn.Module, inputs: tuple) -> None:
            rows = inputs[0].movedim(1, 0).flatten(1)
            if unit >= len(rows):
                raise ValueError(f"unit must be below {len(rows)}, the number of {layer}'s units, got {unit}")
            # A copy: an activation may work in place.
            seen[layer] = Inputs(rows[unit].clone(), *mean_std(rows))

        return measure

    # Before the activation, not after it, as one that works in place leaves nothing of what it took.
    handles = [module.register_forward_pre_hook(hook(layer)) for layer, module in places.items()]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return seen


@dataclass(frozen=True, kw_only=True)
class Preactivations(Probe):
    """Moments and percentiles of :func:`preactivations`, of one typical unit, and how far all units have moved.

    Found are ``layer/q15``, ``layer/q50``, ``layer/q85``, ``layer/mean`` and ``layer/std`` of one unit, over the
    data. Against the start of the training, on the same data, with μ and σ of each unit of a layer:
    ``layer/shift``, the mean of ``|μ − μ₀| / σ₀``, and ``layer/stretch``, the mean of ``|ln(σ / σ₀)|``; ``shift``
    and ``stretch`` are their means over layers. A unit that is constant, now or at the start, is left out. In a
    net without a module called ``activation`` there is nothing to be found.

    Args:
        layers: which layers to look at; null for all that have a module called ``activation``.
        unit: the typical unit, counted from 0.
        data: ``minibatch`` or ``train``, what goes through the net.
        double: whether in float64.

    Raises:
        ValueError: for a unit below 0; in a scene, for a layer or unit that is not there.

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
        """Refuse a layer that the net does not have."""
        activation_modules(net, self.layers)

    def __call__(self, scene: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield percentiles and moments of each layer."""
        if not activation_modules(scene.net, self.layers):
            return
        for mode in self.modes:
            now, start = self.inputs(scene, scene.before, mode), self.inputs(scene, scene.start, mode)
            numbers: dict[str, Tensor] = {}
            for layer, inputs in now.items():
                found = {**of_unit(inputs, self.unit), **moved(inputs, start[layer])}
                numbers |= {f"{layer}/{name}": values for name, values in found.items()}
            for name in ("shift", "stretch"):
                numbers[name] = torch.stack([numbers[f"{layer}/{name}"] for layer in now]).mean(0)
            yield Measurement(self.name, mode, numbers, headline=("shift", "stretch"))

    def inputs(self, scene: TrainingSnapshot, state: Params, mode: str) -> dict[str, Inputs]:
        """Return the inputs of the activations at a state."""
        x = scene.data(self.data)[0]
        if self.double:
            state, x = {name: in_double(tensor) for name, tensor in state.items()}, x.double()
        if mode == "batch":
            state = corrected(scene.net, {}, state, x)
        return preactivations(
            side_effect_free_copy(scene.net, mode, folds=scene.folds), state, x, self.layers, self.unit
        )


def of_unit(inputs: Inputs, unit: int) -> dict[str, Tensor]:
    """Return percentiles and moments of one unit, ``(K,)`` each."""
    levels = inputs.values.new_tensor(list(LEVELS.values()))
    found = dict(zip(LEVELS, inputs.values.quantile(levels, dim=1), strict=True))
    return {**found, "mean": inputs.mean[:, unit], "std": inputs.std[:, unit]}


def moved(now: Inputs, start: Inputs) -> dict[str, Tensor]:
    """Return how far the units of a layer have moved from the start of the training, ``(K,)`` each."""
    constant = is_constant_unit(now) | is_constant_unit(start)
    shift, stretch = (now.mean - start.mean).abs() / start.std, (now.std / start.std).log().abs()
    left = (~constant).sum(1)
    return {
        "shift": shift.masked_fill(constant, 0).sum(1) / left,
        "stretch": stretch.masked_fill(constant, 0).sum(1) / left,
    }


def is_constant_unit(inputs: Inputs) -> Tensor:
    """Return which units differ between samples by rounding alone, ``(K, C)``."""
    return inputs.std <= 8 * torch.finfo(inputs.std.dtype).eps * inputs.mean.abs()
