import gzip
import json
import socket
from email.message import Message
from http.client import HTTPException
from urllib.error import HTTPError, URLError

import pytest
from sklearn.datasets import _openml as theirs

from normlab.data import openml as module
from normlab.errors import ConfigError

API = "api/v1/json/data"
NOT_FOUND = HTTPError("https://www.openml.org", 412, "Precondition Failed", Message(), None)
pytestmark = pytest.mark.usefixtures("offline")


def test_unknown_name_raises(cache, mock_error):
    urls = mock_error(NOT_FOUND)

    unknown = "OpenML has no dataset of this name with data.version"
    assert cache.error_message("foo") == f"data.name=foo: {unknown}=1; look it up on www.openml.org"
    assert cache.error_message("foo", version="active").startswith(f"data.name=foo: {unknown}=active; ")
    assert len(urls) == 3, "HTTP error 412 is not retried"


def test_empty_version_list_raises(cache):
    cache.put(f"{API}/list/data_name/foo/limit/2/data_version/1", json.dumps({"data": {"dataset": []}}))

    assert cache.error_message("foo").startswith("data.name=foo: OpenML has no dataset of this name")


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
def test_network_error_names_cache_folder(cache, mock_error, error, reason, times):
    urls = mock_error(error)

    assert cache.error_message("foo") == (
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

    assert "OpenML cannot be reached (TimeoutError)" in cache.error_message("foo")
    assert set(timeouts) == {module.TIMEOUT_SECONDS}
    assert socket.getdefaulttimeout() is None


def test_invalid_data_home_raises(cache, images, tmp_path):
    (tmp_path / "file").write_text("")

    assert cache.error_message(data_home=str(tmp_path / "file" / "x")) == (
        f"data.data_home={tmp_path / 'file' / 'x'}: Not a directory"
    )


def test_corrupt_file_is_fetched_again(cache, images, monkeypatch):
    cache.put("data/images.arff", "@data\n1,2\n")
    assert "OpenML cannot be reached (no network in a test)" in cache.error_message()

    def corrupt(request):
        cache.put("data/images.arff", "@data\n1,2\n")
        return gzip.open(cache.home / "openml" / "openml.org" / "data" / "images.arff.gz")

    monkeypatch.setattr(gzip.GzipFile, "info", lambda self: {}, raising=False)
    monkeypatch.setattr(theirs, "urlopen", corrupt)
    assert cache.error_message().startswith(
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

    assert cache.error_message("odd", **options).startswith(line)


def test_remedy_suggests_corrected_copy(cache):
    cache.add("odd", [[1, "?", 3], [1, 2, 3]], NUMERIC_COLUMNS)

    copy = "remove the row in a copy read with data=csv, or use data.missing=drop or mean"
    assert cache.error_message("odd").endswith(copy)


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

    assert cache.error_message("odd") == line


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
        cache.make(**options)

    assert str(caught.value).startswith(line)
