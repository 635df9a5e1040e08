import pytest
import torch

from normlab.data import Fitness


def fitness(seed: int = 42, **options) -> Fitness:
    return Fitness(**({"train": 600, "val": 200, "test": 200, "batch_size": 32, "seed": seed} | options))


def reference_table(seed: int, target: str, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw height, weight, capacity and noise in the order of the original experiment."""
    generator = torch.Generator().manual_seed(seed)
    height = 1.2 + 0.8 * torch.rand(samples, 1, generator=generator)
    weight = 30 + 90 * torch.rand(samples, 1, generator=generator)
    capacity = 2000 + 3000 * torch.rand(samples, 1, generator=generator)
    noise = 10 * torch.randn(samples, 1, generator=generator)
    score = 35 * height + 15 * torch.log(weight) + 0.008 * capacity
    if target == "calibrated":
        score = (score - 109) / 77 * 100
    return torch.cat([height, weight, capacity], dim=1), torch.clamp(score + noise, 0, 100)


@pytest.mark.parametrize("target", ["calibrated", "clipped"])
@pytest.mark.parametrize(("seed", "samples"), [(42, 1000), (0, 7)])
def test_table_equals_reference(target, seed, samples):
    table = fitness(seed, target=target, samples=samples).table()

    x, y = reference_table(seed, target, samples)
    torch.testing.assert_close(table.x, x, rtol=1e-6, atol=0)
    torch.testing.assert_close(table.y, y, rtol=1e-5, atol=1e-4)


def test_features_are_uniform_in_their_ranges():
    x = fitness(samples=20_000).table().x

    for column, low, high in zip(x.T, (1.2, 30.0, 2000.0), (2.0, 120.0, 5000.0), strict=True):
        assert low <= column.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < column.max() <= high
        assert abs(column.mean() - (low + high) / 2) < 0.02 * (high - low)


@pytest.mark.parametrize("target", ["calibrated", "clipped"])
def test_scores_lie_between_0_and_100(target):
    y = fitness(samples=20_000, target=target).table().y

    assert y.shape == (20_000, 1)
    assert y.max() == 100
    assert y.min() >= 0
    assert target == "clipped" or y.min() == 0


def test_spread_of_calibrated_and_clipped_targets():
    calibrated = fitness(target="calibrated").table().y
    clipped = fitness(target="clipped").table().y

    assert calibrated.std().item() == pytest.approx(18.6, abs=0.1)
    assert (calibrated == 100).double().mean() < 0.01
    assert (clipped == 100).double().mean().item() == pytest.approx(0.999)
    assert clipped.mean().item() == pytest.approx(99.99, abs=0.005)
    assert clipped.std().item() == pytest.approx(0.16, abs=0.005)


def test_irreducible_squared_error_is_about_100():
    table = fitness(samples=20_000).table()
    x, y = table.x.double(), table.y.double()

    base = 35 * x[:, :1] + 15 * x[:, 1:2].log() + 0.008 * x[:, 2:]
    best = (100 * (base - 109) / 77).clamp(0, 100)
    # Clamping reduces the error slightly; one standard error is 1.
    assert 95 < (y - best).square().mean() < 103


def test_clipped_target_notice_reports_saturation():
    (notice,) = fitness(target="clipped").notices

    assert notice.startswith("data.target=clipped: 99.9% of the targets are exactly 100")
    assert "data.target=calibrated" in notice
    assert fitness(target="calibrated").notices == []


def test_saturation_notice_counts_drawn_targets():
    data = fitness(target="clipped", samples=20_000, seed=3)

    share = (data.table().y == 100).double().mean().item()
    assert 0.99 < share < 1
    assert f"{share:.1%}" in data.notices[0]


def test_clipped_target_keeps_other_notices():
    assert len(fitness(target="clipped", train=601, val=199, batch_size=100).notices) == 2


def test_unknown_target_raises():
    with pytest.raises(ValueError, match=r"data\.target must be calibrated or clipped, got log"):
        fitness(target="log")


def test_too_few_samples_raise():
    with pytest.raises(ValueError, match=r"must be at most 999 samples, got 600 \+ 200 \+ 200"):
        _ = fitness(samples=999).parts


def test_global_generator_is_unchanged():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()

    _ = fitness().parts

    assert torch.equal(torch.random.get_rng_state(), before)
