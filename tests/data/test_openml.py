from pathlib import Path

import pytest
import sklearn.datasets
import torch

from normlab.data import openml as module
from normlab.data.sampling import split_rows

pytestmark = pytest.mark.usefixtures("offline")


def test_image_shape_reshapes_rows(cache, images):
    data = cache.make(image_shape=[3, 2, 2], divide_by=255)
    part, rows = data.parts[0], split_rows(40, (20, 10, 10), 0)[0]

    assert part.input_shape == (3, 2, 2)
    pixels = torch.tensor([row[:-1] for row in images]).float().view(40, 3, 2, 2)
    assert torch.equal(part.x, pixels[rows] / 255)
    assert part.y.tolist() == torch.tensor([row[-1] for row in images])[rows].tolist()
    assert part.classes == 10


def test_table_without_image_shape_is_unchanged(cache, images):
    table = cache.make().table()

    assert torch.equal(table.x, torch.tensor([row[:-1] for row in images]).float())


def test_split_sizes_and_notices(cache, images):
    data = cache.make(train=10)

    assert list(map(len, data.parts)) == [10, 10, 10]
    assert data.notices == [
        "data: target class taken as 10 classes (0, 1, 2, 3, 4, …, 9); "
        "data.task=regression would take it as a regression target",
        "data: 30 of the 40 rows are used; data.train=24 data.val=8 data.test=8 would use all",
    ]


def test_nominal_columns_are_categorical(cache):
    rows = [[f"'{number}'", number] for number in range(30, 0, -1)]
    cache.add("odd", rows, {"quoted": "nominal", "y": "nominal"})

    nominal = cache.make("odd", train=30, val=0, test=0)
    assert nominal.table().y.tolist() == list(range(29, -1, -1))
    assert nominal.parts[0].x.shape == (30, 30)
    assert nominal.parts[0].names[:2] == ("quoted=1", "quoted=2")
    cache.add("even", rows, {"quoted": "nominal", "y": "numeric"})
    assert not cache.make("even").table().is_classification


def test_text_is_encoded_and_missing_values_imputed(cache):
    rows = [[number, "uvw"[number % 3], "?" if number == 5 else 2 * number, number / 4] for number in range(10)]
    cache.add("mixed", rows, {"id": "numeric", "kind": "nominal", "b": "numeric", "y": "numeric"})
    data = cache.make("mixed", train=6, val=2, test=2, batch_size=2, divide_by=2, missing="mean", drop=["id"])

    assert data.parts[0].names == ("kind=u", "kind=v", "kind=w", "b")
    for part in data.parts:
        for (*kind, b), target in zip(part.x.tolist(), part.y.flatten().tolist(), strict=True):
            number = int(4 * target)
            assert kind == [float(number % 3 == index) for index in range(3)], "categories are divided"
            assert number in (b, 5)
    assert data.notices[1:] == [
        "data: 1 column one-hot encoded (kind: 3 classes), 1 missing value imputed with the training mean (b)"
    ]


def test_image_shape_of_categorical_columns_raises(cache):
    cache.add("odd", [["u", 1], ["v", 2]], {"kind": "nominal", "y": "numeric"})

    line = "data.image_shape must be null, as odd has categorical columns, got [1, 1, 1]"
    assert cache.error_message("odd", image_shape=[1, 1, 1]) == line


def test_empty_split_has_image_shape(cache, images):
    data = cache.make(image_shape=[3, 2, 2], test=0)

    assert [tuple(part.x.shape) for part in data.parts] == [(20, 3, 2, 2), (10, 3, 2, 2), (0, 3, 2, 2)]


def test_quoted_text_with_comma_is_one_value(cache, images):
    cache.add("odd", [["'u, v'", 1], ["'w, x'", 2]], {"y": "nominal", "a": "numeric"})

    assert cache.make("odd", train=1, val=1, test=0, batch_size=1).notices == [
        "data: target y taken as 2 classes (u, v, w, x)"
    ]
    assert module.READ_CSV_OPTIONS == {"dtype": None, "low_memory": False}


def test_target_column_option_selects_target(cache, images):
    table = cache.make(target_column="pixel1", task="regression").table()

    assert table.y.flatten().tolist() == [row[0] for row in images]
    assert table.x[:, -1].tolist() == [row[-1] for row in images]


def test_active_version_is_found_in_any_case(cache, images):
    assert len(cache.make(name="Images", version="active").table()) == 40


def test_openml_warning_becomes_notice(cache):
    cache.add("odd", [[1, "u"], [2, "v"]], {"a": "numeric", "y": "nominal"}, also={"warning": "counted twice"})

    assert cache.make("odd", train=1, val=1, test=0, batch_size=1).notices == [
        "data: OpenML: OpenML raised a warning on the dataset. It might be unusable. Warning: counted twice",
        "data: target y taken as 2 classes (u, v)",
    ]


def test_dataset_is_parsed_once(cache, images, monkeypatch):
    fetched: list[dict] = []
    fetch_openml = sklearn.datasets.fetch_openml
    monkeypatch.setattr(
        sklearn.datasets,
        "fetch_openml",
        lambda *args, **options: fetched.append(options["read_csv_kwargs"]) or fetch_openml(*args, **options),
    )

    for divide_by in (1, 255):
        data = cache.make(divide_by=divide_by)
        assert len(data.parts) == 3
        assert data.notices
    assert fetched == [{"nrows": 0}, module.READ_CSV_OPTIONS], "the columns without rows, then the rows"


def test_default_folder_is_that_of_scikit_learn(cache, images, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(cache.home))

    assert len(cache.make(data_home=None).table()) == 40


def test_run_trains_from_cache_without_network(run_train, cache, images):
    sizes = ["data.train=20", "data.val=10", "data.test=10", "data.batch_size=10", "trainer.max_epochs=1"]
    dataset = ["data=openml", f"data.data_home={cache.home}", "data.name=images", "data.image_shape=[3,2,2]"]
    outcome = run_train(*dataset, *sizes)

    assert outcome.code == 0, outcome.err
    assert "data: target class taken as 10 classes" in outcome.out + outcome.err
    assert list(Path().rglob("result.json"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    {
        "": "data.name=mnist_784: OpenML cannot be reached (no network in a test); datasets fetched",
        "data.name=images": "data.image_shape must be null or of 12 pixels for images, got [1, 28, 28]",
        "data.name=7": "data.name must be a string, got 7",
        "data.name=null": "data.name must be a name as on openml.org, such as mnist_784, got nothing",
        "data.divide_by=all": "data.divide_by must be a number, got 'all'",
        "data.name=images data.image_shape=null": "must be at most 40 samples, got 10000 + 2000 + 2000",
        "data.name=images data.train=20 data.val=10 data.test=10 data.batch_size=9 data.image_shape=null "
        "data.standardize_target=true": "data.standardize_target must be false for classes, got true",
    }.items(),
)
def test_error_is_one_line_and_writes_no_files(
    run_train, cache, images, tmp_path, monkeypatch, overrides, message
):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    outcome = run_train("data=openml", f"data.data_home={cache.home}", *overrides.split())

    (line,) = outcome.err.strip().splitlines()
    assert outcome.code == 1
    assert message in line
    assert not list(Path().iterdir())
