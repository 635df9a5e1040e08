from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import CNN, MLP, ResMLP
from normlab.norms import (
    ActNorm,
    BatchNorm1d,
    BatchNorm2d,
    BatchRenorm,
    GhostBatchNorm,
    NoisyBatchNorm,
    scaled_weight_standardization,
    weight_normalization,
)
from normlab.probes import Activations
from normlab.probes.activations import feature_statistics, network_summary, weight_statistics
from normlab.probes.snapshot import Measurement, TrainingSnapshot

CONF = Path(__file__).parents[2] / "conf"
K, SAMPLES = 3, 12
LR = torch.tensor([0.05, 0.1, 0.02], dtype=torch.float64)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(rows: Sequence) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def squared(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square().flatten(1).mean(1)


def mlp(norm=BatchNorm1d, activation="tanh", **options) -> nn.Module:
    return MLP((3,), 2, hidden=[6, 5], norm=norm, activation=activation, **options)


def sequential() -> nn.Module:
    """Return a net of plain torch.nn layers."""
    return nn.Sequential(
        *(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Linear(6, 5, bias=False), nn.LayerNorm(5), nn.Sigmoid()),
        nn.Linear(5, 2),
    )


def twice() -> nn.Module:
    activation = nn.Softsign()
    return nn.Sequential(nn.Linear(3, 6), activation, nn.Linear(6, 5), activation, nn.Linear(5, 2))


@dataclass(frozen=True)
class Case:
    """A net with the expected module paths and parameter names of each layer."""

    make: Callable[[], nn.Module]
    activations: Mapping[str, str] = field(
        default_factory=lambda: {f"hidden{i}": f"hidden{i}.activation" for i in (1, 2)}
    )
    norms: Mapping[str, str] = field(default_factory=lambda: {f"hidden{i}": f"hidden{i}.norm" for i in (1, 2)})
    weights: Mapping[str, list[str]] = field(
        default_factory=lambda: {
            "hidden1": ["hidden1.linear.weight"],
            "hidden2": ["hidden2.linear.weight"],
            "output": ["output.weight"],
        }
    )
    bounds: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"hidden1": (-1, 1), "hidden2": (-1, 1)}
    )
    shape: tuple[int, ...] = (3,)


def parametrized(original: str) -> dict[str, list[str]]:
    names = {f"hidden{i}": [f"hidden{i}.linear.parametrizations.weight.{original}"] for i in (1, 2)}
    return {**names, "output": ["output.weight"]}


CASES = {
    "bn": Case(mlp),
    "bn fused": Case(partial(mlp, partial(BatchNorm1d, fused=True))),
    "bn torch": Case(partial(mlp, nn.BatchNorm1d, "relu"), bounds={}),
    "bn after": Case(partial(mlp, norm_position="after")),
    "brn": Case(partial(mlp, BatchRenorm)),
    "brn fused": Case(partial(mlp, partial(BatchRenorm, fused=True))),
    "ghost": Case(partial(mlp, partial(GhostBatchNorm, ghost_size=4))),
    "noisy": Case(partial(mlp, NoisyBatchNorm)),
    "actnorm": Case(partial(mlp, ActNorm)),
    "ln": Case(partial(mlp, nn.LayerNorm, "hardtanh")),
    "nobn": Case(partial(mlp, None, "relu"), norms={}, bounds={}),
    "dropout": Case(
        partial(mlp, None, "sigmoid", dropout=0.3), norms={}, bounds={"hidden1": (0, 1), "hidden2": (0, 1)}
    ),
    "torch dropout": Case(partial(mlp, lambda _: nn.Dropout(0.3))),
    "wn": Case(partial(mlp, None, weight=weight_normalization), norms={}, weights=parametrized("original1")),
    "ws": Case(
        partial(mlp, None, weight=scaled_weight_standardization), norms={}, weights=parametrized("original")
    ),
    "cnn": Case(
        lambda: CNN((1, 4, 4), 2, channels=[2, 3], norm2d=BatchNorm2d),
        weights={
            "hidden1": ["hidden1.conv.weight"],
            "hidden2": ["hidden2.conv.weight"],
            "output": ["output.weight"],
        },
        bounds={},
        shape=(1, 4, 4),
    ),
    "resmlp": Case(
        lambda: ResMLP((3,), 2, width=4, blocks=2, norm=BatchNorm1d),
        activations={"block1": "block1.activation", "block2": "block2.activation"},
        norms={"block1": "block1.norm", "block2": "block2.norm", "last": "last.norm"},
        weights={
            "stem": ["stem.weight"],
            "block1": ["block1.linear1.weight", "block1.linear2.weight"],
            "block2": ["block2.linear1.weight", "block2.linear2.weight"],
            "output": ["output.weight"],
        },
        bounds={},
    ),
    "sequential": Case(
        sequential,
        activations={"2": "2", "3.2": "3.2"},
        norms={"1": "1", "3.1": "3.1"},
        weights={"0": ["0.weight"], "3.0": ["3.0.weight"], "4": ["4.weight"]},
        bounds={"3.2": (0, 1)},
    ),
    "twice": Case(
        twice,
        activations={"1": "1", "1.2": "1"},
        norms={},
        weights={"0": ["0.weight"], "2": ["2.weight"], "4": ["4.weight"]},
        bounds={"1": (-1, 1), "1.2": (-1, 1)},
    ),
}


def state_of(nets: Sequence[nn.Module]) -> dict[str, Tensor]:
    named = [dict(chain(net.named_parameters(), net.named_buffers())) for net in nets]
    return {name: torch.stack([own[name].detach().clone() for own in named]) for name in named[0]}


def make_snapshot(make: Callable[[], nn.Module] = mlp, shape: tuple[int, ...] = (3,)) -> TrainingSnapshot:
    """Return a snapshot of nets that have seen other batches, around a step of torch.optim.SGD for each net."""
    nets = []
    for seed in range(K):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nets.append(make().double())
    x, y = 1 + 2 * draws(K, SAMPLES, *shape, seed=4), draws(K, SAMPLES, 2, seed=5)
    with torch.random.fork_rng(devices=[]):
        for net in nets:
            for seed in range(3):
                net(3 * draws(9, *shape, seed=seed))
    before = state_of(nets)
    for net, own, target, lr in zip(nets, x, y, LR, strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=float(lr))
        # The probe repeats the random draws of this step.
        with torch.random.fork_rng(devices=[]):
            squared(net(own)[None], target[None]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after, trained = state_of(nets), [name for name, _ in nets[0].named_parameters()]
    train = 2 + 3 * draws(1, 21, *shape, seed=2), draws(1, 21, 2, seed=3)
    return TrainingSnapshot(nets[0], squared, trained, before, after, before, (x, y), train, LR, None, [], 1, 3)


@cache
def snapshot_of(name: str) -> TrainingSnapshot:
    """Return the cached snapshot of a case, for tests that do not modify it."""
    return make_snapshot(CASES[name].make, CASES[name].shape)


def measure(snapshot: TrainingSnapshot, mode: str = "batch", **options) -> Measurement:
    (measurement,) = Activations(modes=(mode,), **options)(snapshot)
    return measurement


def by_hand(
    snapshot: TrainingSnapshot, k: int, mode: str, case: Case, data: str = "minibatch"
) -> dict[str, float]:
    """Compute the numbers of one member with hooks, a backward pass, singular values and loops."""
    net = deepcopy(snapshot.net).train(mode == "batch")
    with torch.no_grad():
        for name, tensor in chain(net.named_parameters(), net.named_buffers()):
            tensor.copy_(snapshot.before[name][k])
    seen: dict[str, list[np.ndarray]] = {}
    given_to: dict[str, list[np.ndarray]] = {}
    for path in {*case.activations.values(), *case.norms.values()}:
        hook = lambda _, x, y, path=path: seen.setdefault(path, []).append(y.detach().clone().numpy())  # noqa: E731
        before = lambda _, x, path=path: given_to.setdefault(path, []).append(x[0].detach().clone().numpy())  # noqa: E731
        net.get_submodule(path).register_forward_hook(hook)
        net.get_submodule(path).register_forward_pre_hook(before)
    x, y = (part[k] for part in snapshot.data(data))
    with torch.random.fork_rng(devices=[]):
        squared(net(x)[None], y[None]).sum().backward()

    numbers: dict[str, float] = {}
    for layer, path in case.activations.items():
        h = seen[path].pop(0)
        numbers |= {f"{layer}/{name}": value for name, value in by_singular_values(h).items()}
        numbers[f"{layer}/preactivation_effective_rank"] = rank(rows_of(given_to[path].pop(0)))
        if layer in case.bounds:
            low, high = case.bounds[layer]
            near = [min(value - low, high - value) <= 0.05 * (high - low) for value in h.flatten()]
            numbers[f"{layer}/saturated"] = sum(near) / len(near)
    for layer, path in case.norms.items():
        (h,) = seen[path]
        numbers |= {f"{layer}/norm_mean": h.mean(), f"{layer}/norm_std": h.std(ddof=1)}
    for layer, names in case.weights.items():
        w, after = (
            np.concatenate([s[name][k].flatten() for name in names]) for s in (snapshot.before, snapshot.after)
        )
        gradient = np.concatenate([net.get_parameter(name).grad.flatten() for name in names])
        numbers[f"{layer}/gradient_rms"] = np.sqrt((gradient**2).mean())
        numbers[f"{layer}/relative_update"] = np.linalg.norm(after - w) / np.linalg.norm(w)
        numbers[f"{layer}/effective_lr"] = float(snapshot.lr[k]) / np.sum(w**2)
    numbers["dead"] = max(numbers[f"{layer}/dead"] for layer in case.activations)
    for name in ("effective_rank", "centered_effective_rank", "preactivation_effective_rank"):
        numbers[name] = min(numbers[f"{layer}/{name}"] for layer in case.activations)
    first, *_, last = (numbers[f"{layer}/gradient_rms"] for layer in case.weights)
    return numbers | {"gradient_rms_ratio": first / last}


def by_singular_values(h: np.ndarray) -> dict[str, float]:
    """Return the statistics of the outputs of a layer, ``(B, D, …)``."""
    rows = rows_of(h)
    mean = sum(rows.flatten()) / rows.size
    return {
        "mean": mean,
        "std": (sum((value - mean) ** 2 for value in rows.flatten()) / (rows.size - 1)) ** 0.5,
        "dead": sum(len(set(unit)) == 1 for unit in rows.T.tolist()) / rows.shape[1],
        "effective_rank": rank(rows),
        "centered_effective_rank": rank(rows - rows.mean(0)),
    }


def rows_of(h: np.ndarray) -> np.ndarray:
    """Merge samples and positions into rows, ``(B, D, …)`` to ``(R, D)``."""
    return np.moveaxis(h, 1, -1).reshape(-1, h.shape[1])


def rank(rows: np.ndarray) -> float:
    """Compute the effective rank from singular values; 0 for zeros."""
    if not rows.any():
        return 0.0
    eigenvalues = np.linalg.svd(rows, compute_uv=False) ** 2 / len(rows)
    return eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


def assert_equal(numbers: Mapping[str, Tensor], k: int, expected: Mapping[str, float]) -> None:
    assert {name: value[k].item() for name, value in numbers.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-9, abs=1e-13
    )


@pytest.mark.parametrize("mode", ["batch", "frozen"])
@pytest.mark.parametrize("name", CASES)
def test_numbers_match_hooks_and_backward_pass(name, mode):
    snapshot = snapshot_of(name)
    numbers = measure(snapshot, mode).numbers
    for k in range(K):
        assert_equal(numbers, k, by_hand(snapshot, k, mode, CASES[name]))


@pytest.mark.parametrize("mode", ["batch", "frozen"])
@pytest.mark.parametrize("name", CASES)
def test_stacked_members_equal_single_members(name, mode, helpers):
    snapshot = snapshot_of(name)
    together = measure(snapshot, mode, histograms_every=1)
    for k in range(K):
        alone = measure(helpers.alone(snapshot, k), mode, histograms_every=1)
        assert list(alone.numbers) == list(together.numbers)
        assert list(alone.histograms) == list(together.histograms)
        for what in ("numbers", "histograms"):
            for quantity, value in getattr(alone, what).items():
                assert_close(getattr(together, what)[quantity][k : k + 1], value)


@pytest.mark.parametrize("name", ["bn", "brn", "cnn", "sequential"])
@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_data_train_measures_whole_training_split(name, mode, helpers):
    snapshot = snapshot_of(name)
    for each, members in ((snapshot, range(K)), (helpers.alone(snapshot, 1), [0])):
        numbers = measure(each, mode, data="train").numbers
        for k in members:
            assert_equal(numbers, k, by_hand(each, k, mode, CASES[name], "train"))


@pytest.mark.parametrize("name", CASES)
def test_sgd_update_is_lr_times_gradient(name):
    case = CASES[name]
    snapshot = make_snapshot(case.make, case.shape)
    numbers = measure(snapshot).numbers
    for layer, names in case.weights.items():
        length = torch.stack([snapshot.before[name].flatten(1).square().sum(1) for name in names]).sum(0).sqrt()
        count = sum(snapshot.before[name][0].numel() for name in names)
        step = LR * numbers[f"{layer}/gradient_rms"] * count**0.5
        assert_close(numbers[f"{layer}/relative_update"] * length, step)
        assert_close(numbers[f"{layer}/effective_lr"] * length.square(), LR)


def test_relative_update_is_nan_without_step():
    snapshot = make_snapshot()
    numbers = measure(replace(snapshot, after=snapshot.before)).numbers
    fine = measure(snapshot).numbers
    assert list(numbers) == list(fine)
    for name, value in numbers.items():
        if name.endswith("relative_update"):
            assert value.isnan().all()
        else:
            assert_close(value, fine[name])


@pytest.mark.parametrize(
    ("activation", "share"),
    [
        # The weights are 0 and the biases of the units 0, 1, 3, −3, 10 and −10.
        *(("sigmoid", 4 / 6), ("tanh", 4 / 6), ("hardtanh", 5 / 6), ("hardsigmoid", 4 / 6), ("softsign", 2 / 6)),
        *(("relu", None), ("relu6", None), ("gelu", None)),
    ],
)
def test_saturated_share_requires_two_bounds(activation, share):
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


def test_dead_relu_units_count_and_worst_layer_is_reported():
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


def test_weight_statistics_match_hand_computation():
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


def test_gradient_is_nonzero_where_its_float32_square_is_0():
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
def test_feature_statistics_match_training_split(shape):
    snapshot = make_snapshot()
    x = 100 + 3 * draws(50, *shape).float()
    every, arrays = feature_statistics(replace(snapshot, train=(x.unsqueeze(0), snapshot.train[1])))
    flat = x.double().flatten(1).numpy()
    assert_close(every["features_mean"], double([flat.mean()] * K))
    assert_close(every["features_std"], double([flat.std(ddof=1)] * K))
    assert_close(arrays["features_mean"], torch.from_numpy(flat.mean(0)).expand(K, -1))
    assert_close(arrays["features_std"], torch.from_numpy(flat.std(0, ddof=1)).expand(K, -1))


def test_features_are_measured_only_in_epoch_0():
    snapshot = make_snapshot()
    first, later = measure(replace(snapshot, epoch=0)), measure(snapshot)
    assert first.numbers.keys() - later.numbers.keys() == {"features_mean", "features_std"}
    assert {name: value.shape for name, value in first.arrays.items()} == dict.fromkeys(first.arrays, (K, 3))
    assert not later.arrays


def test_histograms_are_recorded_every_n_epochs():
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
def test_batch_normalizer_outputs_have_mean_0_and_std_1(eps):
    snapshot = make_snapshot(partial(mlp, partial(BatchNorm1d, eps=eps)))
    numbers = measure(snapshot).numbers
    for layer, units in (("hidden1", 6), ("hidden2", 5)):
        assert_close(numbers[f"{layer}/norm_mean"], double([0] * K), rtol=0, atol=1e-12)
        if eps < 1:
            entries = SAMPLES * units
            assert_close(numbers[f"{layer}/norm_std"], double([(entries / (entries - 1)) ** 0.5] * K))
        else:
            assert bool((numbers[f"{layer}/norm_std"] < 0.99).all())


def test_frozen_normalizer_outputs_are_nearly_standardized():
    snapshot = make_snapshot(partial(mlp, partial(BatchNorm1d, eps=1e-12, affine=False)))
    x = snapshot.train[0][0]
    for _ in range(200):
        snapshot.net(x)
    state = state_of([snapshot.net] * K)
    numbers = measure(replace(snapshot, before=state, after=state), "frozen", data="train").numbers
    assert_close(numbers["hidden1/norm_mean"], double([0] * K), rtol=0, atol=1e-7)
    # The running variance is divided by samples − 1, the variance of all entries by entries − 1.
    samples, units = len(x), 6
    spread = (units * (samples - 1) / (units * samples - 1)) ** 0.5
    assert_close(numbers["hidden1/norm_std"], double([spread] * K))


@pytest.mark.parametrize("make", [partial(mlp, None), twice])
def test_net_without_normalizers_has_no_norm_numbers(make):
    assert not [name for name in measure(make_snapshot(make)).numbers if "norm_" in name]


def test_known_normalizer_moments_precede_inplace_activation(helpers):
    snapshot = make_snapshot(sequential)
    snapshot.before["1.weight"].fill_(3.0)
    snapshot.before["1.bias"].fill_(-2.0)
    for members in (snapshot, helpers.alone(snapshot, 0)):
        numbers = measure(members).numbers
        assert_close(numbers["1/norm_mean"], torch.full_like(numbers["1/norm_mean"], -2))
        assert_close(numbers["1/norm_std"], torch.full_like(numbers["1/norm_std"], 3), rtol=0.01, atol=0)


def test_nonfinite_member_leaves_other_members_unchanged(helpers):
    for name in ("bn", "nobn", "cnn", "sequential"):
        case = CASES[name]
        snapshot = make_snapshot(case.make, case.shape)
        fine = measure(snapshot).numbers
        weight = next(iter(case.weights.values()))[0]
        snapshot.before[weight][1] = torch.nan
        for quantity, value in measure(snapshot).numbers.items():
            assert_close(value[[0, 2]], fine[quantity][[0, 2]])
            of_its_own = quantity.endswith(("relative_update", "effective_lr"))
            assert value[1].isnan() or (of_its_own and not weight.startswith(quantity.partition("/")[0]))
        alone = measure(helpers.alone(snapshot, 1)).numbers
        assert alone["gradient_rms_ratio"].isnan().all()


@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_float32_numbers_approximate_float64_numbers(mode, helpers):
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


def test_rank_holds_for_vanishing_float32_signal():
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
def test_single_sample_has_rank_1_and_no_dead_share(members, helpers):
    snapshot = make_snapshot(partial(mlp, None))
    snapshot = replace(snapshot, minibatch=tuple(part[:, :1] for part in snapshot.minibatch))
    numbers = measure(snapshot if members == K else helpers.alone(snapshot, 0)).numbers
    assert numbers["dead"].isnan().all()
    assert_close(numbers["effective_rank"], torch.ones(members, dtype=torch.float64))
    for k in range(members):
        expected = by_hand(snapshot, k, "batch", replace(CASES["nobn"], bounds=CASES["bn"].bounds))
        dead = dict.fromkeys(("dead", "hidden1/dead", "hidden2/dead"), np.nan)
        actual = {name: value[k].item() for name, value in numbers.items()}
        assert actual == pytest.approx({**expected, **dead}, rel=1e-9, abs=1e-13, nan_ok=True)


@pytest.mark.parametrize("members", [1, K])
def test_single_sample_raises_only_with_batch_statistics(members, helpers):
    snapshot = make_snapshot()
    snapshot = replace(snapshot, minibatch=tuple(part[:, :1] for part in snapshot.minibatch))
    snapshot = snapshot if members == K else helpers.alone(snapshot, 0)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        measure(snapshot)
    assert measure(snapshot, "frozen").numbers["hidden1/norm_mean"].isfinite().all()


def test_measurement_has_mode_and_member_numbers():
    measurements = list(Activations(modes=("batch", "frozen"))(make_snapshot()))
    assert [(each.mode, each.headline) for each in measurements] == [
        (mode, ["dead", "gradient_rms_ratio"]) for mode in ("batch", "frozen")
    ]
    assert all(value.shape == (K,) for each in measurements for value in each.numbers.values())
    assert list(measurements[0].numbers) == list(measurements[1].numbers)


def test_net_without_activations_has_only_weight_numbers():
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
def test_shipped_configurations_support_both_modes(probes):
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


@pytest.mark.parametrize("members", [1, K])
@pytest.mark.parametrize(
    "name",
    ["bn", "bn fused", "bn torch", "brn", "noisy", "actnorm", "dropout", "torch dropout", "wn", "sequential"],
)
def test_probe_has_no_side_effects(name, members, helpers):
    snapshot = make_snapshot(CASES[name].make)
    snapshot = snapshot if members == K else helpers.alone(snapshot, 0)
    states = [snapshot.before, snapshot.after, dict(zip("xy", snapshot.minibatch, strict=True))]
    copies = [{key: tensor.clone() for key, tensor in state.items()} for state in states]
    own = {key: tensor.clone() for key, tensor in snapshot.net.state_dict().items()}
    generator = torch.get_rng_state()

    list(Activations(modes=("batch", "frozen"), histograms_every=1)(snapshot))

    for state, copy in zip([*states, snapshot.net.state_dict()], [*copies, own], strict=True):
        assert all(torch.equal(state[key], tensor) for key, tensor in copy.items())
        assert all(not tensor.requires_grad and tensor.grad is None for tensor in state.values())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(layer.training and not layer._forward_hooks for layer in snapshot.net.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in snapshot.net.parameters())
