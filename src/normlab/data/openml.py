"""Any dense table or image set of OpenML, by its name."""

import re
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from http.client import HTTPException
from math import isfinite, prod
from os.path import join
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import torch

from normlab.data.datamodule import Transform
from normlab.data.parsing import Source, listing
from normlab.data.table import Table
from normlab.data.tabular import Choices, FrameData, Reading, table_of
from normlab.errors import ConfigError, first_line, require

if TYPE_CHECKING:
    import pandas as pd

SECONDS = 10.0
"""How long OpenML may be silent before it counts as not reached."""

# scikit-learn asks pandas for categories; its version 1.9 then fails on those that pandas 3.1 reads as numbers, as
# MNIST's classes are, and deletes the file (scikit-learn's pull request 34902). So they are made here.
READING = {"dtype": None, "low_memory": False}


@dataclass(kw_only=True, eq=False)
class OpenML(FrameData):
    """A dataset of openml.org, fetched the first time and then read from scikit-learn's folder without network.

    Args:
        name: as on openml.org, such as mnist_784.
        version: a number, or ``active`` for the first one that OpenML has not withdrawn.
        target_column: null for the target that the dataset names itself.
        image_shape: channels, height and width that a row is the pixels of; null for a table.
        divide_by: all inputs are divided by it.
        data_home: the folder to fetch into; null for scikit-learn's own.

    Shapes:
        x: ``(rows, columns)`` or ``(rows, *image_shape)``; y: ``(rows, 1)``, or ``(rows,)`` for classes.
    """

    name: str
    version: int | str = "active"
    image_shape: list[int] | None = None
    divide_by: float = 1.0
    data_home: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # Lightning's class has a name of its own, None, so that this one may be left out.
        named = self.name is not None and re.fullmatch(r"[^\s/\\?#%]+", self.name) is not None
        require(named, "data.name", "a name as on openml.org, such as mnist_784", self.name or "nothing")
        is_number = isinstance(self.version, int) and not isinstance(self.version, bool) and self.version >= 1
        require(is_number or self.version == "active", "data.version", "active or 1 or more", self.version)
        sizes = self.image_shape
        listed = sizes if isinstance(sizes, Sequence) else []
        shaped = sizes is None or [isinstance(size, int) and size >= 1 for size in listed] == 3 * [True]
        require(shaped, "data.image_shape", "null or channels, height and width, as [1, 28, 28]", sizes)
        divides = isfinite(self.divide_by) and self.divide_by > 0
        require(divides, "data.divide_by", "a finite number > 0", self.divide_by)

    def reading(self) -> Reading:
        """Fetch or read the whole table, once in a process."""
        from sklearn.datasets import get_data_home

        try:
            folder = get_data_home(self.data_home)
        except OSError as error:
            raise ConfigError(f"data.data_home={error.filename}: {error.strerror}") from error
        return read_openml(self.name, self.version, self.choices, folder)

    def table(self) -> Table:
        """Return the whole table as it was read.

        Raises:
            ConfigError: if the images have another number of pixels than there are inputs, or some are words.
        """
        table = super().table()
        if self.image_shape is not None:
            shape, columns = list(self.image_shape), table.x.shape[1]
            numbers = not any(self.reading().words)
            require(numbers, "data.image_shape", f"null as columns of {self.name} are words", shape)
            fits = prod(shape) == columns
            require(fits, "data.image_shape", f"null or of {columns} pixels for {self.name}", shape)
        return table

    def encoder(self, train: Table) -> Transform:
        """Divide the numbers, encode the words, and give images their shape."""
        encode, shape = super().encoder(self.divided(train)), self.image_shape

        def shaped(part: Table) -> Table:
            encoded = encode(self.divided(part))
            return replace(encoded, x=encoded.x.reshape(len(part), *shape)) if shape else encoded

        return shaped

    def divided(self, part: Table) -> Table:
        """Return samples with all inputs that are numbers divided by ``divide_by``."""
        if self.divide_by == 1:
            return part
        divisor = [1.0 if words else self.divide_by for words in self.reading().words]
        return replace(part, x=part.x / torch.tensor(divisor, dtype=torch.float64))


@lru_cache(maxsize=2)
def read_openml(name: str, version: int | str, choices: Choices, folder: str) -> Reading:
    """Return the table of a dataset, and what OpenML says about it.

    Raises:
        ConfigError: if it cannot be fetched, or its table cannot be used.
    """
    target_column = choices.target_column
    try:
        found, notices = fetch(name, version, target_column, folder)
    except KeyError:
        # There is no such column; which there are is known without it, and the nearest is named below.
        found, notices = fetch(name, version, None, folder)
    targets = found.target_names if target_column is None else [target_column]
    require(len(targets) <= 1, "data.target_column", f"one of {listing(targets)} for {name}", "null")
    # What is wrong with a dataset of somebody else's can be put right in a copy alone.
    source = Source(name, lambda row: f"{name}, data row {row + 1}", ", in a copy to be read by data=csv")
    reading = table_of(found.frame, replace(choices, target_column=targets[0] if targets else None), source)
    return replace(reading, notices=(*notices, *reading.notices))


def fetch(name: str, version: int | str, target_column: str | None, folder: str) -> tuple[Any, list[str]]:
    """Return a dataset as scikit-learn reads it, and its warnings.

    Raises:
        ConfigError: if there is no such dataset, OpenML cannot be reached, or what comes cannot be read.
        KeyError: if there is no such column.
    """
    from sklearn.datasets import fetch_openml
    from sklearn.datasets._openml import _get_data_features

    target = "default-target" if target_column is None else target_column
    with explained(name, version, folder), patience(SECONDS), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = fetch_openml(
            name,
            version=version,
            data_home=folder,
            target_column=target,
            as_frame=True,
            n_retries=1,
            delay=0.5,
            read_csv_kwargs=dict(READING),
        )
        features = _get_data_features(found.details["id"], join(folder, "openml"))
    found.frame = without_arff_quotes(
        found.frame, {feature["name"] for feature in features if feature["data_type"] == "nominal"}
    )
    texts = [str(warning.message) for warning in said if issubclass(warning.category, UserWarning)]
    lines = [text.splitlines()[0].removesuffix(" Available versions:") for text in texts]
    return found, [f"data: OpenML: {line}" for line in lines if not line.endswith("Retrying...")]


def without_arff_quotes(frame: "pd.DataFrame", nominal: set[str]) -> "pd.DataFrame":
    """Return a frame without ARFF's single quotes around words, and with its nominal columns as categories."""
    import pandas as pd

    words = [str(name) for name, column in frame.items() if pd.api.types.is_string_dtype(column)]
    plain = {name: frame[name].str.replace(r"^'(.*)'$", r"\1", regex=True) for name in words}
    return frame.assign(**plain).astype(dict.fromkeys(nominal & set(frame.columns), "category"))


@contextmanager
def explained(name: str, version: int | str, folder: str) -> Iterator[None]:
    """Turn what fetching may raise into one line."""
    from sklearn.datasets._openml import OpenMLError

    try:
        yield
    except (OpenMLError, IndexError) as error:
        raise ConfigError(
            f"data.name={name}: OpenML has no dataset of this name with data.version={version}; "
            "look it up on www.openml.org"
        ) from error
    except ValueError as error:
        reason = "sparse tables are not supported" if "Sparse ARFF" in str(error) else first_line(error)
        raise ConfigError(f"data.name={name}: {reason}") from error
    except (OSError, HTTPException) as error:
        if isinstance(error, OSError) and error.filename and not isinstance(error, URLError):
            raise ConfigError(f"data.data_home={folder}: {first_line(error)}") from error
        reason = first_line(error).removeprefix("<urlopen error ").removesuffix(">")
        raise ConfigError(
            f"data.name={name}: OpenML cannot be reached ({reason}); what was fetched once is read from {folder} "
            "without network"
        ) from error


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Let a connection that stays silent for so long fail; without this it is waited for without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
