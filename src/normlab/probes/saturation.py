"""Saturated share of Dynamic Tanh and Derf, which bound the signal instead of normalizing it: :class:`Saturation`.

Letters: K members.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normlab.models.layer_lookup import call_hooks
from normlab.norms.activation import Derf, DynamicTanh
from normlab.probes.snapshot import Measurement, Probe, Tensors, TrainingSnapshot, observe_forward

BOUNDED = (DynamicTanh, Derf)


def saturated_share(layer: DynamicTanh | Derf, x: Tensor, threshold: float) -> Tensor:
    """Return the share of entries with ``|αx + s| > threshold``; Dynamic Tanh has s = 0.

    Shapes:
        x of any shape; returns ``()``, in float64, NaN if an entry is not finite.
    """
    size = (layer.alpha * x + layer.shift if isinstance(layer, Derf) else layer.alpha * x).abs()
    return (size > threshold).double().mean() + 0 * size.amax()


def bounded_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Return the Dynamic Tanh and Derf layers of a net; one named ``norm`` by the name of its parent layer."""
    named = ((name, layer) for name, layer in net.named_modules() if isinstance(layer, BOUNDED))
    return {name.removesuffix(".norm") or "net": layer for name, layer in named}


@dataclass(frozen=True, kw_only=True)
class Saturation(Probe):
    """Shares of the inputs of Dynamic Tanh and Derf at which the function is almost constant.

    Numbers: ``layer/saturated``, see :func:`saturated_share`, and ``saturated``, the mean over layers. A net
    without such a layer yields no measurement.

    Args:
        threshold: the value of ``|αx + s|`` from which an input counts; tanh(2) is 0.964, erf(2) is 0.995.
        data: ``minibatch`` or ``train``, the inputs of the net.

    Raises:
        ValueError: if the threshold is not positive.
    """

    threshold: float = 2.0
    data: str = "minibatch"
    modes: Sequence[str] = ("batch",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threshold > 0:
            raise ValueError(f"threshold must be a number > 0, got {self.threshold}")

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield a measurement for each mode."""
        if not bounded_layers(snapshot.net):
            return
        for mode in self.modes:
            numbers = observe_forward(snapshot, mode, self.data, self.observe)
            numbers["saturated"] = torch.stack(list(numbers.values())).mean(0)
            yield Measurement(mode, numbers, headline=("saturated",))

    def observe(self, net: nn.Module, x: Tensor) -> Tensors:
        """Return the saturated share of each layer of one net, ``()`` each; of several calls, the last."""
        shares = Tensors()

        def record(name: str, layer: DynamicTanh | Derf, args: tuple, kwargs: dict[str, Any]) -> None:
            shares[f"{name}/saturated"] = saturated_share(layer, args[0], self.threshold)

        with call_hooks(bounded_layers(net).items(), before=record):
            net(x)
        return shares
