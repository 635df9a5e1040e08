"""The loss on a line through the parameters: in a random direction, and from where the training began.

Letters: K members, A points of a line, P parameters of a member, E filters of a weight.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normlab.probes.landscape import BatchedLoss, Params
from normlab.probes.reestimated import reestimated
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot, member_normal


def losses_on_line(landscape: BatchedLoss, direction: Tensor, alphas: Tensor) -> Tensor:
    """Return the losses ``f(θ + α·d)``.

    Shapes:
        direction d ``(K, P)``; alphas ``(A,)``; returns ``(A, K)``.

    >>> bowl = BatchedLoss.of(lambda params: (params["w"] ** 2).sum(), {"w": torch.tensor([1.0, 0.0])})
    >>> losses_on_line(bowl, torch.tensor([[1.0, 0.0]]), torch.tensor([-1.0, 0.0, 1.0])).flatten()
    tensor([0., 1., 4.])
    """
    return landscape.losses(landscape.theta + alphas.to(landscape.theta)[:, None, None] * direction)


def interpolated(landscape: BatchedLoss, end: Tensor, alphas: Tensor) -> Tensor:
    """Return the losses ``f((1 − α)·θ + α·θ₂)`` between θ and other parameters of the same nets.

    Shapes:
        end θ₂ ``(K, P)``, see :func:`point`; alphas ``(A,)``; returns ``(A, K)``.

    Goodfellow, Vinyals and Saxe (2015), Qualitatively characterizing neural network optimization problems,
    arXiv:1412.6544.
    """
    alphas = alphas.to(landscape.theta)[:, None, None]
    # Not θ + α (θ₂ − θ): the ends are then θ and θ₂ to the last bit.
    return landscape.losses((1 - alphas) * landscape.theta + alphas * end)


def point(landscape: BatchedLoss, state: Params) -> Tensor:
    """Return where other parameters of the same nets lie in a landscape, ``(K, …)`` by name to ``(K, P)``."""
    parts = [state[name].detach().reshape(landscape.members, -1) for name in landscape.names]
    return torch.cat(parts, dim=1).to(landscape.theta)


def random_direction(
    landscape: BatchedLoss, generators: Sequence[torch.Generator], *, others: bool = False
) -> Tensor:
    r"""Return a filter-normalized random direction of each member, so that a step of 1 is as long as the weights.

    .. math:: d_e \leftarrow \frac{d_e}{\|d_e\|} \|\theta_e\|, \quad d \sim N(0, I)

    for each filter e, a row of a matrix or an output channel of a convolution. Rescaling the weights of a
    scale-invariant layer rescales their direction with them, and the losses on the line stay.

    What has fewer than two axes, biases and the parameters of normalizers, is 0 in the direction, and so are the
    lengths of weight normalization. With ``others`` each of these is taken for one filter.

    Shapes:
        returns ``(K, P)``.

    Args:
        landscape: where to look from.
        generators: one for each member.
        others: whether parameters that have no filters take part.

    Li, Xu, Taylor, Studer and Goldstein (2018), Visualizing the loss landscape of neural nets, arXiv:1712.09913.
    """
    draws = member_normal(generators, (1, landscape.theta.shape[1]), landscape.theta)[0]
    pairs = zip(landscape.names, landscape.parts(draws), landscape.parts(landscape.theta), strict=True)
    scaled = []
    for name, d, theta in pairs:
        filters = has_filters(name, theta)
        rows = (len(theta), theta.shape[1] if filters else 1, -1)
        lengths, ones = (tensor.reshape(rows).norm(dim=2, keepdim=True) for tensor in (theta, d))
        normalized = d.reshape(rows) * (lengths / ones)
        scaled.append((normalized if filters or others else torch.zeros_like(normalized)).flatten(1))
    return torch.cat(scaled, dim=1)


def has_filters(name: str, values: Tensor) -> bool:
    """Return whether a parameter, ``(K, E, …)``, is of E filters: the lengths of weight normalization are none."""
    return values.dim() > 2 and not name.endswith("parametrizations.weight.original0")


def barrier(losses: Tensor, alphas: Tensor) -> Tensor:
    """Return how far the loss rises, at most, above the straight line between its ends: ``(A, K)`` to ``(K,)``.

    0 where it never does (Frankle et al. 2020, arXiv:1912.05671).
    """
    share = ((alphas - alphas[0]) / (alphas[-1] - alphas[0])).to(losses).unsqueeze(1)
    return (losses - (1 - share) * losses[0] - share * losses[-1]).amax(0)


@dataclass(frozen=True, kw_only=True)
class Line(Probe):
    """The loss in a :func:`random_direction`, and :func:`between` the start of the training and its state.

    Frozen statistics are estimated anew at every point, from the whole training split, see
    :func:`normlab.probes.reestimated.reestimated`: those of θ would say nothing of another point.

    Found are the ``loss`` at θ; ``rise``, how far above it the loss lies at the ends of the random line, in the
    mean of both, which is ``reach²/2 · dᵀHd`` of a quadratic; and ``barrier``, how far the loss rises above the
    straight line between its values at start and state, NaN where nothing has moved.

    Args:
        count: A, the points of each line; odd, so that the middle one of the random line is θ.
        reach: how far the random line goes, from −reach to reach; at 1 each filter is moved by its norm.
        data: ``minibatch`` or ``train``, what the loss is over.
        double: whether to measure in float64.

    Raises:
        ValueError: for a count that is even or below 3, or a reach that is not positive.
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

    def __call__(self, scene: TrainingSnapshot) -> Iterator[Measurement]:
        """Yield the losses on both lines, the random one the same by each kind of statistics."""
        direction = None
        half = self.count // 2
        # Of whole numbers, as the one in the middle is to be 0 to the last bit.
        aside = self.reach * torch.arange(-half, half + 1, dtype=torch.float64) / half
        along = torch.linspace(0, 1, self.count, dtype=torch.float64)
        for mode in self.modes:
            landscape = self.landscape(scene, mode)
            start, theta = point(landscape, scene.start), landscape.theta
            if direction is None:
                direction = random_direction(landscape, scene.generators)
            random = losses_on_line(landscape, direction, aside)
            way = interpolated(landscape, start, along.flip(0))
            moved = (start != theta).any(1)
            middle = random[half]
            numbers = {
                "loss": middle,
                "rise": (random[0] + random[-1]) / 2 - middle,
                "barrier": torch.where(moved, barrier(way, along), torch.nan),
            }
            arrays = {
                "random_alphas": aside.expand(landscape.members, -1),
                "random_losses": random.T,
                "between_alphas": along.expand(landscape.members, -1),
                "between_losses": way.T,
            }
            yield Measurement(self.name, mode, numbers, arrays, headline=("rise", "barrier"))

    def landscape(self, scene: TrainingSnapshot, mode: str) -> BatchedLoss:
        """Return the loss that the line goes through."""
        if mode == "frozen":
            return reestimated(scene, self.data, double=self.double)
        return scene.landscape(mode, self.data, double=self.double)
