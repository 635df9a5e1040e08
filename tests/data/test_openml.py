import gzip
import hashlib
import json
import socket
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import sklearn.datasets
import torch
from sklearn.datasets import _openml as theirs

from normlab.data import OpenML
from normlab.data import openml as module
from normlab.data.sampling import split_rows
from normlab.errors import ConfigError

API = "api/v1/json/data"
NOT_FOUND = HTTPError("https://www.openml.org", 412, "Precondition Failed", Message(), None)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every network request fail without delay, and clear the cache of parsed datasets."""
    mock_error(monkeypatch, URLError("no network in a test"))
    monkeypatch.setattr(theirs.time, "sleep", lambda seconds: None)
    module.read_openml.cache_clear()


def mock_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    """Make requests to OpenML raise an error; return the list that records their URLs."""
    urls = []

    def raise_error(request):
        urls.append(request.full_url)
        raise error

    monkeypatch.setattr(theirs, "urlopen", raise_error)
    return urls


class FakeCache:
    """Writer of scikit-learn's data folder with datasets in the state after a download."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def put(self, path: str, content: str) -> None:
        file = self.home / "openml" / "openml.org" / f"{path}.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(content.encode()))

    def add(
        self,
        name: str,
        rows: list[list],
        types: dict[str, str],
        targets: tuple[str, ...] = ("y",),
        also: dict[str, str] | None = None,
    ) -> None:
        """Write the cached answers of OpenML for a dataset: versions, description, features and rows."""
        info = {"did": 7, "name": name, "version": 1, "status": "active"}
        versions = json.dumps({"data": {"dataset": [info]}})
        self.put(f"{API}/list/data_name/{name}/limit/2/data_version/1", versions)
        self.put(f"{API}/list/data_name/{name}/limit/2/status/active/", versions)
        arff = "\n".join(["@relation r", "@data", *(",".join(map(str, row)) for row in rows)]) + "\n"
        self.put(f"data/{name}.arff", arff)
        description = {
            "id": "7",
            "name": name,
            "version": "1",
            "status": "active",
            "format": "ARFF",
            "description": "",
            "url": f"https://www.openml.org/data/{name}.arff",
            "md5_checksum": hashlib.md5(arff.encode()).hexdigest(),
        }
        self.put(f"{API}/7", json.dumps({"data_set_description": description | (also or {})}))
        features = [
            {
                "index": str(index),
                "name": column,
                "data_type": kind,
                "is_target": str(column in targets).lower(),
                "is_ignore": "false",
                "is_row_identifier": "false",
                "number_of_missing_values": "0",
            }
            for index, (column, kind) in enumerate(types.items())
        ]
        self.put(f"{API}/features/7", json.dumps({"data_features": {"feature": features}}))
        self.put(f"{API}/qualities/7", json.dumps({"data_qualities": {}}))


@pytest.fixture
def cache(tmp_path: Path) -> FakeCache:
    return FakeCache(tmp_path / "home")


IMAGE_COLUMNS = {f"pixel{number}": "numeric" for number in range(1, 13)} | {"class": "nominal"}


@pytest.fixture
def images(cache: FakeCache) -> list[list[int]]:
    """Add 40 images of 3 × 2 × 2 pixels in ten classes to the cache; return the rows."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 12)).tolist()
    rows = [[*row, number % 10] for number, row in enumerate(pixels)]
    cache.add("images", rows, IMAGE_COLUMNS, targets=("class",))
    return rows


def make_openml(cache: FakeCache, name: str = "images", **options) -> OpenML:
    sizes = {"train": 20, "val": 10, "test": 10, "batch_size": 10, "seed": 0}
    return OpenML(**(sizes | {"name": name, "version": 1, "data_home": str(cache.home)} | options))


def error_message(data: OpenML) -> str:
    """Return the one-line error that making the splits raises."""
    with pytest.raises(ConfigError) as caught:
        _ = data.parts
    (line,) = str(caught.value).splitlines()
    return line


def test_image_shape_reshapes_rows(cache, images):
    data = make_openml(cache, image_shape=[3, 2, 2], divide_by=255)
    part, rows = data.parts[0], split_rows(40, (20, 10, 10), 0)[0]

    assert part.input_shape == (3, 2, 2)
    pixels = torch.tensor([row[:-1] for row in images]).float().view(40, 3, 2, 2)
    assert torch.equal(part.x, pixels[rows] / 255)
    assert part.y.tolist() == torch.tensor([row[-1] for row in images])[rows].tolist()
    assert part.classes == 10


def test_table_without_image_shape_is_unchanged(cache, images):
    table = make_openml(cache).table()

    assert torch.equal(table.x, torch.tensor([row[:-1] for row in images]).float())


def test_split_sizes_and_notices(cache, images):
    data = make_openml(cache, train=10)

    assert list(map(len, data.parts)) == [10, 10, 10]
    assert data.notices == [
        "data: target class taken as 10 classes (0, 1, 2, 3, 4, …, 9); "
        "data.task=regression would take it as a regression target",
        "data: 30 of the 40 rows are used; data.train=24 data.val=8 data.test=8 would use all",
    ]


def test_nominal_columns_are_categorical(cache):
    rows = [[f"'{number}'", number] for number in range(30, 0, -1)]
    cache.add("odd", rows, {"quoted": "nominal", "y": "nominal"})

    nominal = make_openml(cache, "odd", train=30, val=0, test=0)
    assert nominal.table().y.tolist() == list(range(29, -1, -1))
    assert nominal.parts[0].x.shape == (30, 30)
    assert nominal.parts[0].names[:2] == ("quoted=1", "quoted=2")
    cache.add("even", rows, {"quoted": "nominal", "y": "numeric"})
    assert not make_openml(cache, "even").table().is_classification


def test_text_is_encoded_and_missing_values_imputed(cache):
    rows = [[number, "uvw"[number % 3], "?" if number == 5 else 2 * number, number / 4] for number in range(10)]
    cache.add("mixed", rows, {"id": "numeric", "kind": "nominal", "b": "numeric", "y": "numeric"})
    data = make_openml(
        cache, "mixed", train=6, val=2, test=2, batch_size=2, divide_by=2, missing="mean", drop=["id"]
    )

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
    assert error_message(make_openml(cache, "odd", image_shape=[1, 1, 1])) == line


def test_empty_split_has_image_shape(cache, images):
    data = make_openml(cache, image_shape=[3, 2, 2], test=0)

    assert [tuple(part.x.shape) for part in data.parts] == [(20, 3, 2, 2), (10, 3, 2, 2), (0, 3, 2, 2)]


def test_quoted_text_with_comma_is_one_value(cache, images):
    cache.add("odd", [["'u, v'", 1], ["'w, x'", 2]], {"y": "nominal", "a": "numeric"})

    assert make_openml(cache, "odd", train=1, val=1, test=0, batch_size=1).notices == [
        "data: target y taken as 2 classes (u, v, w, x)"
    ]
    assert module.READ_CSV_OPTIONS == {"dtype": None, "low_memory": False}


def test_target_column_option_selects_target(cache, images):
    table = make_openml(cache, target_column="pixel1", task="regression").table()

    assert table.y.flatten().tolist() == [row[0] for row in images]
    assert table.x[:, -1].tolist() == [row[-1] for row in images]


def test_active_version_is_found_in_any_case(cache, images):
    assert len(make_openml(cache, name="Images", version="active").table()) == 40


def test_openml_warning_becomes_notice(cache):
    cache.add("odd", [[1, "u"], [2, "v"]], {"a": "numeric", "y": "nominal"}, also={"warning": "counted twice"})

    assert make_openml(cache, "odd", train=1, val=1, test=0, batch_size=1).notices == [
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
        data = make_openml(cache, divide_by=divide_by)
        assert len(data.parts) == 3
        assert data.notices
    assert fetched == [{"nrows": 0}, module.READ_CSV_OPTIONS], "the columns without rows, then the rows"


def test_default_folder_is_that_of_scikit_learn(cache, images, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(cache.home))

    assert len(make_openml(cache, data_home=None).table()) == 40


def test_unknown_name_raises(cache, monkeypatch):
    urls = mock_error(monkeypatch, NOT_FOUND)

    unknown = "OpenML has no dataset of this name with data.version"
    assert error_message(make_openml(cache, "foo")) == f"data.name=foo: {unknown}=1; look it up on www.openml.org"
    assert error_message(make_openml(cache, "foo", version="active")).startswith(
        f"data.name=foo: {unknown}=active; "
    )
    assert len(urls) == 3, "HTTP error 412 is not retried"


def test_empty_version_list_raises(cache):
    cache.put(f"{API}/list/data_name/foo/limit/2/data_version/1", json.dumps({"data": {"dataset": []}}))

    assert error_message(make_openml(cache, "foo")).startswith("data.name=foo: OpenML has no dataset of this name")


@pytest.mark.parametrize(
    ("error", "reason", "times"),
    [
        (URLError(OSError(-2, "Name or service not known")), "[Errno -2] Name or service not known", 2),
        (TimeoutError("The read operation timed out"), "The read operation timed out", 4),
        (HTTPError("https://www.openml.org", 503, "Busy", Message(), None), "HTTP Error 503: Busy", 2),
        (ConnectionResetError(104, "Connection reset by peer"), "[Errno 104] Connection reset by peer", 2),
        (HTTPException("cut off"), "cut off", 2),
    ],
)
def test_network_error_names_cache_folder(cache, monkeypatch, error, reason, times):
    urls = mock_error(monkeypatch, error)

    assert error_message(make_openml(cache, "foo")) == (
        f"data.name=foo: OpenML cannot be reached ({reason}); "
        f"datasets fetched before are read from {cache.home} without network"
    )
    assert len(urls) == times


def test_requests_have_timeout(cache, monkeypatch):
    timeouts = []

    def silent(request):
        timeouts.append(socket.getdefaulttimeout())
        raise TimeoutError

    monkeypatch.setattr(theirs, "urlopen", silent)

    assert "OpenML cannot be reached (TimeoutError)" in error_message(make_openml(cache, "foo"))
    assert set(timeouts) == {module.TIMEOUT_SECONDS}
    assert socket.getdefaulttimeout() is None


def test_invalid_data_home_raises(cache, images, tmp_path):
    (tmp_path / "file").write_text("")

    assert error_message(make_openml(cache, data_home=str(tmp_path / "file" / "x"))) == (
        f"data.data_home={tmp_path / 'file' / 'x'}: Not a directory"
    )


def test_corrupt_file_is_fetched_again(cache, images, monkeypatch):
    cache.put("data/images.arff", "@data\n1,2\n")
    assert "OpenML cannot be reached (no network in a test)" in error_message(make_openml(cache))

    def corrupt(request):
        cache.put("data/images.arff", "@data\n1,2\n")
        return gzip.open(cache.home / "openml" / "openml.org" / "data" / "images.arff.gz")

    monkeypatch.setattr(gzip.GzipFile, "info", lambda self: {}, raising=False)
    monkeypatch.setattr(theirs, "urlopen", corrupt)
    assert error_message(make_openml(cache)).startswith(
        "data.name=images: The md5 checksum of the file downloaded from https://"
    )


NUMERIC_COLUMNS = {"a": "numeric", "b": "numeric", "y": "numeric"}


@pytest.mark.parametrize(
    ("rows", "options", "line"),
    [
        (
            [[1, 2, 3], [4, "?", 5]],
            {},
            "odd, data row 2, column b: a value is missing; fill it in or remove the row",
        ),
        (
            [[1, 2, 3], [4, "x", 5]],
            {},
            "odd, data row 2, column b: x is not a number; correct it in a copy read with data=csv, or leave",
        ),
        ([[1, 2]], {}, "data.name=odd: The number of columns provided by OpenML does not match"),
        (
            [[1, 2, 3]] * 2,
            {"target_column": "yy"},
            "data.target_column=yy: odd has no such column; did you mean y?",
        ),
        (
            [[1, 2, 3], [1, 2, 4]],
            {"image_shape": [1, 28, 28], "train": 2, "val": 0, "test": 0, "batch_size": 1},
            "data.image_shape must be null or of 2 pixels for odd, got [1, 28, 28]",
        ),
    ],
)
def test_invalid_dataset_error_names_cause(cache, rows, options, line):
    cache.add("odd", rows, NUMERIC_COLUMNS)

    assert error_message(make_openml(cache, "odd", **options)).startswith(line)


def test_remedy_suggests_corrected_copy(cache):
    cache.add("odd", [[1, "?", 3], [1, 2, 3]], NUMERIC_COLUMNS)

    copy = "remove the row in a copy read with data=csv, or use data.missing=drop or mean"
    assert error_message(make_openml(cache, "odd")).endswith(copy)


@pytest.mark.parametrize(
    ("targets", "also", "line"),
    [
        ((), {}, "data.target_column must be a column of odd (a, b, y), got null"),
        (("b", "y"), {}, "data.target_column must be one of b, y for odd, got null"),
        (("y",), {"format": "Sparse_ARFF"}, "data.name=odd: sparse tables are not supported"),
    ],
)
def test_ambiguous_target_and_sparse_table_raise(cache, targets, also, line):
    cache.add("odd", [[1, 2, 3], [4, 5, 6]], NUMERIC_COLUMNS, targets, also)

    assert error_message(make_openml(cache, "odd")) == line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"name": None}, "data.name must be a name as on openml.org, such as mnist_784, got nothing"),
        ({"name": "../x"}, "data.name must be a name as on openml.org, such as mnist_784, got ../x"),
        ({"version": 0}, "data.version must be active or 1 or more, got 0"),
        ({"version": "first"}, "data.version must be active or 1 or more, got first"),
        ({"version": True}, "data.version must be active or 1 or more, got True"),
        ({"image_shape": [28, 28]}, "data.image_shape must be null or channels, height and width, as [1, 28, 28]"),
        ({"image_shape": [0, 28, 28]}, "data.image_shape must be null or channels, height and width"),
        ({"image_shape": ["a", 28, 28]}, "data.image_shape must be null or channels, height and width"),
        ({"image_shape": 784}, "data.image_shape must be null or channels, height and width"),
        ({"divide_by": 0.0}, "data.divide_by must be a finite number > 0, got 0.0"),
    ],
)
def test_invalid_options_raise(cache, options, line):
    with pytest.raises(ConfigError) as caught:
        make_openml(cache, **options)

    assert str(caught.value).startswith(line)


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
