import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import CNN, MLP
from normlab.norms import BatchNorm1d, BatchNorm2d, weight_normalization
from normlab.probes import AngularUpdate
from normlab.probes.angular_update import angles


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.3, math.pi / 2, 3.0])
def test_angle_of_a_rotation(angle):
    one = torch.tensor([2.0, 0.0], dtype=torch.float64)
    other = 5 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    assert angles(one, other).item() == pytest.approx(angle, rel=1e-9, abs=1e-300)


def test_opposite_and_zero_vectors():
    one = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]])
    assert_close(angles(one, -one)[:2], torch.full((2,), math.pi, dtype=torch.float64))
    assert angles(one, one + 1)[2].isnan()


def by_arccosine(w: Tensor, moved: Tensor) -> float:
    cosine = float(w.flatten() @ moved.flatten() / (w.norm() * moved.norm()))
    return math.acos(cosine)


CASES = {
    "mlp": (
        lambda: MLP((3,), 2, hidden=[6, 5], norm=BatchNorm1d),
        (3,),
        ["hidden1.linear", "hidden2.linear", "output"],
    ),
    "cnn": (
        lambda: CNN((1, 4, 4), 2, channels=[3, 2], norm2d=BatchNorm2d),
        (1, 4, 4),
        [
            "hidden1.conv",
            "hidden2.conv",
            "output",
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_members_equal_the_arccosine_and_runs_alone(helpers, case):
    make, shape, layers = CASES[case]
    snapshot = helpers.make_stepped_snapshot(make, shape)
    (measurement,) = AngularUpdate()(snapshot)
    assert measurement.headline == ("angle", "neuron_angle")
    numbers, means = measurement.numbers, torch.zeros(2, 3, dtype=torch.float64)
    for k in range(3):
        for layer in layers:
            w, moved = (state[f"{layer}.weight"][k] for state in (snapshot.before, snapshot.after))
            neurons = [by_arccosine(row, other) for row, other in zip(w, moved, strict=True)]
            assert numbers[f"{layer}/angle"][k].item() == pytest.approx(by_arccosine(w, moved), rel=1e-6)
            assert numbers[f"{layer}/neuron_angle"][k].item() == pytest.approx(
                sum(neurons) / len(neurons), rel=1e-6
            )
            assert measurement.arrays[f"{layer}/neuron_angles"][k].tolist() == pytest.approx(neurons, rel=1e-6)
            means[:, k] += torch.tensor([by_arccosine(w, moved), sum(neurons) / len(neurons)]) / len(layers)
        (single,) = AngularUpdate()(helpers.alone(snapshot, k))
        for name, values in single.numbers.items():
            assert_close(values, numbers[name][k : k + 1])
    assert_close(torch.stack([numbers["angle"], numbers["neuron_angle"]]), means, rtol=1e-6, atol=0)
    assert {name.partition("/")[0] for name in numbers} == {*layers, "angle", "neuron_angle"}


def test_length_of_weight_normalization_is_no_weight(helpers):
    snapshot = helpers.make_stepped_snapshot(lambda: MLP((3,), 2, hidden=[6], weight=weight_normalization), (3,))
    (measurement,) = AngularUpdate()(snapshot)
    name = "hidden1.linear.parametrizations.weight.original1"
    expected = angles(snapshot.before[name].flatten(1), snapshot.after[name].flatten(1))
    assert_close(measurement.numbers["hidden1.linear/angle"], expected)


def test_without_a_step_or_weights(helpers):
    snapshot = helpers.make_stepped_snapshot(lambda: MLP((3,), 2, hidden=[6]), (3,))
    (measurement,) = AngularUpdate()(replace(snapshot, after=snapshot.before))
    assert all(values.isnan().all() for values in measurement.numbers.values())
    assert list(AngularUpdate()(replace(snapshot, trained=["output.bias"]))) == []


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equilibrium_of_scale_invariant_weights(momentum):
    # Gradients of random directions orthogonal to w, proportional to 1/‖w‖: √(2ηλ/(1+μ)) of arXiv:2006.08419.
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(400, generator=generator, dtype=torch.float64))
    rate, decay, turned = 0.05, 0.02, []
    optimizer = torch.optim.SGD([w], lr=rate, momentum=momentum, weight_decay=decay)
    for _ in range(3000):
        before = w.detach().clone()
        noise = torch.randn(400, generator=generator, dtype=torch.float64)
        w.grad = (noise - (noise @ before) / (before @ before) * before) / before.norm()
        optimizer.step()
        turned.append(angles(before, w.detach()).item())
    limit = math.sqrt(2 * rate * decay / (1 + momentum))
    assert sum(turned[-500:]) / 500 == pytest.approx(limit, rel=0.05)


def test_angle_relative_to_the_equilibrium(helpers):
    snapshot = helpers.make_stepped_snapshot(CASES["mlp"][0], (3,))
    settled = replace(snapshot, equilibrium=torch.tensor([0.1, 0.2, 0.4]))
    (measurement,) = AngularUpdate()(settled)
    expected = measurement.numbers["output/angle"] / torch.tensor([0.1, 0.2, 0.4])
    assert_close(measurement.numbers["output/relative_angle"], expected, rtol=1e-6, atol=0)
    (measurement,) = AngularUpdate()(replace(snapshot, equilibrium=torch.tensor([0.1, 0.2, 0.0])))
    assert "output/relative_angle" not in measurement.numbers
