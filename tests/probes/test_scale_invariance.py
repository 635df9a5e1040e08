from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from normlab import norms
from normlab.models import MLP
from normlab.norms import BatchNorm1d
from normlab.probes.curvature import extreme_eigenvalues, weight_norm_diagonal
from normlab.probes.landscape import BatchedLoss, side_effect_free_copy
from normlab.probes.spectrum import LARGEST

K = 2
HIDDEN = ["hidden1.linear", "hidden2.linear"]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bn(width: int) -> nn.Module:
    return BatchNorm1d(width, eps=1e-12)


def net(norm=bn, **options) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MLP((3,), 2, **({"hidden": [6, 4], "norm": norm, "activation": "tanh"} | options)).double()


def make_landscape(model: nn.Module, mode: str = "batch", factors: dict[str, float] | None = None) -> BatchedLoss:
    """Return the landscape of K nets near a net, with some of their parameters rescaled."""
    quiet = side_effect_free_copy(model, mode)
    x, y = draws(40, 3, seed=1), draws(40, 2, seed=2)
    params = {
        name: (parameter.detach() + 0.1 * draws(K, *parameter.shape, seed=3)) * (factors or {}).get(name, 1.0)
        for name, parameter in model.named_parameters()
    }

    def loss(params):
        return F.mse_loss(functional_call(quiet, params, (x,)), y)

    return BatchedLoss(loss, params)


def scaled_parameters(landscape: BatchedLoss) -> dict[str, Tensor]:
    """Return the parts of D that are not 1, by parameter name."""
    parts = zip(landscape.names, landscape.unflatten(weight_norm_diagonal(landscape)), strict=True)
    return {name: part for name, part in parts if not bool((part == 1).all())}


def dhd(landscape: BatchedLoss) -> Tensor:
    generators = [torch.Generator().manual_seed(k) for k in range(K)]
    return extreme_eigenvalues(
        landscape, (LARGEST,), scale=weight_norm_diagonal(landscape), tolerance=1e-10, generators=generators
    ).values[0]


def lambda_max(landscape: BatchedLoss) -> Tensor:
    generators = [torch.Generator().manual_seed(k) for k in range(K)]
    return extreme_eigenvalues(landscape, (LARGEST,), tolerance=1e-10, generators=generators).values[0]


@pytest.mark.parametrize(
    ("model", "mode", "groups"),
    [
        (net(), "batch", [6, 4]),
        (net(), "frozen", None),
        (net(None), "batch", None),
        (net(nn.LayerNorm), "batch", [1, 1]),
        (net(nn.LayerNorm), "frozen", [1, 1]),
        (net(nn.RMSNorm), "batch", [1, 1]),
        (net(partial(nn.GroupNorm, 2), hidden=[6, 8]), "batch", [2, 2]),
        (net(partial(nn.GroupNorm, 2), hidden=[6, 8]), "frozen", [2, 2]),
        (net(norms.L1BatchNorm), "batch", [6, 4]),
        (net(partial(norms.GhostBatchNorm, ghost_size=10)), "batch", [6, 4]),
        (net(norms.NoisyBatchNorm), "batch", [6, 4]),
        (net(norms.BatchRenorm), "batch", [6, 4]),
        (net(norms.DynamicTanh), "batch", None),
        (net(norm_position="after"), "batch", None),
        (net(norm_position="after", activation="relu"), "batch", [6, 4]),
        (net(nn.LayerNorm, norm_position="after", activation="relu"), "batch", [1, 1]),
    ],
)
def test_smallest_scale_invariant_groups_are_found(model, mode, groups):
    landscape = make_landscape(model, mode)
    result = scaled_parameters(landscape)

    expected = HIDDEN if groups else []
    assert list(result) == [f"{layer}.{name}" for layer in expected for name in ("weight", "bias")]
    weights = dict(zip(landscape.names, landscape.unflatten(landscape.theta), strict=True))
    for layer, count in zip(expected, groups or [], strict=True):
        weight = weights[f"{layer}.weight"]
        rows = weight.reshape(K, count, -1).norm(dim=2).repeat_interleave(weight.shape[1] // count, dim=1)
        assert_close(result[f"{layer}.weight"], rows.unsqueeze(2).expand(weight.shape))
        assert_close(result[f"{layer}.bias"], rows)


@pytest.mark.parametrize("normalize", [norms.weight_normalization, parametrizations.weight_norm])
def test_weight_norm_direction_is_found_without_bias(normalize):
    model = net(None)
    normalize(model.hidden1.linear)
    x, y = draws(40, 3, seed=1), draws(40, 2, seed=2)
    params = {name: parameter.detach()[None] for name, parameter in model.named_parameters()}
    landscape = BatchedLoss(lambda params: F.mse_loss(functional_call(model, params, (x,)), y), params)

    name = "hidden1.linear.parametrizations.weight.original1"
    result = scaled_parameters(landscape)
    assert list(result) == [name]
    assert_close(result[name], params[name].norm(dim=2, keepdim=True).expand(params[name].shape))


def test_convolutions_are_found():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Sequential(nn.Conv2d(1, 2, 3), norms.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 1)).double()
    quiet, x, y = side_effect_free_copy(conv, "batch"), draws(20, 1, 4, 4), draws(20, 1)
    params = {name: parameter.detach()[None] for name, parameter in conv.named_parameters()}
    landscape = BatchedLoss(lambda params: F.mse_loss(functional_call(quiet, params, (x,)), y), params)

    result = scaled_parameters(landscape)
    assert list(result) == ["0.weight", "0.bias"]
    channels = params["0.weight"].flatten(2).norm(dim=2)
    assert_close(result["0.weight"], channels.view(1, 2, 1, 1, 1).expand(params["0.weight"].shape))
    assert_close(result["0.bias"], channels)


def test_unused_weights_are_not_scale_invariant():
    params = {"weight": draws(1, 3, 3), "idle": draws(1, 3, 3)}

    assert scaled_parameters(BatchedLoss(lambda params: params["weight"].square().sum(), params)) == {}


def test_nearly_unused_weights_are_not_scale_invariant():
    assert (
        scaled_parameters(
            make_landscape(net(None), factors={"output.weight": 1e-6, "hidden1.linear.weight": 1e-6})
        )
        == {}
    )


def test_members_are_tested_independently():
    landscape = make_landscape(net())
    landscape.theta[0] = torch.nan

    result = weight_norm_diagonal(landscape)
    assert (result[0] == 1).all()
    assert_close(result[1], weight_norm_diagonal(make_landscape(net()))[1])


@pytest.mark.parametrize("factor", [0.1, 30.0])
@pytest.mark.parametrize("layer", HIDDEN)
def test_dhd_ignores_scale_of_bn_weights(layer, factor):
    name = f"{layer}.weight"
    before, after = make_landscape(net()), make_landscape(net(), factors={name: factor})

    assert_close(after.losses(after.theta), before.losses(before.theta))
    assert_close(dhd(after), dhd(before), rtol=1e-6, atol=0)

    columns = before.parameter_mask([name])
    squares = [part.theta[:, columns].square().sum(1) for part in (before, after)]
    moved = lambda_max(after) * squares[1] / (lambda_max(before) * squares[0])
    assert ((moved - 1).abs() > 0.1).all()


@pytest.mark.parametrize(
    ("norm", "units"),
    [(bn, slice(0, 8)), (bn, slice(3, 4)), (partial(nn.GroupNorm, 4, eps=1e-12), slice(4, 8))],
    ids=["half_of_bn", "one_of_bn", "a_group_of_gn"],
)
def test_dhd_ignores_scale_of_single_units(norm, units):
    model = net(norm, hidden=[16])
    before, after = make_landscape(model), make_landscape(model)
    for name in ("hidden1.linear.weight", "hidden1.linear.bias"):
        part = dict(zip(after.names, after.unflatten(after.theta), strict=True))[name]
        part[:, units] *= 5

    assert_close(after.losses(after.theta), before.losses(before.theta))
    assert_close(dhd(after), dhd(before), rtol=1e-6, atol=0)
    # With the norm of the whole layer in D, the eigenvalue does change.
    weight = dict(zip(after.names, after.unflatten(after.theta), strict=True))["hidden1.linear.weight"]
    whole = torch.where(weight_norm_diagonal(after) == 1, 1.0, weight.flatten(1).norm(dim=1, keepdim=True))
    generators = [torch.Generator().manual_seed(k) for k in range(K)]
    moved = extreme_eigenvalues(after, (LARGEST,), scale=whole, generators=generators).values[0]
    assert (moved > 1.5 * dhd(after)).all()


@pytest.mark.parametrize("model", [net(nn.LayerNorm), net(norm_position="after", activation="relu")])
def test_dhd_ignores_joint_scale_of_weights_and_bias(model):
    both = {"hidden1.linear.weight": 20.0, "hidden1.linear.bias": 20.0}
    before, after = make_landscape(model), make_landscape(model, factors=both)

    assert_close(after.losses(after.theta), before.losses(before.theta), rtol=1e-3, atol=0)
    assert_close(dhd(after), dhd(before), rtol=1e-2, atol=0)


def test_dhd_depends_on_scale_with_frozen_statistics():
    before, after = (make_landscape(net(), "frozen", {"hidden1.linear.weight": factor}) for factor in (1.0, 0.1))

    assert ((dhd(after) / dhd(before) - 1).abs() > 0.01).all()
