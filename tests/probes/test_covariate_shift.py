from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import CNN, MLP, ResMLP
from normlab.norms import BatchNorm1d, BatchNorm2d, BatchRenorm, NoisyBatchNorm
from normlab.probes.gradient_change import CovariateShift, covariate_shift, mean_over_layers, parameters_by_layer
from normlab.probes.interpolation import flatten_state
from normlab.probes.landscape import BatchedLoss
from normlab.probes.snapshot import Measurement, TrainingSnapshot

K = 3


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square().flatten(1).mean(1)


def mlp(norm=BatchNorm1d, **options) -> nn.Module:
    return MLP((3,), 2, hidden=[6, 5], norm=norm, **options)


def state_of(nets: list[nn.Module]) -> dict[str, Tensor]:
    named = [{**dict(net.named_parameters()), **dict(net.named_buffers())} for net in nets]
    return {name: torch.stack([own[name].detach().clone() for own in named]) for name in named[0]}


def stepped(state: dict[str, Tensor], names: list[str], size: float = 0.05) -> dict[str, Tensor]:
    """Return the state after a step; buffers change too, and the probe must ignore them."""
    after = {name: tensor.clone() for name, tensor in state.items()}
    for number, name in enumerate(names):
        after[name] += size * draws(*after[name].shape, seed=100 + number)
    return {name: tensor + 1 if name.endswith("running_mean") else tensor for name, tensor in after.items()}


def make_snapshot(make=mlp, shape=(3,), moved=None, trained=None, members: int = K) -> TrainingSnapshot:
    nets = []
    for seed in range(members):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets.append(make().double())
    state = state_of(nets)
    trained = [name for name, _ in nets[0].named_parameters()] if trained is None else trained
    after = stepped(state, trained if moved is None else moved)
    train = draws(1, 20, *shape, seed=2), draws(1, 20, 2, seed=3)
    minibatch = draws(members, 8, *shape, seed=4), draws(members, 8, 2, seed=5)
    lr = torch.full((members,), 0.1, dtype=torch.float64)
    return TrainingSnapshot(nets[0], loss_of, trained, state, after, state, minibatch, train, lr, None, [], 0, 0)


def measure(snapshot: TrainingSnapshot, mode: str = "batch", double: bool = False) -> Measurement:
    (measurement,) = CovariateShift(modes=(mode,), double=double)(snapshot)
    return measurement


def test_three_layer_linear_net_matches_closed_form():
    def loss(params, x, y):
        return (params["c"] * params["b"] * params["a"] * x - y) ** 2 / 2

    (a, b, c), x, y = torch.tensor([[0.5], [2.0], [-1.5]], dtype=torch.float64), 3.0, 1.0
    after = {"a": a + 0.1, "b": b - 0.2, "c": c + 0.3}
    context = [torch.tensor([x], dtype=torch.float64), torch.tensor([y], dtype=torch.float64)]
    landscape = BatchedLoss(loss, {"a": a, "b": b, "c": c}, context)
    masks = [landscape.parameter_mask([name]) for name in "abc"]
    shift = covariate_shift(landscape, flatten_state(landscape, after), masks)

    a1, b1 = after["a"], after["b"]
    of_b, of_b1 = ((c * b * end * x - y) * c * end * x for end in (a, a1))
    of_c, of_c1 = ((c * m * end * x - y) * m * end * x for end, m in ((a, b), (a1, b1)))
    expected = torch.stack([torch.zeros(1, dtype=torch.float64), (of_b - of_b1).abs(), (of_c - of_c1).abs()])
    assert_close(shift.difference, expected)
    assert_close(shift.relative[1:], expected[1:] / torch.stack([of_b.abs(), of_c.abs()]))
    assert_close(shift.cosine[1:], torch.stack([(of_b * of_b1).sign(), (of_c * of_c1).sign()]))
    assert (shift.difference[0], shift.cosine[0]) == (0, 1)


def by_hand(snapshot: TrainingSnapshot, k: int, mode: str) -> dict[str, Tensor]:
    """Set the parameters of a net layer by layer, and take gradients by plain autograd."""
    net = deepcopy(snapshot.net).train(mode == "batch")
    parts = parameters_by_layer(net)
    x, y = snapshot.minibatch[0][k], snapshot.minibatch[1][k]

    def gradient(layer: str, below: list[str]) -> Tensor:
        for own in net.state_dict(keep_vars=True):
            net.state_dict(keep_vars=True)[own].data.copy_(snapshot.before[own][k])
        for lower in below:
            for own in parts[lower]:
                net.get_parameter(own).data.copy_(snapshot.after[own][k])
        net.zero_grad()
        (net(x) - y).square().mean().backward()
        return torch.cat([net.get_parameter(own).grad.flatten() for own in parts[layer]])

    expected = {}
    for number, layer in enumerate(parts):
        g, moved = gradient(layer, []), gradient(layer, list(parts)[:number])
        expected[f"{layer}/difference"] = (g - moved).norm()
        expected[f"{layer}/relative"] = (g - moved).norm() / g.norm()
        expected[f"{layer}/cosine"] = g @ moved / g.norm() / moved.norm()
    for name in ("difference", "relative", "cosine"):
        expected[name] = torch.stack([expected[f"{layer}/{name}"] for layer in list(parts)[1:]]).mean()
    return expected


MAKERS = {
    "bn": (mlp, (3,)),
    "bn_torch": (partial(mlp, nn.BatchNorm1d), (3,)),
    "ln": (partial(mlp, nn.LayerNorm), (3,)),
    "plain": (partial(mlp, None), (3,)),
    "resmlp": (lambda: ResMLP((3,), 2, width=4, blocks=2, norm=BatchNorm1d), (3,)),
    "cnn": (lambda: CNN((1, 4, 4), 2, channels=[2, 3], norm2d=BatchNorm2d), (1, 4, 4)),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_numbers_match_plain_autograd_layer_by_layer(name, mode):
    snapshot = make_snapshot(*MAKERS[name])
    numbers = measure(snapshot, mode).numbers
    for k in range(K):
        expected = by_hand(snapshot, k, mode)
        assert numbers.keys() == expected.keys()
        for quantity, value in expected.items():
            assert_close(numbers[quantity][k], value, msg=lambda text, quantity=quantity: f"{quantity}: {text}")
    first = next(iter(parameters_by_layer(snapshot.net)))
    assert numbers[f"{first}/difference"].tolist() == [0.0] * K
    assert bool((numbers["difference"] > 0).all())


def test_measurement_has_mode_and_headline():
    measurement = measure(make_snapshot(), "frozen")
    assert (measurement.mode, measurement.headline) == (
        "frozen",
        ("relative", "cosine"),
    )
    assert all(value.shape == (K,) for value in measurement.numbers.values())


def test_layer_above_fixed_layers_has_no_shift():
    own = [f"hidden2.{name}" for name in ("linear.weight", "linear.bias", "norm.weight", "norm.bias")]
    numbers = measure(make_snapshot(moved=own)).numbers

    for layer in ("hidden1", "hidden2"):
        assert_close(numbers[f"{layer}/difference"], torch.zeros(K, dtype=torch.float64), rtol=0, atol=1e-14)
        assert_close(numbers[f"{layer}/cosine"], torch.ones(K, dtype=torch.float64))
    assert bool((numbers["output/difference"] > 1e-6).all())
    assert_close(numbers["difference"], numbers["output/difference"] / 2)


@pytest.mark.parametrize("layer", ["hidden1", "hidden2", "output"])
def test_single_trained_layer_has_no_shift(layer):
    own = parameters_by_layer(mlp())[layer]
    numbers = measure(make_snapshot(trained=own)).numbers

    assert {name.removeprefix(f"{layer}/") for name in numbers} == {"difference", "relative", "cosine"}
    assert numbers[f"{layer}/difference"].tolist() == [0.0] * K
    if layer == "hidden1":
        # The first layer is not part of the means.
        assert numbers["difference"].isnan().all()
    else:
        assert numbers["difference"].tolist() == numbers["relative"].tolist() == [0.0] * K
        assert_close(numbers["cosine"], torch.ones(K, dtype=torch.float64))


def test_numbers_are_nan_without_step():
    snapshot = make_snapshot()
    still = TrainingSnapshot(**{**vars(snapshot), "after": snapshot.before})
    numbers = measure(still).numbers

    assert numbers.keys() == measure(snapshot).numbers.keys()
    assert all(value.isnan().all() and value.shape == (K,) for value in numbers.values())


def test_layer_without_gradient_is_excluded_from_means():
    snapshot = make_snapshot(partial(mlp, None), moved=["output.bias", "hidden2.linear.bias"])
    # In member 1, no unit of the second layer is ever active, so its gradient is 0.
    for state in (snapshot.before, snapshot.after):
        state["hidden2.linear.bias"][1] = -1e3
    numbers = measure(snapshot).numbers

    assert numbers["hidden2/difference"][1] == 0
    assert numbers["hidden2/cosine"][1].isnan()
    assert numbers["hidden2/relative"][1].isnan()
    for name in ("relative", "cosine"):
        assert_close(numbers[name][1], numbers[f"output/{name}"][1])
        assert_close(numbers[name][0], (numbers[f"hidden2/{name}"] + numbers[f"output/{name}"])[0] / 2)


def test_mean_keeps_nan_of_nonfinite_layers():
    nan = torch.nan
    values, difference = (
        torch.tensor([[1.0, 1.0, nan], [nan, nan, nan]]),
        torch.tensor([[1.0, 1.0, 0.0], [0.0, nan, 0.0]]),
    )
    assert_close(mean_over_layers(values, difference), torch.tensor([1.0, nan, nan]), equal_nan=True)


def test_nonfinite_member_leaves_other_members_unchanged():
    snapshot = make_snapshot()
    fine = measure(snapshot)
    snapshot.before["hidden1.linear.weight"][1, 0, 0] = torch.nan
    for name, value in measure(snapshot).numbers.items():
        assert value[1].isnan()
        assert_close(value[[0, 2]], fine.numbers[name][[0, 2]])


@pytest.mark.parametrize("norm", [BatchNorm1d, NoisyBatchNorm])
def test_stacked_members_equal_single_members(norm):
    snapshot = make_snapshot(partial(mlp, norm, dropout=0.2))
    together = measure(snapshot)
    for k in range(K):
        before, after = (
            {name: tensor[k : k + 1] for name, tensor in state.items()}
            for state in (snapshot.before, snapshot.after)
        )
        x, y = (part[k : k + 1] for part in snapshot.minibatch)
        alone = TrainingSnapshot(
            **{**vars(snapshot), "before": before, "after": after, "minibatch": (x, y), "lr": snapshot.lr[:1]}
        )
        for name, value in measure(alone).numbers.items():
            assert_close(together.numbers[name][k : k + 1], value)


def test_double_computes_in_float64():
    snapshot = make_snapshot()
    states = {
        which: {name: t.float() if t.is_floating_point() else t for name, t in getattr(snapshot, which).items()}
        for which in ("before", "after")
    }
    single = TrainingSnapshot(
        **{**vars(snapshot), **states, "minibatch": tuple(part.float() for part in snapshot.minibatch)}
    )

    assert measure(single).numbers["relative"].dtype == torch.float32
    double = measure(single, double=True).numbers["relative"]
    assert double.dtype == torch.float64
    assert_close(double, measure(snapshot).numbers["relative"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [BatchNorm1d, nn.BatchNorm1d, NoisyBatchNorm, BatchRenorm, nn.LayerNorm])
def test_probe_has_no_side_effects(norm):
    snapshot = make_snapshot(partial(mlp, norm, dropout=0.3))
    states = [snapshot.before, snapshot.after, snapshot.net.state_dict()]
    copies = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    generator = torch.get_rng_state()

    measure(snapshot, "batch")
    measure(snapshot, "frozen")

    states[2] = snapshot.net.state_dict()
    for state, copy in zip(states, copies, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in copy.items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(layer.training for layer in snapshot.net.modules())
    assert all(parameter.grad is None for parameter in snapshot.net.parameters())
