import pytest
import torch

from normlab.data import Random


def random_data(seed: int = 0, **options) -> Random:
    return Random(**({"train": 1000, "val": 1000, "test": 1000, "batch_size": 32, "seed": seed} | options))


def test_table_has_samples_of_all_splits():
    data = random_data(train=5, val=3, test=2, batch_size=5, in_features=4)

    assert [tuple(part.x.shape) for part in data.parts] == [(5, 4), (3, 4), (2, 4)]
    assert [tuple(part.y.shape) for part in data.parts] == [(5, 1), (3, 1), (2, 1)]
    assert not data.parts[0].is_classification


def test_inputs_are_drawn_before_targets():
    table = random_data(seed=3).table()

    generator = torch.Generator().manual_seed(3)
    assert torch.equal(table.x, torch.randn(3000, 10, generator=generator))
    assert torch.equal(table.y, torch.randn(3000, 1, generator=generator))


def test_inputs_and_targets_are_independent_normal():
    table = random_data().table()
    both = torch.cat([table.x, table.y], dim=1).double()

    # Five standard errors of a mean, a variance and a correlation of 3,000 samples.
    assert both.mean(0).abs().max() < 5 / 3000**0.5
    assert (both.T.cov() - torch.eye(11)).abs().max() < 5 * (2 / 3000) ** 0.5


def test_table_depends_on_seed():
    assert torch.equal(random_data(seed=1).table().x, random_data(seed=1).table().x)
    assert not torch.equal(random_data(seed=1).table().x, random_data(seed=2).table().x)


def test_zero_features_raise():
    with pytest.raises(ValueError, match=r"data\.in_features must be at least 1, got 0"):
        random_data(in_features=0)
