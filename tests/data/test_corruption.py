"""Corruptions of the test split against the formulas of their docstring, written out pixel by pixel."""

import math
from dataclasses import dataclass

import pytest
import torch

from normlab.data import Digits, InMemoryData, Table, Wine
from normlab.data.sampling import derive_seed, split_rows
from normlab.errors import ConfigError


@dataclass(kw_only=True, eq=False)
class Rows(InMemoryData):
    """Two features: 0, 4, 8, …, 36 and a constant."""

    train: int = 4
    val: int = 3
    test: int = 3
    batch_size: int = 2

    def table(self) -> Table:
        x = torch.stack([4.0 * torch.arange(10), torch.full((10,), 7.0)], dim=1)
        return Table(x, torch.zeros(10, 1))


class Images(Rows):
    """Ten images of 2 channels and 3 × 4 pixels, from −1 to 3."""

    def table(self) -> Table:
        x = 4 * torch.rand(10, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
        return Table(x, torch.arange(10) % 2, classes=2)


def in_float64(data: InMemoryData) -> InMemoryData:
    data.dtype = torch.float64
    return data


def normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "corrupt"))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_noise_on_rows_is_in_units_of_the_training_deviation():
    clean, noisy = (in_float64(Rows(seed=3, **options)) for options in ({}, {"corrupt": "noise", "severity": 0.5}))
    (a, b, c, d), z = clean.parts[0].x[:, 0].tolist(), normal((3, 2), 3)
    mean = (a + b + c + d) / 4
    std = math.sqrt(((a - mean) ** 2 + (b - mean) ** 2 + (c - mean) ** 2 + (d - mean) ** 2) / 4)

    expected = clean.parts[2].x + 0.5 * torch.tensor([std, 0.0]) * z  # a constant feature stays constant
    torch.testing.assert_close(noisy.parts[2].x, expected)


def test_noise_on_images_is_in_units_of_their_range_and_clipped_to_it():
    clean, noisy = (in_float64(Images(**options)) for options in ({}, {"corrupt": "noise", "severity": 0.3}))
    low, high = clean.parts[0].x.min().item(), clean.parts[0].x.max().item()

    pixels, z = clean.parts[2].x.flatten().tolist(), normal((3, 2, 3, 4), 42).flatten().tolist()
    expected = [min(max(x + 0.3 * (high - low) * e, low), high) for x, e in zip(pixels, z, strict=True)]
    torch.testing.assert_close(noisy.parts[2].x.flatten(), torch.tensor(expected, dtype=torch.float64))
    assert {low, high} <= set(expected)


def test_contrast_shrinks_pixels_towards_the_mean_of_their_channel():
    clean, flat = (in_float64(Images(**options)) for options in ({}, {"corrupt": "contrast", "severity": 0.75}))
    low, high = clean.parts[0].x.min().item(), clean.parts[0].x.max().item()

    for image, corrupted in zip(clean.parts[2].x.flatten(0, 1), flat.parts[2].x.flatten(0, 1), strict=True):
        mean = sum(image.flatten().tolist()) / 12
        expected = [min(max(mean + 0.25 * (x - mean), low), high) for x in image.flatten().tolist()]
        torch.testing.assert_close(corrupted.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_blur_is_a_gaussian_mean_with_repeated_borders():
    clean, blurred = (in_float64(Images(**options)) for options in ({}, {"corrupt": "blur", "severity": 0.6}))
    reach = range(-2, 3)  # 4 · 0.6 = 2.4 pixels, rounded

    for image, corrupted in zip(clean.parts[2].x.flatten(0, 1), blurred.parts[2].x.flatten(0, 1), strict=True):
        for r in range(3):
            for c in range(4):
                total = weights = 0.0
                for i in reach:
                    for j in reach:
                        weight = math.exp(-(i * i + j * j) / (2 * 0.6**2))
                        total += weight * image[min(max(r + i, 0), 2), min(max(c + j, 0), 3)].item()
                        weights += weight
                assert corrupted[r, c].item() == pytest.approx(total / weights, rel=1e-12)


@pytest.mark.parametrize("kind", ["noise", "blur", "contrast"])
def test_only_test_inputs_are_corrupted(kind: str):
    options = {"train": 100, "val": 50, "test": 60, "batch_size": 10, "standardize": True}
    clean, corrupted = (Digits(**options, **more) for more in ({}, {"corrupt": kind, "severity": 0.5}))

    for index in (0, 1):
        assert torch.equal(clean.parts[index].x, corrupted.parts[index].x)
    assert not torch.equal(clean.parts[2].x, corrupted.parts[2].x)
    for one, other in zip(clean.parts, corrupted.parts, strict=True):
        assert torch.equal(one.y, other.y)


def test_inputs_are_corrupted_before_they_are_standardized():
    options = {"train": 100, "val": 30, "test": 40, "batch_size": 10, "seed": 1}
    data = in_float64(Wine(**options, standardize=True, corrupt="noise", severity=0.2))
    rows = split_rows(178, (100, 30, 40), 1)
    raw = data.table().x.double()
    mean, std = raw[rows[0]].mean(0), raw[rows[0]].std(0, correction=0)

    expected = (raw[rows[2]] + 0.2 * std * normal((40, 13), 1) - mean) / std
    torch.testing.assert_close(data.parts[2].x, expected)


def test_members_of_a_population_have_the_corruption_of_their_own_seed():
    data = Rows(corrupt="noise", severity=1.0).for_members([1, 2])

    for k, seed in enumerate((1, 2)):
        alone = Rows(corrupt="noise", severity=1.0, seed=seed)
        assert torch.equal(data.split(2).x[k], alone.split(2).x[0])


@pytest.mark.parametrize("kind", ["blur", "contrast"])
def test_corruptions_of_images_are_rejected_for_rows(kind: str):
    message = f"data.corrupt must be null or noise, as the inputs are no images, got {kind}"
    with pytest.raises(ConfigError, match=message):
        _ = Rows(corrupt=kind, severity=0.5).parts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corrupt": "nois", "severity": 1.0}, "data.corrupt must be null, noise, blur or contrast, got nois"),
        ({"corrupt": "noise"}, "data.severity must be a number > 0 for data.corrupt=noise, got null"),
        (
            {"corrupt": "contrast", "severity": 1.5},
            "data.severity must be a number > 0, at most 1, for data.corrupt=contrast, got 1.5",
        ),
        (
            {"corrupt": "blur", "severity": 0.0},
            "data.severity must be a number > 0 for data.corrupt=blur, got 0.0",
        ),
        ({"severity": 0.5}, "data.severity must be null without data.corrupt, got 0.5"),
        (
            {"corrupt": "noise", "severity": 0.5, "test": 0},
            "data.test must be at least 1 sample for data.corrupt, which acts on the test split, got 0",
        ),
    ],
)
def test_impossible_options_are_rejected(options: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        Rows(**options)
    assert str(caught.value) == message


def test_notice_names_the_corruption():
    assert Rows(corrupt="noise", severity=0.5).notices == [
        "data.corrupt=noise: the test split is corrupted with severity 0.5"
    ]
    assert Rows().notices == []
