from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import MLP
from normlab.norms import (
    BatchNorm1d,
)
from normlab.probes import Activations
from normlab.probes.activations import feature_statistics, network_summary, weight_statistics
from normlab.probes.snapshot import Measurement, TrainingSnapshot

CONF = Path(__file__).parents[2] / "conf"
K, SAMPLES = 3, 12


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(rows: Sequence) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def mlp(norm=BatchNorm1d, activation="tanh", **options) -> nn.Module:
    return MLP((3,), 2, hidden=[6, 5], norm=norm, activation=activation, **options)


@pytest.fixture
def make_snapshot(helpers) -> Callable[..., TrainingSnapshot]:
    """Return the function that makes a snapshot, by default of an MLP with batch normalization."""
    return lambda make=mlp, shape=(3,): helpers.make_stepped_snapshot(make, shape)


def measure(snapshot: TrainingSnapshot, mode: str = "batch", **options) -> Measurement:
    (measurement,) = Activations(modes=(mode,), **options)(snapshot)
    return measurement


@pytest.mark.parametrize(
    ("activation", "share"),
    [
        # The weights are 0 and the biases of the units 0, 1, 3, −3, 10 and −10.
        *(("sigmoid", 4 / 6), ("tanh", 4 / 6), ("hardtanh", 5 / 6), ("hardsigmoid", 4 / 6), ("softsign", 2 / 6)),
        *(("relu", None), ("relu6", None), ("gelu", None)),
    ],
)
def test_saturated_share_requires_two_bounds(activation, share, make_snapshot):
    snapshot = make_snapshot(partial(mlp, None, activation))
    snapshot.before["hidden1.linear.weight"].zero_()
    snapshot.before["hidden1.linear.bias"][:] = double([0, 1, 3, -3, 10, -10])
    # Softsign: 10/11 = 0.909 is not within 0.1 of 1.
    threshold = 0.05 if activation != "softsign" else 0.06
    numbers = measure(snapshot, threshold=threshold).numbers
    assert numbers["hidden1/dead"].tolist() == [1.0] * K
    if share is None:
        assert "hidden1/saturated" not in numbers
    else:
        assert_close(numbers["hidden1/saturated"], double([share] * K))


def test_dead_relu_units_count_and_worst_layer_is_reported(make_snapshot):
    snapshot = make_snapshot(partial(mlp, None, "relu"))
    snapshot.before["hidden1.linear.bias"] = double([9, -99, 9, -99, 9, 9]).repeat(K, 1)
    snapshot.before["hidden1.linear.weight"] /= 10
    numbers = measure(snapshot).numbers
    assert_close(numbers["hidden1/dead"], double([1 / 3] * K))
    assert_close(numbers["dead"], torch.maximum(numbers["hidden1/dead"], numbers["hidden2/dead"]))

    snapshot.before["hidden2.linear.bias"][1] = -1e3
    numbers = measure(snapshot).numbers
    assert (numbers["hidden2/dead"][1], numbers["dead"][1], numbers["effective_rank"][1]) == (1, 1, 0)
    # All gradients are 0, so their ratio is undefined.
    assert numbers["hidden1/gradient_rms"][1] == numbers["output/gradient_rms"][1] == 0
    assert numbers["gradient_rms_ratio"][1].isnan()
    assert numbers["dead"][0] < 1


def test_weight_statistics_match_hand_computation(make_snapshot):
    w, g = double([[[3, 0], [0, 4]]]), double([[[1, 1], [1, 1]]])
    v, h = double([[[1, 2, 2]]]), double([[[0, 3, 0]]])
    before, after = {"a": w, "b": v, "c": v}, {"a": w + double([[0.3, 0], [0, 0.4]]), "b": v, "c": v - 2 * v}
    snapshot = replace(make_snapshot(), before=before, after=after, lr=double([0.1]))
    numbers = weight_statistics(snapshot, {"one": ["a", "b"], "other": ["c"]}, {"a": g, "b": h, "c": h})
    expected = {
        "gradient_rms": [[(13 / 7) ** 0.5], [3**0.5]],
        "relative_update": [[0.5 / 34**0.5], [2]],
        "effective_lr": [[0.1 / 34], [0.1 / 9]],
    }
    for name, value in expected.items():
        assert_close(numbers[name], double(value))


def test_gradient_is_nonzero_where_its_float32_square_is_0(make_snapshot):
    w = torch.ones(1, 2, 2)
    snapshot = replace(make_snapshot(), before={"a": w}, after={"a": w + 0}, lr=double([0.1]))
    numbers = weight_statistics(snapshot, {"one": ["a"]}, {"a": w * 1e-30})
    assert numbers["gradient_rms"].item() == pytest.approx(1e-30)
    assert numbers["relative_update"].item() == 0


def test_summary_has_worst_layer_and_gradient_ratio():
    through = {"dead": double([[0.1, 0.5], [0.3, torch.nan]]), "effective_rank": double([[4, 2], [3, torch.nan]])}
    back = {"gradient_rms": double([[1, 2], [7, 7], [4, 0.5]])}
    numbers = network_summary(through, back)
    expected = {"dead": [0.3, torch.nan], "effective_rank": [3, torch.nan], "gradient_rms_ratio": [0.25, 4]}
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(numbers[name], double(value), equal_nan=True)
    assert network_summary({}, {}) == {}


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_feature_statistics_match_training_split(shape, make_snapshot):
    snapshot = make_snapshot()
    x = 100 + 3 * draws(50, *shape).float()
    every, arrays = feature_statistics(replace(snapshot, train=(x.unsqueeze(0), snapshot.train[1])))
    flat = x.double().flatten(1).numpy()
    assert_close(every["features_mean"], double([flat.mean()] * K))
    assert_close(every["features_std"], double([flat.std(ddof=1)] * K))
    assert_close(arrays["features_mean"], torch.from_numpy(flat.mean(0)).expand(K, -1))
    assert_close(arrays["features_std"], torch.from_numpy(flat.std(0, ddof=1)).expand(K, -1))


def test_features_are_measured_only_in_epoch_0(make_snapshot):
    snapshot = make_snapshot()
    first, later = measure(replace(snapshot, epoch=0)), measure(snapshot)
    assert first.numbers.keys() - later.numbers.keys() == {"features_mean", "features_std"}
    assert {name: value.shape for name, value in first.arrays.items()} == dict.fromkeys(first.arrays, (K, 3))
    assert not later.arrays


def test_histograms_are_recorded_every_n_epochs(make_snapshot):
    snapshot = make_snapshot()
    shown = {epoch: measure(replace(snapshot, epoch=epoch), histograms_every=2).histograms for epoch in range(4)}
    assert [bool(histograms) for histograms in shown.values()] == [True, False, True, False]
    assert not measure(snapshot).histograms
    assert {name: tuple(value.shape) for name, value in shown[2].items()} == {
        **{f"hidden{i}/activations": (K, SAMPLES, units) for i, units in ((1, 6), (2, 5))},
        **{"hidden1/weights": (K, 18), "hidden2/weights": (K, 30), "output/weights": (K, 10)},
    }
    assert_close(shown[0]["hidden2/weights"], snapshot.before["hidden2.linear.weight"].flatten(1))


@pytest.mark.parametrize("eps", [1e-12, 1.0])
def test_batch_normalizer_outputs_have_mean_0_and_std_1(eps, make_snapshot):
    snapshot = make_snapshot(partial(mlp, partial(BatchNorm1d, eps=eps)))
    numbers = measure(snapshot).numbers
    for layer, units in (("hidden1", 6), ("hidden2", 5)):
        assert_close(numbers[f"{layer}/norm_mean"], double([0] * K), rtol=0, atol=1e-12)
        if eps < 1:
            entries = SAMPLES * units
            assert_close(numbers[f"{layer}/norm_std"], double([(entries / (entries - 1)) ** 0.5] * K))
        else:
            assert bool((numbers[f"{layer}/norm_std"] < 0.99).all())


def test_frozen_normalizer_outputs_are_nearly_standardized(make_snapshot, helpers):
    snapshot = make_snapshot(partial(mlp, partial(BatchNorm1d, eps=1e-12, affine=False)))
    x = snapshot.train[0][0]
    for _ in range(200):
        snapshot.net(x)
    state = helpers.state_of([snapshot.net] * K)
    numbers = measure(replace(snapshot, before=state, after=state), "frozen", data="train").numbers
    assert_close(numbers["hidden1/norm_mean"], double([0] * K), rtol=0, atol=1e-7)
    # The running variance is divided by samples − 1, the variance of all entries by entries − 1.
    samples, units = len(x), 6
    spread = (units * (samples - 1) / (units * samples - 1)) ** 0.5
    assert_close(numbers["hidden1/norm_std"], double([spread] * K))


@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_float32_numbers_approximate_float64_numbers(mode, helpers, make_snapshot):
    snapshot = make_snapshot()
    exact = measure(snapshot, mode).numbers

    def single(state):
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}

    rough = replace(
        snapshot,
        net=deepcopy(snapshot.net).float(),
        before=single(snapshot.before),
        after=single(snapshot.after),
        minibatch=tuple(part.float() for part in snapshot.minibatch),
    )
    for members in (rough, helpers.alone(rough, 0)):
        for name, value in measure(members, mode).numbers.items():
            assert_close(value.double(), exact[name][: len(value)], rtol=1e-3, atol=1e-5)


def test_rank_holds_for_vanishing_float32_signal(make_snapshot):
    snapshot = make_snapshot(partial(mlp, None, "relu"))
    for layer in ("hidden1", "hidden2"):
        snapshot.before[f"{layer}.linear.weight"] *= 1e-13
        snapshot.before[f"{layer}.linear.bias"].zero_()
    exact = measure(snapshot).numbers

    def single(state):
        return {name: tensor.float() for name, tensor in state.items()}

    minibatch = tuple(part.float() for part in snapshot.minibatch)
    rough = replace(snapshot, before=single(snapshot.before), after=single(snapshot.after), minibatch=minibatch)
    numbers = measure(rough).numbers
    assert bool((exact["hidden2/std"] < 1e-24).all())
    for name in ("std", "effective_rank", "gradient_rms"):
        assert_close(numbers[f"hidden2/{name}"].double(), exact[f"hidden2/{name}"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("members", [1, K])
def test_single_sample_raises_only_with_batch_statistics(members, helpers, make_snapshot):
    snapshot = make_snapshot()
    snapshot = replace(snapshot, minibatch=tuple(part[:, :1] for part in snapshot.minibatch))
    snapshot = snapshot if members == K else helpers.alone(snapshot, 0)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        measure(snapshot)
    assert measure(snapshot, "frozen").numbers["hidden1/norm_mean"].isfinite().all()


def test_relative_update_is_nan_without_step(make_snapshot):
    snapshot = make_snapshot()
    numbers = measure(replace(snapshot, after=snapshot.before)).numbers
    fine = measure(snapshot).numbers
    assert list(numbers) == list(fine)
    for name, value in numbers.items():
        if name.endswith("relative_update"):
            assert value.isnan().all()
        else:
            assert_close(value, fine[name])


def test_measurement_has_mode_and_member_numbers(make_snapshot):
    measurements = list(Activations(modes=("batch", "frozen"))(make_snapshot()))
    assert [(each.mode, each.headline) for each in measurements] == [
        (mode, ["dead", "gradient_rms_ratio"]) for mode in ("batch", "frozen")
    ]
    assert all(value.shape == (K,) for each in measurements for value in each.numbers.values())
    assert list(measurements[0].numbers) == list(measurements[1].numbers)


def test_net_without_activations_has_only_weight_numbers(make_snapshot):
    measurement = measure(make_snapshot(lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))))
    assert {name.rpartition("/")[2] for name in measurement.numbers} == {
        *("gradient_rms", "relative_update", "effective_lr", "gradient_rms_ratio")
    }
    assert measurement.headline == ["gradient_rms_ratio"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"histograms_every": 0}, "histograms_every must be null or at least 1, got 0"),
        ({"threshold": 0.5}, r"threshold must be a number in \(0, 0.5\), got 0.5"),
        ({"threshold": 0.0}, r"threshold must be a number in \(0, 0.5\), got 0.0"),
        ({"data": "test"}, "data must be minibatch or train, got test"),
        ({"modes": ["running"]}, "modes must be of batch, frozen, got running"),
    ],
)
def test_out_of_range_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Activations(**options)


@pytest.mark.parametrize("probes", ["light", "source", "full"])
def test_shipped_configurations_support_both_modes(probes, make_snapshot):
    asked = ["probes.activations.modes=[batch,frozen]", "probes.activations.data=train"]
    with initialize_config_dir(str(CONF), version_base=None):
        plain, both = (compose("train", overrides=[f"probes={probes}", *more]) for more in ([], asked))
    default, probe = (instantiate(config.probes.activations) for config in (plain, both))
    assert (default.data, default.at_start) == ("train" if probes == "source" else "minibatch", True)
    measurements = list(probe(replace(make_snapshot(), epoch=0)))
    assert [measurement.mode for measurement in measurements] == ["batch", "frozen"]
    assert all(
        {"hidden1/norm_mean", "hidden1/norm_std"} <= measurement.numbers.keys() for measurement in measurements
    )
