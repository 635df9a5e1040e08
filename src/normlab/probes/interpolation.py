"""The loss on lines through the parameters: in a random direction, and to the initial parameters.

Letters: K members, A points of a line, P parameters of a member, E filters of a weight, N and B samples of the
statistics and of the loss.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normlab.models.layer_lookup import (
    batch_statistics,
    call_hooks,
    pooled_statistics,
    running_statistics,
    use_batch_statistics,
)
from normlab.probes.landscape import BatchedLoss, Params, side_effect_free_copy
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot


def losses_on_line(landscape: BatchedLoss, direction: Tensor, alphas: Tensor) -> Tensor:
    """Return the losses ``f(θ + α·d)``.

    Shapes:
        direction d ``(K, P)``; alphas ``(A,)``; returns ``(A, K)``.

    >>> bowl = BatchedLoss.of(lambda params: (params["w"] ** 2).sum(), {"w": torch.tensor([1.0, 0.0])})
    >>> losses_on_line(bowl, torch.tensor([[1.0, 0.0]]), torch.tensor([-1.0, 0.0, 1.0])).flatten()
    tensor([0., 1., 4.])
    """
    return landscape.losses(landscape.theta + alphas.to(landscape.theta)[:, None, None] * direction)


def losses_between(landscape: BatchedLoss, end: Tensor, alphas: Tensor) -> Tensor:
    """Return the losses ``f((1 − α)·θ + α·θ₂)`` on the line between θ and other parameters of the same nets.

    Shapes:
        end θ₂ ``(K, P)``, see :func:`flatten_state`; alphas ``(A,)``; returns ``(A, K)``.

    Goodfellow, Vinyals and Saxe (2015), Qualitatively characterizing neural network optimization problems,
    arXiv:1412.6544.
    """
    alphas = alphas.to(landscape.theta)[:, None, None]
    # In this form, unlike θ + α (θ₂ − θ), the ends are exactly θ and θ₂.
    return landscape.losses((1 - alphas) * landscape.theta + alphas * end)


def flatten_state(landscape: BatchedLoss, state: Params) -> Tensor:
    """Flatten parameters in the order of a landscape, ``(K, …)`` by name to ``(K, P)``."""
    vectors = [state[name].detach().reshape(landscape.members, -1) for name in landscape.names]
    return torch.cat(vectors, dim=1).to(landscape.theta)


def random_direction(
    landscape: BatchedLoss, generators: Sequence[torch.Generator], *, others: bool = False
) -> Tensor:
    r"""Draw a filter-normalized random direction for each member: each filter has the norm of its weights.

    .. math:: d_e \leftarrow \frac{d_e}{\|d_e\|} \|\theta_e\|, \quad d \sim N(0, I)

    for each filter e, a row of a matrix or an output channel of a convolution. Rescaling the weights of a
    scale-invariant layer rescales the direction as well, so the losses on the line do not change.

    The direction is 0 for parameters with fewer than two axes (biases, parameters of normalizers) and for the
    lengths of weight normalization. With ``others``, each of these is treated as one filter.

    Shapes:
        returns ``(K, P)``.

    Args:
        landscape: the loss and its parameters θ.
        generators: one for each member.
        others: whether the direction includes parameters without filters.

    Li, Xu, Taylor, Studer and Goldstein (2018), Visualizing the loss landscape of neural nets, arXiv:1712.09913.
    """
    draws = landscape.normal(generators)[0]
    pairs = zip(landscape.names, landscape.unflatten(draws), landscape.unflatten(landscape.theta), strict=True)
    directions = []
    for name, d, theta in pairs:
        filters = has_filters(name, theta)
        rows = (len(theta), theta.shape[1] if filters else 1, -1)
        weight_norms, draw_norms = (tensor.reshape(rows).norm(dim=2, keepdim=True) for tensor in (theta, d))
        normalized = d.reshape(rows) * (weight_norms / draw_norms)
        directions.append((normalized if filters or others else torch.zeros_like(normalized)).flatten(1))
    return torch.cat(directions, dim=1)


def has_filters(name: str, values: Tensor) -> bool:
    """Return True for weights of E filters, ``(K, E, …)``, except the lengths of weight normalization."""
    return values.dim() > 2 and not name.endswith("parametrizations.weight.original0")


def reestimated(snapshot: TrainingSnapshot, data: str = "train", *, double: bool = False) -> BatchedLoss:
    """Return the evaluation loss as a function of the parameters, with statistics re-estimated at every point.

    Statistics that are frozen at θ are wrong for other parameters. Here the training split passes through the net
    at each point in evaluation mode, as one batch normalized by its own statistics. These then replace the running
    mean and the running variance, which is unbiased (divided by N − 1) as in training. On the training split, this
    loss equals the loss with batch statistics except for that factor and for the parts that evaluation disables:
    dropout, noise, and the corrections r and d of batch renormalization.

    Args:
        snapshot: the nets and their data.
        data: ``minibatch`` or ``train``, the data of the loss.
        double: whether to compute in float64.
    """
    forward = reestimating_forward(snapshot.net, folds=snapshot.folds)
    (x, y), samples = snapshot.data(data), snapshot.data("train")[0]
    state = snapshot.trained_and_fixed(snapshot.before)
    return snapshot.loss_of(forward, *state, [samples, x], y, double=double)


def reestimating_forward(net: nn.Module, *, folds: bool = True) -> Callable[[Params, Tensor, Tensor], Tensor]:
    """Return the evaluation pass of a net as a function of its state, samples for the statistics, and x.

    Shapes:
        for one member, without K: samples ``(N, …)``, x ``(B, …)``; returns ``(B, O)``.
    """
    frozen = side_effect_free_copy(net, "frozen", folds=folds)
    estimator = side_effect_free_copy(net, "frozen", folds=False)
    running = running_statistics(estimator)
    layers = {name.rpartition(".")[0]: layer for name, (layer, _) in running.items()}

    def forward(state: Params, samples: Tensor, x: Tensor) -> Tensor:
        estimates: dict[str, Tensor] = {}

        def estimate(path: str, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            rows = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
            for name, value in pooled_statistics(layer, batch_statistics(layer, rows).unsqueeze(0)).items():
                estimates[f"{path}.{name}".lstrip(".")] = value

        if layers:
            parameters = {name: tensor for name, tensor in state.items() if name not in running}
            with use_batch_statistics(estimator), call_hooks(layers.items(), before=estimate):
                functional_call(estimator, parameters, (samples,))
        own = {name: value for name, value in estimates.items() if name in running}
        return functional_call(frozen, {**state, **own}, (x,))

    return forward


def barrier(losses: Tensor, alphas: Tensor) -> Tensor:
    """Return the largest rise of the loss above the straight line between its ends: ``(A, K)`` to ``(K,)``.

    It is 0 if the loss never exceeds that line (Frankle et al. 2020, arXiv:1912.05671).
    """
    share = ((alphas - alphas[0]) / (alphas[-1] - alphas[0])).to(losses).unsqueeze(1)
    return (losses - (1 - share) * losses[0] - share * losses[-1]).amax(0)


@dataclass(frozen=True, kw_only=True)
class Line(Probe):
    """The loss along a :func:`random_direction`, and on the line from the initial to the current parameters.

    In mode ``frozen``, the statistics are re-estimated at every point from the whole training split, see
    :func:`reestimated`, because running statistics are only valid at θ.

    Numbers: ``loss`` at θ; ``rise``, the mean loss at the ends of the random line minus the loss at θ, which is
    ``reach²/2 · dᵀHd`` for a quadratic; and ``barrier``, see :func:`barrier`, on the line from the initial
    parameters, NaN if the parameters have not changed.

    Args:
        count: A, the number of points of each line; odd, so that the middle of the random line is θ.
        reach: half the length of the random line, from −reach to reach; at 1 each filter is moved by its norm.
        data: ``minibatch`` or ``train``, the data of the loss.
        double: whether to compute in float64.

    Raises:
        ValueError: if count is even or below 3, or reach is not positive.
    """

    count: int = 21
    reach: float = 1.0
    data: str = "train"
    double: bool = False
    at_end: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 3 or self.count % 2 == 0:
            raise ValueError(f"count must be an odd number of at least 3, got {self.count}")
        if not self.reach > 0:
            raise ValueError(f"reach must be a number > 0, got {self.reach}")

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield the losses on both lines for each mode, with the same random direction."""
        direction = None
        half = self.count // 2
        # Integers times the reach, so that the middle coefficient is exactly 0.
        random_alphas = self.reach * torch.arange(-half, half + 1, dtype=torch.float64) / half
        between_alphas = torch.linspace(0, 1, self.count, dtype=torch.float64)
        for mode in self.modes:
            landscape = self.landscape(snapshot, mode)
            start, theta = flatten_state(landscape, snapshot.start), landscape.theta
            if direction is None:
                direction = random_direction(landscape, snapshot.generators)
            random = losses_on_line(landscape, direction, random_alphas)
            between = losses_between(landscape, start, between_alphas.flip(0))
            moved = (start != theta).any(1)
            middle = random[half]
            numbers = {
                "loss": middle,
                "rise": (random[0] + random[-1]) / 2 - middle,
                "barrier": torch.where(moved, barrier(between, between_alphas), torch.nan),
            }
            arrays = {
                "random_alphas": random_alphas.expand(landscape.members, -1),
                "random_losses": random.T,
                "between_alphas": between_alphas.expand(landscape.members, -1),
                "between_losses": between.T,
            }
            yield Measurement(mode, numbers, arrays, headline=("rise", "barrier"))

    def landscape(self, snapshot: TrainingSnapshot, mode: str) -> BatchedLoss:
        """Return the loss on which both lines are evaluated."""
        if mode == "frozen":
            return reestimated(snapshot, self.data, double=self.double)
        return snapshot.landscape(mode, self.data, double=self.double)
