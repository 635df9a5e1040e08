"""Snapshots of small nets during training, for the tests of probes."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from normlab.models import MLP
from normlab.models.layers import Dropout
from normlab.norms import BatchNorm1d, BatchRenorm, GhostBatchNorm, NoisyBatchNorm
from normlab.probes.landscape import BatchedLoss
from normlab.probes.snapshot import TrainingSnapshot

NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "nobn": None,
    "bn": BatchNorm1d,
    "bn_fused": partial(BatchNorm1d, fused=True),
    "bn_torch": nn.BatchNorm1d,
    "ghost": partial(GhostBatchNorm, ghost_size=8),
    "brn": BatchRenorm,
    "noisy": NoisyBatchNorm,
    "ln": nn.LayerNorm,
    "dropout": lambda _: Dropout(0.3),
    "torch_dropout": lambda _: nn.Dropout(0.3),
}
"""Modules for the norm slots of a net."""


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).mean(1)


def make_net(norm: Callable[[int], nn.Module] | None = BatchNorm1d, seed: int = 0, **options) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MLP((3,), 2, norm=norm, **({"hidden": [6, 5], "activation": "tanh"} | options)).double()


def make_snapshot(
    nets: Sequence[nn.Module], samples: int = 24, seed: int = 1, step: float = 0.05, **overrides
) -> TrainingSnapshot:
    """Return a snapshot of nets around a step of gradient descent on a minibatch that they have seen."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(nets), samples, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(len(nets), samples, 2, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        for net, own in zip(nets, x, strict=True):
            net.train()(own)
    params, buffers = stack_module_state(list(nets))
    before = {name: tensor.detach().clone() for name, tensor in (params | buffers).items()}
    after = dict(before)
    for k, net in enumerate(nets):
        with torch.random.fork_rng():
            state = {name: tensor[k].clone() for name, tensor in before.items()}
            own = {name: state[name].requires_grad_() for name in params}
            loss = squared(functional_call(net, state, (x[k],))[None], y[k][None]).sum()
            grads = torch.autograd.grad(loss, list(own.values()), materialize_grads=True)
        for name, grad in zip(own, grads, strict=True):
            after[name] = after[name].clone()
            after[name][k] -= step * grad
    fields = {
        "net": nets[0],
        "loss": squared,
        "trained": list(params),
        "before": before,
        "after": after,
        "start": before,
        "minibatch": (x, y),
        "train": (x[:1], y[:1]),
        "lr": torch.full((len(nets),), step, dtype=torch.float64),
        "stability": None,
        "generators": [torch.Generator().manual_seed(10 + k) for k in range(len(nets))],
        "epoch": 1,
        "step": 3,
    }
    return TrainingSnapshot(**(fields | overrides))


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state_of(nets: Sequence[nn.Module]) -> dict[str, Tensor]:
    named = [dict(chain(net.named_parameters(), net.named_buffers())) for net in nets]
    return {name: torch.stack([own[name].detach().clone() for own in named]) for name in named[0]}


def make_stepped_snapshot(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> TrainingSnapshot:
    """Return a snapshot of nets that have seen other batches, around a step of torch.optim.SGD for each net."""
    nets = []
    for seed in range(3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets.append(make().double())
    x, y = 1 + 2 * draws(3, 12, *shape, seed=4), draws(3, 12, 2, seed=5)
    rates = torch.tensor([0.05, 0.1, 0.02], dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        for net in nets:
            for seed in range(3):
                net(3 * draws(9, *shape, seed=seed))
    before = state_of(nets)
    for net, own, target, lr in zip(nets, x, y, rates, strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=float(lr))
        # The probe repeats the random draws of this step.
        with torch.random.fork_rng(devices=[]):
            squared(net(own)[None], target[None]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after, trained = state_of(nets), [name for name, _ in nets[0].named_parameters()]
    train = 2 + 3 * draws(1, 21, *shape, seed=2), draws(1, 21, 2, seed=3)
    return TrainingSnapshot(nets[0], squared, trained, before, after, before, (x, y), train, rates, None, [], 1, 3)


def alone(snapshot: TrainingSnapshot, k: int) -> TrainingSnapshot:
    """Return the snapshot of member k alone."""

    def own(state):
        return {name: tensor[k : k + 1] for name, tensor in state.items()}

    x, y = snapshot.minibatch
    stability = None if snapshot.stability is None else snapshot.stability[k : k + 1]
    before = own(snapshot.before)
    return TrainingSnapshot(
        snapshot.net,
        snapshot.loss,
        snapshot.trained,
        before,
        before if snapshot.after is snapshot.before else own(snapshot.after),
        own(snapshot.start),
        (x[k : k + 1], y[k : k + 1]),
        snapshot.train,
        snapshot.lr[k : k + 1],
        stability,
        [torch.Generator().manual_seed(10 + k)],
        snapshot.epoch,
        snapshot.step,
    )


def quadratic(hessian: Tensor, at: Tensor | None = None) -> BatchedLoss:
    """Return ``½ θᵀHθ`` of each member, H ``(K, P, P)``, at θ ``(K, P)``, by default all ones."""
    theta = torch.ones(hessian.shape[:2], dtype=hessian.dtype) if at is None else at
    return BatchedLoss(lambda params, h: params["w"] @ h @ params["w"] / 2, {"w": theta}, [hessian])


@pytest.fixture
def helpers() -> SimpleNamespace:
    """Return the functions that make nets, snapshots and landscapes."""
    return SimpleNamespace(
        make_net=make_net,
        make_snapshot=make_snapshot,
        make_stepped_snapshot=make_stepped_snapshot,
        state_of=state_of,
        alone=alone,
        quadratic=quadratic,
        norms=NORMS,
        squared=squared,
    )
