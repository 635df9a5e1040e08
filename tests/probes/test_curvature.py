import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.func import jacrev
from torch.testing import assert_close

from normlab.models import MLP
from normlab.norms import BatchNorm1d, BatchRenorm, GhostBatchNorm, NoisyBatchNorm
from normlab.probes import curvature
from normlab.probes.curvature import Curvature, extreme_eigenvalues
from normlab.probes.landscape import MODES, BatchedLoss, side_effect_free_copy
from normlab.probes.snapshot import Measurement, Preconditioning, TrainingSnapshot
from normlab.probes.spectrum import LARGEST

CURVLINOPS = pytest.mark.skipif(find_spec("curvlinops") is None, reason="curvlinops is not installed")

K = 3
NORMS = {
    "nobn": None,
    "bn": BatchNorm1d,
    "bn_fused": partial(BatchNorm1d, fused=True),
    "bn_torch": nn.BatchNorm1d,
    "ghost": partial(GhostBatchNorm, ghost_size=8),
    "brn": BatchRenorm,
    "noisy": NoisyBatchNorm,
    "ln": nn.LayerNorm,
}


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_net(norm=BatchNorm1d, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP((3,), 2, hidden=[4], norm=norm, activation="tanh").double()
        net(draws(16, 3, seed=9))
        return net


def make_snapshot(norm=BatchNorm1d, members: int = K, **overrides) -> TrainingSnapshot:
    nets = [make_net(norm, seed) for seed in range(members)]
    tensors = [dict([*net.named_parameters(), *net.named_buffers()]) for net in nets]
    state = {name: torch.stack([own[name].detach() for own in tensors]) for name in tensors[0]}
    fields = {
        "net": nets[0],
        "loss": lambda outputs, y: (outputs - y).square().flatten(1).mean(1),
        "trained": [name for name, _ in nets[0].named_parameters()],
        "before": state,
        "after": state,
        "start": state,
        "minibatch": (draws(members, 16, 3, seed=1), draws(members, 16, 2, seed=2)),
        "train": (draws(1, 24, 3, seed=3), draws(1, 24, 2, seed=4)),
        "lr": torch.tensor([0.1, 0.01, 0.3], dtype=torch.float64)[:members],
        "stability": None,
        "generators": generators(members),
        "epoch": 1,
        "step": 3,
    }
    return TrainingSnapshot(**(fields | overrides))


def generators(members: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(members)]


def dense(landscape: BatchedLoss) -> Tensor:
    """Compute each member's Hessian with nested jacrev, ``(K, P, P)``."""
    result = []
    for k in range(landscape.members):
        own = landscape.of_members(slice(k, k + 1))
        fixed, x, y = own.context
        context = {name: tensor[0] for name, tensor in fixed.items()}, x[0], y[0]

        def loss(theta: Tensor, own=own, context=context) -> Tensor:
            return own.loss(dict(zip(own.names, own.unflatten(theta), strict=True)), *context)

        result.append(jacrev(jacrev(loss))(own.theta[0]))
    return torch.stack(result)


def measure(probe: Curvature, snapshot: TrainingSnapshot) -> list[Measurement]:
    return list(probe(replace(snapshot, generators=generators(len(snapshot.lr)))))


def alone(snapshot: TrainingSnapshot, k: int) -> TrainingSnapshot:
    def own(state):
        return {name: tensor[k : k + 1] for name, tensor in state.items()}

    x, y = snapshot.minibatch
    state = own(snapshot.before)
    stability = None if snapshot.stability is None else snapshot.stability[k : k + 1]
    minibatch, lr, drawn = (x[k : k + 1], y[k : k + 1]), snapshot.lr[k : k + 1], snapshot.generators[k : k + 1]
    return replace(
        snapshot,
        **{"before": state, "after": state, "start": state, "minibatch": minibatch},
        **{"lr": lr, "stability": stability, "generators": drawn},
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS.values(), ids=list(NORMS))
def test_hessian_products_match_gradient_differences(norm, mode):
    landscape = make_snapshot(norm).landscape(mode, double=True)
    step = 1e-5 * torch.eye(landscape.theta.shape[1], dtype=torch.float64).unsqueeze(1)
    columns = landscape.gradients(landscape.theta + step) - landscape.gradients(landscape.theta - step)
    vectors = draws(*landscape.theta.shape)

    expected = torch.einsum("jkp,kj->kp", columns / 2e-5, vectors)
    assert_close(landscape.hessian()(vectors), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", [NORMS["nobn"], NORMS["bn"], NORMS["brn"]], ids=["nobn", "bn", "brn"])
def test_extreme_eigenvalues_match_dense_hessian(norm, mode):
    landscape = make_snapshot(norm).landscape(mode, double=True)
    values = torch.linalg.eigvalsh(dense(landscape))

    exact = extreme_eigenvalues(landscape, tolerance=1e-10, generators=generators(K))
    assert_close(exact.values, values[:, [0, -1]].T)
    near = extreme_eigenvalues(landscape, tolerance=1e-3, generators=generators(K))
    assert_close(near.values[1], values[:, -1], rtol=1e-3, atol=0)


# torch's forward differentiation, of which curvlinops makes its products, compiles with torch.jit.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
def test_hessian_agrees_with_curvlinops(mode):
    operator = pytest.importorskip("curvlinops").HessianLinearOperator
    snapshot = make_snapshot(members=1)
    landscape = snapshot.landscape(mode, "train")
    net = side_effect_free_copy(make_net(), mode)
    theirs = operator(net, nn.MSELoss(), list(net.parameters()), [tuple(part[0] for part in snapshot.train)])
    vectors = draws(1, landscape.theta.shape[1])

    assert_close(landscape.hessian()(vectors)[0], theirs @ vectors[0])
    ours = extreme_eigenvalues(landscape, tolerance=1e-9, generators=generators(1)).values[:, 0]
    values = eigsh(theirs.to_scipy(), k=2, which="BE", return_eigenvectors=False, v0=vectors[0].numpy())
    assert_close(ours, torch.from_numpy(values).sort().values)


def test_batchwise_curvlinops_hessian_differs():
    """This is why a landscape evaluates all data in one batch."""
    snapshot = make_snapshot(members=1)
    x, y = snapshot.train
    parts = (x[:, :12], y[:, :12]), (x[:, 12:], y[:, 12:])
    halves = [replace(snapshot, train=part).landscape("batch", "train") for part in parts]
    vectors = draws(*halves[0].theta.shape)
    summed = sum(half.hessian()(vectors) for half in halves) / 2

    whole = snapshot.landscape("batch", "train").hessian()(vectors)
    assert (summed - whole).norm() > 0.05 * whole.norm()


def test_scale_multiplies_hessian_from_both_sides():
    landscape = make_snapshot().landscape("batch")
    scale = draws(*landscape.theta.shape).exp()
    scaled = scale.unsqueeze(2) * dense(landscape) * scale.unsqueeze(1)

    values = extreme_eigenvalues(landscape, scale=scale, tolerance=1e-10, generators=generators(K)).values
    assert_close(values, torch.linalg.eigvalsh(scaled)[:, [0, -1]].T)


@pytest.mark.parametrize("limit", ["POINTS_AT_ONCE", "MEMORY"])
def test_grouped_members_equal_all_members_at_once(monkeypatch, limit):
    landscape = make_snapshot().landscape("batch")
    whole = extreme_eigenvalues(landscape, generators=generators(K))
    monkeypatch.setattr(curvature, limit, 2 if limit == "POINTS_AT_ONCE" else 1)

    assert_close(extreme_eigenvalues(landscape, generators=generators(K)), whole)


def test_numbers_match_dense_hessian_and_learning_rates():
    snapshot = make_snapshot(stability=torch.tensor([2.0, 3.8, 2.0]))
    for measurement in measure(Curvature(tolerance=1e-8), snapshot):
        values = torch.linalg.eigvalsh(dense(snapshot.landscape(measurement.mode, "train")))
        assert_close(measurement.numbers["lambda_max"], values[:, -1])
        assert_close(measurement.numbers["lambda_min"], values[:, 0])
        assert_close(measurement.numbers["lambda_max_lr"], values[:, -1] * snapshot.lr)
        assert_close(measurement.numbers["stability"], snapshot.stability)
        assert (measurement.numbers["lambda_max_error"] <= 1e-8 * values[:, -1]).all()
        assert (measurement.numbers["converged"] == 1).all()
        assert all(value.shape == (K,) for value in measurement.numbers.values())
        assert measurement.arrays == {}
        assert set(measurement.headline) <= set(measurement.numbers)


def make_preconditioning(members: int = K) -> Preconditioning:
    """Return preconditioners of members, the second before its first update."""
    size = sum(parameter.numel() for parameter in make_net().parameters())
    diagonal = draws(members, size, seed=7).exp()
    diagonal[1:2] = torch.nan
    return Preconditioning(
        diagonal, torch.tensor([0.3, 0.3, 0.0]).double()[:members], torch.full((members,), 38.0)
    )


def test_preconditioned_lambda_max_matches_dense_matrix():
    preconditioning = make_preconditioning()
    snapshot = make_snapshot(preconditioning=preconditioning)
    for measurement in measure(Curvature(tolerance=1e-8), snapshot):
        hessian = dense(snapshot.landscape(measurement.mode, "train")) + torch.diag_embed(
            preconditioning.decay.unsqueeze(1).expand_as(preconditioning.diagonal)
        )
        for k in (0, 2):
            values = torch.linalg.eigvals(hessian[k] / preconditioning.diagonal[k].unsqueeze(1)).real
            assert_close(measurement.numbers["preconditioned_lambda_max"][k], values.max())
            assert_close(measurement.numbers["preconditioned_lambda_max_lr"][k], values.max() * snapshot.lr[k])
        assert measurement.numbers["preconditioned_lambda_max"][1].isnan()
        assert measurement.numbers["converged"].tolist() == [1, 1, 1]
        assert torch.equal(measurement.numbers["preconditioned_stability"], preconditioning.limit)
        assert measurement.headline[-1] == "preconditioned_lambda_max_lr"
    assert "preconditioned_stability" not in measure(Curvature(), make_snapshot())[0].numbers


def test_grouped_members_keep_their_preconditioner(monkeypatch):
    snapshot = make_snapshot(preconditioning=make_preconditioning())
    whole = measure(Curvature(tolerance=1e-8), snapshot)
    monkeypatch.setattr(curvature, "POINTS_AT_ONCE", 1)
    for together, apart in zip(whole, measure(Curvature(tolerance=1e-8), snapshot), strict=True):
        assert_close(together.numbers, apart.numbers, equal_nan=True)


def test_each_mode_has_measurement_and_stability_may_be_nan():
    measurements = measure(Curvature(), make_snapshot())

    assert [measurement.mode for measurement in measurements] == list(MODES)
    assert measurements[0].numbers["stability"].isnan().all()
    assert (measurements[0].numbers["lambda_max"] != measurements[1].numbers["lambda_max"]).all()
    assert (measurements[0].numbers["dhd_lambda_max"] != measurements[0].numbers["lambda_max"]).all()
    assert torch.equal(measurements[1].numbers["dhd_lambda_max"], measurements[1].numbers["lambda_max"])


def test_small_minibatch_is_indicative():
    snapshot = make_snapshot()
    whole = replace(snapshot, minibatch=snapshot.data("train"))

    def indicative(data: str, snapshot: TrainingSnapshot) -> list[float]:
        return measure(Curvature(data=data), snapshot)[0].numbers["indicative"].tolist()

    assert indicative("minibatch", snapshot) == [1, 1, 1]
    assert indicative("minibatch", whole) == indicative("train", snapshot) == [0, 0, 0]
    numbers = [measure(Curvature(data=data), whole)[0].numbers["lambda_max"] for data in ("minibatch", "train")]
    assert_close(*numbers)


@pytest.mark.parametrize("norm", ["nobn", "bn", "noisy"])
def test_stacked_members_equal_single_members(norm):
    snapshot = make_snapshot(NORMS[norm])
    together = measure(Curvature(tolerance=0.05), snapshot)
    for k in range(K):
        own = Curvature(tolerance=0.05)(alone(replace(snapshot, generators=generators(K)), k))
        for whole, single in zip(together, own, strict=True):
            for name, value in single.numbers.items():
                assert_close(whole.numbers[name][k : k + 1], value, equal_nan=True, rtol=1e-6, atol=1e-9)


@CURVLINOPS
def test_trace_and_density_match_dense_hessian():
    snapshot, probe = make_snapshot(), Curvature(trace_samples=4, density=True, modes=["batch"])
    (measurement,) = measure(probe, snapshot)
    exact = dense(snapshot.landscape("batch", "train")).diagonal(dim1=1, dim2=2).sum(1)

    assert ((measurement.numbers["trace"] - exact).abs() < 6 * measurement.numbers["trace_error"]).all()
    values, grid = measurement.arrays["density"], measurement.arrays["density_grid"]
    assert values.shape == grid.shape == (K, 256)
    assert_close(torch.trapezoid(values, grid), torch.ones(K).double(), rtol=0.05, atol=0)
    assert (grid[:, 0] < measurement.numbers["lambda_min"]).all()
    assert (grid[:, -1] > measurement.numbers["lambda_max"]).all()
    (own,) = probe(alone(replace(snapshot, generators=generators(K)), 1))
    assert_close(own.numbers["trace"], measurement.numbers["trace"][1:2])
    assert_close(own.arrays["density"], measurement.arrays["density"][1:2])


def test_nonfinite_member_leaves_other_members_unchanged():
    snapshot = make_snapshot()
    state = {name: tensor.clone() for name, tensor in snapshot.before.items()}
    state["hidden1.linear.weight"][1] = torch.nan
    for whole, broken in zip(
        measure(Curvature(), snapshot), measure(Curvature(), replace(snapshot, before=state)), strict=True
    ):
        for name, value in broken.numbers.items():
            if name in ("converged", "indicative"):
                continue
            assert value[1].isnan()
            assert_close(value[[0, 2]], whole.numbers[name][[0, 2]], equal_nan=True)
        assert broken.numbers["converged"].tolist() == [1, 0, 1]


def test_float32_eigenvalues_are_within_tolerance():
    snapshot = make_snapshot()
    double = measure(Curvature(), snapshot)[0].numbers
    state = {name: in_float(tensor) for name, tensor in snapshot.before.items()}
    x, y = snapshot.train
    snapshot = replace(snapshot, before=state, train=(x.float(), y.float()))
    single = measure(Curvature(double=False), snapshot)[0].numbers

    assert_close(single["lambda_max"], double["lambda_max"], rtol=2e-3, atol=0)
    assert single["lambda_max"].dtype == torch.float64


def in_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"tolerance": -1.0}, r"tolerance must be a number > 0, got -1.0"),
        ({"trace_samples": 1}, "trace_samples must be 0 for none or at least 2, got 1"),
        ({"trace_samples": -3}, "trace_samples must be 0 for none or at least 2, got -3"),
        ({"data": "test"}, "data must be minibatch or train, got test"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Curvature(**options)


@pytest.mark.parametrize("options", [{"trace_samples": 10}, {"density": True}])
def test_missing_curvlinops_raises_before_training(options, monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(ImportError, match="pip install 'normlab\\[curvature\\]'"):
        Curvature(**options)
    assert measure(Curvature(), make_snapshot())


def test_stability_limit_is_2_for_gradient_descent():
    """Below λmax·η = 2 the loss decreases, above it increases."""
    matrix = draws(5, 5)
    matrix = matrix @ matrix.T
    bowl = BatchedLoss.of(lambda params: params["w"] @ matrix @ params["w"] / 2, {"w": draws(5, seed=1)})
    largest = extreme_eigenvalues(bowl, (LARGEST,), tolerance=1e-9, generators=generators(1)).values.item()

    for limit, falls in ((1.9, True), (2.1, False)):
        theta = bowl.theta
        for _ in range(200):
            theta = theta - limit / largest * bowl.gradients(theta)
        assert (bowl.losses(theta) < bowl.losses(bowl.theta)).item() == falls
