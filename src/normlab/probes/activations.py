"""Activations and gradients of each layer: moments, dead and saturated units, effective rank, update sizes.

All layers are measured in one batch, because function calls dominate the time for small nets.

Letters: K members, L layers, D units of a layer, R rows: B samples, at every position of an image.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from normlab.models.layer_lookup import activation_slots, mean_std
from normlab.probes.snapshot import (
    ForwardBackward,
    Measurement,
    Probe,
    Tensors,
    TrainingSnapshot,
    forward_backward,
    weights_by_layer,
)

BOUNDS: dict[type, Callable[[Any], tuple[float, float]]] = {
    nn.Sigmoid: lambda _: (0.0, 1.0),
    nn.Hardsigmoid: lambda _: (0.0, 1.0),
    nn.Tanh: lambda _: (-1.0, 1.0),
    nn.Softsign: lambda _: (-1.0, 1.0),
    nn.Hardtanh: lambda layer: (layer.min_val, layer.max_val),
}
"""Lower and upper bounds of the activations that saturate on both sides."""


def output_statistics(outputs: Sequence[Tensor]) -> Tensors:
    r"""Return mean, standard deviation, dead share and effective ranks of the outputs of each layer.

    ``mean`` and ``std`` are over all entries. ``dead`` is the share of units with the same output for every row,
    such as a ReLU that is never positive; it is NaN for a single row. ``effective_rank`` is that of the output
    matrix H, see :func:`effective_rank`; ``centered_effective_rank`` is that of H minus its mean row.

    After a ReLU, ``effective_rank`` is at most about π² at any width: for D independent units with standard normal
    inputs, M has 1/2 on its diagonal and 1/2π elsewhere, so the mean row dominates. The centered rank has no such
    bound.

    Shapes:
        outputs ``(K, R, D)`` each; returns ``(L, K)`` each, in float64.
    """
    values = torch.stack([value for h in outputs for value in layer_statistics(h)])
    mean, std, alive, *moments = values.view(len(outputs), 7, -1).unbind(1)
    trace = moments[0]
    units = values.new_tensor([[h.shape[2] if h.shape[1] > 1 else torch.nan] for h in outputs])
    return {
        "mean": mean + 0 * trace,
        "std": std,
        # Adding 0 * trace makes the share NaN where outputs are not finite.
        "dead": 1 - alive / units + 0 * trace,
        "effective_rank": effective_rank(*moments[:2]),
        "centered_effective_rank": effective_rank(*moments[2:]),
    }


def layer_statistics(h: Tensor) -> tuple[Tensor, ...]:
    """Return mean, standard deviation, number of alive units, and Gram moments of H and of H centered."""
    # Fourth powers of float32 values overflow in float32, but not in float64.
    h = h.double()
    # Subtracting the first row makes constant units exactly 0.
    centered = h - h[:, :1]
    alive = centered.abs().sum(1).count_nonzero(1)
    centered -= centered.mean(1, keepdim=True)
    return *mean_std(h.flatten(1)), alive, *gram_moments(h), *gram_moments(centered)


def gram_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    """Return tr HᵀH and ‖HᵀH‖: ``(K, R, D)`` to twice ``(K,)``."""
    gram = torch.bmm(h, h.mT) if h.shape[1] < h.shape[2] else torch.bmm(h.mT, h)
    return gram.diagonal(dim1=1, dim2=2).sum(1), member_norm(gram)


def effective_rank(trace: Tensor, gram: Tensor) -> Tensor:
    r"""Return the effective rank from tr HᵀH and ‖HᵀH‖: a lower bound on the rank of H.

    .. math::
        \frac{(\operatorname{tr} M)^2}{\|M\|_F^2} \le \operatorname{rank} H, \quad M = \frac{1}{R} H^\top H

    It is 1 if all rows are multiples of one row, which deep nets without normalization approach; D if M is a
    multiple of the identity; and 0 if H is zero. Entries below 1e-77 or above 1e77 underflow or overflow.

    Daneshmand, Kohler, Bach, Hofmann and Lucchi (2020), Batch normalization provably avoids rank collapse for
    randomly initialised deep networks, arXiv:2003.01652.
    """
    return (trace / gram).square().masked_fill(trace == 0, 0)


def preactivation_rank(inputs: Sequence[Tensor]) -> Tensors:
    """Return the effective rank of the inputs of each activation: ``(K, R, D)`` each to ``(L, K)``."""
    moments = [gram_moments(h.double()) for h in inputs]
    return {"preactivation_effective_rank": torch.stack([effective_rank(*each) for each in moments])}


def saturated_share(h: Tensor, low: float, high: float, threshold: float) -> Tensor:
    """Return the share of outputs within ``threshold · (high − low)`` of a bound.

    Shapes:
        h ``(K, R, D)``; returns ``(K,)``.
    """
    distance = (h - (low + high) / 2).abs_().flatten(1)
    return (distance >= (0.5 - threshold) * (high - low)).double().mean(1) + 0 * distance.sum(1)


def member_norm(x: Tensor) -> Tensor:
    """Return the norm of each member, ``(K, …)`` to ``(K,)``; float64, as squares of small gradients underflow."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), dtype=torch.float64)


def weight_statistics(
    snapshot: TrainingSnapshot, weights: Mapping[str, Sequence[str]], gradients: Mapping[str, Tensor]
) -> Tensors:
    """Return gradient RMS, relative update and effective learning rate of the weights of each layer.

    All weights of a layer are treated as one vector; :class:`Activations` defines the quantities.

    Shapes:
        weights: parameter names by layer; gradients ``(K, …)`` by name; returns ``(L, K)`` each, in float64.
    """
    norms, layer_indices, counts = [], [], []
    for number, names in enumerate(weights.values()):
        for name in names:
            w = snapshot.before[name].detach()
            update = snapshot.after[name].detach() - w if snapshot.after is not snapshot.before else w * torch.nan
            norms += [member_norm(w), member_norm(gradients[name]), member_norm(update)]
            layer_indices.append(number)
        counts.append([sum(gradients[name][0].numel() for name in names)])
    squares = torch.stack(norms).square().view(len(layer_indices), 3, -1)
    index = torch.tensor(layer_indices, device=squares.device)
    joined = squares.new_zeros(len(weights), *squares.shape[1:]).index_add_(0, index, squares)
    size, gradient, update = joined.unbind(1)
    return {
        "gradient_rms": (gradient / size.new_tensor(counts)).sqrt(),
        "relative_update": (update / size).sqrt(),
        "effective_lr": snapshot.lr / size,
    }


@dataclass(frozen=True, kw_only=True)
class Activations(Probe):
    """Statistics of activations, normalizer outputs, gradients and weights of each layer, before the step.

    Activation outputs: ``layer/mean``, ``layer/std``, ``layer/dead``, ``layer/effective_rank`` and
    ``layer/centered_effective_rank``, see :func:`output_statistics`; for activations with two bounds also
    ``layer/saturated``, see :func:`saturated_share`. Activation inputs: ``layer/preactivation_effective_rank``,
    not centered. Further calls of an activation are ``layer.2``, ``layer.3`` and so on.

    Normalizer outputs, over all entries: ``layer/norm_mean`` and ``layer/norm_std``; absent without a normalizer.

    Weights w of a layer as one vector, with gradient g of the loss: ``layer/gradient_rms``, √mean g²;
    ``layer/relative_update``, ‖Δw‖/‖w‖ of the step, NaN if no step is taken; ``layer/effective_lr``, η/‖w‖², the
    learning rate at which scale-invariant weights of norm 1 would rotate as fast (arXiv:1706.05350). Biases and
    parameters of normalizers are excluded.

    Summaries over layers: ``dead``, the largest; each effective rank, the smallest; ``gradient_rms_ratio``, the
    gradient RMS of the first weights divided by that of the last. A ratio far below 1 means that gradients vanish
    toward the input, far above 1 that they explode.

    In epoch 0 also ``features_mean`` and ``features_std`` of the training split, over all entries as numbers and
    for each feature as arrays.

    Args:
        histograms_every: record histograms of activations and weights every n-th epoch; null for never.
        threshold: distance from a bound that counts as saturated, as a share of the distance of the bounds.
        data: ``minibatch`` or ``train``, the data of the activations and the loss.

    Raises:
        ValueError: if ``histograms_every`` is below 1, or the threshold outside (0, 0.5).
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

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield a measurement for each mode, with features in epoch 0 and histograms in the scheduled epochs."""
        weights = weights_by_layer(snapshot, [layer for layer, _ in activation_slots(snapshot.net)])
        features, arrays = feature_statistics(snapshot) if snapshot.epoch == 0 else ({}, {})
        with_histograms = self.histograms_every is not None and snapshot.epoch % self.histograms_every == 0
        for mode in self.modes:
            flow = forward_backward(snapshot, mode, list(chain(*weights.values())), self.data)
            through = {}
            if flow.outputs:
                through = output_statistics([*flow.outputs.values()])
                through |= preactivation_rank([*flow.inputs.values()])
            back = weight_statistics(snapshot, weights, flow.gradients) if weights else {}
            numbers = {
                **numbers_by_layer(flow.outputs, through),
                **numbers_by_layer(weights, back),
                **normalizer_statistics(flow),
                **saturation_by_layer(flow, self.threshold),
                **network_summary(through, back),
                **features,
            }
            headline = [name for name in ("dead", "gradient_rms_ratio") if name in numbers]
            histograms = histogram_values(snapshot, flow.outputs, weights) if with_histograms else {}
            yield Measurement(mode, numbers, arrays, headline, histograms)


def numbers_by_layer(layers: Iterable[str], numbers: Tensors) -> Tensors:
    """Split numbers ``(L, K)`` by layer: ``layer/name`` to ``(K,)``."""
    rows = {name: values.unbind(0) for name, values in numbers.items()}
    return {f"{layer}/{name}": row[i] for i, layer in enumerate(layers) for name, row in rows.items()}


def normalizer_statistics(flow: ForwardBackward) -> Tensors:
    """Return mean and standard deviation of the output of each normalizer, ``(K,)`` each."""
    return {
        f"{layer}/norm_{name}": value
        for layer, moments in flow.normalized.items()
        for name, value in zip(("mean", "std"), moments.unbind(1), strict=True)
    }


def saturation_by_layer(flow: ForwardBackward, threshold: float) -> Tensors:
    """Return the saturated share of each activation with two bounds, ``(K,)`` each."""
    return {
        f"{layer}/saturated": saturated_share(flow.outputs[layer], *BOUNDS[type(module)](module), threshold)
        for layer, module in flow.activations.items()
        if type(module) in BOUNDS
    }


def network_summary(through: Tensors, back: Tensors) -> Tensors:
    """Summarize numbers ``(L, K)`` over layers: largest dead share, smallest ranks, ratio of gradients."""
    summary = {}
    if through:
        ranks = {name: value.amin(0) for name, value in through.items() if name.endswith("effective_rank")}
        summary = {"dead": through["dead"].amax(0), **ranks}
    if back:
        summary["gradient_rms_ratio"] = back["gradient_rms"][0] / back["gradient_rms"][-1]
    return summary


def feature_statistics(snapshot: TrainingSnapshot) -> tuple[Tensors, Tensors]:
    """Return mean and standard deviation of the training inputs, over all ``(K,)`` and by feature ``(K, D)``."""
    x, members = snapshot.train[0].flatten(2).double(), len(snapshot.lr)
    names = ("features_mean", "features_std")
    overall = {name: value.expand(members) for name, value in zip(names, mean_std(x.flatten(1)), strict=True)}
    by_feature = (value.view(len(x), -1) for value in mean_std(x.transpose(1, 2).flatten(0, 1)))
    return overall, {name: value.expand(members, -1) for name, value in zip(names, by_feature, strict=True)}


def histogram_values(
    snapshot: TrainingSnapshot, outputs: Tensors, weights: Mapping[str, Sequence[str]]
) -> Tensors:
    """Return the outputs and weights of each layer, ``(K, …)`` each."""
    values = {f"{layer}/activations": h for layer, h in outputs.items()}
    for layer, names in weights.items():
        values[f"{layer}/weights"] = torch.cat([snapshot.before[name].detach().flatten(1) for name in names], 1)
    return values
