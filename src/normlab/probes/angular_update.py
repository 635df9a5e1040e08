"""Angle by which an optimizer step turns the weights of each layer and neuron: :class:`AngularUpdate`.

Letters: K members, D neurons of a layer, N inputs of a neuron.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot, weights_by_layer


def angles(one: Tensor, other: Tensor) -> Tensor:
    r"""Return the angles between vectors, in radians.

    .. math::
        2 \operatorname{atan2}(\lVert u - v \rVert, \lVert u + v \rVert), \quad
        u = \frac{w}{\lVert w \rVert}, \quad v = \frac{w'}{\lVert w' \rVert}

    It is exact for small angles, where the arccosine of the cosine loses all digits below 1e-8 in float64.

    Shapes:
        one and other ``(…, N)``; returns ``(…)``, in float64, NaN where a vector is 0.

    >>> angles(torch.tensor([3.0, 0.0]), torch.tensor([2.0, 2.0])) / torch.pi
    tensor(0.2500, dtype=torch.float64)
    """
    u, v = (w.double() / torch.linalg.vector_norm(w.double(), dim=-1, keepdim=True) for w in (one, other))
    return 2 * torch.atan2(*(torch.linalg.vector_norm(w, dim=-1) for w in (u - v, u + v)))


@dataclass(frozen=True, kw_only=True)
class AngularUpdate(Probe):
    """Angles between the weights before and after the step, in radians.

    The weights of a layer are those of a linear map or convolution, by the name of that module; biases and the
    parameters of normalizers are excluded. Numbers: ``layer/angle`` of all weights of a layer as one vector,
    ``layer/neuron_angle``, the mean over the rows of weights of its neurons, and ``angle`` and ``neuron_angle``,
    their means over layers. Arrays: ``layer/neuron_angles`` of each neuron, ``(K, D)``. All are NaN if no step is
    taken. They do not depend on the mode.

    For SGD with learning rate η, momentum μ and weight decay λ, the angle of scale-invariant weights settles at
    ``√(2ηλ/(1+μ))``: Wan, Zhu, Zhang and Sun (2020), Spherical motion dynamics, arXiv:2006.08419.
    ``layer/relative_angle`` is the angle divided by that one.
    """

    modes: Sequence[str] = ("batch",)

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield the same measurement for each mode."""
        numbers, arrays = dict[str, Tensor](), dict[str, Tensor]()
        for layer, names in weights_by_layer(snapshot, []).items():
            before, after = (
                [state[name].detach().flatten(2) for name in names] for state in (snapshot.before, snapshot.after)
            )
            neurons = torch.cat([angles(w, moved) for w, moved in zip(before, after, strict=True)], dim=1)
            angle = angles(*(torch.cat([w.flatten(1) for w in weights], 1) for weights in (before, after)))
            if snapshot.after is snapshot.before:
                neurons, angle = neurons * torch.nan, angle * torch.nan
            numbers |= {f"{layer}/angle": angle, f"{layer}/neuron_angle": neurons.mean(1)}
            if snapshot.equilibrium is not None and bool((snapshot.equilibrium > 0).all()):
                numbers[f"{layer}/relative_angle"] = angle / snapshot.equilibrium.to(angle.device)
            arrays[f"{layer}/neuron_angles"] = neurons
        for name in ("angle", "neuron_angle") if numbers else ():
            own = [values for key, values in numbers.items() if key.endswith(f"/{name}")]
            numbers[name] = torch.stack(own).mean(0)
        for mode in self.modes if numbers else ():
            yield Measurement(mode, numbers, arrays, headline=("angle", "neuron_angle"))
