"""Change of the loss and its gradient by a step, and by the updates of lower layers (Santurkar et al. 2018).

Letters: K members, L layers, E step lengths, P parameters of a member; g = ∇f(θ).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from normlab.probes.interpolation import flatten_state
from normlab.probes.landscape import BatchedLoss
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot

LENGTHS = tuple(2 ** (third / 3) for third in range(-3, 7))
"""Multiples of the learning rate, evenly spaced in the logarithm from 1/2 to 4, including 1."""


class Steps(NamedTuple):
    """Losses and gradients at the ends of the steps ``θ' = θ − ηg``, for each step length η.

    Shapes:
        loss and gradient_norm ``(K,)``, at θ; all others ``(E, K)``, at each θ'.

    Attributes:
        loss: f(θ); losses: f(θ').
        gradient_norm: ‖g‖.
        predictiveness: ‖g − ∇f(θ')‖.
        cosine: cosine of the angle between g and ∇f(θ'), NaN where one of them is 0.
        distances: ‖θ − θ'‖.
    """

    loss: Tensor
    gradient_norm: Tensor
    losses: Tensor
    predictiveness: Tensor
    cosine: Tensor
    distances: Tensor

    @property
    def beta(self) -> Tensor:
        """The effective β-smoothness ``max ‖g − ∇f(θ')‖ / ‖θ − θ'‖``, ``(K,)``; NaN where g is 0."""
        return (self.predictiveness / self.distances).amax(0)


def along_gradient(landscape: BatchedLoss, lengths: Tensor) -> Steps:
    r"""Evaluate losses and gradients along the negative gradient, all points in one batch.

    .. math::
        \theta' = \theta - \eta g, \quad
        \beta = \max_\eta \frac{\|g - \nabla f(\theta')\|}{\|\theta - \theta'\|}

    For a quadratic with Hessian H, every step length gives ``β = ‖Hg‖ / ‖g‖``, which is at most the largest |λ|.

    Shapes:
        lengths ``(E,)``, or ``(E, K)`` if members differ.

    Args:
        landscape: the loss and its parameters θ.
        lengths: the step lengths η.

    Raises:
        ValueError: if the shape of lengths is neither.

    Santurkar, Tsipras, Ilyas and Madry (2018), How does batch normalization help optimization?, arXiv:1805.11604.

    >>> bowl = BatchedLoss.of(lambda params: 3 * (params["w"] ** 2).sum() / 2, {"w": torch.tensor([1.0, 0.0])})
    >>> steps = along_gradient(bowl, torch.tensor([0.25, 0.5]))
    >>> steps.losses.flatten(), steps.cosine.flatten(), steps.beta
    (tensor([0.0938, 0.3750]), tensor([ 1., -1.]), tensor([3.]))
    """
    if lengths.dim() == 1:
        lengths = lengths.unsqueeze(1)
    if lengths.dim() != 2 or lengths.shape[1] not in (1, landscape.members):
        shape = tuple(lengths.shape)
        raise ValueError(f"lengths must be of shape (E,) or (E, {landscape.members}), got {shape}")
    theta = landscape.theta
    loss, gradient = landscape.losses_and_gradients(theta)
    points = theta - lengths.to(theta).unsqueeze(-1) * gradient
    losses, gradients = landscape.losses_and_gradients(points)
    return Steps(
        loss,
        gradient.norm(dim=-1),
        losses,
        (gradient - gradients).norm(dim=-1),
        cosine(gradient, gradients),
        # Distances of the rounded points, at which the gradients are taken.
        (theta - points).norm(dim=-1),
    )


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of the angle between vectors, ``(…, P)`` to ``(…)``, NaN where one of them is 0."""
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


@dataclass(frozen=True, kw_only=True)
class AlongGradient(Probe):
    """Runs :func:`along_gradient` on the minibatch of the step, for step lengths relative to the learning rate.

    The direction is the gradient even if the optimizer takes another one, as with momentum or Adam. The probe then
    measures the landscape at the scale of the learning rate; the length of the optimizer's step may differ by
    orders of magnitude.

    Numbers: the ``loss`` at θ and, over the step lengths, ``loss_min``, ``loss_max`` and their difference
    ``loss_range``, ``predictiveness_min`` and ``predictiveness_max``, ``cosine_min``, ``relative_change``, which
    is the largest ``‖g − ∇f(θ')‖ / ‖g‖``, ``beta``, and ``beta_lr``, β times the learning rate. For
    scale-invariant weights w, β is proportional to 1/‖w‖²; ``relative_change``, ``cosine_min`` and ``beta_lr`` do
    not depend on ‖w‖ if the learning rate is proportional to ‖w‖².

    Args:
        lengths: the step lengths, as multiples of the learning rate.
        double: whether to compute in float64.

    Raises:
        ValueError: if lengths is empty, or a length is not positive.
    """

    lengths: Sequence[float] = LENGTHS
    double: bool = False
    modes: Sequence[str] = ("batch",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lengths or not all(length > 0 for length in self.lengths):
            raise ValueError(f"lengths must be numbers > 0, at least one, got {list(self.lengths)}")

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield ranges over the step lengths, and arrays of the values at each length."""
        lengths = snapshot.lr.new_tensor(list(self.lengths), dtype=torch.float64).unsqueeze(1) * snapshot.lr
        for mode in self.modes:
            steps = along_gradient(snapshot.landscape(mode, double=self.double), lengths)
            beta = steps.beta
            numbers = {
                "loss": steps.loss,
                "loss_min": steps.losses.amin(0),
                "loss_max": steps.losses.amax(0),
                "loss_range": steps.losses.amax(0) - steps.losses.amin(0),
                "predictiveness_min": steps.predictiveness.amin(0),
                "predictiveness_max": steps.predictiveness.amax(0),
                "cosine_min": steps.cosine.amin(0),
                "relative_change": steps.predictiveness.amax(0) / steps.gradient_norm,
                "beta": beta,
                "beta_lr": beta * snapshot.lr.to(beta),
            }
            by_length = {
                "lengths": lengths,
                "losses": steps.losses,
                "predictiveness": steps.predictiveness,
                "cosine": steps.cosine,
            }
            arrays = {name: values.movedim(0, 1) for name, values in by_length.items()}
            yield Measurement(mode, numbers, arrays, headline=("beta", "beta_lr"))


class Shift(NamedTuple):
    """Change of the gradient of each layer from G to G', ``(L, K)`` each.

    Attributes:
        difference: ``‖G − G'‖``.
        relative: ``‖G − G'‖ / ‖G‖``, NaN where G is 0.
        cosine: cosine of the angle between G and G', NaN where one of them is 0.
    """

    difference: Tensor
    relative: Tensor
    cosine: Tensor


def covariate_shift(landscape: BatchedLoss, after: Tensor, layers: Sequence[Tensor]) -> Shift:
    r"""Return the change of each layer's gradient when only the layers below it take their step.

    .. math::
        G_i = \nabla_{\theta_i} f(\theta_1, \dots, \theta_L), \quad
        G'_i = \nabla_{\theta_i} f(\theta^+_1, \dots, \theta^+_{i-1}, \theta_i, \dots, \theta_L)

    with θ the parameters before the step and θ⁺ those after it. The first layer has no layer below, so its shift
    is 0. The points of all layers are evaluated in one batch.

    Shapes:
        after ``(K, P)``; each of layers ``(P,)``, boolean.

    Args:
        landscape: the loss, at the parameters before the step.
        after: the parameters after the step.
        layers: masks of the parameters of each layer, in order of the forward pass; see
            :meth:`BatchedLoss.parameter_mask`.

    Santurkar, Tsipras, Ilyas and Madry (2018), How does batch normalization help optimization?, arXiv:1805.11604,
    definition 2.1.
    """
    masks = torch.stack(list(layers))
    below = (masks.cumsum(0) - masks.long()).bool()
    gradients = landscape.gradients(torch.where(below.unsqueeze(1), after, landscape.theta))
    # The first point is θ itself, because no layer is below the first.
    pairs = [(gradients[0, :, mask], gradient[:, mask]) for mask, gradient in zip(masks, gradients, strict=True)]
    difference = torch.stack([(g - moved).norm(dim=1) for g, moved in pairs])
    size = torch.stack([g.norm(dim=1) for g, _ in pairs])
    relative = torch.where(size == 0, torch.nan, difference / size)
    return Shift(difference, relative, torch.stack([cosine(g, moved) for g, moved in pairs]))


@dataclass(frozen=True, kw_only=True)
class CovariateShift(Probe):
    """Runs :func:`covariate_shift` for every layer, with the optimizer's update and the minibatch of the step.

    The layers are those of :func:`parameters_by_layer`; the parameters of a layer include
    those of its normalizer. Buffers, and therefore frozen statistics, are those before the step.

    Numbers: ``difference``, ``relative`` and ``cosine`` of every layer, such as ``layer/difference``, and their
    means over layers without the first, whose shift is 0 by definition. Layers with gradient 0 are excluded from
    the means of ``relative`` and ``cosine``. All numbers are NaN if no step is taken.

    Args:
        double: whether to compute in float64.
    """

    double: bool = False
    modes: Sequence[str] = ("batch",)

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield a measurement for each mode."""
        parameters = {
            layer: [name for name in names if name in snapshot.trained]
            for layer, names in parameters_by_layer(snapshot.net).items()
        }
        layers = [layer for layer, names in parameters.items() if names]
        # If the first layer of the net is not trained, every trained layer has a layer below.
        higher = slice(int(layers[0] == next(iter(parameters))), None)
        for mode in self.modes:
            landscape = snapshot.landscape(mode, double=self.double)
            if snapshot.after is snapshot.before:
                shift = Shift(*landscape.theta.new_full((3, len(layers), landscape.members), torch.nan))
            else:
                masks = [landscape.parameter_mask(parameters[layer]) for layer in layers]
                shift = covariate_shift(landscape, flatten_state(landscape, snapshot.after), masks)
            quantities = shift._asdict()
            numbers = {
                name: mean_over_layers(values[higher], shift.difference[higher])
                for name, values in quantities.items()
            }
            for name, values in quantities.items():
                numbers |= {f"{layer}/{name}": value for layer, value in zip(layers, values, strict=True)}
            yield Measurement(mode, numbers, headline=("relative", "cosine"))


def mean_over_layers(values: Tensor, difference: Tensor) -> Tensor:
    """Return the mean over the layers with a gradient other than 0, ``(L, K)`` to ``(K,)``.

    NaN is kept where the difference is not finite either, because there the loss itself is not finite.
    """
    undefined = values.isnan() & difference.isfinite()
    return values.masked_fill(undefined, 0).sum(0) / (~undefined).sum(0)


def parameters_by_layer(net: nn.Module) -> dict[str, list[str]]:
    """Return the names of a net's parameters, grouped by its outermost layers.

    Layers are in order of construction, which in all nets of normlab is the order of the forward pass.
    """
    layers: dict[str, list[str]] = {}
    path = ""
    while True:
        module = net.get_submodule(path)
        children = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
        if len(children) != 1 or any(True for _ in module.parameters(recurse=False)):
            break
        path = f"{path}.{children[0]}".lstrip(".")
    for name, _ in net.named_parameters():
        rest = name.removeprefix(f"{path}.") if path else name
        layer = rest.partition(".")[0] if "." in rest else "net"
        layers.setdefault(layer, []).append(name)
    return layers
