import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from normlab.probes.gradient_lipschitz import (
    GradientLipschitz,
    estimates_disagree,
    gradient_lipschitz,
    median_error,
)
from normlab.probes.landscape import BatchedLoss
from normlab.source_experiments import AliasedLipschitz, aliased_lipschitz


def generators(members: int = 1, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + k) for k in range(members)]


def symmetric(members: int, size: int) -> Tensor:
    a = torch.randn(members, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return a + a.mT


def test_quadratic_sample_is_norm_ratio_of_h_delta(helpers):
    h = symmetric(3, 5)
    landscape = helpers.quadratic(h)
    result = gradient_lipschitz(landscape, 0.1, 7, generators=generators(3))
    delta = landscape.normal(generators(3), 7)
    assert result.shape == (7, 3)
    assert_close(result, torch.einsum("kij,skj->ski", h, delta).norm(dim=2) / delta.norm(dim=2))


def test_mean_square_is_mean_squared_eigenvalue(helpers):
    h = symmetric(1, 20)
    eigenvalues = torch.linalg.eigvalsh(h[0])
    errors = []
    for samples in (100, 10_000):
        result = gradient_lipschitz(helpers.quadratic(h), 1.0, samples, generators=generators())
        assert result.max() <= eigenvalues.abs().max()
        errors.append(abs(result.square().mean() / eigenvalues.square().mean() - 1).item())
    assert errors[1] < 0.01 < errors[0], "more samples, a better estimate"


def test_quadratic_estimate_ignores_radius(helpers):
    landscape = helpers.quadratic(symmetric(1, 5))
    small, large = (gradient_lipschitz(landscape, radius, 5, generators=generators()) for radius in (1e-4, 10.0))
    assert_close(small, large)


@pytest.mark.parametrize("mode", ["batch", "frozen"])
@pytest.mark.parametrize("norm", ["nobn", "bn", "noisy", "brn", "dropout"])
def test_net_estimate_matches_loop_over_samples(helpers, norm, mode):
    snapshot = helpers.make_snapshot([helpers.make_net(helpers.norms[norm], seed) for seed in range(2)])
    result = gradient_lipschitz(snapshot.landscape(mode), 1e-3, 20, generators=generators(2))
    for k in range(2):
        landscape = helpers.alone(snapshot, k).landscape(mode)
        theta, slow = landscape.theta.clone(), []
        generator = torch.Generator().manual_seed(k)
        for delta in 1e-3 * torch.randn(20, 1, theta.shape[1], generator=generator, dtype=torch.float64):
            moved = landscape.gradients(theta + delta) - landscape.gradients(theta)
            slow.append((moved.norm() / delta.norm()).item())
        assert_close(result[:, k], torch.tensor(slow, dtype=torch.float64), rtol=1e-6, atol=0)


def test_aliased_estimator_is_zero_after_first_sample(helpers):
    h = symmetric(2, 5)
    landscape = helpers.quadratic(h)
    wrong = aliased_lipschitz(landscape, 0.1, 6, generators=generators(2))
    right = gradient_lipschitz(landscape, 0.1, 6, generators=generators(2))
    assert_close(wrong[0], right[0])
    assert (wrong[1:] == 0).all()
    assert (right > 0).all()


def test_probe_reports_three_radii_and_all_samples(helpers):
    snapshot = helpers.make_snapshot([helpers.make_net(seed=k) for k in range(2)])
    measurements = list(GradientLipschitz(radius=1e-4, samples=30)(snapshot))

    assert [measurement.mode for measurement in measurements] == ["batch", "frozen"]
    numbers, samples = measurements[0].numbers, measurements[0].arrays["samples"]
    assert samples.shape == (2, 3, 30)
    assert_close(numbers["median"], samples[:, 1].quantile(0.5, dim=1))
    assert_close(numbers["median_tenth_radius"], samples[:, 0].quantile(0.5, dim=1))
    assert_close(numbers["median_ten_radii"], samples[:, 2].quantile(0.5, dim=1))
    assert_close(numbers["max"], samples[:, 1].amax(1))
    assert (numbers["q25"] < numbers["median"]).all()
    assert (numbers["median"] < numbers["q75"]).all()
    assert (numbers["unreliable"] == 0).all(), "tanh is smooth"


def test_kinks_and_rounding_are_flagged():
    """For ``|w|`` near its kink the estimate depends on the radius; in float32, rounding dominates."""
    kink = BatchedLoss.of(lambda p: p["w"].abs().sum(), {"w": torch.full((50,), 3e-6, dtype=torch.float64)})
    result = [gradient_lipschitz(kink, radius, 50, generators=generators()).median() for radius in (1e-6, 1e-5)]
    assert estimates_disagree(torch.stack(result)[:, None]).item() == 1

    def steep(params):
        return (1e4 + params["w"].sum()).square() + 1e-9 * params["w"].square().sum()

    exact = BatchedLoss.of(steep, {"w": torch.ones(3, dtype=torch.float64)})
    rounded = BatchedLoss.of(steep, {"w": torch.ones(3)})
    result = [
        gradient_lipschitz(land, 1e-6, 9, generators=generators()).median().double() for land in (exact, rounded)
    ]
    assert estimates_disagree(torch.stack(result)[:, None]).item() == 1


def test_estimates_within_a_tenth_agree_and_nan_is_kept():
    table = torch.tensor([[1.0, 1.0, math.nan], [1.09, 1.2, 1.0], [1.05, 1.0, 1.0]], dtype=torch.float64)
    assert estimates_disagree(table).nan_to_num(-1).tolist() == [0, 1, -1]


def test_median_error_matches_spread_of_medians():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(100, 4000, generator=generator, dtype=torch.float64)
    spread = draws.median(0).values.std()
    assert abs(median_error(draws).mean() / spread - 1) < 0.1


def test_nonfinite_member_leaves_other_members_unchanged(helpers):
    snapshot = helpers.make_snapshot([helpers.make_net(seed=k) for k in range(2)])
    broken = {name: tensor.clone() for name, tensor in snapshot.before.items()}
    broken["output.weight"][0] = math.nan
    for measurement in GradientLipschitz(samples=5)(replace(snapshot, before=broken)):
        assert all(values[0].isnan() for values in measurement.numbers.values())
        assert all(values[1].isfinite() for values in measurement.numbers.values())


@pytest.mark.parametrize("probe", [GradientLipschitz, AliasedLipschitz])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0.0}, "radius must be a number > 0, got 0.0"),
        ({"radius": math.nan}, "radius must be a number > 0, got nan"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"every_n_steps": 0}, "every_n_steps must be null or at least 1, got 0"),
        ({"modes": ["eval"]}, "modes must be of batch, frozen, got eval"),
        ({"data": "test"}, "data must be minibatch or train, got test"),
    ],
)
def test_invalid_options_raise(probe, options, message):
    with pytest.raises(ValueError, match=message):
        probe(**options)
