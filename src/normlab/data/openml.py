"""Loader of dense tables and image datasets from OpenML, by name.

The main entry is :class:`OpenML`.
"""

import re
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from http.client import HTTPException
from math import isfinite, prod
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import torch

from normlab.data.datamodule import Transform
from normlab.data.parsing import Source
from normlab.data.table import Table, format_list
from normlab.data.tabular import FrameData, ParsedTable, ParsingOptions, parse_table
from normlab.errors import ConfigError, first_line, require

if TYPE_CHECKING:
    import pandas as pd

TIMEOUT_SECONDS = 10.0
"""Socket timeout of requests to OpenML."""

READ_CSV_OPTIONS = {"dtype": None, "low_memory": False}
"""Options of pandas for the rows: by default scikit-learn has it read categories.

Version 1.9 then fails on categories that pandas 3.1 reads as numbers, such as MNIST's classes, and deletes the
file (scikit-learn pull request 34902).
"""


@dataclass(kw_only=True, eq=False)
class OpenML(FrameData):
    """A dataset of openml.org, downloaded once and then read from scikit-learn's data folder.

    Args:
        name: the name on openml.org, such as mnist_784.
        version: a number, or ``active`` for the oldest version that OpenML has not withdrawn.
        target_column: null for the default target of the dataset.
        image_shape: channels, height and width of the image in each row; null for a table.
        divide_by: divisor of all numeric inputs.
        data_home: the folder for downloads; null for scikit-learn's default.

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
        # LightningDataModule has a class attribute `name` = None, which becomes the default if name is not given.
        is_name = self.name is not None and re.fullmatch(r"[^\s/\\?#%]+", self.name) is not None
        require(is_name, "data.name", "a name as on openml.org, such as mnist_784", self.name or "nothing")
        is_version = isinstance(self.version, int) and not isinstance(self.version, bool) and self.version >= 1
        require(is_version or self.version == "active", "data.version", "active or 1 or more", self.version)
        shape = self.image_shape
        sizes = shape if isinstance(shape, Sequence) else []
        is_shape = shape is None or [isinstance(size, int) and size >= 1 for size in sizes] == 3 * [True]
        require(is_shape, "data.image_shape", "null or channels, height and width, as [1, 28, 28]", shape)
        is_divisor = isfinite(self.divide_by) and self.divide_by > 0
        require(is_divisor, "data.divide_by", "a finite number > 0", self.divide_by)

    def read(self) -> ParsedTable:
        """Download or load the whole table; the result is cached in the process."""
        from sklearn.datasets import get_data_home

        try:
            folder = get_data_home(self.data_home)
        except OSError as error:
            raise ConfigError(f"data.data_home={error.filename}: {error.strerror}") from error
        return read_openml(self.name, self.version, self.parsing_options, folder)

    def table(self) -> Table:
        """Return the whole table without preprocessing.

        Raises:
            ConfigError: if ``image_shape`` has another number of pixels than there are inputs, or is set for a
                table with categorical columns.
        """
        table = super().table()
        if self.image_shape is not None:
            shape, columns = list(self.image_shape), table.x.shape[1]
            is_numeric = not any(self.read().categories)
            require(is_numeric, "data.image_shape", f"null, as {self.name} has categorical columns", shape)
            fits = prod(shape) == columns
            require(fits, "data.image_shape", f"null or of {columns} pixels for {self.name}", shape)
        return table

    def encoder(self, train: Table) -> Transform:
        """Divide the numeric inputs, encode the categorical ones, and reshape images."""
        encode, shape = super().encoder(self.divide_inputs(train)), self.image_shape

        def transform(part: Table) -> Table:
            encoded = encode(self.divide_inputs(part))
            return replace(encoded, x=encoded.x.reshape(len(part), *shape)) if shape else encoded

        return transform

    def divide_inputs(self, part: Table) -> Table:
        """Divide the numeric inputs by ``divide_by``."""
        if self.divide_by == 1:
            return part
        divisor = [1.0 if labels else self.divide_by for labels in self.read().categories]
        return replace(part, x=part.x / torch.tensor(divisor, dtype=torch.float64))


@lru_cache(maxsize=2)
def read_openml(name: str, version: int | str, options: ParsingOptions, folder: str) -> ParsedTable:
    """Fetch and parse a dataset; its notices include the warnings of OpenML.

    Raises:
        ConfigError: if the dataset cannot be fetched or parsed.
    """
    target_column = options.target_column
    try:
        bunch, notices = fetch(name, version, target_column, folder)
    except KeyError:
        # The column does not exist; parse_table reports it and suggests the nearest name.
        bunch, notices = fetch(name, version, None, folder)
    targets = bunch.target_names if target_column is None else [target_column]
    require(len(targets) <= 1, "data.target_column", f"one of {format_list(targets)} for {name}", "null")
    # An OpenML dataset cannot be edited, so the remedy is to correct a copy.
    source = Source(name, lambda row: f"{name}, data row {row + 1}", " in a copy read with data=csv")
    parsed = parse_table(bunch.frame, replace(options, target_column=targets[0] if targets else None), source)
    return replace(parsed, notices=(*notices, *parsed.notices))


def fetch(name: str, version: int | str, target_column: str | None, folder: str) -> tuple[Any, list[str]]:
    """Return a dataset as a scikit-learn ``Bunch``, and the warnings raised while reading it.

    Raises:
        ConfigError: if the dataset does not exist, OpenML is unreachable, or the answer cannot be read.
        KeyError: if the target column does not exist.
    """
    from sklearn.datasets import fetch_openml

    read = partial(
        fetch_openml,
        name,
        version=version,
        data_home=folder,
        target_column="default-target" if target_column is None else target_column,
        as_frame=True,
        n_retries=1,
        delay=0.5,
    )
    with (
        translate_errors(name, version, folder),
        socket_timeout(TIMEOUT_SECONDS),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        # Without rows, the nominal columns are known by their dtype and none is read wrongly.
        columns = read(read_csv_kwargs={"nrows": 0}).frame
        bunch = read(read_csv_kwargs=dict(READ_CSV_OPTIONS))
    bunch.frame = without_arff_quotes(bunch.frame, list(columns.select_dtypes("category")))
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    lines = dict.fromkeys(text.splitlines()[0].removesuffix(" Available versions:") for text in texts)
    return bunch, [f"data: OpenML: {line}" for line in lines if not line.endswith("Retrying...")]


def without_arff_quotes(frame: "pd.DataFrame", nominal: Sequence[str]) -> "pd.DataFrame":
    """Remove ARFF's single quotes from text columns, and convert nominal columns to categories."""
    import pandas as pd

    text_columns = [str(name) for name, column in frame.items() if pd.api.types.is_string_dtype(column)]
    unquoted = {name: frame[name].str.replace(r"^'(.*)'$", r"\1", regex=True) for name in text_columns}
    return frame.assign(**unquoted).astype(dict.fromkeys(nominal, "category"))


@contextmanager
def translate_errors(name: str, version: int | str, folder: str) -> Iterator[None]:
    """Convert exceptions of scikit-learn and the network into :class:`ConfigError` with a remedy."""
    try:
        yield
    except (ValueError, IndexError) as error:
        # The class of scikit-learn's error about an unknown dataset is private.
        if isinstance(error, IndexError) or str(error).endswith(" found."):
            raise ConfigError(
                f"data.name={name}: OpenML has no dataset of this name with data.version={version}; "
                "look it up on www.openml.org"
            ) from error
        reason = "sparse tables are not supported" if "Sparse ARFF" in str(error) else first_line(error)
        raise ConfigError(f"data.name={name}: {reason}") from error
    except (OSError, HTTPException) as error:
        if isinstance(error, OSError) and error.filename and not isinstance(error, URLError):
            raise ConfigError(f"data.data_home={folder}: {first_line(error)}") from error
        reason = first_line(error).removeprefix("<urlopen error ").removesuffix(">")
        raise ConfigError(
            f"data.name={name}: OpenML cannot be reached ({reason}); datasets fetched before are read from "
            f"{folder} without network"
        ) from error


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Set the default socket timeout, which urllib would otherwise leave unlimited."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
