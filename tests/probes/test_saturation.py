import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import MLP
from normlab.norms import BatchNorm1d, Derf, DynamicTanh
from normlab.probes import Saturation
from normlab.probes.saturation import saturated_share


def test_share_by_hand():
    x = torch.tensor([[-5.0, -4.0, -3.9], [0.0, 4.1, 9.0]], dtype=torch.float64)
    assert saturated_share(DynamicTanh(3, alpha=0.5), x, 2.0).item() == 3 / 6  # -2.5, 2.05 and 4.5; not 2
    assert saturated_share(DynamicTanh(3, alpha=-0.5), x, 2.0).item() == 3 / 6
    assert saturated_share(Derf(3, alpha=0.5, shift=-0.1), x, 2.0).item() == 4 / 6  # also -2.1 and -2.05, not 1.95
    assert saturated_share(DynamicTanh(3, alpha=0.5), x, 1.0).item() == 5 / 6


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_share_of_inputs_that_are_not_finite_is_nan(value):
    assert saturated_share(DynamicTanh(1), torch.tensor([[value], [1.0]]), 2.0).isnan()


def make(kind) -> nn.Module:
    return MLP((3,), 2, hidden=[6, 5], norm=lambda features: kind(features, alpha=0.9), activation="tanh")


def expected(net: nn.Module, x: Tensor) -> dict[str, float]:
    """Return the shares, counted one by one."""
    shares = {}
    for name in ("hidden1", "hidden2"):
        layer = net.get_submodule(name)
        h = layer.linear(x)
        shift = layer.norm.shift if isinstance(layer.norm, Derf) else 0.0
        inputs = (layer.norm.alpha * h + shift).flatten().tolist()
        shares[f"{name}/saturated"] = sum(abs(u) > 2 for u in inputs) / len(inputs)
        x = layer.activation(layer.norm(h))
    return shares | {"saturated": sum(shares.values()) / 2}


@pytest.mark.parametrize("data", ["minibatch", "train"])
@pytest.mark.parametrize("kind", [DynamicTanh, Derf])
def test_members_equal_the_count_and_runs_alone(helpers, kind, data):
    snapshot, probe = (
        helpers.make_stepped_snapshot(lambda: make(kind), (3,)),
        Saturation(data=data, modes=["batch"]),
    )
    (measurement,) = probe(snapshot)
    assert measurement.headline == ("saturated",)
    for k in range(3):
        net = make(kind).double()
        net.load_state_dict({name: tensor[k] for name, tensor in snapshot.before.items()})
        numbers = expected(net, snapshot.data(data)[0][k])
        (single,) = probe(helpers.alone(snapshot, k))
        assert 0 < numbers["saturated"] < 1
        for name, value in numbers.items():
            assert measurement.numbers[name][k].item() == pytest.approx(value, abs=1e-12)
        for name, values in single.numbers.items():
            assert_close(values, measurement.numbers[name][k : k + 1])


def test_net_without_such_layers_yields_nothing(helpers):
    snapshot = helpers.make_stepped_snapshot(lambda: MLP((3,), 2, hidden=[6], norm=BatchNorm1d), (3,))
    assert list(Saturation()(snapshot)) == []


def test_threshold_must_be_positive():
    with pytest.raises(ValueError, match="threshold must be a number > 0, got 0"):
        Saturation(threshold=0)
