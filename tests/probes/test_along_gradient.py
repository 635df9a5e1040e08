from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import MLP
from normlab.norms import BatchNorm1d, BatchRenorm, NoisyBatchNorm
from normlab.probes.gradient_change import LENGTHS, AlongGradient, along_gradient, cosine
from normlab.probes.landscape import BatchedLoss
from normlab.probes.snapshot import Measurement, TrainingSnapshot

K = 3


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hessians() -> Tensor:
    a = draws(K, 5, 5)
    return a @ a.mT


def quadratic() -> BatchedLoss:
    def loss(params, h):
        return params["w"] @ h @ params["w"] / 2

    return BatchedLoss(loss, {"w": draws(K, 5, seed=1)}, [hessians()])


def make_net(norm=BatchNorm1d, seed: int = 0, **options) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP((3,), 2, hidden=[6, 5], norm=norm, **options).double()


def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square().flatten(1).mean(1)


def make_snapshot(norm=BatchNorm1d, members: int = K, **options) -> TrainingSnapshot:
    nets = [make_net(norm, seed, **options) for seed in range(members)]
    state = {
        name: torch.stack([net.state_dict(keep_vars=True)[name].detach() for net in nets])
        for name in nets[0].state_dict()
    }
    for name, buffer in nets[0].named_buffers():
        state.setdefault(name, torch.stack([buffer] * members))
    x, y = draws(20, 3, seed=2), draws(20, 2, seed=3)
    minibatch = draws(members, 8, 3, seed=4), draws(members, 8, 2, seed=5)
    lr = torch.tensor([0.1, 0.02, 0.3], dtype=torch.float64)[:members]
    trained = [name for name, _ in nets[0].named_parameters()]
    generators = [torch.Generator().manual_seed(k) for k in range(members)]
    return TrainingSnapshot(
        nets[0], loss_of, trained, state, state, state, minibatch, (x, y), lr, None, generators, 0, 0
    )


def measure(probe: AlongGradient, snapshot: TrainingSnapshot) -> Measurement:
    (measurement,) = probe(snapshot)
    return measurement


def test_quadratic_matches_closed_form():
    landscape, h, w = quadratic(), hessians(), draws(K, 5, seed=1)
    lengths = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64)
    steps = along_gradient(landscape, lengths)

    g = torch.einsum("kij,kj->ki", h, w)
    hg = torch.einsum("kij,kj->ki", h, g)
    assert_close(steps.loss, (w * g).sum(1) / 2)
    assert_close(steps.gradient_norm, g.norm(dim=1))
    assert_close(steps.beta, hg.norm(dim=1) / g.norm(dim=1))
    assert bool((steps.beta <= torch.linalg.eigvalsh(h)[:, -1]).all())
    for number, length in enumerate(lengths):
        end = w - length * g
        moved = torch.einsum("kij,kj->ki", h, end)
        assert_close(steps.losses[number], (end * moved).sum(1) / 2)
        assert_close(steps.predictiveness[number], length * hg.norm(dim=1))
        assert_close(steps.cosine[number], (g * moved).sum(1) / g.norm(dim=1) / moved.norm(dim=1))
        assert_close(steps.distances[number], length * g.norm(dim=1))


def test_lengths_may_differ_between_members():
    lengths = draws(4, K, seed=6).abs()
    together = along_gradient(quadratic(), lengths)
    for k in range(K):
        alone = along_gradient(quadratic().of_members(slice(k, k + 1)), lengths[:, k])
        for many, one in zip(together, alone, strict=True):
            assert_close(many[..., k], one[..., 0])
        assert_close(together.beta[k], alone.beta[0])


def test_beta_is_maximum_over_lengths():
    # f = w⁴/4 at w = 2: g = 8; at w' = 2 − 8η the gradient is w'³.
    landscape = BatchedLoss.of(lambda params: params["w"] ** 4 / 4, {"w": torch.tensor(2.0, dtype=torch.float64)})
    steps = along_gradient(landscape, torch.tensor([0.125, 0.25, 0.5], dtype=torch.float64))

    assert_close(steps.losses.flatten(), torch.tensor([0.25, 0.0, 4.0], dtype=torch.float64))
    assert_close(steps.predictiveness.flatten(), torch.tensor([7.0, 8.0, 16.0], dtype=torch.float64))
    assert_close(steps.cosine.flatten(), torch.tensor([1.0, torch.nan, -1.0], dtype=torch.float64), equal_nan=True)
    assert steps.beta.item() == 7.0


@pytest.mark.parametrize("shape", [(2, K + 1), (1, 2, K), ()])
def test_wrong_shape_of_lengths_raises(shape):
    with pytest.raises(ValueError, match=r"lengths must be of shape \(E,\) or \(E, 3\), got"):
        along_gradient(quadratic(), torch.ones(shape))


def test_cosine_ignores_length_and_is_nan_for_zero_vector():
    a, b = (
        torch.tensor([[1e-15, 0.0], [3.0, 0.0], [0.0, 0.0]]),
        torch.tensor([[1e-15, 1e-15], [-1.0, 0.0], [1.0, 0.0]]),
    )
    assert_close(cosine(a, b), torch.tensor([0.5**0.5, -1.0, torch.nan]), equal_nan=True)


@pytest.mark.parametrize("norm", [BatchNorm1d, nn.BatchNorm1d, nn.LayerNorm, None])
@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_numbers_match_plain_autograd_on_minibatch(norm, mode):
    snapshot, probe = make_snapshot(norm), AlongGradient(lengths=(0.5, 2.0), modes=(mode,))
    measurement = measure(probe, snapshot)

    for k in range(K):
        x, y = snapshot.minibatch[0][k], snapshot.minibatch[1][k]
        net = make_net(norm, k).train(mode == "batch")

        def at(theta: Tensor, net=net, x=x, y=y) -> tuple[Tensor, Tensor]:
            nn.utils.vector_to_parameters(theta, net.parameters())
            net.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
            return loss.detach(), nn.utils.parameters_to_vector([p.grad for p in net.parameters()])

        theta = nn.utils.parameters_to_vector(net.parameters()).detach()
        loss, g = at(theta)
        losses, changes, angles = [], [], []
        for multiple in (0.5, 2.0):
            value, moved = at(theta - multiple * snapshot.lr[k] * g)
            losses.append(value)
            changes.append((g - moved).norm())
            angles.append(g @ moved / g.norm() / moved.norm())
        beta = max(
            change / (multiple * snapshot.lr[k] * g.norm())
            for change, multiple in zip(changes, (0.5, 2.0), strict=True)
        )
        expected = {
            "loss": loss,
            "loss_min": min(losses),
            "loss_max": max(losses),
            "loss_range": max(losses) - min(losses),
            "predictiveness_min": min(changes),
            "predictiveness_max": max(changes),
            "cosine_min": min(angles),
            "relative_change": max(changes) / g.norm(),
            "beta": beta,
            "beta_lr": beta * snapshot.lr[k],
        }
        assert measurement.numbers.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(measurement.numbers[name][k], value, msg=lambda text, name=name: f"{name}: {text}")
        assert_close(measurement.arrays["losses"][k], torch.stack(losses))
        assert_close(measurement.arrays["predictiveness"][k], torch.stack(changes))
        assert_close(measurement.arrays["cosine"][k], torch.stack(angles))
        assert_close(
            measurement.arrays["lengths"][k], snapshot.lr[k] * torch.tensor([0.5, 2.0], dtype=torch.float64)
        )


def test_measurement_has_mode_and_shapes():
    measurement = measure(AlongGradient(), make_snapshot())

    assert (measurement.mode, measurement.headline) == (
        "batch",
        ("beta", "beta_lr"),
    )
    assert all(value.shape == (K,) for value in measurement.numbers.values())
    assert all(value.shape == (K, len(LENGTHS)) for value in measurement.arrays.values())
    assert LENGTHS[0] == 0.5
    assert 1 in LENGTHS
    assert LENGTHS[-1] == 4


def test_stacked_members_equal_single_members():
    snapshot = make_snapshot(NoisyBatchNorm)
    together = measure(AlongGradient(), snapshot)
    for k in range(K):
        state = {name: tensor[k : k + 1] for name, tensor in snapshot.before.items()}
        x, y = (part[k : k + 1] for part in snapshot.minibatch)
        alone = TrainingSnapshot(
            snapshot.net,
            loss_of,
            snapshot.trained,
            state,
            state,
            state,
            (x, y),
            snapshot.train,
            snapshot.lr[k : k + 1],
            None,
            [],
            0,
            0,
        )
        for name, value in measure(AlongGradient(), alone).numbers.items():
            assert_close(together.numbers[name][k : k + 1], value)


def test_scale_free_numbers_ignore_scale_of_invariant_weights():
    # With ε → 0, and only this layer trained, all trained weights are scale-invariant.
    norm = partial(BatchNorm1d, eps=1e-16)
    snapshot = make_snapshot(norm)
    trained = ["hidden1.linear.weight"]
    scaled = {name: 10 * tensor if name in trained else tensor for name, tensor in snapshot.before.items()}

    def at(state, lr) -> dict[str, Tensor]:
        moment = TrainingSnapshot(
            snapshot.net,
            loss_of,
            trained,
            state,
            state,
            state,
            snapshot.minibatch,
            snapshot.train,
            lr,
            None,
            [],
            0,
            0,
        )
        return dict(measure(AlongGradient(), moment).numbers)

    before, after = at(snapshot.before, snapshot.lr), at(scaled, 100 * snapshot.lr)
    for name in ("loss_min", "loss_max", "cosine_min", "relative_change", "beta_lr"):
        assert_close(after[name], before[name], rtol=1e-6, atol=1e-9)
    assert_close(after["beta"], before["beta"] / 100, rtol=1e-6, atol=1e-9)


def test_nonfinite_member_leaves_other_members_unchanged():
    snapshot = make_snapshot()
    fine = measure(AlongGradient(), snapshot)
    snapshot.before["hidden1.linear.weight"][1, 0, 0] = torch.nan
    broken = measure(AlongGradient(), snapshot)

    for name, value in broken.numbers.items():
        assert value[1].isnan()
        assert_close(value[[0, 2]], fine.numbers[name][[0, 2]])


def test_zero_gradient_gives_nan_smoothness():
    snapshot = make_snapshot(None)
    for tensor in snapshot.before.values():
        tensor.zero_()
    snapshot = TrainingSnapshot(
        **{**vars(snapshot), "minibatch": (snapshot.minibatch[0], torch.zeros(K, 8, 2, dtype=torch.float64))}
    )
    numbers = measure(AlongGradient(), snapshot).numbers

    assert numbers["loss_max"].tolist() == [0.0] * K
    for name in ("beta", "beta_lr", "cosine_min", "relative_change"):
        assert numbers[name].isnan().all()


def test_double_computes_in_float64():
    snapshot = make_snapshot()
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in snapshot.before.items()
    }
    single = TrainingSnapshot(
        **{**vars(snapshot), "before": state, "minibatch": tuple(part.float() for part in snapshot.minibatch)}
    )

    assert measure(AlongGradient(), single).numbers["beta"].dtype == torch.float32
    double = measure(AlongGradient(double=True), single).numbers["beta"]
    assert double.dtype == torch.float64
    assert_close(double, measure(AlongGradient(), snapshot).numbers["beta"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", [BatchNorm1d, nn.BatchNorm1d, NoisyBatchNorm, BatchRenorm, nn.LayerNorm])
def test_probe_has_no_side_effects(norm):
    snapshot = make_snapshot(norm, dropout=0.3)
    before = {name: tensor.clone() for name, tensor in snapshot.before.items()}
    own = {name: tensor.clone() for name, tensor in snapshot.net.state_dict().items()}
    generator = torch.get_rng_state()

    measure(AlongGradient(modes=("batch",)), snapshot)
    measure(AlongGradient(modes=("frozen",)), snapshot)

    assert all(torch.equal(snapshot.before[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(snapshot.net.state_dict()[name], tensor) for name, tensor in own.items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(layer.training for layer in snapshot.net.modules())
    assert all(parameter.grad is None for parameter in snapshot.net.parameters())


@pytest.mark.parametrize("lengths", [(), (1.0, 0.0), (-1.0,), (float("nan"),)])
def test_invalid_lengths_raise(lengths):
    with pytest.raises(ValueError, match="lengths must be numbers > 0, at least one, got"):
        AlongGradient(lengths=lengths)
