import pytest
import torch
from sklearn import datasets
from torch.testing import assert_close

from normlab.data import BreastCancer, Diabetes, Digits, InMemoryData, Wine

SIZES = {
    Digits: (1080, 360, 357, 60),
    BreastCancer: (341, 114, 114, 32),
    Diabetes: (266, 88, 88, 32),
    Wine: (106, 36, 36, 16),
}


def make_data(cls: type[InMemoryData], **options) -> InMemoryData:
    train, val, test, batch_size = SIZES[cls]
    return cls(train=train, val=val, test=test, batch_size=batch_size, seed=42, **options)


@pytest.mark.parametrize(
    ("cls", "shape", "classes", "first_of_class"),
    [(Digits, (1, 8, 8), 10, 178), (BreastCancer, (30,), 2, 212), (Wine, (13,), 3, 59)],
)
def test_classification_tables_have_documented_shapes(cls, shape, classes, first_of_class):
    table = make_data(cls).table()

    assert table.input_shape == shape
    assert table.classes == table.out_features == classes
    assert table.y.dtype == torch.long
    assert table.x.dtype == torch.float32
    assert (table.y == 0).sum() == first_of_class


def test_digit_pixels_are_scaled_to_unit_interval():
    table, images = make_data(Digits).table(), datasets.load_digits()

    assert len(table) == 1797
    assert_close(table.x[:, 0].double() * 16, torch.tensor(images.images), rtol=0, atol=0)
    assert table.x.min() == 0
    assert table.x.max() == 1
    assert table.y.tolist() == images.target.tolist()


@pytest.mark.parametrize(
    ("cls", "load"), [(BreastCancer, datasets.load_breast_cancer), (Wine, datasets.load_wine)]
)
def test_tables_equal_scikit_learn(cls, load):
    table, expected = make_data(cls).table(), load()

    assert torch.equal(table.x, torch.tensor(expected.data, dtype=torch.float32))
    assert table.y.tolist() == expected.target.tolist()
    assert table.classes == len(expected.target_names)


def test_diabetes_is_unscaled_regression():
    table = make_data(Diabetes).table()
    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)

    assert torch.equal(table.x, torch.tensor(x, dtype=torch.float32))
    assert table.x[:, 0].min() == 19, "an age in years"
    assert table.y.shape == (442, 1)
    assert table.y.flatten().tolist() == y.tolist()
    assert not table.is_classification


@pytest.mark.parametrize("cls", SIZES)
def test_splits_partition_samples_without_warnings(cls):
    data = make_data(cls)
    parts, table = data.parts, data.table()

    def rows(x: torch.Tensor) -> list[tuple]:
        return sorted(map(tuple, x.flatten(1).tolist()))

    assert tuple(map(len, parts)) == SIZES[cls][:3]
    assert rows(torch.cat([part.x for part in parts])) == rows(table.x)
    assert data.notices == []


@pytest.mark.parametrize("cls", SIZES)
def test_training_split_is_standardized(cls):
    train = make_data(cls, standardize=True).parts[0]

    raw = make_data(cls).parts[0].x
    centered = (raw != raw.median(0).values).double().mean(0) < 0.01
    assert_close(train.x.mean(0), torch.zeros(train.input_shape), rtol=0, atol=1e-4)
    assert_close(train.x.std(0, correction=0)[~centered], torch.ones(int((~centered).sum())), rtol=1e-4, atol=0)
    assert centered.any() == (cls is Digits), "pixels in the corners are white in nearly all images"
    assert bool((train.x.std(0, correction=0)[centered] < 0.1).all())
