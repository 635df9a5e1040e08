import numpy as np
import pytest
import torch

from normlab.data.table import Encoder, Table
from normlab.errors import ConfigError

NAN = torch.nan
CATEGORIES = ((), ("Bern", "Oslo", "Rome"))


def table(*rows: tuple[float, float]) -> Table:
    """Return a table with the columns a (numeric) and city (category index)."""
    x = torch.tensor(rows, dtype=torch.float64).view(-1, 2)
    return Table(x, torch.zeros(len(rows), 1), names=("a", "city"))


TRAIN = table((1, 0), (2, 2), (3, 2), (6, 2))


def test_categories_become_one_input_each():
    encoded = Encoder.fit(TRAIN, CATEGORIES, imputes=False)(TRAIN)

    assert encoded.x.tolist() == [[1, 1, 0], [2, 0, 1], [3, 0, 1], [6, 0, 1]]
    assert encoded.names == ("a", "city=Bern", "city=Rome")
    assert encoded.x.dtype == torch.float64


def test_unseen_category_is_all_zeros():
    encode = Encoder.fit(TRAIN, CATEGORIES, imputes=False)

    assert encode(table((5, 1), (5, 0))).x.tolist() == [[5, 0, 0], [5, 1, 0]]


def test_missing_values_become_training_means():
    train = table((1, 0), (NAN, 2), (3, NAN), (8, 2))
    encode = Encoder.fit(train, CATEGORIES, imputes=True)

    assert encode(train).x.tolist() == [[1, 1, 0], [4, 0, 1], [3, 1 / 3, 2 / 3], [8, 0, 1]]
    assert encode(table((NAN, NAN))).x.tolist() == [[4, 1 / 3, 2 / 3]]


def test_encoding_is_independent_of_other_samples():
    encode = Encoder.fit(TRAIN, CATEGORIES, imputes=True)
    first = encode(table((NAN, 2))).x
    encode(table((1e9, 1), (-1e9, 0)))

    assert torch.equal(encode(table((NAN, 2), (1e9, 1))).x[:1], first)


def test_empty_split_has_all_inputs():
    for imputes in (False, True):
        assert Encoder.fit(TRAIN, CATEGORIES, imputes)(table()).x.shape == (0, 3)


def test_numeric_table_is_unchanged():
    numbers = Table(torch.ones(2, 2), torch.zeros(2, 1), names=("a", "b"))

    assert Encoder.fit(numbers, ((), ()), imputes=False)(numbers) is numbers


@pytest.mark.parametrize(
    ("rows", "name"), [([(NAN, 0), (NAN, 1)], "a"), ([(1, NAN), (2, NAN)], "city")], ids=["numbers", "words"]
)
def test_column_without_training_values_raises(rows, name):
    with pytest.raises(ConfigError) as caught:
        Encoder.fit(table(*rows), CATEGORIES, imputes=True)

    assert str(caught.value) == (
        f"data: column {name} has no value among the 2 training samples; leave it out with data.drop=[{name}]"
    )


def test_encoding_equals_plain_reference():
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 3, 200).astype(float)
    codes[generator.random(200) < 0.2] = np.nan
    numbers = generator.normal(size=200)
    numbers[generator.random(200) < 0.2] = np.nan
    whole = table(*zip(numbers, codes, strict=True))
    train = whole.at(torch.arange(150))
    encoded = Encoder.fit(train, CATEGORIES, imputes=True)(whole).x

    known, cities = numbers[:150][~np.isnan(numbers[:150])], codes[:150][~np.isnan(codes[:150])]
    for row, (number, code) in enumerate(zip(numbers, codes, strict=True)):
        assert encoded[row, 0].item() == pytest.approx(known.mean() if np.isnan(number) else number)
        for city in range(3):
            expected = (cities == city).mean() if np.isnan(code) else float(code == city)
            assert encoded[row, 1 + city].item() == pytest.approx(expected)
