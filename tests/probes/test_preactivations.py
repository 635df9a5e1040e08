from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import CNN, MLP, ResMLP
from normlab.norms import ActNorm, BatchNorm1d, BatchNorm2d, BatchRenorm, NoisyBatchNorm
from normlab.probes.landscape import side_effect_free_copy
from normlab.probes.preactivations import (
    ActivationInputs,
    Preactivations,
    activation_modules,
    preactivations,
    unit_drift,
)
from normlab.probes.snapshot import Measurement, TrainingSnapshot

K = 3


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square().flatten(1).mean(1)


def mlp(norm=BatchNorm1d, **options) -> nn.Module:
    return MLP((3,), 2, hidden=[6, 5], norm=norm, **options)


def nets_of(make, first: int = 0) -> list[nn.Module]:
    nets = []
    for seed in range(first, first + K):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets.append(make().double())
        for buffer, values in nets[-1].named_buffers():
            if "running" in buffer:
                values.copy_(draws(*values.shape, seed=seed).abs())
    return nets


def state_of(nets: list[nn.Module]) -> dict[str, Tensor]:
    named = [{**dict(net.named_parameters()), **dict(net.named_buffers())} for net in nets]
    return {name: torch.stack([own[name].detach().clone() for own in named]) for name in named[0]}


def make_snapshot(make=mlp, shape=(3,)) -> TrainingSnapshot:
    nets = nets_of(make)
    state, start = state_of(nets), state_of(nets_of(make, first=50))
    train = 2 + 3 * draws(1, 21, *shape, seed=2), draws(1, 21, 2, seed=3)
    minibatch = draws(K, 8, *shape, seed=4), draws(K, 8, 2, seed=5)
    trained = [name for name, _ in nets[0].named_parameters()]
    lr = torch.full((K,), 0.1, dtype=torch.float64)
    return TrainingSnapshot(nets[0], loss_of, trained, state, state, start, minibatch, train, lr, None, [], 0, 0)


def measure(snapshot: TrainingSnapshot, **options) -> Measurement:
    (measurement,) = Preactivations(**options)(snapshot)
    return measurement


def by_hand(net: nn.Module, x: Tensor) -> dict[str, np.ndarray]:
    """Run an MLP layer by layer, and return the inputs of its activations."""
    inputs = {}
    for layer in ("hidden1", "hidden2"):
        parts = net.get_submodule(layer)
        for name, module in parts.named_children():
            if name == "activation":
                inputs[layer] = x.detach().numpy()
            x = module(x)
    return inputs


@pytest.mark.parametrize("norm", [BatchNorm1d, nn.BatchNorm1d, BatchRenorm, nn.LayerNorm, None])
@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_numbers_match_numpy_layer_by_layer(norm, position, mode):
    make = partial(mlp, norm, norm_position=position, activation="sigmoid")
    snapshot = make_snapshot(make)
    numbers = measure(snapshot, unit=2, modes=(mode,)).numbers
    shifts, stretches = np.zeros((2, K)), np.zeros((2, K))
    for k, (net, start) in enumerate(zip(nets_of(make), nets_of(make, 50), strict=True)):
        now, then = (by_hand(each.train(mode == "batch"), snapshot.train[0][0]) for each in (net, start))
        for number, layer in enumerate(("hidden1", "hidden2")):
            h, unit = now[layer], now[layer][:, 2]
            expected = dict(zip(("q15", "q50", "q85"), np.quantile(unit, [0.15, 0.5, 0.85]), strict=True))
            sigma = then[layer].std(0, ddof=1)
            shifts[number, k] = (np.abs(h.mean(0) - then[layer].mean(0)) / sigma).mean()
            stretches[number, k] = np.abs(np.log(h.std(0, ddof=1) / sigma)).mean()
            expected |= {"mean": unit.mean(), "std": unit.std(ddof=1)}
            expected |= {"shift": shifts[number, k], "stretch": stretches[number, k]}
            assert {name.removeprefix(f"{layer}/") for name in numbers if name.startswith(layer)} == set(expected)
            for name, value in expected.items():
                assert numbers[f"{layer}/{name}"][k].item() == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert_close(numbers["shift"], torch.from_numpy(shifts.mean(0)))
    assert_close(numbers["stretch"], torch.from_numpy(stretches.mean(0)))


def test_batch_normalization_fixes_preactivation_moments():
    # With γ = 1 and β = 0, whatever the weights: mean 0, standard deviation √(n/(n − 1)).
    numbers = measure(make_snapshot(partial(mlp, partial(BatchNorm1d, eps=1e-12)))).numbers
    for layer in ("hidden1", "hidden2"):
        assert_close(numbers[f"{layer}/mean"], torch.zeros(K, dtype=torch.float64), rtol=0, atol=1e-12)
        assert_close(numbers[f"{layer}/std"], torch.full((K,), (21 / 20) ** 0.5, dtype=torch.float64))
    assert bool((numbers["shift"] < 1e-9).all())
    assert bool((numbers["stretch"] < 1e-9).all())


def test_known_shift_and_stretch_are_measured():
    snapshot = make_snapshot(partial(mlp, None))
    start = {name: tensor.clone() for name, tensor in snapshot.before.items()}
    std = measure(TrainingSnapshot(**{**vars(snapshot), "start": start})).numbers["hidden2/std"]
    for name in ("weight", "bias"):
        snapshot.before[f"hidden2.linear.{name}"] *= torch.tensor(3.0)
    numbers = measure(TrainingSnapshot(**{**vars(snapshot), "start": start})).numbers

    assert numbers["hidden1/shift"].tolist() == numbers["hidden1/stretch"].tolist() == [0.0] * K
    assert_close(numbers["hidden2/std"], 3 * std)
    assert_close(numbers["hidden2/stretch"], torch.full((K,), 3.0, dtype=torch.float64).log())
    assert_close(numbers["stretch"], numbers["hidden2/stretch"] / 2)

    snapshot.before["hidden2.linear.weight"], snapshot.before["hidden2.linear.bias"] = (
        start["hidden2.linear.weight"],
        start["hidden2.linear.bias"] + torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]),
    )
    numbers = measure(TrainingSnapshot(**{**vars(snapshot), "start": start}), unit=4).numbers
    assert_close(numbers["hidden2/shift"], 1 / numbers["hidden2/std"] / 5)


def test_constant_units_are_excluded():
    def inputs(*columns: list[float]) -> ActivationInputs:
        rows = torch.tensor(columns, dtype=torch.float64)
        return ActivationInputs(rows[:1], rows.mean(1).unsqueeze(0), rows.std(1).unsqueeze(0))

    third = [0.1 + 0.2, 0.3, 0.3, 0.3]
    start, now = inputs([1, 3, 1, 3], [5, 5, 5, 5], third), inputs([3, 7, 3, 7], [1, 2, 1, 2], [1, 2, 1, 2])
    change = unit_drift(now, start)
    assert_close(change["shift"], 3 / start.std[:, 0])
    assert_close(change["stretch"], torch.tensor([2.0], dtype=torch.float64).log())
    assert unit_drift(inputs([1, 1]), inputs([1, 1]))["shift"].isnan().all()


@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_image_unit_is_channel_at_all_positions(mode):
    make = partial(CNN, (1, 4, 4), 2, channels=[2, 3], norm2d=BatchNorm2d)
    snapshot = make_snapshot(make, (1, 4, 4))
    seen = preactivations(
        side_effect_free_copy(snapshot.net, mode), snapshot.before, snapshot.data("train")[0], unit=1
    )

    assert {layer: tuple(inputs.values.shape) for layer, inputs in seen.items()} == {
        "hidden1": (K, 21 * 16),
        "hidden2": (K, 21 * 4),
    }
    for k, net in enumerate(nets_of(make)):
        layer = net.train(mode == "batch").hidden1
        h = layer.norm(layer.conv(snapshot.train[0][0])).detach()
        assert_close(seen["hidden1"].values[k].sort().values, h[:, 1].flatten().sort().values)
        assert_close(seen["hidden1"].mean[k], h.mean((0, 2, 3)))
        assert_close(seen["hidden1"].std[k], h.movedim(1, 0).flatten(1).std(1))


def test_layers_of_residual_net_are_its_blocks():
    snapshot = make_snapshot(lambda: ResMLP((3,), 2, width=4, blocks=2, norm=BatchNorm1d))
    net, x = side_effect_free_copy(snapshot.net, "batch"), snapshot.data("minibatch")[0]
    seen = preactivations(net, snapshot.before, x)

    assert list(seen) == ["block1", "block2"]
    own = {name: tensor[1] for name, tensor in snapshot.before.items()}
    stem = x[1] @ own["stem.weight"].T + own["stem.bias"]
    h = (stem - stem.mean(0)) / (stem.var(0, correction=0) + 1e-5).sqrt()
    expected = h @ own["block1.linear1.weight"].T + own["block1.linear1.bias"]
    assert_close(seen["block1"].values[1], expected[:, 0])


def test_input_is_recorded_before_inplace_activation():
    net = nn.Sequential()
    net.add_module("activation", nn.ReLU(inplace=True))
    x = draws(2, 6, 3)
    for members in (1, 2):
        seen = preactivations(net, {}, x[:members].clone())["net"]
        assert_close(seen.values, x[:members, :, 0])


def test_stacked_members_equal_single_members():
    snapshot = make_snapshot(partial(mlp, NoisyBatchNorm, dropout=0.2))
    for options in ({"data": "train"}, {"data": "minibatch"}):
        together = measure(snapshot, **options).numbers
        for k in range(K):
            states = {
                which: {name: tensor[k : k + 1] for name, tensor in getattr(snapshot, which).items()}
                for which in ("before", "start")
            }
            minibatch = tuple(part[k : k + 1] for part in snapshot.minibatch)
            alone = TrainingSnapshot(**{**vars(snapshot), **states, "minibatch": minibatch, "lr": snapshot.lr[:1]})
            for name, value in measure(alone, **options).numbers.items():
                assert_close(together[name][k : k + 1], value)


def test_nonfinite_member_leaves_other_members_unchanged():
    snapshot = make_snapshot()
    fine = measure(snapshot).numbers
    snapshot.before["hidden1.linear.weight"][1] = torch.nan
    for name, value in measure(snapshot).numbers.items():
        assert value[1].isnan()
        assert_close(value[[0, 2]], fine[name][[0, 2]])


def test_measurement_has_mode_and_requested_layers():
    measurement = measure(make_snapshot(), layers=["hidden2"], modes=("frozen",))
    assert (measurement.mode, measurement.headline) == (
        "frozen",
        ("shift", "stretch"),
    )
    assert all(value.shape == (K,) for value in measurement.numbers.values())
    assert {name.partition("/")[0] for name in measurement.numbers if "/" in name} == {"hidden2"}
    assert_close(measurement.numbers["shift"], measurement.numbers["hidden2/shift"])


def test_unknown_layer_raises_with_available_layers():
    message = "layers must have a module named activation, got hidden9; available: hidden1, hidden2"
    with pytest.raises(ValueError, match=message):
        Preactivations(layers=["hidden1", "hidden9"]).check(mlp())
    with pytest.raises(ValueError, match=message):
        measure(make_snapshot(), layers=["hidden9"])
    with pytest.raises(ValueError, match="layers must have a module named activation, got 0; available: none"):
        activation_modules(nn.Sequential(nn.Linear(3, 2)), ["0"])
    Preactivations(layers=["hidden2"]).check(mlp())


def test_net_without_activation_has_no_measurement():
    snapshot = make_snapshot(lambda: MLP((3,), 2, hidden=[]))
    Preactivations().check(snapshot.net)
    assert list(Preactivations()(snapshot)) == []


@pytest.mark.parametrize("members", [1, K])
def test_unknown_unit_raises(members):
    snapshot = make_snapshot()
    net, x = side_effect_free_copy(snapshot.net, "batch"), snapshot.minibatch[0][:members]
    own = {name: tensor[:members] for name, tensor in snapshot.before.items()}
    with pytest.raises(ValueError, match="unit must be below 5, the number of hidden2's units, got 5"):
        preactivations(net, own, x, ["hidden2"], unit=5)
    assert all(not layer._forward_pre_hooks for layer in net.modules())
    with pytest.raises(ValueError, match="unit must be 0 or more, got -1"):
        Preactivations(unit=-1)


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
        assert {value.dtype for value in measure(single, double=double).numbers.values()} == {dtype}


@pytest.mark.parametrize("members", [1, K])
def test_uninitialized_layer_stays_uninitialized(members):
    snapshot = make_snapshot(partial(mlp, ActNorm))
    own = {name: tensor[:members] for name, tensor in snapshot.before.items()}
    seen = preactivations(side_effect_free_copy(snapshot.net, "batch"), own, snapshot.minibatch[0][:members])

    assert_close(seen["hidden1"].mean, torch.zeros(members, 6, dtype=torch.float64), rtol=0, atol=1e-9)
    assert not own["hidden1.norm.initialized"].any()
    assert not own["hidden1.norm.initial_mean"].any()
    assert snapshot.net.hidden1.norm.needs_init


@pytest.mark.parametrize("norm", [BatchNorm1d, nn.BatchNorm1d, NoisyBatchNorm, BatchRenorm, nn.LayerNorm])
def test_probe_has_no_side_effects(norm):
    snapshot = make_snapshot(partial(mlp, norm, dropout=0.3))
    states = [snapshot.before, snapshot.start, snapshot.net.state_dict()]
    copies = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    generator = torch.get_rng_state()

    measurements = list(Preactivations(modes=("batch", "frozen"))(snapshot))

    assert len(measurements) == 2
    states[2] = snapshot.net.state_dict()
    for state, copy in zip(states, copies, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in copy.items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(layer.training and not layer._forward_pre_hooks for layer in snapshot.net.modules())
    assert all(parameter.grad is None for parameter in snapshot.net.parameters())
