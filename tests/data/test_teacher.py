import math

import pytest
import torch
from torch import nn

from normlab.data import Teacher
from normlab.data.sampling import derive_seed
from normlab.errors import ConfigError


def teacher(seed: int = 0, **options) -> Teacher:
    sizes = {"train": 2000, "val": 1000, "test": 1000, "batch_size": 32}
    return Teacher(**(sizes | {"seed": seed} | options))


def test_table_has_samples_of_all_splits():
    parts = teacher(train=5, val=3, test=2, batch_size=5, in_features=4).parts

    assert [tuple(part.x.shape) for part in parts] == [(5, 4), (3, 4), (2, 4)]
    assert [tuple(part.y.shape) for part in parts] == [(5, 1), (3, 1), (2, 1)]
    assert not parts[0].is_classification


def test_noiseless_target_is_a_standardized_net_of_torch():
    data = teacher(seed=3, train=6, val=2, test=2, batch_size=2, in_features=3, depth=2, width=4, noise=0.0)
    generator = torch.Generator().manual_seed(derive_seed(3, "teacher", "weights"))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1, bias=False)]
    net = nn.Sequential(*layers).double()
    with torch.no_grad():
        for layer in (layers[0], layers[2]):
            layer.weight.copy_((draw(layer.in_features, 4) * 2 / math.sqrt(layer.in_features)).T)
            layer.bias.copy_(0.3 * draw(4))
        layers[4].weight.copy_(draw(4, 1).T)
        reference = net(data.draw_inputs(10_000, "reference"))
        table = data.table()
        expected = (net(table.x) - reference.mean()) / reference.std()

    torch.testing.assert_close(table.y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_target_has_mean_zero_and_variance_one(depth: int):
    y = teacher(depth=depth, noise=0.5).table().y

    # Five standard errors of 4,000 samples and of the 10,000 that standardize; the kurtosis is below normal's 3.
    assert y.dtype == torch.float64
    assert abs(y.mean()) < 5 * math.sqrt(1 / 4000 + 1 / 10_000)
    assert abs(y.var() - 1) < 5 * math.sqrt(2 / 4000 + 2 / 10_000)


def test_noise_is_added_to_the_same_teacher():
    clean, noisy = teacher(noise=0.0).table(), teacher(noise=0.75).table()
    noise = 1.25 * noisy.y - clean.y  # √(1 + 0.75²) = 1.25

    assert torch.equal(clean.x, noisy.x)
    assert abs(noise.std() - 0.75) < 5 * 0.75 / math.sqrt(2 * 4000)
    assert abs(torch.corrcoef(torch.cat([noise, clean.y], dim=1).T)[0, 1]) < 5 / math.sqrt(4000)


def test_eigenvalues_decay_by_the_spectrum():
    flat, steep = teacher(in_features=3), teacher(in_features=3, spectrum=1.0, train=40_000)

    # 1, 1/2 and 1/3 divided by their mean, 11/18.
    torch.testing.assert_close(flat.eigenvalues(), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(steep.eigenvalues(), torch.tensor([18 / 11, 9 / 11, 6 / 11], dtype=torch.float64))
    covariance = steep.table().x.T.cov()
    measured = torch.linalg.eigvalsh(covariance).flip(0)
    torch.testing.assert_close(measured, steep.eigenvalues(), rtol=0.05, atol=0)
    assert (covariance - covariance.diag().diag()).abs().max() > 0.05  # the axes are rotated


def test_teacher_does_not_depend_on_the_sizes_of_the_splits():
    small, large = teacher(train=100, val=0, test=0), teacher(train=1000)

    assert torch.equal(small.draw_teacher()(small.draw_inputs(5)), large.draw_teacher()(small.draw_inputs(5)))


def test_table_depends_on_the_seed():
    assert torch.equal(teacher(seed=1).table().y, teacher(seed=1).table().y)
    assert not torch.equal(teacher(seed=1).table().x, teacher(seed=2).table().x)
    assert teacher().generated


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"in_features": 0}, "data.in_features must be at least 1, got 0"),
        ({"depth": -1}, "data.depth must be 0 or more hidden layers, got -1"),
        ({"width": 0}, "data.width must be at least 1, got 0"),
        ({"noise": -0.1}, "data.noise must be a finite number, 0 or more, got -0.1"),
        ({"spectrum": math.inf}, "data.spectrum must be a finite number, 0 or more, got inf"),
    ],
)
def test_impossible_arguments_are_rejected(option: dict[str, float], message: str):
    with pytest.raises(ConfigError) as caught:
        teacher(**option)
    assert str(caught.value) == message
