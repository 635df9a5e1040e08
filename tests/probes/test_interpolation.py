from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import CNN, MLP
from normlab.norms import BatchNorm1d, BatchNorm2d, BatchRenorm, NoisyBatchNorm
from normlab.norms.weight import weight_normalization
from normlab.probes.interpolation import (
    Line,
    barrier,
    flatten_state,
    losses_between,
    losses_on_line,
    random_direction,
    reestimated,
)
from normlab.probes.landscape import BatchedLoss
from normlab.probes.snapshot import Measurement, TrainingSnapshot

K = 3


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generators(members: int = K) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(members)]


def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square().flatten(1).mean(1)


def mlp(norm=BatchNorm1d, **options) -> nn.Module:
    return MLP((3,), 2, hidden=[6, 5], norm=norm, **options)


def state_of(make, first: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    nets = []
    for seed in range(first, first + K):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets.append(make().double())
    named = [{**dict(net.named_parameters()), **dict(net.named_buffers())} for net in nets]
    return nets[0], {name: torch.stack([own[name].detach().clone() for own in named]) for name in named[0]}


def make_snapshot(make=mlp, shape=(3,)) -> TrainingSnapshot:
    (net, state), (_, start) = state_of(make), state_of(make, first=50)
    train = draws(1, 20, *shape, seed=2), draws(1, 20, 2, seed=3)
    minibatch = draws(K, 8, *shape, seed=4), draws(K, 8, 2, seed=5)
    trained = [name for name, _ in net.named_parameters()]
    lr = torch.full((K,), 0.1, dtype=torch.float64)
    return TrainingSnapshot(
        net, loss_of, trained, state, state, start, minibatch, train, lr, None, generators(), 0, 0
    )


def quadratic() -> tuple[BatchedLoss, Tensor]:
    """Return ½ (w − m)ᵀ H (w − m) at its minimum m, and H."""
    a = draws(K, 5, 5)
    h, m = a @ a.mT, draws(K, 5, seed=1)

    def loss(params, h, m):
        return (params["w"] - m) @ h @ (params["w"] - m) / 2

    return BatchedLoss(loss, {"w": m}, [h, m]), h


def test_line_through_quadratic_minimum_is_parabola():
    landscape, h = quadratic()
    d, alphas = draws(K, 5, seed=2), torch.linspace(-2, 2, 9, dtype=torch.float64)
    losses = losses_on_line(landscape, d, alphas)

    assert_close(losses, alphas.square().unsqueeze(1) * torch.einsum("ki,kij,kj->k", d, h, d) / 2)
    for k in range(K):
        assert_close(
            losses_on_line(landscape.of_members(slice(k, k + 1)), d[k : k + 1], alphas), losses[:, k : k + 1]
        )


def test_line_ends_equal_endpoints_exactly():
    landscape, h = quadratic()
    end, alphas = draws(K, 5, seed=3), torch.tensor([0.0, 0.25, 1.0])
    losses, way = losses_between(landscape, end, alphas), end - landscape.theta

    assert torch.equal(losses[0], landscape.losses(landscape.theta))
    assert torch.equal(losses[2], landscape.losses(end))
    assert_close(losses[1], 0.25**2 * torch.einsum("ki,kij,kj->k", way, h, way) / 2)


def test_barrier_is_largest_rise_above_straight_line():
    # (w² − 1)² from −1 to 1 has its barrier at 0; from −1 to 2 it is that of (w² − 1)² − 3 (w + 1).
    alphas = torch.linspace(0, 1, 301, dtype=torch.float64)
    bump, slope = 2 * alphas - 1, 3 * alphas - 1
    losses = torch.stack(
        [(bump**2 - 1) ** 2, (slope**2 - 1) ** 2, slope**2, torch.full_like(slope, torch.nan)], dim=1
    )
    highest = ((slope**2 - 1) ** 2 - 3 * (slope + 1)).max().item()

    assert_close(barrier(losses[:, :1], alphas), torch.tensor([1.0], dtype=torch.float64), rtol=1e-3, atol=0)
    expected = torch.tensor([1.0, highest, 0.0, torch.nan], dtype=torch.float64)
    assert_close(barrier(losses, alphas), expected, rtol=1e-3, atol=1e-12, equal_nan=True)
    # The barrier does not depend on the coordinates or the direction of the line.
    assert_close(barrier(losses[:, :3].flip(0), 5 + 2 * alphas), barrier(losses[:, :3], alphas))


def test_filters_of_direction_have_norm_of_weights():
    snapshot = make_snapshot(partial(CNN, (1, 4, 4), 2, channels=[2, 3], norm2d=BatchNorm2d), (1, 4, 4))
    landscape = snapshot.landscape("batch")
    d = dict(zip(landscape.names, landscape.unflatten(random_direction(landscape, generators())), strict=True))
    zero = {"hidden1.conv.bias", "hidden2.conv.bias", "output.bias"} | {
        f"hidden{number}.norm.{name}" for number in (1, 2) for name in ("weight", "bias")
    }

    for name, values in d.items():
        own = snapshot.before[name]
        assert values.shape == own.shape
        if name in zero:
            assert not values.any()
        else:
            assert_close(values.flatten(2).norm(dim=2), own.flatten(2).norm(dim=2))
            angles = torch.nn.functional.cosine_similarity(values.flatten(1), own.flatten(1))
            assert bool((angles.abs() < 0.99).all())


def test_others_includes_parameters_without_filters():
    landscape = make_snapshot().landscape("batch")
    plain, whole = (random_direction(landscape, generators(), others=others) for others in (False, True))
    without = landscape.parameter_mask([name for name in landscape.names if not name.endswith("linear.weight")])
    filters = ~without | landscape.parameter_mask(["output.weight"])

    assert torch.equal(plain[:, filters], whole[:, filters])
    for name, values in zip(landscape.names, landscape.unflatten(whole), strict=True):
        own = dict(zip(landscape.names, landscape.unflatten(landscape.theta), strict=True))[name]
        if values.dim() == 2:
            assert_close(values.norm(dim=1), own.norm(dim=1))


def test_weight_norm_lengths_are_not_moved():
    landscape = make_snapshot(partial(mlp, None, weight=weight_normalization)).landscape("batch")
    d = dict(zip(landscape.names, landscape.unflatten(random_direction(landscape, generators())), strict=True))

    assert not d["hidden1.linear.parametrizations.weight.original0"].any()
    assert d["hidden1.linear.parametrizations.weight.original1"].all()


def test_zero_weights_have_zero_direction():
    landscape = BatchedLoss.of(lambda params: params["w"].square().sum(), {"w": torch.zeros(2, 3)})
    assert not random_direction(landscape, generators(1)).any()


def test_stacked_directions_equal_single_directions():
    landscape = make_snapshot().landscape("batch")
    together = random_direction(landscape, generators())
    for k in range(K):
        alone = random_direction(landscape.of_members(slice(k, k + 1)), generators()[k : k + 1])
        assert torch.equal(together[k : k + 1], alone)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "batch"])
def test_line_ignores_scale_of_invariant_weights(frozen):
    snapshot = make_snapshot(partial(mlp, partial(BatchNorm1d, eps=1e-16)))
    scaled = {
        name: 10 * t if name.startswith("hidden") and "linear" in name else t
        for name, t in snapshot.before.items()
    }
    alphas, lines = torch.linspace(-1, 1, 5), []
    for state in (snapshot.before, scaled):
        moment = TrainingSnapshot(**{**vars(snapshot), "before": state})
        landscape = reestimated(moment) if frozen else moment.landscape("batch", "train")
        lines.append(losses_on_line(landscape, random_direction(landscape, generators()), alphas))

    assert_close(lines[0], lines[1])
    # Without normalization, rescaling changes the losses.
    landscape = make_snapshot(partial(mlp, None)).landscape("batch")
    d = random_direction(landscape, generators())
    assert not torch.allclose(losses_on_line(landscape, 10 * d, alphas), losses_on_line(landscape, d, alphas))


def test_flattened_state_has_order_of_landscape():
    snapshot = make_snapshot()
    landscape = snapshot.landscape("batch")
    assert torch.equal(flatten_state(landscape, snapshot.before), landscape.theta)
    assert torch.equal(
        flatten_state(landscape, snapshot.start), snapshot.landscape("batch", state=snapshot.start).theta
    )


def test_probe_measures_both_lines_in_both_modes():
    snapshot, probe = make_snapshot(), Line(count=5, reach=0.5)
    measurements = list(probe(snapshot))
    shares, aside = [0.0, 0.25, 0.5, 0.75, 1.0], torch.tensor([-0.5, -0.25, 0.0, 0.25, 0.5], dtype=torch.float64)

    assert [measurement.mode for measurement in measurements] == ["batch", "frozen"]
    for measurement, landscape in zip(
        measurements, [snapshot.landscape("batch", "train"), reestimated(snapshot)], strict=True
    ):
        d = random_direction(landscape, generators())
        start, theta = flatten_state(landscape, snapshot.start), landscape.theta
        random = torch.stack([landscape.losses(theta + alpha * d) for alpha in aside], dim=1)
        way = torch.stack([landscape.losses(start + share * (theta - start)) for share in shares], dim=1)
        straight = torch.stack([way[:, 0] + share * (way[:, -1] - way[:, 0]) for share in shares], dim=1)

        assert_close(measurement.arrays["random_alphas"], aside.expand(K, 5))
        assert_close(measurement.arrays["between_alphas"], torch.tensor(shares, dtype=torch.float64).expand(K, 5))
        assert_close(measurement.arrays["random_losses"], random)
        assert_close(measurement.arrays["between_losses"], way)
        assert_close(measurement.numbers["loss"], landscape.losses(theta))
        assert_close(measurement.numbers["rise"], (random[:, 0] + random[:, 4]) / 2 - random[:, 2])
        assert_close(measurement.numbers["barrier"], (way - straight).amax(1))
        assert measurement.headline == ("rise", "barrier")


@pytest.mark.parametrize("count", [3, 41, 99])
def test_rise_of_linear_net_matches_parabola(count):
    snapshot = make_snapshot(lambda: nn.Linear(3, 2, bias=False))
    (measurement,) = Line(count=count, reach=2.0, modes=("batch",))(snapshot)
    landscape = snapshot.landscape("batch", "train")
    d = random_direction(landscape, generators()).view(K, 2, 3)
    outputs = torch.einsum("bi,koi->kbo", snapshot.train[0][0], d)

    assert_close(measurement.numbers["rise"], 2.0**2 * outputs.square().flatten(1).mean(1))
    assert_close(measurement.numbers["barrier"], torch.zeros(K, dtype=torch.float64), rtol=0, atol=1e-12)
    assert measurement.arrays["random_alphas"][0, count // 2] == 0


def test_minibatch_loss_uses_training_statistics():
    snapshot = make_snapshot()
    *_, measurement = Line(count=3, data="minibatch")(snapshot)
    landscape = reestimated(snapshot, "minibatch")
    assert_close(measurement.numbers["loss"], landscape.losses(landscape.theta))


def test_barrier_is_nan_before_any_change():
    snapshot = make_snapshot()
    start = {name: tensor.clone() for name, tensor in snapshot.before.items()}
    start["hidden1.linear.weight"][1] += 1
    for measurement in Line(count=3)(TrainingSnapshot(**{**vars(snapshot), "start": start})):
        assert measurement.numbers["barrier"].isnan().tolist() == [True, False, True]
        assert measurement.numbers["rise"].isfinite().all()


def test_nonfinite_member_leaves_other_members_unchanged():
    snapshot = make_snapshot()
    fine = list(Line(count=5)(snapshot))
    snapshot.before["hidden1.linear.weight"][1] = torch.nan
    broken = list(Line(count=5)(TrainingSnapshot(**{**vars(snapshot), "generators": generators()})))
    for one, other in zip(fine, broken, strict=True):
        for name, value in other.numbers.items():
            assert value[1].isnan()
            assert_close(value[[0, 2]], one.numbers[name][[0, 2]])


def test_double_computes_in_float64():
    snapshot = make_snapshot()
    states = {
        which: {name: t.float() if t.is_floating_point() else t for name, t in getattr(snapshot, which).items()}
        for which in ("before", "start")
    }
    single = TrainingSnapshot(
        **{**vars(snapshot), **states, "train": tuple(part.float() for part in snapshot.train)}
    )
    for double, dtype in ((False, torch.float32), (True, torch.float64)):
        for measurement in Line(count=3, double=double)(single):
            assert {value.dtype for value in measurement.numbers.values()} == {dtype}


@pytest.mark.parametrize("norm", [BatchNorm1d, nn.BatchNorm1d, NoisyBatchNorm, BatchRenorm, nn.LayerNorm])
def test_probe_has_no_side_effects(norm):
    snapshot = make_snapshot(partial(mlp, norm, dropout=0.3))
    states = [snapshot.before, snapshot.start, snapshot.net.state_dict()]
    copies = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    generator = torch.get_rng_state()

    measurements: list[Measurement] = list(Line(count=5)(snapshot))

    assert len(measurements) == 2
    states[2] = snapshot.net.state_dict()
    for state, copy in zip(states, copies, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in copy.items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(layer.training for layer in snapshot.net.modules())
    assert all(parameter.grad is None for parameter in snapshot.net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 40}, "count must be an odd number of at least 3, got 40"),
        ({"count": 1}, "count must be an odd number of at least 3, got 1"),
        ({"reach": 0.0}, "reach must be a number > 0, got 0.0"),
        ({"reach": float("nan")}, "reach must be a number > 0, got nan"),
        ({"data": "test"}, "data must be minibatch or train, got test"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Line(**options)
