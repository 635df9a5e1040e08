from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from normlab.models import CNN, MLP
from normlab.norms import BatchNorm1d, BatchNorm2d, BatchRenorm, GhostBatchNorm, L1BatchNorm, NoisyBatchNorm
from normlab.population.evaluation import reestimate
from normlab.population.population import Population
from normlab.probes.interpolation import reestimated, reestimating_forward
from normlab.probes.snapshot import TrainingSnapshot

K = 3


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square().flatten(1).mean(1)


def mlp(norm, **options) -> nn.Module:
    return MLP((3,), 2, hidden=[6, 5], norm=norm, **options)


def nets_of(make, members: int = K) -> list[nn.Module]:
    nets = []
    for seed in range(members):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets.append(make().double())
    return nets


def make_snapshot(nets: list[nn.Module], shape=(3,)) -> TrainingSnapshot:
    named = [{**dict(net.named_parameters()), **dict(net.named_buffers())} for net in nets]
    state = {name: torch.stack([own[name].detach().clone() for own in named]) for name in named[0]}
    train = 2 + 3 * draws(1, 20, *shape, seed=2), draws(1, 20, 2, seed=3)
    minibatch = draws(len(nets), 8, *shape, seed=4), draws(len(nets), 8, 2, seed=5)
    trained = [name for name, _ in nets[0].named_parameters()]
    lr = torch.full((len(nets),), 0.1, dtype=torch.float64)
    return TrainingSnapshot(nets[0], loss_of, trained, state, state, state, minibatch, train, lr, None, [], 0, 0)


MAKERS = {
    "bn": (partial(mlp, BatchNorm1d), (3,)),
    "bn_torch": (partial(mlp, nn.BatchNorm1d), (3,)),
    "noisy": (partial(mlp, NoisyBatchNorm, dropout=0.3), (3,)),
    "brn": (partial(mlp, BatchRenorm), (3,)),
    "ghost": (partial(mlp, partial(GhostBatchNorm, ghost_size=4)), (3,)),
    "l1": (partial(mlp, L1BatchNorm), (3,)),
    "ln": (partial(mlp, nn.LayerNorm), (3,)),
    "without": (partial(mlp, partial(BatchNorm1d, track_running_stats=False)), (3,)),
    "cnn": (lambda: CNN((1, 4, 4), 2, channels=[2, 3], norm2d=BatchNorm2d), (1, 4, 4)),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("data", ["train", "minibatch"])
def test_loss_matches_nets_reestimated_at_every_point(name, data):
    make, shape = MAKERS[name]
    snapshot = make_snapshot(nets_of(make), shape)
    landscape = reestimated(snapshot, data)
    points = landscape.theta + 0.3 * draws(2, *landscape.theta.shape, seed=6)

    expected = []
    for point in points:
        nets = nets_of(make)
        for net, theta in zip(nets, point, strict=True):
            nn.utils.vector_to_parameters(theta, net.parameters())
        population = Population(nets)
        x = snapshot.train[0].expand(K, *snapshot.train[0].shape[1:])
        reestimate(population, [x])
        population.eval()
        inputs, targets = snapshot.data(data)
        expected.append(loss_of(population(inputs), targets).detach())
    assert_close(landscape.losses(points), torch.stack(expected))
    for k in range(K):
        assert_close(
            landscape.of_members(slice(k, k + 1)).losses(points[:, k : k + 1]), torch.stack(expected)[:, k : k + 1]
        )


def test_same_samples_equal_batch_statistics_up_to_bias():
    norm = partial(BatchNorm1d, eps=1e-14)
    snapshot = make_snapshot(nets_of(lambda: MLP((3,), 2, hidden=[6], norm=norm)))
    by_batch, frozen = snapshot.landscape("batch", "train"), reestimated(snapshot)
    rescaled = torch.where(by_batch.parameter_mask(["hidden1.norm.weight"]), (19 / 20) ** 0.5, 1.0).double()

    assert_close(frozen.losses(frozen.theta), by_batch.losses(by_batch.theta * rescaled))
    assert bool((frozen.losses(frozen.theta) != by_batch.losses(by_batch.theta)).all())


def test_running_statistics_are_not_used():
    snapshot = make_snapshot(nets_of(partial(mlp, BatchNorm1d)))
    loss = reestimated(snapshot)
    before = loss.losses(loss.theta)
    for name in ("running_mean", "running_var"):
        snapshot.before[f"hidden1.norm.{name}"].add_(7)
    again = reestimated(snapshot)

    assert torch.equal(again.losses(again.theta), before)
    plain = snapshot.landscape("frozen", "train")
    assert not torch.allclose(plain.losses(plain.theta), before)


def test_net_may_be_a_single_normalizer():
    net, samples, x = nn.BatchNorm1d(3).double(), 2 + 3 * draws(20, 3), draws(4, 3, seed=1)
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    expected = (x - samples.mean(0)) / (samples.var(0) + net.eps).sqrt()
    assert_close(reestimating_forward(net)(state, samples, x), expected)


def test_statistics_are_differentiable():
    snapshot = make_snapshot(nets_of(partial(mlp, BatchNorm1d), 1))
    landscape = reestimated(snapshot)
    gradient, step = landscape.gradients(landscape.theta), 1e-6 * draws(1, landscape.theta.shape[1], seed=9)
    difference = landscape.losses(landscape.theta + step) - landscape.losses(landscape.theta - step)
    assert_close((gradient * step).sum(1), difference / 2, rtol=1e-5, atol=1e-14)


def test_double_computes_in_float64():
    nets = [net.float() for net in nets_of(partial(mlp, BatchNorm1d))]
    snapshot = make_snapshot(nets)
    single = TrainingSnapshot(**{**vars(snapshot), "train": tuple(part.float() for part in snapshot.train)})

    assert reestimated(single).theta.dtype == torch.float32
    landscape = reestimated(single, double=True)
    assert landscape.losses(landscape.theta).dtype == torch.float64


@pytest.mark.parametrize("name", ["bn", "bn_torch", "noisy", "brn", "ln"])
def test_evaluation_has_no_side_effects(name):
    snapshot = make_snapshot(nets_of(MAKERS[name][0]))
    own, state = (
        {key: value.clone() for key, value in kept.items()}
        for kept in (snapshot.net.state_dict(), snapshot.before)
    )
    x, generator = snapshot.train[0][0], torch.get_rng_state()
    hooks = [len(layer._forward_pre_hooks) for layer in snapshot.net.modules()]
    expected = functional_call(snapshot.net.eval(), {key: value[0] for key, value in state.items()}, (x,))

    landscape = reestimated(snapshot)
    landscape.gradients(landscape.theta)

    assert all(torch.equal(snapshot.before[key], value) for key, value in state.items())
    assert all(torch.equal(snapshot.net.state_dict()[key], value) for key, value in own.items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert [len(layer._forward_pre_hooks) for layer in snapshot.net.modules()] == hooks
    assert torch.equal(
        functional_call(snapshot.net, {key: value[0] for key, value in state.items()}, (x,)), expected
    )
