"""OpenML without network: requests fail, and datasets are in the state after a download."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from sklearn.datasets import _openml as theirs

from normlab.data import OpenML
from normlab.data import openml as module
from normlab.errors import ConfigError

API = "api/v1/json/data"


@pytest.fixture
def mock_error(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], list[str]]:
    """Return a function that makes requests to OpenML raise an error, and returns the list of their URLs."""

    def mock(error: Exception) -> list[str]:
        urls = []

        def raise_error(request):
            urls.append(request.full_url)
            raise error

        monkeypatch.setattr(theirs, "urlopen", raise_error)
        return urls

    return mock


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, mock_error) -> None:
    """Make every network request fail without delay, and clear the cache of parsed datasets."""
    mock_error(URLError("no network in a test"))
    monkeypatch.setattr(theirs.time, "sleep", lambda seconds: None)
    module.read_openml.cache_clear()


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

    def make(self, name: str = "images", **options) -> OpenML:
        sizes = {"train": 20, "val": 10, "test": 10, "batch_size": 10, "seed": 0}
        return OpenML(**(sizes | {"name": name, "version": 1, "data_home": str(self.home)} | options))

    def error_message(self, name: str = "images", **options) -> str:
        """Return the one-line error that making the splits raises."""
        data = self.make(name, **options)
        with pytest.raises(ConfigError) as caught:
            _ = data.parts
        (line,) = str(caught.value).splitlines()
        return line


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
