from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
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
from normlab.probes.snapshot import Measurement, TrainingSnapshot

CONF = Path(__file__).parents[2] / "conf"
K = 3
LR = torch.tensor([0.05, 0.1, 0.02], dtype=torch.float64)


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


@pytest.fixture
def make_snapshot(helpers) -> Callable[..., TrainingSnapshot]:
    """Return the function that makes a snapshot, by default of an MLP with batch normalization."""
    return lambda make=mlp, shape=(3,): helpers.make_stepped_snapshot(make, shape)


@pytest.fixture
def snapshot_of(make_snapshot) -> Callable[[str], TrainingSnapshot]:
    """Return the function that makes the snapshot of a case."""
    return lambda name: make_snapshot(CASES[name].make, CASES[name].shape)


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
def test_numbers_match_hooks_and_backward_pass(name, mode, snapshot_of):
    snapshot = snapshot_of(name)
    numbers = measure(snapshot, mode).numbers
    for k in range(K):
        assert_equal(numbers, k, by_hand(snapshot, k, mode, CASES[name]))


@pytest.mark.parametrize("mode", ["batch", "frozen"])
@pytest.mark.parametrize("name", CASES)
def test_stacked_members_equal_single_members(name, mode, helpers, snapshot_of):
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
def test_data_train_measures_whole_training_split(name, mode, helpers, snapshot_of):
    snapshot = snapshot_of(name)
    for each, members in ((snapshot, range(K)), (helpers.alone(snapshot, 1), [0])):
        numbers = measure(each, mode, data="train").numbers
        for k in members:
            assert_equal(numbers, k, by_hand(each, k, mode, CASES[name], "train"))


@pytest.mark.parametrize("name", CASES)
def test_sgd_update_is_lr_times_gradient(name, make_snapshot):
    case = CASES[name]
    snapshot = make_snapshot(case.make, case.shape)
    numbers = measure(snapshot).numbers
    for layer, names in case.weights.items():
        length = torch.stack([snapshot.before[name].flatten(1).square().sum(1) for name in names]).sum(0).sqrt()
        count = sum(snapshot.before[name][0].numel() for name in names)
        step = LR * numbers[f"{layer}/gradient_rms"] * count**0.5
        assert_close(numbers[f"{layer}/relative_update"] * length, step)
        assert_close(numbers[f"{layer}/effective_lr"] * length.square(), LR)


@pytest.mark.parametrize("make", [partial(mlp, None), twice])
def test_net_without_normalizers_has_no_norm_numbers(make, make_snapshot):
    assert not [name for name in measure(make_snapshot(make)).numbers if "norm_" in name]


def test_known_normalizer_moments_precede_inplace_activation(helpers, make_snapshot):
    snapshot = make_snapshot(sequential)
    snapshot.before["1.weight"].fill_(3.0)
    snapshot.before["1.bias"].fill_(-2.0)
    for members in (snapshot, helpers.alone(snapshot, 0)):
        numbers = measure(members).numbers
        assert_close(numbers["1/norm_mean"], torch.full_like(numbers["1/norm_mean"], -2))
        assert_close(numbers["1/norm_std"], torch.full_like(numbers["1/norm_std"], 3), rtol=0.01, atol=0)


def test_nonfinite_member_leaves_other_members_unchanged(helpers, make_snapshot):
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


@pytest.mark.parametrize("members", [1, K])
def test_single_sample_has_rank_1_and_no_dead_share(members, helpers, make_snapshot):
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
@pytest.mark.parametrize(
    "name",
    ["bn", "bn fused", "bn torch", "brn", "noisy", "actnorm", "dropout", "torch dropout", "wn", "sequential"],
)
def test_probe_has_no_side_effects(name, members, helpers, make_snapshot):
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
