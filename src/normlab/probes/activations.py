"""Activations and gradients of each layer: moments, dead and saturated units, effective rank, update sizes.

All layers are measured together: with a small net, function calls take most of the time.

Letters: K members, L layers, D units of a layer, R rows, the samples at every position of an image.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normlab.models.layer_lookup import activation_slots, mean_std
from normlab.probes.hooked_copy import Flow, forward_backward, weights_by_layer
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot

NamedTensors = dict[str, Tensor]
BOUNDS: dict[type, Callable[[Any], tuple[float, float]]] = {
    nn.Sigmoid: lambda _: (0.0, 1.0),
    nn.Hardsigmoid: lambda _: (0.0, 1.0),
    nn.Tanh: lambda _: (-1.0, 1.0),
    nn.Softsign: lambda _: (-1.0, 1.0),
    nn.Hardtanh: lambda layer: (layer.min_val, layer.max_val),
}
"""The activations that saturate, with their least and their largest output."""


def output_statistics(outputs: Sequence[Tensor]) -> NamedTensors:
    r"""Return the statistics of layers' outputs; H are one layer's outputs in one member.

    ``mean`` and ``std`` are over all entries. ``dead`` is the share of units that put out the same for every row,
    such as a ReLU that is never positive, and NaN of a single row. ``effective_rank`` is that of H, see
    :func:`rank_of`, and ``centered_effective_rank`` that of H less its mean row.

    After a ReLU the first is at most about π² whatever the width: of D independent units with standard normal
    inputs M has 1/2 on its diagonal and 1/2π elsewhere, so that the mean row outweighs all else. The second is
    not bounded so.

    Shapes:
        outputs ``(K, R, D)`` each; returns ``(L, K)`` each, in float64.
    """
    found = torch.stack([value for h in outputs for value in of_layer(h)])
    mean, std, alive, *moments = found.view(len(outputs), 7, -1).unbind(1)
    trace = moments[0]
    units = found.new_tensor([[h.shape[2] if h.shape[1] > 1 else torch.nan] for h in outputs])
    return {
        "mean": mean + 0 * trace,
        "std": std,
        # What is not finite never is the same, but is not alive either: times 0 it is NaN.
        "dead": 1 - alive / units + 0 * trace,
        "effective_rank": rank_of(*moments[:2]),
        "centered_effective_rank": rank_of(*moments[2:]),
    }


def of_layer(h: Tensor) -> tuple[Tensor, ...]:
    """Return mean, standard deviation, the number of units that are alive, and the moments of H and H centered."""
    # A double holds the fourth powers of what float32 holds.
    h = h.double()
    # Units that are the same for every row are 0 in this, and stay so.
    centered = h - h[:, :1]
    alive = centered.abs().sum(1).count_nonzero(1)
    centered -= centered.mean(1, keepdim=True)
    return *mean_std(h.flatten(1)), alive, *gram_moments(h), *gram_moments(centered)


def gram_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    """Return tr HᵀH and ‖HᵀH‖: ``(K, R, D)`` to twice ``(K,)``."""
    gram = torch.bmm(h, h.mT) if h.shape[1] < h.shape[2] else torch.bmm(h.mT, h)
    return gram.diagonal(dim1=1, dim2=2).sum(1), norm(gram)


def rank_of(trace: Tensor, gram: Tensor) -> Tensor:
    r"""Return the effective rank from tr HᵀH and ‖HᵀH‖: a lower bound on the rank of H.

    .. math::
        \frac{(\operatorname{tr} M)^2}{\|M\|_F^2} \le \operatorname{rank} H, \quad M = \frac{1}{R} H^\top H

    It is 1 where all rows are multiples of one, which deep nets without normalization come near to, D where M is a
    multiple of the identity, and 0 where there are zeros only. Of outputs in float64 that are below 1e-77 or above
    1e77 it is not to be had.

    Daneshmand, Kohler, Bach, Hofmann and Lucchi (2020), Batch normalization provably avoids rank collapse for
    randomly initialised deep networks, arXiv:2003.01652.
    """
    return (trace / gram).square().masked_fill(trace == 0, 0)


def preactivation_rank(inputs: Sequence[Tensor]) -> NamedTensors:
    """Return the effective rank of the inputs of layers' activations: ``(K, R, D)`` each to ``(L, K)``."""
    moments = [gram_moments(h.double()) for h in inputs]
    return {"preactivation_effective_rank": torch.stack([rank_of(*each) for each in moments])}


def saturated(h: Tensor, low: float, high: float, threshold: float) -> Tensor:
    """Return the share of outputs that are at a bound, or nearer to it than ``threshold · (high − low)``.

    Shapes:
        h ``(K, R, D)``; returns ``(K,)``.
    """
    distance = (h - (low + high) / 2).abs_().flatten(1)
    return (distance >= (0.5 - threshold) * (high - low)).double().mean(1) + 0 * distance.sum(1)


def norm(x: Tensor) -> Tensor:
    """Return the norm of each member's ``(K, …)``, in float64: a vanishing gradient's square is 0 in float32."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), dtype=torch.float64)


def of_weights(
    scene: TrainingSnapshot, weights: Mapping[str, Sequence[str]], gradients: Mapping[str, Tensor]
) -> NamedTensors:
    """Return how the weights of each layer are trained, all of one layer together: :class:`Activations` says what.

    Shapes:
        weights: the names of each layer's; gradients ``(K, …)`` by name; returns ``(L, K)`` each, in float64.
    """
    rows, place, counts = [], [], []
    for number, names in enumerate(weights.values()):
        for name in names:
            w = scene.before[name].detach()
            moved = scene.after[name].detach() - w if scene.after is not scene.before else w * torch.nan
            rows += [norm(w), norm(gradients[name]), norm(moved)]
            place.append(number)
        counts.append([sum(gradients[name][0].numel() for name in names)])
    squares = torch.stack(rows).square().view(len(place), 3, -1)
    index = torch.tensor(place, device=squares.device)
    joined = squares.new_zeros(len(weights), *squares.shape[1:]).index_add_(0, index, squares)
    size, gradient, moved = joined.unbind(1)
    return {
        "gradient_rms": (gradient / size.new_tensor(counts)).sqrt(),
        "relative_update": (moved / size).sqrt(),
        "effective_lr": scene.lr / size,
    }


@dataclass(frozen=True, kw_only=True)
class Activations(Probe):
    """What each layer and its normalizer put out before the step, and how its weights are trained.

    Of what comes out of a layer's activation function: ``layer/mean``, ``layer/std``, ``layer/dead``,
    ``layer/effective_rank`` and ``layer/centered_effective_rank``, see :func:`statistics`; of one with two bounds
    also ``layer/saturated``, see :func:`saturated`. Of what goes into it: ``layer/preactivation_effective_rank``,
    the mean not taken away. One that is called again is ``layer.2``, ``layer.3`` and so on.

    Of what comes out of a normalizer, over all entries: ``layer/norm_mean`` and ``layer/norm_std``. Where there
    is none they are absent.

    Of a layer's weights w, all of them together, with the loss's gradient g: ``layer/gradient_rms``, √mean g²;
    ``layer/relative_update``, ‖Δw‖/‖w‖ of the step, NaN where none is taken; ``layer/effective_lr``, η/‖w‖², at
    which weights of length 1 would turn alike where their scale does not matter (arXiv:1706.05350). Biases and
    normalizers' parameters are left out.

    Of all layers: ``dead``, the largest; the effective ranks, the smallest of each; ``gradient_rms_ratio``, that
    of the first weights to that of the last. Far below 1 gradients vanish on their way back, above they explode.

    Before the first epoch also ``features_mean`` and ``features_std`` of the training split, over all entries,
    and as arrays of each feature.

    Args:
        histograms_every: in every so manieth epoch the distributions of activations and weights are shown; null
            for never.
        threshold: how near to a bound is saturated, a share of the distance between the two.
        data: ``minibatch`` or ``train``, what goes through the net, and what the loss is taken over.

    Raises:
        ValueError: for ``histograms_every`` below 1, or a threshold outside (0, 0.5).
    """

    modes: Sequence[str] = ("batch",)
    histograms_every: int | None = None
    threshold: float = 0.05
    data: str = "minibatch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.histograms_every is not None and self.histograms_every < 1:
            raise ValueError(f"histograms_every must be null or at least 1, got {self.histograms_every}")
        if not 0 < self.threshold < 0.5:
            raise ValueError(f"threshold must be a number in (0, 0.5), got {self.threshold}")

    def __call__(self, scene: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield the numbers of each layer and of all, and features and histograms where they are due."""
        weights = weights_by_layer(scene, [layer for layer, _ in activation_slots(scene.net)])
        every, arrays = of_features(scene) if scene.epoch == 0 else ({}, {})
        shown = self.histograms_every is not None and scene.epoch % self.histograms_every == 0
        for mode in self.modes:
            found = forward_backward(
                scene, mode, [name for names in weights.values() for name in names], self.data
            )
            through = through_layers(found) if found.outputs else {}
            back = of_weights(scene, weights, found.gradients) if weights else {}
            numbers = {
                **by_layer(found.outputs, through),
                **by_layer(weights, back),
                **of_normalizers(found),
                **of_bounded(found, self.threshold),
                **overall(through, back),
                **every,
            }
            headline = [name for name in ("dead", "gradient_rms_ratio") if name in numbers]
            histograms = histograms_of(scene, found.outputs, weights) if shown else {}
            yield Measurement(self.name, mode, numbers, arrays, headline, histograms)


def through_layers(found: Flow) -> NamedTensors:
    """Return the statistics of what goes through activations, ``(L, K)`` each."""
    return output_statistics([*found.outputs.values()]) | preactivation_rank([*found.inputs.values()])


def by_layer(layers: Iterable[str], numbers: NamedTensors) -> NamedTensors:
    """Return numbers ``(L, K)`` of layers one by one, each under the name of its layer, ``(K,)``."""
    rows = {name: values.unbind(0) for name, values in numbers.items()}
    return {f"{layer}/{name}": row[i] for i, layer in enumerate(layers) for name, row in rows.items()}


def of_normalizers(found: Flow) -> NamedTensors:
    """Return mean and standard deviation of what each normalizer puts out, ``(K,)`` each."""
    return {
        f"{layer}/norm_{name}": value
        for layer, moments in found.normalized.items()
        for name, value in zip(("mean", "std"), moments.unbind(1), strict=True)
    }


def of_bounded(found: Flow, threshold: float) -> NamedTensors:
    """Return the saturated share of what each activation with two bounds puts out, ``(K,)`` each."""
    bounded = {layer: each for layer, each in found.activations.items() if type(each) in BOUNDS}
    return {
        f"{layer}/saturated": saturated(found.outputs[layer], *BOUNDS[type(each)](each), threshold)
        for layer, each in bounded.items()
    }


def overall(through: NamedTensors, back: NamedTensors) -> NamedTensors:
    """Return summaries over all layers of numbers ``(L, K)``."""
    found = {}
    if through:
        ranks = {name: value.amin(0) for name, value in through.items() if name.endswith("effective_rank")}
        found = {"dead": through["dead"].amax(0), **ranks}
    if back:
        found["gradient_rms_ratio"] = back["gradient_rms"][0] / back["gradient_rms"][-1]
    return found


def of_features(scene: TrainingSnapshot) -> tuple[NamedTensors, NamedTensors]:
    """Return mean and standard deviation of the training split, of all entries ``(K,)`` and of each ``(K, D)``."""
    x, members = scene.train[0].flatten(2).double(), len(scene.lr)
    names = ("features_mean", "features_std")
    every = {name: value.expand(members) for name, value in zip(names, mean_std(x.flatten(1)), strict=True)}
    of_each = (value.view(len(x), -1) for value in mean_std(x.transpose(1, 2).flatten(0, 1)))
    return every, {name: value.expand(members, -1) for name, value in zip(names, of_each, strict=True)}


def histograms_of(
    scene: TrainingSnapshot, outputs: NamedTensors, weights: Mapping[str, Sequence[str]]
) -> NamedTensors:
    """Return the outputs and weights of each layer, ``(K, …)`` each."""
    shown = {f"{layer}/activations": h for layer, h in outputs.items()}
    for layer, names in weights.items():
        shown[f"{layer}/weights"] = torch.cat([scene.before[name].detach().flatten(1) for name in names], dim=1)
    return shown
